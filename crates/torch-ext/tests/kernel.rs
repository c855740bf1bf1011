//! What a kernel in Rust may rely on.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use half::bf16;
use tch::{Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::kernel::{self, Input, Output, Vectorised};

const CPU: Device = Device::Cpu;

#[test]
fn memory_is_seen_in_row_major_order() {
    let x = Tensor::arange(6, (Kind::BFloat16, CPU)).view([2, 3]);
    let input = Input::<bf16>::new(&x).unwrap();
    let read: Vec<f32> =
        kernel::run(|scope| scope.read(&input).iter().map(|v| v.to_f32()).collect());
    assert_eq!(read, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    // A view of some rows is contiguous too, and starts at its own first element.
    let tail = x.narrow(0, 1, 1);
    let input = Input::<bf16>::new(&tail).unwrap();
    let first = kernel::run(|scope| scope.read(&input)[0].to_f32());
    assert_eq!(first, 3.0);
    let empty = Tensor::zeros([0, 3], (Kind::Float, CPU));
    let input = Input::<f32>::new(&empty).unwrap();
    assert!(kernel::run(|scope| scope.read(&input).is_empty()));
}

#[test]
fn memory_of_another_form_is_refused() {
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
fn each_item_is_visited_once_on_libtorchs_threads() {
    let threads = tch::get_num_threads();
    for count in [0, 1, 2, 5, 97] {
        let mut visits = vec![0; count];
        let ids = Mutex::new(HashSet::new());
        kernel::for_each(&mut visits, |visit| {
            *visit += 1;
            ids.lock().unwrap().insert(thread::current().id());
        })
        .unwrap();
        assert_eq!(visits, vec![1; count]);
        let used = ids.lock().unwrap().len();
        assert!(used <= threads as usize, "{used} of {threads} threads");
        if count > 5 && threads > 1 {
            assert!(used > 1, "one of {threads} threads");
        }
    }
}

#[test]
fn a_panic_of_one_item_is_the_callers() {
    let mut items: Vec<usize> = (0..50).collect();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        kernel::for_each(&mut items, |item| assert!(*item != 33, "item 33"))
    }));
    assert_eq!(*outcome.unwrap_err().downcast::<&str>().unwrap(), "item 33");
    kernel::for_each(&mut items, |item| *item += 1).unwrap();
    assert_eq!(items[49], 50);
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
fn a_vectorised_loop_gives_the_bits_of_the_plain_one() {
    let values: Vec<f32> = (0..1001).map(|i| (i as f32 * 0.37).sin()).collect();
    assert_eq!(kernel::vectorised(Sum(&values)), Sum(&values).run());
}
