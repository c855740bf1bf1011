//! Dense linear algebra whose result does not depend on the number of threads.
//!
//! faer's own parallel routines split sums by the number of threads, so the last bits of their results
//! depend on it. Here every product is split into fixed blocks that rayon distributes over threads, and
//! decompositions are sequential.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::{evd, matmul, qr, svd};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::MetricsError;

/// Columns of a product that one task computes.
const BLOCK: usize = 128;

/// Adds `samples * samples^T` to the lower triangle of `sum` `[D, D]`, for `samples` `[D, N]`; entries
/// above the diagonal are undefined.
pub(crate) fn add_outer_product(sum: &mut Mat<f64>, samples: MatRef<'_, f64>) {
    let dimension = sum.nrows();
    let blocks = sum.par_col_chunks_mut(BLOCK).enumerate();
    blocks.for_each(|(block, columns)| {
        let start = block * BLOCK;
        let width = columns.ncols();
        matmul::matmul(
            columns.subrows_mut(start, dimension - start),
            Accum::Add,
            samples.subrows(start, dimension - start),
            samples.subrows(start, width).transpose(),
            1.0,
            Par::Seq,
        );
    });
}

/// Computes `left^T * right`.
pub(crate) fn cross_product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.ncols(), right.ncols());
    let blocks = product.par_col_chunks_mut(BLOCK).enumerate();
    blocks.for_each(|(block, columns)| {
        let right = right.subcols(block * BLOCK, columns.ncols());
        matmul::matmul(
            columns,
            Accum::Replace,
            left.transpose(),
            right,
            1.0,
            Par::Seq,
        );
    });
    product
}

/// Computes `left^T * right` on the calling thread, for tasks that already run in parallel.
pub(crate) fn sequential_product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.ncols(), right.ncols());
    matmul::matmul(
        product.as_mut(),
        Accum::Replace,
        left.transpose(),
        right,
        1.0,
        Par::Seq,
    );
    product
}

/// Computes `columns^T * columns` `[T, T]` for `columns` `[D, T]`, on the calling thread; the result is exactly
/// symmetric.
pub(crate) fn gram(columns: MatRef<'_, f32>) -> Vec<f32> {
    let count = columns.ncols();
    let mut product = vec![0.0; count * count];
    let lower = MatMut::from_column_major_slice_mut(&mut product, count, count);
    lower_gram(lower, columns);
    mirror(&mut product, count);
    product
}

/// Computes the product on and below the diagonal: the square below it, then recursively both squares on it.
fn lower_gram(product: MatMut<'_, f32>, columns: MatRef<'_, f32>) {
    /// Largest side of a square on the diagonal that is computed without splitting.
    const MAX_WHOLE: usize = 32;
    let multiply = |product, left: MatRef<'_, f32>, right| {
        let left = left.transpose();
        matmul::matmul(product, Accum::Replace, left, right, 1.0, Par::Seq);
    };
    let count = columns.ncols();
    if count <= MAX_WHOLE {
        return multiply(product, columns, columns);
    }
    let half = (count / 2).next_multiple_of(MAX_WHOLE / 2);
    let (first, second) = columns.split_at_col(half);
    let (top_left, _, bottom_left, bottom_right) = product.split_at_mut(half, half);
    multiply(bottom_left, second, first);
    lower_gram(top_left, first);
    lower_gram(bottom_right, second);
}

/// Copies the entries below the diagonal of a column-major `[count, count]` matrix to above it, in tiles.
fn mirror(matrix: &mut [f32], count: usize) {
    const TILE: usize = 16;
    let mut tile = [[0.0; TILE]; TILE];
    for top in (0..count).step_by(TILE) {
        let rows = TILE.min(count - top);
        for left in (0..=top).step_by(TILE) {
            let columns = TILE.min(count - left);
            for (column, values) in tile[..columns].iter_mut().enumerate() {
                let start = (left + column) * count + top;
                values[..rows].copy_from_slice(&matrix[start..start + rows]);
            }
            for row in 0..rows {
                let columns = if left == top { row } else { columns };
                let start = (top + row) * count + left;
                let mirrored = &mut matrix[start..start + columns];
                for (value, column) in mirrored.iter_mut().zip(&tile) {
                    *value = column[row];
                }
            }
        }
    }
}

/// Computes the eigenvalues in ascending order and the eigenvectors (columns) of a symmetric matrix, of which only
/// the lower triangle is read.
pub(crate) fn symmetric_eigen(
    matrix: MatRef<'_, f64>,
) -> Result<(Vec<f64>, Mat<f64>), MetricsError> {
    let size = matrix.nrows();
    let mut values = Diag::zeros(size);
    let mut vectors = Mat::zeros(size, size);
    let scratch = evd::self_adjoint_evd_scratch::<f64>(
        size,
        evd::ComputeEigenvectors::Yes,
        Par::Seq,
        Default::default(),
    );
    evd::self_adjoint_evd(
        matrix,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| MetricsError::NoConvergence {
        decomposition: "eigenvalue decomposition",
        size,
    })?;
    Ok((values.column_vector().iter().copied().collect(), vectors))
}

/// Computes the sum of the singular values.
pub(crate) fn nuclear_norm(matrix: MatRef<'_, f64>) -> Result<f64, MetricsError> {
    let (rows, columns) = matrix.shape();
    let mut values = Diag::zeros(rows.min(columns));
    let scratch = svd::svd_scratch::<f64>(
        rows,
        columns,
        svd::ComputeSvdVectors::No,
        svd::ComputeSvdVectors::No,
        Par::Seq,
        Default::default(),
    );
    svd::svd(
        matrix,
        values.as_mut(),
        None,
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| MetricsError::NoConvergence {
        decomposition: "singular value decomposition",
        size: rows.max(columns),
    })?;
    Ok(values.column_vector().iter().sum())
}

/// Computes the upper triangular factor `R` `[D, D]` of `rows = Q R`, for `rows` `[N, D]` with `N >= D`.
pub(crate) fn qr_upper(mut rows: Mat<f64>) -> Mat<f64> {
    use qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};

    let (count, dimension) = rows.shape();
    let block = recommended_block_size::<f64>(count, dimension);
    let mut householder = Mat::zeros(block, dimension);
    let scratch = qr_in_place_scratch::<f64>(count, dimension, block, Par::Seq, Default::default());
    qr_in_place(
        rows.as_mut(),
        householder.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    Mat::from_fn(dimension, dimension, |i, j| {
        if i <= j { rows[(i, j)] } else { 0.0 }
    })
}
