//! Helpers of the tests of several operations.

use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

pub(crate) fn random(seed: u64, size: [i64; 3], kind: Kind) -> Tensor {
    let mut generator = Generator::new(Device::Cpu, seed).unwrap();
    let tensor = generator.randn(&size, Kind::Float).unwrap().to_kind(kind);
    tensor.set_requires_grad(true)
}

/// The value of `function` and its gradients, in float32.
pub(crate) fn run(inputs: &[Tensor], function: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.detach().copy().set_requires_grad(true))
        .collect();
    let output = function(&inputs).to_kind(Kind::Float);
    let weights = random(9, output.size().try_into().unwrap(), Kind::Float).detach();
    let weights = weights.to_device(output.device());
    (&output * weights).sum(Kind::Float).f_backward().unwrap();
    let gradients = inputs.iter().map(|input| {
        assert_eq!(input.grad().kind(), input.kind());
        input.grad().to_kind(Kind::Float)
    });
    [output].into_iter().chain(gradients).collect()
}

pub(crate) fn assert_close(left: &[Tensor], right: &[Tensor], limit: f64) {
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        let scale = right.abs().max().double_value(&[]).max(1.0);
        let error = (left - right).abs().max().double_value(&[]);
        assert!(error <= limit * scale, "tensor {index}: {error} of {scale}");
    }
}
