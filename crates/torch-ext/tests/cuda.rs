//! Kernels compiled at run time: compilation without a GPU, emulation on the host, and runs on a CUDA device.

use std::process::Command;

use tch::{Device, Kind, Tensor};
use torch_ext::cuda::{self, Architecture, Argument, CudaError, Kernels, Layout, Program, Source};
use torch_ext::{TorchError, device};

const HOPPER: Architecture = Architecture { major: 9, minor: 0 };

/// `y = 2 x`, and the sum of each token.
static DOUBLED: Source = Source {
    name: "doubled.cu",
    text: r#"
#include "prelude.cuh"

KERNEL(doubled, (const float *x, float *y, float *sums, int count, double factor)) {
  const int token = blockIdx.x * TOKENS + own_token();
  float sum[1] = {0};
  float value[VEC];
  for (int k = 0; k < PIECES; ++k) {
    const int index = own_vector() + k * STRIDE;
    if (token >= count || index >= VECTORS)
      continue;
    load(x + size_t(token) * WIDTH, index, value);
    for (int i = 0; i < VEC; ++i) {
      sum[0] += value[i];
      value[i] *= float(factor);
    }
    store(y + size_t(token) * WIDTH, index, value);
  }
  sum_over_token(sum);
  if (token < count && own_vector() == 0)
    sums[token] = sum[0];
}
"#,
};

static BROKEN: Source = Source {
    name: "broken.cu",
    text: "#include \"prelude.cuh\"\nKERNEL(broken, (float *x)) { x[0] = not_declared; }\n",
};

static LOPSIDED: Source = Source {
    name: "lopsided.cu",
    text: "#include \"prelude.cuh\"\nKERNEL(lopsided, ()) { if (threadIdx.x < 3) __syncthreads(); }\n",
};

fn program(source: &'static Source, layout: Layout) -> Program {
    Program {
        source,
        defines: layout.defines(),
    }
}

fn layout(width: i64) -> Layout {
    Layout::new(width, 4, 8).unwrap()
}

fn emulate(program: &Program) -> Result<&'static Kernels, CudaError> {
    // SAFETY: the sources of these tests have no code that runs when they are loaded.
    unsafe { Kernels::emulate(program) }
}

mod needs_nvrtc {
    use super::*;

    #[test]
    #[ignore = "needs NVRTC, which comes with the full set-up: `cargo xtask test --python`"]
    fn a_source_compiles_without_a_gpu() {
        for (major, minor) in [(8, 0), (9, 0)] {
            let code = cuda::compile(
                &program(&DOUBLED, layout(12)),
                Architecture { major, minor },
            );
            assert_eq!(code.unwrap()[..4], *b"\x7fELF");
        }
        // For an unknown future architecture, PTX of the newest known one.
        let newer = Architecture {
            major: 99,
            minor: 0,
        };
        let code = cuda::compile(&program(&DOUBLED, layout(12)), newer).unwrap();
        assert!(String::from_utf8_lossy(&code).contains(".target sm_"));
    }

    #[test]
    #[ignore = "needs NVRTC, which comes with the full set-up: `cargo xtask test --python`"]
    fn an_error_in_a_source_comes_with_the_compilers_log() {
        let program = program(&BROKEN, layout(4));
        let error = cuda::compile(&program, HOPPER).unwrap_err();
        assert!(matches!(error, CudaError::Compile { .. }));
        let text = error.to_string();
        assert!(text.starts_with("broken.cu WIDTH=4 VEC=4 WARPS=1 does not compile for sm_90"));
        assert!(text.contains("broken.cu(2): error"), "{text}");
        assert!(text.contains("not_declared"), "{text}");
        let text = emulate(&program).unwrap_err().to_string();
        assert!(text.contains("not_declared"), "{text}");
    }
}

/// Environment variable that is set in a child process, which runs one test of this file.
const CHILD: &str = "IREPA_TEST_CUDA_CHILD";

/// Output of the test `name` in a separate process. It needs one because the result of loading a library is
/// cached.
fn run_in_child(name: &str, variable: &str, value: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env(variable, value)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn a_missing_compiler_is_an_error_with_a_remedy() {
    if std::env::var_os(CHILD).is_some() {
        let program = program(&DOUBLED, layout(8));
        println!("error: {}", cuda::compile(&program, HOPPER).unwrap_err());
        // `usable` returns no kernels, with or without a GPU.
        let gpu = Device::Cuda(0);
        assert!(cuda::usable(gpu, Kernels::load(gpu, &program)).is_none());
        return;
    }
    let text = run_in_child(
        "a_missing_compiler_is_an_error_with_a_remedy",
        "IREPA_NVRTC",
        "/nowhere/libnvrtc.so",
    );
    for part in [
        "error: cannot load NVRTC: /nowhere/libnvrtc.so",
        "`nvidia-cuda-nvrtc`",
        "IREPA_NVRTC",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_missing_driver_is_an_error_with_a_remedy() {
    if std::env::var_os(CHILD).is_some() {
        let program = program(&DOUBLED, layout(8));
        let error = Kernels::load(Device::Cuda(0), &program).unwrap_err();
        println!("error: {error}");
        assert!(cuda::usable::<()>(Device::Cuda(0), Err(error)).is_none());
        return;
    }
    // Hides the CUDA devices of the machine, if it has any.
    let text = run_in_child(
        "a_missing_driver_is_an_error_with_a_remedy",
        "CUDA_VISIBLE_DEVICES",
        "",
    );
    assert!(text.contains("error: "), "{text}");
    // On a machine with a driver but no device, the error differs.
    if text.contains("error: cannot load") {
        assert!(
            text.contains("libcuda.so.1") && text.contains("install NVIDIA's driver"),
            "{text}"
        );
    }
}

fn doubled_on(kernels: &'static Kernels, layout: Layout, size: [i64; 2]) {
    let x = Tensor::arange(size[0] * size[1], (Kind::Float, Device::Cpu));
    let x = (x.view(size) * 0.25).to_device(kernels.device());
    let (y, sums) = (
        x.zeros_like(),
        x.new_zeros([size[0]], (Kind::Float, kernels.device())),
    );
    let arguments = [
        Argument::Tensor(&x),
        Argument::Tensor(&y),
        Argument::Tensor(&sums),
        Argument::Int(size[0]),
        Argument::Double(2.0),
    ];
    let blocks = (size[0] + layout.tokens() - 1) / layout.tokens();
    let kernel = kernels.kernel("doubled").unwrap();
    let before = cuda::resolutions();
    // SAFETY: the arguments are those of the kernel, and there are no more blocks than tokens need.
    unsafe { kernel.launch(blocks, &arguments) }.unwrap();
    assert_eq!(cuda::resolutions(), before, "a launch looks nothing up");
    assert_eq!(y, &x * 2.0);
    // The numbers are small integers divided by 4, so any order of summation has the same result.
    assert_eq!(sums, x.sum_dim_intlist(1, false, Kind::Float));
}

/// Sizes with one or several warps per token, with vectors or single numbers, and with incomplete blocks.
const SIZES: [[i64; 2]; 5] = [[1, 1], [9, 128], [5, 600], [3, 33], [2, 2044]];

#[test]
fn an_emulated_kernel_computes_the_result() {
    for size in SIZES {
        let layout = layout(size[1]);
        let kernels = emulate(&program(&DOUBLED, layout)).unwrap();
        doubled_on(kernels, layout, size);
    }
}

mod needs_cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn a_kernel_computes_the_result_on_a_cuda_device() {
        device::load_cuda().unwrap();
        for size in SIZES {
            let layout = layout(size[1]);
            let kernels = Kernels::load(Device::Cuda(0), &program(&DOUBLED, layout)).unwrap();
            doubled_on(kernels, layout, size);
        }
    }
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_an_error() {
    let kernels = emulate(&program(&LOPSIDED, layout(4))).unwrap();
    let kernel = kernels.kernel("lopsided").unwrap();
    // SAFETY: the kernel has no parameters.
    let error = unsafe { kernel.launch(2, &[]) };
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("`lopsided`") && error.contains("barrier"),
        "{error}"
    );
}

#[test]
fn invalid_arguments_of_a_kernel_are_errors() {
    let kernels = emulate(&program(&DOUBLED, layout(8))).unwrap();
    let kernel = kernels.kernel("doubled").unwrap();
    let x = Tensor::zeros([2, 8], (Kind::Float, Device::Cpu));
    let (transposed, undefined) = (x.transpose(0, 1), Tensor::new());
    let (double, rows) = (
        x.to_kind(Kind::Double),
        x.unsqueeze(0).expand([2, 2, 8], false),
    );
    let fitting = [
        Argument::Tensor(&x),
        Argument::Null,
        Argument::Null,
        Argument::Int(2),
        Argument::Double(2.0),
    ];
    let message = |blocks, index: usize, argument| {
        let mut arguments = fitting;
        arguments[index] = argument;
        // SAFETY: an argument or the number of blocks is refused, so nothing runs.
        let error = unsafe { kernel.launch(blocks, &arguments) }.unwrap_err();
        assert!(matches!(
            error,
            TorchError::Kernel(CudaError::Argument { .. })
        ));
        error.to_string()
    };
    for (index, argument, expected) in [
        (
            0,
            Argument::Tensor(&transposed),
            "argument 0 of size [8, 2] is not contiguous",
        ),
        (
            0,
            Argument::Rows(&rows),
            "argument 0 of size [2, 2, 8] has no contiguous rows",
        ),
        (1, Argument::Tensor(&undefined), "argument 1 is not dense"),
        (
            1,
            Argument::Tensor(&double),
            "argument 1 is Double, the parameter Float",
        ),
        (2, Argument::Int(1), "argument 2 is Int(1)"),
        (
            3,
            Argument::Int(1 << 40),
            "1099511627776, which does not fit an `int`",
        ),
        (3, Argument::Float(1.0), "argument 3 is Float(1.0)"),
        (3, Argument::Tensor(&x), "argument 3 is Tensor"),
        (4, Argument::Float(1.0), "the parameter Double"),
    ] {
        let message = message(1, index, argument);
        assert!(message.contains(expected), "{message}");
    }
    assert!(message(0, 1, Argument::Null).contains("0 blocks"));
    // SAFETY: the number of arguments is refused, so nothing runs.
    let error = unsafe { kernel.launch(1, &fitting[..4]) }.unwrap_err();
    assert!(
        error.to_string().contains("4 arguments instead of 5"),
        "{error}"
    );
    assert!(matches!(
        kernels.kernel("tripled"),
        Err(CudaError::Library { .. })
    ));
    let error = Kernels::load(Device::Cpu, &program(&DOUBLED, layout(8))).unwrap_err();
    assert!(error.to_string().contains("not a CUDA device"));
}

#[test]
fn a_program_is_compiled_once() {
    let program = program(&DOUBLED, layout(16));
    let loaded: Vec<&Kernels> = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(|| emulate(&program).unwrap()));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    assert!(
        loaded
            .iter()
            .all(|kernels| std::ptr::eq(*kernels, loaded[0]))
    );
}

#[test]
fn the_vector_width_divides_the_token_width() {
    let defines = |width, bytes, limit| {
        let layout = Layout::new(width, bytes, limit)?;
        let values = layout.defines().into_iter().map(|(_, value)| value);
        Some(values.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(defines(768, 4, 40).unwrap(), "768 4 1");
    assert_eq!(defines(768, 2, 40).unwrap(), "768 8 1");
    assert_eq!(defines(4096, 4, 40).unwrap(), "4096 4 4");
    assert_eq!(defines(33, 2, 40).unwrap(), "33 1 1");
    assert_eq!(defines(6, 4, 40).unwrap(), "6 2 1");
    assert_eq!(defines(20_000, 4, 40), None);
    assert_eq!(defines(0, 4, 40), None);
}

#[test]
fn readable_tensors_are_contiguous_and_aligned_to_16_bytes() {
    let x = Tensor::arange(12, (Kind::Float, Device::Cpu));
    let (rest, columns) = (x.narrow(0, 1, 8), x.view([3, 4]).transpose(0, 1));
    for tensor in [&x, &rest, &columns] {
        let readable = cuda::readable(tensor).unwrap();
        assert!(readable.is_contiguous());
        assert_eq!(readable.data_ptr() as usize % 16, 0);
        assert_eq!(&readable, tensor);
    }
    assert_eq!(cuda::readable(&x).unwrap().data_ptr(), x.data_ptr());
}
