use half::bf16;
use torch_ext::kernel::{Real, Stored};

use super::{Columns, Operand, Packed, Rows, Transposed, multiply};

/// Pseudo-random numbers between -1 and 1.
fn numbers<E: Stored<A>, A: Real>(seed: usize, count: usize) -> Vec<E> {
    (0..count)
        .map(|index| {
            let mixed = (index + 1) * (seed * 2_654_435 + 40_503) % 65_521;
            E::narrow(A::from_f64(mixed as f64 / 32_760.5 - 1.0))
        })
        .collect()
}

/// Compares the product with float64 arithmetic, for a left factor with `gap` unused elements between rows.
fn assert_product<E>([rows, depth, columns]: [usize; 3], gap: usize, limit: f64)
where
    E: Operand + Stored<E::Sum>,
    E::Sum: PartialEq,
{
    let what = format!("{:?} {rows} x {depth} x {columns}", E::KIND);
    let padded = depth.next_multiple_of(E::UNIT);
    let stride = padded + gap;
    let mut a = numbers::<E, E::Sum>(1, rows * stride);
    for row in a.chunks_mut(stride) {
        row[depth..padded].fill(E::default());
    }
    let b = numbers::<E, E::Sum>(2, depth * columns);
    let mut transposed = vec![E::default(); padded * columns];
    for (column, values) in transposed.chunks_mut(padded).enumerate() {
        for (row, value) in values[..depth].iter_mut().enumerate() {
            *value = b[row * columns + column];
        }
    }
    let wide = |e: E| e.widen().to_f64();
    let expected: Vec<f64> = (0..rows * columns)
        .map(|index| {
            let (row, column) = (index / columns, index % columns);
            (0..depth)
                .map(|k| wide(a[row * stride + k]) * wide(b[k * columns + column]))
                .sum()
        })
        .collect();

    // The previous content of a packed matrix must not affect the product.
    let mut packed = Packed::<E>::default();
    packed.pack_rows(Rows::new(&numbers::<E, E::Sum>(3, 70 * 130), 130, 70, 130));
    packed.pack_rows(Rows::new(&b, columns, depth, columns));
    let mut by_columns = Packed::<E>::default();
    by_columns.pack_columns(Rows::new(&numbers::<E, E::Sum>(3, 70 * 130), 130, 70, 130));
    by_columns.pack_columns(Rows::new(&transposed, padded, columns, padded));
    // The left factor, stored by columns.
    let mut a_columns = vec![E::default(); depth * rows];
    for (row, values) in a.chunks(stride).enumerate() {
        for (column, &value) in values[..depth].iter().enumerate() {
            a_columns[column * rows + row] = value;
        }
    }
    let mut a_transposed = Transposed::<E>::default();
    a_transposed.pack(Rows::new(&numbers::<E, E::Sum>(3, 70 * 130), 130, 70, 130));
    a_transposed.pack(Rows::new(&a_columns, rows, depth, rows));
    let a = Rows::new(&a, stride, rows, padded);
    for packed in [packed, by_columns] {
        assert_eq!(packed.columns(), columns);
        let mut c = vec![E::Sum::from_f64(7.0); rows * columns];
        multiply(a, &packed, &mut c, false);
        for (c, expected) in c.iter().zip(&expected) {
            assert!((c.to_f64() - expected).abs() < limit, "{what}");
        }
        multiply(a, &packed, &mut c, true);
        for (c, expected) in c.iter().zip(&expected) {
            assert!((c.to_f64() - 2.0 * expected).abs() < 2.0 * limit, "{what}");
        }
        let mut same = vec![E::Sum::default(); rows * columns];
        multiply(a_transposed.left(), &packed, &mut same, false);
        multiply(a_transposed.left(), &packed, &mut same, true);
        assert!(same == c, "{what}");
        // A row does not depend on the other rows.
        let mut single = vec![E::Sum::default(); columns];
        for row in 0..rows {
            multiply(a.part(row, 1), &packed, &mut single, false);
            let mut all = vec![E::Sum::default(); rows * columns];
            multiply(a, &packed, &mut all, false);
            assert!(all[row * columns..][..columns] == single, "{what}");
        }
    }
}

#[test]
fn products_agree_with_float64() {
    for size in [
        [1, 1, 1],
        [4, 2, 32],
        [8, 64, 64],
        [13, 7, 33],
        [9, 72, 31],
        [32, 129, 100],
        [5, 3, 16],
        [66, 67, 64],
    ] {
        for gap in [0, 5] {
            assert_product::<f32>(size, gap, 2e-5);
            assert_product::<f64>(size, gap, 1e-12);
            assert_product::<bf16>(size, gap, 2e-5);
        }
    }
}

#[test]
fn a_product_over_zero_elements_is_zero() {
    let mut packed = Packed::<f32>::default();
    packed.pack_rows(Rows::new(&[], 3, 0, 3));
    let mut c = [5.0; 6];
    multiply(Rows::new(&[], 0, 2, 0), &packed, &mut c, true);
    assert_eq!(c, [5.0; 6]);
    multiply(Rows::new(&[], 0, 2, 0), &packed, &mut c, false);
    assert_eq!(c, [0.0; 6]);
}

#[test]
#[should_panic(expected = "units of a row and of a column")]
fn mismatched_shapes_panic() {
    let mut packed = Packed::<f32>::default();
    packed.pack_rows(Rows::new(&[0.0; 8], 2, 4, 2));
    multiply(Rows::new(&[0.0; 6], 3, 2, 3), &packed, &mut [0.0; 4], false);
}

#[test]
fn blocks_of_columns_can_be_written_in_parallel() {
    let mut matrix = [0u8; 24];
    let mut blocks = Columns::split(&mut matrix, 6, 2);
    assert_eq!(blocks.len(), 3);
    std::thread::scope(|scope| {
        for (index, block) in blocks.iter_mut().enumerate() {
            scope.spawn(move || {
                for row in 0..block.rows() {
                    block.row_mut(row).fill((10 * row + index) as u8);
                }
            });
        }
    });
    assert_eq!(matrix[..12], [0, 0, 1, 1, 2, 2, 10, 10, 11, 11, 12, 12]);
    assert!(Columns::split(&mut [0u8; 0], 6, 2).is_empty());
}
