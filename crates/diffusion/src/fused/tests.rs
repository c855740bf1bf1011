use tch::{Device, Kind, Tensor};
use torch_ext::autograd::check_gradients;
use torch_ext::{Generator, TorchError};

use super::{gate, norm_modulate};
use crate::DiffusionError;
use crate::dual::Activation;

fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    let tensor = generator.randn(&size, Kind::Float).unwrap().to_kind(kind);
    tensor.set_requires_grad(true)
}

fn torch(error: DiffusionError) -> TorchError {
    TorchError::Libtorch(error.to_string())
}

/// Value and gradients, in float32.
fn run(inputs: &[Tensor], function: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.detach().copy().set_requires_grad(true))
        .collect();
    let output = function(&inputs).to_kind(Kind::Float);
    let weights = random(9, output.size().try_into().unwrap(), Kind::Float).detach();
    (&output * weights).sum(Kind::Float).f_backward().unwrap();
    let gradients = inputs.iter().map(|input| {
        assert_eq!(input.grad().kind(), input.kind());
        input.grad().to_kind(Kind::Float)
    });
    [output].into_iter().chain(gradients).collect()
}

fn assert_close(left: &[Tensor], right: &[Tensor], limit: f64) {
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        let scale = right.abs().max().double_value(&[]).max(1.0);
        let error = (left - right).abs().max().double_value(&[]);
        assert!(error <= limit * scale, "tensor {index}: {error} of {scale}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (x, y) = (
        random(1, [2, 3, 17], Kind::Double),
        random(2, [2, 3, 17], Kind::Double),
    );
    let (a, b) = (
        random(3, [2, 1, 17], Kind::Double),
        random(4, [2, 1, 17], Kind::Double),
    );
    let inputs = [x.shallow_clone(), a.shallow_clone(), b];
    let function = |i: &[Tensor]| {
        let fused = norm_modulate(&i[0], &i[1], &i[2], 1e-6).map_err(torch)?;
        Ok(vec![fused.unwrap()])
    };
    check_gradients(function, &inputs, 1e-6, 1e-6).unwrap();
    let function = |i: &[Tensor]| Ok(vec![gate(&i[0], &i[1], &i[2]).map_err(torch)?.unwrap()]);
    check_gradients(function, &[x, a, y], 1e-6, 1e-6).unwrap();
}

#[test]
fn they_equal_the_composition() {
    for size @ [batch, _, width] in [[1, 1, 1], [2, 65, 24], [3, 200, 48], [2, 64, 33]] {
        for (kind, limit) in [(Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
            let [a, b] = [3, 4].map(|seed| random(seed, [batch, 1, width], kind));
            let x = random(1, size, Kind::Float);
            let inputs = [x.shallow_clone(), a.shallow_clone(), b];
            let fused = run(&inputs, |i| {
                let y = norm_modulate(&i[0], &i[1], &i[2], 1e-6).unwrap().unwrap();
                assert_eq!(y.kind(), kind);
                y
            });
            let plain = run(&inputs, |i| {
                i[0].layer_norm([width], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
                    .modulate(&i[1], &i[2])
                    .unwrap()
            });
            assert_close(&fused, &plain, limit);
            let inputs = [x, a, random(2, size, kind)];
            let fused = run(&inputs, |i| gate(&i[0], &i[1], &i[2]).unwrap().unwrap());
            let plain = run(&inputs, |i| i[0].add_product(&i[1], &i[2]).unwrap());
            assert_close(&fused, &plain, limit);
        }
    }
}

#[test]
fn slices_of_a_modulation_are_taken_as_they_are() {
    let parts = random(1, [4, 3, 20], Kind::Float);
    let (shift, scale) = (parts.narrow(1, 0, 1), parts.narrow(1, 2, 1));
    let x = random(2, [4, 20, 6], Kind::Float).transpose(1, 2);
    let fused = norm_modulate(&x, &shift, &scale, 1e-6).unwrap().unwrap();
    let plain = x
        .layer_norm([20], None::<&Tensor>, None::<&Tensor>, 1e-6, true)
        .modulate(&shift, &scale)
        .unwrap();
    assert_close(&[fused], &[plain], 3e-6);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let before = tch::get_num_threads();
    let inputs = [
        random(1, [3, 150, 40], Kind::Float),
        random(2, [3, 1, 40], Kind::Float),
        random(3, [3, 1, 40], Kind::Float),
    ];
    let results = [1, 2, 5].map(|threads| {
        tch::set_num_threads(threads);
        run(&inputs, |i| {
            norm_modulate(&i[0], &i[1], &i[2], 1e-6).unwrap().unwrap()
        })
    });
    tch::set_num_threads(before);
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn what_has_no_fused_form_is_left_to_the_composition() {
    let (x, a) = (
        random(1, [2, 3, 8], Kind::Float),
        random(2, [2, 1, 8], Kind::Float),
    );
    let half = a.to_kind(Kind::Half);
    assert!(norm_modulate(&x, &half, &half, 1e-6).unwrap().is_none());
    assert!(
        norm_modulate(&x, &a, &a.to_kind(Kind::BFloat16), 1e-6)
            .unwrap()
            .is_none()
    );
    assert!(norm_modulate(&x, &x, &x, 1e-6).unwrap().is_none());
    assert!(gate(&x, &a, &x.to_kind(Kind::BFloat16)).unwrap().is_none());
}
