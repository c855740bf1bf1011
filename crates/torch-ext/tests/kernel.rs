//! Guarantees of CPU kernels in Rust.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{
    self, InPlace, InPlaceScope, Input, InputRows, Output, Real, Scope, Vectorised,
};

const CPU: Device = Device::Cpu;

fn run<'env, R>(kernel: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R + Sync) -> R {
    // SAFETY: these tests use the memory of tensors in kernels only while a kernel runs.
    unsafe { kernel::run(kernel) }
}

fn run_in_place<'env, R>(
    kernel: impl for<'scope> FnOnce(&'scope InPlaceScope<'scope, 'env>) -> R + Sync,
) -> R {
    // SAFETY: as above.
    unsafe { kernel::run_in_place(kernel) }
}

#[test]
fn elements_are_in_row_major_order() {
    let x = Tensor::arange(6, (Kind::BFloat16, CPU)).view([2, 3]);
    let input = Input::<bf16>::new(&x).unwrap();
    let read: Vec<f32> = run(|scope| scope.read(&input).iter().map(|v| v.to_f32()).collect());
    assert_eq!(read, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    // A view of some rows is contiguous too, and its slice starts at its own first element.
    let tail = x.narrow(0, 1, 1);
    let input = Input::<bf16>::new(&tail).unwrap();
    let first = run(|scope| scope.read(&input)[0].to_f32());
    assert_eq!(first, 3.0);
    let empty = Tensor::zeros([0, 3], (Kind::Float, CPU));
    let input = Input::<f32>::new(&empty).unwrap();
    assert!(run(|scope| scope.read(&input).is_empty()));
}

#[test]
fn rows_of_a_slice_are_read_in_place() {
    let x = Tensor::arange(24, (Kind::Float, CPU)).view([2, 4, 3]);
    for (slice, first, second) in [
        (x.narrow(1, 2, 1), [6.0, 7.0, 8.0], [18.0, 19.0, 20.0]),
        (x.narrow(1, 3, 1), [9.0, 10.0, 11.0], [21.0, 22.0, 23.0]),
        (x.select(1, 3), [9.0, 10.0, 11.0], [21.0, 22.0, 23.0]),
        (
            x.select(1, 3).unsqueeze(1).contiguous(),
            [9.0, 10.0, 11.0],
            [21.0, 22.0, 23.0],
        ),
        (
            x.select(0, 1).narrow(0, 0, 1).expand([2, 3], false),
            [12.0, 13.0, 14.0],
            [12.0, 13.0, 14.0],
        ),
    ] {
        let input = InputRows::<f32>::new(&slice).unwrap();
        run(|scope| {
            let rows = scope.read_rows(&input);
            assert_eq!((rows.row(0), rows.row(1)), (&first[..], &second[..]));
        });
    }
    // Several tokens per row, columns, and a vector.
    for tensor in [
        x.shallow_clone(),
        x.select(1, 0).transpose(0, 1),
        x.flatten(0, -1),
    ] {
        assert_eq!(kernel::row_stride(&tensor), None);
        assert!(InputRows::<f32>::new(&tensor).is_err());
    }
    assert!(InputRows::<f64>::new(&x.select(1, 0)).is_err());
    let empty = Tensor::zeros([0, 1, 3], (Kind::Float, CPU));
    assert!(InputRows::<f32>::new(&empty).is_ok());
}

#[test]
fn unsuitable_tensors_are_errors() {
    let x = Tensor::zeros([2, 3], (Kind::Float, CPU));
    let message = |outcome: Result<Input<'_, f32>, TorchError>| outcome.unwrap_err().to_string();
    assert!(message(Input::new(&x.transpose(0, 1))).contains("not contiguous"));
    assert!(message(Input::new(&x.to_kind(Kind::Double))).contains("is Double, not Float"));
    assert!(message(Input::new(&x.to_sparse(None, None::<i64>, None))).contains("not dense"));
    assert!(message(Input::new(&Tensor::new())).contains("undefined"));
    assert!(message(Input::new(&x.to_mkldnn())).contains("not dense"));
    assert!(Output::<f32>::new(&[-1]).is_err());
}

#[test]
fn an_output_becomes_the_tensor_that_was_written() {
    let mut output = Output::<i64>::new(&[2, 2]).unwrap();
    output.as_mut_slice().copy_from_slice(&[1, 2, 3, 4]);
    assert_eq!(
        output.into_tensor(),
        Tensor::from_slice2(&[[1i64, 2], [3, 4]])
    );
}

#[test]
fn a_tensor_is_changed_in_place_through_its_view() {
    let x = Tensor::arange(6, (Kind::Float, CPU)).view([2, 3]);
    let (first, last) = (x.get(0), x.get(1));
    let (from, to) = (
        Input::<f32>::new(&first).unwrap(),
        InPlace::<f32>::new(&last).unwrap(),
    );
    run_in_place(|scope| {
        let (from, to) = (scope.read(&from)?, scope.write(&to)?);
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        Ok::<_, TorchError>(())
    })
    .unwrap();
    assert_eq!(
        x,
        Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0, 5.0, 7.0]).view([2, 3])
    );
    assert!(InPlace::<f32>::new(&x.transpose(0, 1)).is_err());
}

#[test]
fn memory_with_another_borrow_is_not_writable() {
    let x = Tensor::zeros([4, 3], (Kind::Float, CPU));
    let rows = |start, count| x.narrow(0, start, count);
    let (all, top, middle, bottom) = (rows(0, 4), rows(0, 2), rows(1, 2), rows(2, 2));
    let read = |tensor| Input::<f32>::new(tensor).unwrap();
    let write = |tensor| InPlace::<f32>::new(tensor).unwrap();
    let refused = |outcome: Result<(), TorchError>| {
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("shares memory"), "{message}");
    };

    let (writes_top, writes_middle, writes_bottom) = (write(&top), write(&middle), write(&bottom));
    refused(run_in_place(|scope| {
        let _disjoint = (scope.write(&writes_bottom)?, scope.write(&writes_top)?);
        scope.write(&writes_middle).map(|_| ())
    }));
    refused(run_in_place(|scope| {
        let _once = scope.write(&writes_top)?;
        scope.write(&writes_top).map(|_| ())
    }));
    let (reads_all, reads_bottom) = (read(&all), read(&bottom));
    refused(run_in_place(|scope| {
        let _same = (scope.read(&reads_bottom)?, scope.read(&reads_bottom)?);
        let _other = scope.write(&writes_top)?;
        scope.read(&reads_all).map(|_| ())
    }));
    refused(run_in_place(|scope| {
        let _both = (scope.read(&reads_all)?, scope.read(&reads_bottom)?);
        scope.write(&writes_top).map(|_| ())
    }));
}

#[test]
fn no_kernel_accesses_memory_that_another_one_changes() {
    let x = Tensor::zeros([4, 3], (Kind::Float, CPU));
    let row = x.narrow(0, 1, 1);
    let (all, one) = (
        InPlace::<f32>::new(&x).unwrap(),
        InPlace::<f32>::new(&row).unwrap(),
    );
    let (reads_all, reads_one) = (
        Input::<f32>::new(&x).unwrap(),
        Input::<f32>::new(&row).unwrap(),
    );
    run_in_place(|scope| {
        let slice = scope.write(&one).unwrap();
        // Until this kernel is done, neither nested kernels nor other threads may access the memory.
        assert!(run_in_place(|inner| inner.write(&all).is_err()));
        assert!(run_in_place(|inner| inner.read(&reads_all).is_err()));
        thread::scope(|threads| {
            let other = threads.spawn(|| run_in_place(|inner| inner.write(&one).is_err()));
            assert!(other.join().unwrap());
        });
        let read = catch_unwind(AssertUnwindSafe(|| {
            run(|inner| inner.read(&reads_one).len())
        }));
        assert!(read.is_err());
        slice.fill(1.0);
    });
    assert_eq!(run(|scope| scope.read(&reads_one)[0]), 1.0);
    // Several kernels may read the same memory. All must be done before it can be changed.
    run(|scope| {
        let first = scope.read(&reads_all);
        run(|inner| assert_eq!(inner.read(&reads_all), first));
        assert!(run_in_place(|inner| inner.write(&one).is_err()));
    });
    assert!(run_in_place(|scope| scope.write(&all).is_ok()));
}

#[test]
fn a_backward_pass_that_needs_the_old_values_fails() {
    let x = Tensor::ones([3], (Kind::Float, CPU));
    let w = Tensor::ones([3], (Kind::Float, CPU)).set_requires_grad(true);
    let loss = (&x * &w).sum(Kind::Float);
    let _in_place = InPlace::<f32>::new(&x).unwrap();
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(
        error.contains("modified by an inplace operation"),
        "{error}"
    );
}

#[test]
fn each_item_is_visited_once_on_libtorchs_threads() {
    let threads = tch::get_num_threads();
    for count in [0, 1, 2, 5, 97] {
        let mut visits = vec![0; count];
        let (ids, made) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
        let id = || thread::current().id();
        kernel::for_each_with(
            &mut visits,
            || assert!(made.lock().unwrap().insert(id()), "one value per thread"),
            |visit, ()| {
                *visit += 1;
                ids.lock().unwrap().insert(id());
            },
        )
        .unwrap();
        assert_eq!(visits, vec![1; count]);
        let (used, made) = (ids.into_inner().unwrap(), made.into_inner().unwrap());
        assert!(used.len() <= threads as usize, "{} threads", used.len());
        assert_eq!(used, made);
    }
}

#[test]
fn a_delayed_thread_does_not_delay_the_others() {
    if tch::get_num_threads() < 2 {
        tch::set_num_threads(2);
    }
    let (others, count) = (AtomicUsize::new(0), 40);
    let mut items: Vec<usize> = (0..count).collect();
    // The first item waits until all others are done, so no item may be reserved for its thread.
    kernel::for_each(&mut items, |&mut item| {
        if item > 0 {
            others.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let start = Instant::now();
        while others.load(Ordering::SeqCst) < count - 1 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "an item was reserved for the waiting thread"
            );
            thread::yield_now();
        }
    })
    .unwrap();
}

#[test]
fn a_panic_in_one_item_reaches_the_caller() {
    let mut items: Vec<usize> = (0..50).collect();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        kernel::for_each(&mut items, |item| assert!(*item != 33, "item 33"))
    }));
    assert_eq!(*outcome.unwrap_err().downcast::<&str>().unwrap(), "item 33");
    kernel::for_each(&mut items, |item| *item += 1).unwrap();
    assert_eq!(items[49], 50);
}

#[test]
fn streamed_values_are_where_they_belong() {
    let mut memory = Output::<f32>::new(&[1000]).unwrap();
    let memory = memory.as_mut_slice();
    for (start, end) in [(0, 1000), (4, 990), (16, 800), (1, 3), (3, 3), (3, 400)] {
        memory.fill(-1.0);
        let values: Vec<f32> = (start..end).map(|index| index as f32).collect();
        let middle = values.len() / 2;
        kernel::stream(memory, |mut memory| {
            memory.write(start + middle, &values[middle..]);
            memory.write(start, &values[..middle]);
        });
        let mut expected = vec![-1.0; 1000];
        expected[start..end].copy_from_slice(&values);
        assert_eq!(memory, expected);
    }
    let beyond = AssertUnwindSafe(|| kernel::stream(memory, |mut to| to.write(999, &[0.0; 2])));
    assert!(catch_unwind(beyond).is_err());
}

#[test]
fn prefetching_beyond_the_end_is_allowed() {
    kernel::prefetch(&[1f32, 2.0], 1);
    kernel::prefetch(&[1f32, 2.0], usize::MAX);
    kernel::prefetch::<f32>(&[], 5);
}

struct Sum<'a>(&'a [f32]);

impl Vectorised for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let mut lanes = [0f32; 16];
        for chunk in self.0.chunks(16) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value * value;
            }
        }
        lanes.iter().sum()
    }
}

#[test]
fn a_vectorised_loop_has_the_same_bits_as_the_plain_one() {
    let values: Vec<f32> = (0..1001).map(|i| (i as f32 * 0.37).sin()).collect();
    assert_eq!(kernel::vectorised(Sum(&values)), Sum(&values).run());
}

#[test]
fn the_exponential_is_accurate_to_two_units_in_the_last_place() {
    for step in -8730..=8730 {
        let x = step as f32 / 100.0;
        let expected = f64::from(x).exp();
        let error = (f64::from(Real::exp(x)) - expected) / expected;
        assert!(error.abs() < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
    }
    assert_eq!(Real::exp(0f32), 1.0);
    assert!(Real::exp(f32::NAN).is_nan());
    let (least, most) = (Real::exp(f32::NEG_INFINITY), Real::exp(f32::INFINITY));
    assert!(least > 0.0 && least < 2e-38 && most.is_finite() && most > 8e37);
}
