//! Guarantees of custom autograd functions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tch::{Device, Kind, Tensor};
use torch_ext::autograd::{
    Backward, Forward, Function, GradientError, Gradients, Outputs, Result, apply, check_gradients,
};
use torch_ext::{Generator, TorchError, autocast};

const CPU: Device = Device::Cpu;

fn leaf(seed: u64, size: &[i64], kind: Kind) -> Tensor {
    let mut generator = Generator::new(CPU, seed).unwrap();
    generator.randn(size, kind).unwrap().set_requires_grad(true)
}

fn close(left: &Tensor, right: &Tensor) -> bool {
    (left - right).abs().max().double_value(&[]) < 1e-12
}

/// A backward pass that a test supplies.
type Rule = fn(&Backward<'_>, &Gradients) -> Result<Gradients>;

/// `(x * y, x + y)`, with a counter of live functions.
struct ProductAndSum {
    rule: Rule,
    twice: bool,
    alive: Arc<AtomicUsize>,
}

impl ProductAndSum {
    fn new() -> Self {
        Self::with(product_and_sum)
    }

    fn with(rule: Rule) -> Self {
        Self::counted(rule, &Arc::new(AtomicUsize::new(0)))
    }

    fn counted(rule: Rule, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self {
            rule,
            twice: false,
            alive: alive.clone(),
        }
    }
}

impl Drop for ProductAndSum {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

fn product_and_sum(context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
    let (x, y) = (context.saved(0)?, context.saved(1)?);
    let of = |other: &Tensor| -> Result<Option<Tensor>> {
        let product = gradients[0].as_ref().map(|g| g.f_mul(other)).transpose()?;
        Ok(match (product, &gradients[1]) {
            (Some(product), Some(sum)) => Some(product.f_add(sum)?),
            (Some(only), None) => Some(only),
            (None, sum) => sum.as_ref().map(Tensor::shallow_clone),
        })
    };
    Ok(vec![of(&y)?, of(&x)?])
}

impl Function for ProductAndSum {
    fn name(&self) -> &'static str {
        "product and sum"
    }

    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs> {
        let &[x, y] = inputs else {
            return Err("two inputs".into());
        };
        context.save(x);
        context.save(y);
        Ok(vec![x.f_mul(y)?, x.f_add(y)?])
    }

    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        (self.rule)(context, gradients)
    }

    fn twice_differentiable(&self) -> bool {
        self.twice
    }
}

fn pair() -> (Tensor, Tensor) {
    (
        leaf(1, &[3, 2], Kind::Double),
        leaf(2, &[3, 2], Kind::Double),
    )
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (x, y) = pair();
    let function = |inputs: &[Tensor]| apply(ProductAndSum::new(), &[&inputs[0], &inputs[1]]);
    check_gradients(function, &[x, y], 1e-6, 1e-7).unwrap();
}

#[test]
fn a_wrong_gradient_is_found() {
    fn wrong(context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        let mut right = product_and_sum(context, gradients)?;
        right[1] = right[1].as_ref().map(|gradient| gradient * 1.001);
        Ok(right)
    }
    let (x, y) = pair();
    let function = |inputs: &[Tensor]| apply(ProductAndSum::with(wrong), &[&inputs[0], &inputs[1]]);
    let error = check_gradients(function, &[x, y], 1e-6, 1e-7).unwrap_err();
    assert!(
        matches!(error, GradientError::Differs { input: 1, .. }),
        "{error}"
    );
    let float = leaf(1, &[2], Kind::Float);
    let error = check_gradients(|x| Ok(vec![&x[0] * 2.0]), &[float], 1e-6, 1e-7).unwrap_err();
    assert!(
        matches!(error, GradientError::Kind { index: 0, .. }),
        "{error}"
    );
}

#[test]
fn an_unused_output_has_no_gradient() {
    fn only_the_sum(context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        assert!(gradients[0].is_none() && gradients[1].is_some());
        product_and_sum(context, gradients)
    }
    let (x, y) = pair();
    let outputs = apply(ProductAndSum::with(only_the_sum), &[&x, &y]).unwrap();
    outputs[1].sum(Kind::Double).f_backward().unwrap();
    assert!(close(&x.grad(), &x.ones_like()) && close(&y.grad(), &y.ones_like()));
}

#[test]
fn unneeded_gradients_are_not_requested() {
    fn first_alone(context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        assert!(context.needs_input_grad(0) && !context.needs_input_grad(1));
        assert!(!context.needs_input_grad(2));
        let mut all = product_and_sum(context, gradients)?;
        all[1] = None;
        Ok(all)
    }
    let (x, y) = pair();
    // An input without `requires_grad` ...
    let constant = y.detach();
    let outputs = apply(ProductAndSum::with(first_alone), &[&x, &constant]).unwrap();
    outputs[0].sum(Kind::Double).f_backward().unwrap();
    assert!(close(&x.grad(), &y));
    // ... and an input for which the caller requests no gradient.
    let outputs = apply(ProductAndSum::with(first_alone), &[&x, &y]).unwrap();
    let gradients =
        Tensor::f_run_backward(&[outputs[0].sum(Kind::Double)], &[&x], false, false).unwrap();
    assert!(close(&gradients[0], &y));
    assert!(!y.grad().defined());
}

/// Index and value of the largest element: the index has no derivative.
struct Largest;

impl Function for Largest {
    fn name(&self) -> &'static str {
        "largest"
    }

    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs> {
        assert!(context.needs_input_grad(0) && context.needs_any_grad());
        let index = inputs[0].f_argmax(None, false)?;
        let rank = index.f_to_kind(Kind::Double)?;
        context.save(&index);
        context.save(inputs[0]);
        context.mark_non_differentiable(&rank);
        Ok(vec![inputs[0].f_max()?, index, rank])
    }

    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        assert!(gradients[1].is_none() && gradients[2].is_none());
        let (index, x) = (context.saved(0)?, context.saved(1)?);
        let gradient = gradients[0].as_ref().ok_or("no gradient")?;
        let one = x.f_zeros_like()?.f_index_fill(0, &index, 1.0)?;
        Ok(vec![Some(one.f_mul(gradient)?)])
    }
}

#[test]
fn outputs_may_be_constant() {
    let x = Tensor::from_slice(&[1.0, 5.0, 2.0]).set_requires_grad(true);
    let outputs = apply(Largest, &[&x]).unwrap();
    assert!(outputs[0].requires_grad());
    assert!(!outputs[1].requires_grad() && !outputs[2].requires_grad());
    assert_eq!(outputs[2].double_value(&[]), 1.0);
    (&outputs[0] * 3.0).f_backward().unwrap();
    assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [0.0, 3.0, 0.0]);
}

#[test]
fn a_changed_saved_tensor_is_an_error() {
    let (x, y) = pair();
    let x = &x * 1.0;
    let outputs = apply(ProductAndSum::new(), &[&x, &y]).unwrap();
    let _ = x.detach().fill_(0.0);
    let error = outputs[0].sum(Kind::Double).f_backward().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("modified by an inplace operation"),
        "{error}"
    );
}

#[test]
fn errors_and_panics_reach_the_caller_of_the_pass() {
    let (x, y) = pair();
    let message = |rule: Rule| {
        let outputs = apply(ProductAndSum::with(rule), &[&x, &y]).unwrap();
        let total = outputs[0].sum(Kind::Double);
        total.f_backward().unwrap_err().to_string()
    };
    let text = message(|_, _| Err("the disk is full".into()));
    assert!(
        text.contains("`product and sum`, backward pass: the disk is full"),
        "{text}"
    );
    let text = message(|_, _| panic!("index {} out of range", 7));
    assert!(
        text.contains("`product and sum`, backward pass: panicked: index 7"),
        "{text}"
    );
    let text = message(|_, _| Ok(vec![None]));
    assert!(text.contains("1 gradients for 2 inputs"), "{text}");
    let text = message(|context, _| Ok(vec![Some(context.saved(2)?), None]));
    assert!(text.contains("saved tensor 2 does not exist"), "{text}");
    let text = message(|_, _| Ok(vec![Some(Tensor::zeros([5], (Kind::Double, CPU))), None]));
    assert!(
        text.contains("product and sum returned an invalid gradient at index 0"),
        "{text}"
    );

    let error = apply(ProductAndSum::new(), &[&x]).unwrap_err();
    assert!(matches!(
        error,
        TorchError::Function {
            pass: "forward",
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "autograd function `product and sum`, forward pass: two inputs"
    );
    // Shapes that do not broadcast: the text is libtorch's.
    let other = leaf(3, &[5], Kind::Double);
    let error = apply(ProductAndSum::new(), &[&x, &other]).unwrap_err();
    assert!(error.to_string().contains("must match"), "{error}");
    // The thread still works.
    let outputs = apply(ProductAndSum::new(), &[&x, &y]).unwrap();
    outputs[0].sum(Kind::Double).f_backward().unwrap();
    assert!(close(&x.grad(), &y));
}

/// A function whose forward pass breaks one of the rules, selected by number.
struct Bad(u8);

impl Function for Bad {
    fn name(&self) -> &'static str {
        "bad"
    }

    fn forward(&mut self, _context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs> {
        let x = inputs[0];
        match self.0 {
            0 => {
                let _ = x.shallow_clone().f_add_scalar_(1.0)?;
                Ok(vec![x.copy()])
            }
            1 => {
                let y = x.copy();
                Ok(vec![y.shallow_clone(), y])
            }
            2 => Ok(vec![Tensor::new()]),
            3 => panic!("no output"),
            _ => Ok(vec![x.shallow_clone()]),
        }
    }

    fn backward(&self, _context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        Ok(vec![gradients[0].as_ref().map(|gradient| gradient * 2.0)])
    }
}

#[test]
fn outputs_that_cannot_be_recorded_are_refused() {
    let x = &leaf(1, &[2], Kind::Double) * 1.0;
    for (bad, expected) in [
        (0, "it changed input 0 in place"),
        // `shallow_clone` returns a new handle, but still of the same tensor.
        (1, "one tensor as two outputs"),
        (2, "undefined tensor"),
        (3, "panicked: no output"),
    ] {
        let error = apply(Bad(bad), &[&x]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // An input may be returned unchanged.
    let leaf = leaf(2, &[2], Kind::Double);
    let same = apply(Bad(9), &[&leaf]).unwrap().remove(0);
    same.sum(Kind::Double).f_backward().unwrap();
    assert_eq!(leaf.grad(), leaf.ones_like() * 2.0);
}

#[test]
fn memory_is_freed_with_the_graph() {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = || alive.load(Ordering::SeqCst);
    let (x, y) = pair();
    let run = || apply(ProductAndSum::counted(product_and_sum, &alive), &[&x, &y]).unwrap();

    let outputs = run();
    assert_eq!(count(), 1);
    drop(outputs);
    assert_eq!(count(), 0, "dropped without a backward pass");

    // After a backward pass nothing is kept, although the outputs are alive ...
    let outputs = run();
    let total = outputs[0].sum(Kind::Double);
    total.f_backward().unwrap();
    assert_eq!(count(), 0, "after the backward pass");
    // ... and a second pass reports it.
    let error = outputs[1].sum(Kind::Double).f_backward().unwrap_err();
    assert!(error.to_string().contains("second time"), "{error}");

    // If the graph is kept, the backward pass may run again.
    let outputs = run();
    let total = outputs[0].sum(Kind::Double);
    for _ in 0..2 {
        let gradients = Tensor::f_run_backward(&[&total], &[&x], true, false).unwrap();
        assert!(close(&gradients[0], &y));
    }
    assert_eq!(count(), 1);
    drop((outputs, total));
    assert_eq!(count(), 0);

    // A failing forward or backward pass leaks nothing either.
    assert!(apply(ProductAndSum::counted(product_and_sum, &alive), &[&x]).is_err());
    assert_eq!(count(), 0);
    let outputs = apply(
        ProductAndSum::counted(|_, _| panic!("no"), &alive),
        &[&x, &y],
    )
    .unwrap();
    assert!(outputs[0].sum(Kind::Double).f_backward().is_err());
    drop(outputs);
    assert_eq!(count(), 0);
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (x, y) = pair();
    let outputs =
        tch::no_grad(|| apply(ProductAndSum::counted(product_and_sum, &alive), &[&x, &y]).unwrap());
    assert!(!outputs[0].requires_grad() && !outputs[1].requires_grad());
    assert!(close(&outputs[0], &(&x * &y)));
    let constants = (x.detach(), y.detach());
    let function = ProductAndSum::counted(product_and_sum, &alive);
    let outputs = apply(function, &[&constants.0, &constants.1]).unwrap();
    assert!(!outputs[0].requires_grad());
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn second_derivatives_are_correct_or_an_error() {
    let (x, y) = pair();
    let first = |twice: bool| {
        let mut function = ProductAndSum::new();
        function.twice = twice;
        let outputs = apply(function, &[&x, &y]).unwrap();
        // The derivative of (x y)^2 by x is 2 x y^2, whose derivative by y is 4 x y.
        let total = outputs[0].square().sum(Kind::Double);
        Tensor::f_run_backward(&[total], &[&x], true, true)
            .unwrap()
            .remove(0)
    };
    let gradient = first(true);
    assert!(close(&gradient, &(&x * &y * &y * 2.0)));
    let second = Tensor::f_run_backward(&[gradient.sum(Kind::Double)], &[&y], false, false);
    assert!(close(&second.unwrap()[0], &(&x * &y * 4.0)));

    let gradient = first(false);
    assert!(close(&gradient, &(&x * &y * &y * 2.0)));
    let second = Tensor::f_run_backward(&[gradient.sum(Kind::Double)], &[&y], false, false);
    let error = second.unwrap_err().to_string();
    assert!(
        error.contains("`product and sum` cannot be differentiated again"),
        "{error}"
    );
}

/// Saves an intermediate tensor and its output.
struct Doubled;

impl Function for Doubled {
    fn name(&self) -> &'static str {
        "doubled"
    }

    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs> {
        let output = inputs[0] * 2.0;
        context.save(&inputs[0].f_full_like(2.0)?);
        context.save(&output);
        Ok(vec![output])
    }

    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        assert!(
            context.take_saved(1)?.is_none(),
            "an output must not be overwritten"
        );
        let gradient = gradients[0].as_ref().ok_or("no gradient")?;
        let slope = context.take_saved(0)?;
        Ok(vec![Some(match slope {
            Some(mut slope) => {
                assert!(context.saved(0).is_err() && context.take_saved(0).is_err());
                slope.f_mul_(gradient)?
            }
            None => context.saved(0)?.f_mul(gradient)?,
        })])
    }
}

#[test]
fn a_saved_tensor_is_overwritten_only_if_unshared() {
    let x = leaf(4, &[3], Kind::Double);
    let total = apply(Doubled, &[&x]).unwrap()[0].square().sum(Kind::Double);
    // The graph is kept twice, then not. The gradient is the same each time.
    let expected = &x * 8.0;
    for keep in [true, true, false] {
        let gradients = Tensor::f_run_backward(&[&total], &[&x], keep, false).unwrap();
        assert!(close(&gradients[0], &expected), "{keep}");
    }
}

#[test]
fn a_graph_may_be_used_and_dropped_on_other_threads() {
    let alive = Arc::new(AtomicUsize::new(0));
    let (x, y) = pair();
    let total = apply(ProductAndSum::counted(product_and_sum, &alive), &[&x, &y]).unwrap()[0]
        .sum(Kind::Double);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (total, x) = (total.shallow_clone(), x.shallow_clone());
            thread::spawn(move || {
                for _ in 0..50 {
                    let gradients = Tensor::f_run_backward(&[&total], &[&x], true, false).unwrap();
                    assert_eq!(gradients[0].size(), [3, 2]);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    thread::spawn(move || drop(total)).join().unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failure_on_another_thread_is_an_error_on_that_thread() {
    let (x, y) = pair();
    let outputs = apply(ProductAndSum::with(|_, _| panic!("here")), &[&x, &y]).unwrap();
    let total = outputs[0].sum(Kind::Double);
    let error = thread::spawn(move || total.f_backward().unwrap_err().to_string());
    assert!(error.join().unwrap().contains("panicked: here"));
}

/// A matrix product, in the precision of the autocast region.
struct Square;

impl Function for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn forward(&mut self, context: &mut Forward<'_>, inputs: &[&Tensor]) -> Result<Outputs> {
        context.save(inputs[0]);
        Ok(vec![inputs[0].f_matmul(inputs[0])?])
    }

    fn backward(&self, context: &Backward<'_>, gradients: &Gradients) -> Result<Gradients> {
        let x = context.saved(0)?;
        let gradient = gradients[0].as_ref().ok_or("no gradient")?;
        let transposed = x.f_transpose(0, 1)?;
        let left = gradient.f_matmul(&transposed)?;
        // The region of the forward pass applies here, although the caller has left it.
        assert_eq!(left.kind(), gradient.kind());
        assert_eq!(x.f_matmul(&x)?.kind(), gradient.kind());
        Ok(vec![Some(left.f_add(&transposed.f_matmul(gradient)?)?)])
    }
}

#[test]
fn the_backward_pass_uses_the_autocast_region_of_the_forward_pass() {
    for kind in [None, Some(Kind::BFloat16)] {
        let x = leaf(5, &[4, 4], Kind::Float);
        let y = autocast::run(CPU, kind, || apply(Square, &[&x]).unwrap().remove(0)).unwrap();
        assert_eq!(y.kind(), kind.unwrap_or(Kind::Float));
        y.sum(Kind::Float).f_backward().unwrap();
        assert_eq!(x.grad().kind(), Kind::Float);
        // Outside the region, nothing has changed.
        assert_eq!(x.matmul(&x).kind(), Kind::Float);
        let reference = x.detach().set_requires_grad(true);
        reference.matmul(&reference).sum(Kind::Float).backward();
        let error = (x.grad() - reference.grad()).abs().max().double_value(&[]);
        assert!(error < 0.1, "{error}");
    }
    // The opposite case: recorded outside a region, backward pass started inside one.
    let x = leaf(6, &[4, 4], Kind::Float);
    let total = apply(Square, &[&x]).unwrap()[0].sum(Kind::Float);
    autocast::run(CPU, Some(Kind::BFloat16), || total.f_backward().unwrap()).unwrap();
    assert_eq!(x.grad().kind(), Kind::Float);
}
