//! The kernels of the update against libtorch's operations, on the CPU, emulated and on CUDA.

use tch::{Device, Kind, Tensor};
use torch_ext::optim::{self, AdamW};
use torch_ext::{Generator, TorchError, cuda, device};

use super::cuda::UpdateKernels;
use super::operands::CHUNK;
use super::{AVERAGES, Operands, PointerTable, Update, kernel, update_weights};

const CPU: Device = Device::Cpu;

/// Shapes of weights with whole chunks, with whole vectors, with neither, and without elements.
const SIZES: [&[i64]; 6] = [
    &[3, CHUNK as i64],
    &[CHUNK as i64 + 21],
    &[5, 7],
    &[0, 4],
    &[64],
    &[1],
];

const SETTINGS: AdamW = AdamW {
    lr: 3e-3,
    betas: (0.9, 0.95),
    weight_decay: 0.1,
    eps: 1e-8,
};

/// Weights, moments, averages and copies of a model in the middle of its training.
struct State {
    weights: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    averages: Vec<Vec<Tensor>>,
    copies: Option<Vec<Tensor>>,
}

fn random(generator: &mut Generator, kind: Kind, device: Device) -> Vec<Tensor> {
    let draw = |size: &&[i64]| generator.randn(size, Kind::Float).unwrap();
    let drawn: Vec<Tensor> = SIZES.iter().map(draw).collect();
    drawn
        .iter()
        .map(|tensor| tensor.to_kind(kind).to_device(device))
        .collect()
}

impl State {
    fn new(averages: usize, copies: bool, device: Device) -> Self {
        let mut generator = Generator::new(CPU, 5).unwrap();
        let mut draw = || random(&mut generator, Kind::Float, device);
        let scaled = |list: Vec<Tensor>| list.iter().map(|t| t * 0.1).collect();
        let weights = draw();
        Self {
            exp_avgs: scaled(draw()),
            exp_avg_sqs: draw().iter().map(|t| (t.square() + 0.5) * 0.01).collect(),
            averages: (0..averages).map(|_| draw()).collect(),
            copies: copies.then(|| narrow(&weights)),
            weights,
        }
    }

    fn operands(&self, gradients: &[Tensor]) -> Vec<Operands<'_>> {
        (0..self.weights.len())
            .map(|i| Operands {
                gradient: gradients[i].shallow_clone(),
                weight: &self.weights[i],
                exp_avg: &self.exp_avgs[i],
                exp_avg_sq: &self.exp_avg_sqs[i],
                averages: self.averages.iter().map(|average| &average[i]).collect(),
                copy: self.copies.as_ref().map(|copies| &copies[i]),
            })
            .collect()
    }

    /// Computes the update with libtorch's operations. The norm is computed in float64, since libtorch's float32 norm
    /// has an error of about 1e-6.
    fn compose(&self, gradients: &[Tensor], update: &Update<'_>) -> Tensor {
        let gradients: Vec<Tensor> = gradients
            .iter()
            .map(|gradient| gradient.to_kind(Kind::Float).copy())
            .collect();
        let squares = gradients.iter().map(|gradient| {
            let squares = gradient.to_kind(Kind::Double).square();
            squares.sum(Kind::Double).double_value(&[])
        });
        let norm = Tensor::from(squares.sum::<f64>().sqrt()).to_kind(Kind::Float);
        let norm = norm.to_device(gradients[0].device());
        optim::clip_grads_(&gradients, &norm, update.max_norm).unwrap();
        let device = self.weights[0].device();
        let count = Tensor::full([], update.step as f64, (Kind::Float, device));
        let counts: Vec<Tensor> = gradients.iter().map(|_| count.shallow_clone()).collect();
        let (m, v) = (&self.exp_avgs, &self.exp_avg_sqs);
        optim::fused_adamw_(&self.weights, &gradients, m, v, &counts, &update.settings).unwrap();
        for (average, &decay) in self.averages.iter().zip(update.decays) {
            optim::ema_(average, &self.weights, decay).unwrap();
        }
        if let Some(copies) = &self.copies {
            optim::copy_(copies, &self.weights).unwrap();
        }
        norm
    }

    fn all(&self) -> Vec<&Tensor> {
        let state = [&self.weights, &self.exp_avgs, &self.exp_avg_sqs];
        state
            .into_iter()
            .chain(&self.averages)
            .chain(&self.copies)
            .flatten()
            .collect()
    }

    fn copy(&self) -> Vec<Tensor> {
        self.all().iter().map(|tensor| tensor.copy()).collect()
    }

    fn assert_close(&self, other: &Self, limit: f64) {
        for (index, (left, right)) in self.all().into_iter().zip(other.all()).enumerate() {
            assert_eq!(left.kind(), right.kind());
            if left.numel() == 0 {
                continue;
            }
            // Bfloat16 values may differ by one rounding step.
            let limit = if left.kind() == Kind::Float {
                limit
            } else {
                8e-3
            };
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let scale = double(right).abs().clamp_min(0.1);
            let error = (double(left) - double(right)).abs() / scale;
            let error = error.max().double_value(&[]);
            assert!(error <= limit, "tensor {index}: {error}");
        }
    }
}

fn narrow(weights: &[Tensor]) -> Vec<Tensor> {
    weights.iter().map(|w| w.to_kind(Kind::BFloat16)).collect()
}

const DECAYS: [f64; AVERAGES] = [0.9999, 0.99];

fn update(step: u64, max_norm: f64, averages: usize) -> Update<'static> {
    Update {
        settings: SETTINGS,
        step,
        max_norm,
        decays: &DECAYS[..averages],
    }
}

fn swept(state: &State, gradients: &[Tensor], update: &Update<'_>) -> Tensor {
    let table = PointerTable::default();
    let norm = kernel(&state.operands(gradients), update, &table).unwrap();
    norm.expect("a kernel")
}

/// Asserts that some steps of `sweep` equal those of libtorch's operations, up to relative errors of `limit`, and of
/// `norm_limit` for the norm.
fn assert_agrees(
    device: Device,
    (limit, norm_limit): (f64, f64),
    sweep: impl Fn(&State, &[Tensor], &Update<'_>) -> Tensor,
) {
    for averages in 0..=AVERAGES {
        for copies in [false, true] {
            // Strong clipping, and none.
            for max_norm in [1.0, 1e9] {
                let (fused, composed) = (
                    State::new(averages, copies, device),
                    State::new(averages, copies, device),
                );
                let mut generator = Generator::new(CPU, 6).unwrap();
                for step in 1..4 {
                    let kind = if copies { Kind::BFloat16 } else { Kind::Float };
                    let gradients = random(&mut generator, kind, device);
                    let original: Vec<Tensor> = gradients.iter().map(Tensor::copy).collect();
                    let update = update(step, max_norm, averages);
                    let norm = sweep(&fused, &gradients, &update).double_value(&[]);
                    assert_eq!(gradients, original, "gradients must not change");
                    let expected = composed.compose(&gradients, &update).double_value(&[]);
                    assert!(
                        (norm / expected - 1.0).abs() < norm_limit,
                        "{norm} for {expected}"
                    );
                }
                fused.assert_close(&composed, limit);
                if let Some(copies) = &fused.copies {
                    assert_eq!(*copies, narrow(&fused.weights));
                }
            }
        }
    }
}

#[test]
fn a_sweep_equals_the_composed_update() {
    assert_agrees(CPU, (2e-7, 1e-6), swept);
}

#[test]
fn a_composed_update_equals_libtorchs() {
    let table = PointerTable::default();
    let composed = |state: &State, gradients: &[Tensor], update: &Update<'_>| {
        // Libtorch scales gradients in place.
        let gradients: Vec<Tensor> = gradients.iter().map(Tensor::copy).collect();
        crate::composed(|| update_weights(&state.operands(&gradients), update, &table)).unwrap()
    };
    // The norm is a float32 norm of float32 norms.
    assert_agrees(CPU, (1e-5, 1e-5), composed);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let before = tch::get_num_threads();
    let mut outcomes = Vec::new();
    for threads in [1, 2, 3] {
        tch::set_num_threads(threads);
        let state = State::new(1, true, CPU);
        let mut generator = Generator::new(CPU, 6).unwrap();
        let gradients = random(&mut generator, Kind::BFloat16, CPU);
        let norm = swept(&state, &gradients, &update(3, 1.0, 1));
        outcomes.push((norm, state.copy()));
    }
    tch::set_num_threads(before);
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(outcomes[0], outcomes[2]);
}

#[test]
fn a_bfloat16_gradient_is_widened() {
    let mut generator = Generator::new(CPU, 6).unwrap();
    let gradients = random(&mut generator, Kind::BFloat16, CPU);
    let wide: Vec<Tensor> = gradients.iter().map(|g| g.to_kind(Kind::Float)).collect();
    let (narrow, plain) = (State::new(1, true, CPU), State::new(1, false, CPU));
    let update = update(2, 1.0, 1);
    assert_eq!(
        swept(&narrow, &gradients, &update),
        swept(&plain, &wide, &update)
    );
    for (left, right) in narrow.all().into_iter().zip(plain.all()) {
        assert_eq!(left, right);
    }
}

#[test]
fn a_transposed_gradient_is_read_in_the_order_of_its_weight() {
    let mut generator = Generator::new(CPU, 6).unwrap();
    let gradients = random(&mut generator, Kind::Float, CPU);
    let transposed: Vec<Tensor> = gradients
        .iter()
        .map(|gradient| match gradient.dim() {
            2 => gradient.transpose(0, 1).contiguous().transpose(0, 1),
            _ => gradient.shallow_clone(),
        })
        .collect();
    assert!(!transposed[0].is_contiguous());
    let (left, right) = (State::new(1, false, CPU), State::new(1, false, CPU));
    let _norms = (
        swept(&left, &gradients, &update(1, 1.0, 1)),
        swept(&right, &transposed, &update(1, 1.0, 1)),
    );
    assert_eq!(left.copy(), right.copy());
}

/// Returns gradient norm and state after a step with `value` as one element of a gradient.
fn with_gradient(value: f64) -> (f64, State) {
    let mut generator = Generator::new(CPU, 6).unwrap();
    let gradients = random(&mut generator, Kind::Float, CPU);
    let _ = gradients[1].narrow(0, 40, 1).fill_(value);
    let state = State::new(1, false, CPU);
    let norm = swept(&state, &gradients, &update(1, 1.0, 1));
    (norm.double_value(&[]), state)
}

#[test]
fn the_norm_of_a_gradient_that_is_not_finite_is_not_finite() {
    let (norm, state) = with_gradient(f64::NAN);
    assert!(norm.is_nan());
    assert!(
        state
            .weights
            .iter()
            .all(|w| w.isnan().all().int64_value(&[]) == 1)
    );
    let (norm, state) = with_gradient(f64::NEG_INFINITY);
    assert_eq!(norm, f64::INFINITY);
    assert_eq!(
        state.weights[1].isnan().sum(Kind::Int64).int64_value(&[]),
        1
    );
    // The norm is finite even if the squares exceed float32's range.
    let (norm, state) = with_gradient(1e30);
    assert!((norm / 1e30 - 1.0).abs() < 1e-6, "{norm}");
    assert_eq!(state.weights[1].isfinite().all().int64_value(&[]), 1);
}

#[test]
fn unsupported_operands_have_no_kernel_and_are_not_changed() {
    let gradients =
        |state: &State| -> Vec<Tensor> { state.weights.iter().map(Tensor::ones_like).collect() };
    let refused = |state: &State, gradients: &[Tensor], averages| {
        let before = state.copy();
        let table = PointerTable::default();
        let outcome = kernel(
            &state.operands(gradients),
            &update(1, 1.0, averages),
            &table,
        );
        assert!(outcome.unwrap().is_none());
        assert_eq!(state.copy(), before);
    };
    let mut double = State::new(1, false, CPU);
    double.weights[0] = double.weights[0].to_kind(Kind::Double);
    refused(&double, &gradients(&double), 1);
    let mut transposed = State::new(1, false, CPU);
    transposed.exp_avgs[2] = transposed.exp_avgs[2]
        .transpose(0, 1)
        .contiguous()
        .transpose(0, 1);
    refused(&transposed, &gradients(&transposed), 1);
    let plain = State::new(1, false, CPU);
    refused(&plain, &narrow(&gradients(&plain)), 1);
    let table = PointerTable::default();
    let operands = gradients(&plain);
    let error = update_weights(&plain.operands(&operands), &update(1, 1.0, 2), &table);
    assert!(matches!(error, Err(TorchError::Length { .. })), "{error:?}");
    let norm = update_weights(&[], &update(1, 1.0, 0), &table).unwrap();
    assert_eq!(norm.double_value(&[]), 0.0);
}

#[test]
fn the_same_weight_twice_is_refused() {
    let state = State::new(0, false, CPU);
    let gradients: Vec<Tensor> = state.weights.iter().map(Tensor::ones_like).collect();
    let (mut operands, mut again) = (state.operands(&gradients), state.operands(&gradients));
    operands.push(again.remove(0));
    let error = update_weights(&operands, &update(1, 1.0, 0), &PointerTable::default());
    assert!(matches!(error, Err(TorchError::Memory(_))), "{error:?}");
}

fn launch_emulated(
    table: &PointerTable,
    weights: &[Operands<'_>],
    update: &Update<'_>,
) -> Result<Tensor, TorchError> {
    // SAFETY: the operands of a `State` are contiguous CPU tensors of the right sizes and dtypes, which libtorch aligns.
    unsafe { table.launch(UpdateKernels::emulated(), weights, update) }
}

#[test]
fn cuda_kernels_refuse_operands_that_share_memory() {
    let state = State::new(0, false, CPU);
    let launch = |gradients: &[Tensor]| {
        let table = PointerTable::default();
        launch_emulated(&table, &state.operands(gradients), &update(1, 1.0, 0))
    };
    // Gradients may share memory with each other, but not with what the kernel writes.
    let mut gradients: Vec<Tensor> = state.weights.iter().map(Tensor::ones_like).collect();
    // Tensors that are not aligned to 16 bytes would be copied first.
    gradients[5] = gradients[4].narrow(0, 4, 1);
    assert!(launch(&gradients).is_ok());
    gradients[5] = state.exp_avgs[4].narrow(0, 4, 1);
    let error = launch(&gradients);
    assert!(matches!(error, Err(TorchError::Memory(_))), "{error:?}");
}

#[test]
fn emulated_cuda_kernels_equal_the_composed_update() {
    let table = PointerTable::default();
    assert_agrees(CPU, (3e-6, 1e-6), |state, gradients, update| {
        launch_emulated(&table, &state.operands(gradients), update).unwrap()
    });
    let mut generator = Generator::new(CPU, 6).unwrap();
    let gradients = random(&mut generator, Kind::Float, CPU);
    let _ = gradients[1].narrow(0, 40, 1).fill_(f64::NAN);
    let state = State::new(1, false, CPU);
    let before = cuda::resolutions();
    let norm = launch_emulated(&table, &state.operands(&gradients), &update(1, 1.0, 1)).unwrap();
    assert_eq!(
        cuda::resolutions(),
        before,
        "a repeated launch looks nothing up"
    );
    assert!(norm.double_value(&[]).is_nan());
    assert!(
        state
            .weights
            .iter()
            .all(|w| w.isnan().all().int64_value(&[]) == 1)
    );
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn cuda_kernels_equal_the_composed_update() {
        device::load_cuda().unwrap();
        assert_agrees(Device::Cuda(0), (3e-6, 1e-6), swept);
    }
}
