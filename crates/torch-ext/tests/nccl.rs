//! Process groups with NCCL: without CUDA, on a stand-in for CUDA (`stub/cuda.cpp`), and on CUDA devices.
//!
//! Each test starts this program again with its own name as the filter, because libraries are loaded once per process. In
//! those processes, the environment has a rank.

#![cfg(target_os = "linux")]

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tch::{Cuda, Device, Kind, Tensor};
use torch_ext::TorchError;
use torch_ext::device;
use torch_ext::distributed::{
    NcclError, ProcessGroup, Reduce, Reducer, ReducerSettings, Store, World,
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the test `name` in `size` processes, and returns their outputs.
fn run_ranks(name: &str, size: usize, variables: &[(&str, &str)]) -> Vec<Output> {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture", "--include-ignored"])
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .envs(variables.iter().copied())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs = ranks
        .into_iter()
        .map(|rank| rank.wait_with_output().unwrap());
    outputs.collect()
}

/// Checks that all processes have done their part.
fn check(outputs: &[Output]) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for output in outputs {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success() && out.contains("part done"),
            "{}\n{out}\n{err}",
            output.status
        );
    }
}

#[test]
fn nccl_without_a_cuda_device_is_refused_with_the_reason() {
    const NAME: &str = "nccl_without_a_cuda_device_is_refused_with_the_reason";
    if let Some(world) = World::from_env().unwrap() {
        let store = Store::connect(&world, TIMEOUT).unwrap();
        for device in [Device::Cuda(0), Device::Cpu] {
            let error = ProcessGroup::nccl(&store, &world, "test", device, TIMEOUT).unwrap_err();
            let TorchError::Nccl(error) = error else {
                panic!("{error:?}");
            };
            match &error {
                NcclError::Cuda { reason } => {
                    assert!(reason.contains("no CUDA device"), "{reason}")
                }
                NcclError::Library { .. } | NcclError::NoCuda { .. } => {
                    assert!(
                        error.to_string().contains("`cargo xtask setup --full`"),
                        "{error}"
                    );
                }
                other => panic!("{other:?}"),
            }
            println!("part done: {error}");
        }
        return;
    }
    // Hides the CUDA devices of the machine, if it has any.
    let outputs = run_ranks(NAME, 1, &[("CUDA_VISIBLE_DEVICES", "")]);
    check(&outputs);
}

/// Folder of the files that these tests build.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");

/// Builds the plugin once, and returns its path.
fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let path = Path::new(FOLDER).join("libtorch_ext_nccl.so");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["xtask", "nccl", "--out"]).arg(&path);
        succeed(cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")));
        path
    })
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
}

mod needs_python {
    use super::*;

    /// Builds the stand-in for CUDA once, and returns its path.
    fn stub() -> &'static Path {
        static STUB: OnceLock<PathBuf> = OnceLock::new();
        STUB.get_or_init(|| {
            // The headers were installed for the plugin.
            plugin();
            let packages = device::library_dir().unwrap().join("../../nvidia");
            // The name of the driver's library, which libtorch then finds loaded.
            let path = Path::new(FOLDER).join("libcuda.so.1");
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            let mut compiler = Command::new(compiler);
            compiler
                .args(["-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"])
                .arg("-I")
                .arg(packages.join("cu13/include"))
                .arg("-I")
                .arg(packages.join("cu13/include/cccl"))
                .arg("-I")
                .arg(packages.join("nccl/include"))
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stub/cuda.cpp"))
                .arg("-o");
            succeed(compiler.arg(&path));
            path
        })
    }

    /// Runs the test `name` in two processes with the stand-in for CUDA, which `variable` sets.
    fn run_on_stub(name: &str, variable: (&str, &str), wait: &str) -> Vec<Output> {
        let path = |path: &'static Path| path.to_str().unwrap();
        let variables = [
            ("IREPA_NCCL_PLUGIN", path(plugin())),
            ("LD_PRELOAD", path(stub())),
            ("TORCH_NCCL_BLOCKING_WAIT", wait),
            variable,
        ];
        run_ranks(name, 2, &variables)
    }

    fn connect(world: &World, timeout: Duration) -> Result<ProcessGroup, TorchError> {
        let store = Store::connect(world, TIMEOUT).unwrap();
        let device = Device::Cuda(world.local_rank);
        ProcessGroup::nccl(&store, world, "test", device, timeout)
    }

    #[test]
    #[ignore = "needs the full set-up, with the CUDA libraries: `cargo xtask test --python`"]
    fn operations_on_a_device_use_nccl_and_others_gloo() {
        const NAME: &str = "needs_python::operations_on_a_device_use_nccl_and_others_gloo";
        let Some(world) = World::from_env().unwrap() else {
            return check(&run_on_stub(NAME, ("STUB", ""), "0"));
        };
        let group = connect(&world, TIMEOUT).unwrap();
        let (own, size) = ([world.rank as i64 + 1, 7], world.size);
        let on_cpu = Tensor::from_slice(&own);
        let on_device = on_cpu.to_device(Device::Cuda(world.local_rank));
        let values = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        // With the stand-in, all ranks seem to have this rank's tensor, and kernels do nothing: NCCL leaves it unchanged.
        group.all_reduce_(&on_device, Reduce::Sum).unwrap();
        group.broadcast_(&on_device, size - 1).unwrap();
        assert_eq!(values(&on_device), own);
        let all = group.all_gather(&on_device).unwrap();
        assert!(all.len() == size && all.iter().all(|other| values(other) == own));
        group.all_reduce_(&on_cpu, Reduce::Sum).unwrap();
        assert_eq!(values(&on_cpu), [3, 14]);
        for dtype in [None, Some(Kind::BFloat16)] {
            let weight = || Tensor::zeros([64, 64], (Kind::Float, on_device.device()));
            let weights = [(); 3].map(|()| weight().set_requires_grad(true));
            let loss = || {
                let squares = weights.iter().map(|w| w.square().sum(Kind::Float));
                squares.reduce(|sum, square| sum + square).unwrap()
            };
            let settings = ReducerSettings {
                bucket_bytes: 2 * 64 * 64 * 4,
                dtype,
            };
            let mut reducer = Reducer::new(&weights, &loss(), &group, settings).unwrap();
            for _ in 0..2 {
                torch_ext::optim::clear_grads(&weights).unwrap();
                reducer.backward(&loss()).unwrap();
                assert!(weights.iter().all(|w| w.grad().device() == w.device()));
            }
        }
        group.barrier().unwrap();
        println!("part done");
    }

    #[test]
    #[ignore = "needs the full set-up, with the CUDA libraries: `cargo xtask test --python`"]
    fn an_operation_on_a_device_that_does_not_end_ends_the_process_or_is_an_error() {
        const NAME: &str = "needs_python::an_operation_on_a_device_that_does_not_end_ends_the_process_or_is_an_error";
        if let Some(world) = World::from_env().unwrap() {
            let group = connect(&world, Duration::from_secs(3)).unwrap();
            let tensor = Tensor::ones([2], (Kind::Float, Device::Cuda(world.local_rank)));
            let outcome = group.all_reduce_(&tensor, Reduce::Sum);
            println!("said: {outcome:?}");
            // A copy to the host waits for the operation. Not for longer than this in a test that fails.
            let watch = std::thread::spawn(|| {
                std::thread::sleep(Duration::from_secs(30));
                std::process::exit(1);
            });
            if outcome.is_ok() {
                let _values = Vec::<f32>::try_from(tensor.to_device(Device::Cpu));
                watch.join().unwrap();
            }
            return;
        }
        for (variable, reason) in [
            ("STUB_HANG", "OpType=ALLREDUCE, NumelIn=2"),
            ("STUB_LOST", "remote process exiting"),
        ] {
            for wait in ["0", "1"] {
                let outputs = run_on_stub(NAME, (variable, "1"), wait);
                for (rank, output) in outputs.iter().enumerate() {
                    let out = String::from_utf8_lossy(&output.stdout);
                    let err = String::from_utf8_lossy(&output.stderr);
                    if wait == "1" {
                        let said = format!("operation: \"an all-reduce\", rank: {rank}");
                        assert!(output.status.success(), "{out}{err}");
                        assert!(out.contains(&said) && out.contains(reason), "{out}{err}");
                    } else {
                        // 6 is SIGABRT.
                        assert_eq!(output.status.signal(), Some(6), "{out}{err}");
                        let rank = format!("Rank {rank}]");
                        assert!(err.contains(&rank) && err.contains(reason), "{out}{err}");
                        assert!(!err.contains("frame #"), "{err}");
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "needs the full set-up, with the CUDA libraries: `cargo xtask test --python`"]
    fn a_rank_that_nccl_does_not_reach_is_an_error_after_the_timeout() {
        const NAME: &str =
            "needs_python::a_rank_that_nccl_does_not_reach_is_an_error_after_the_timeout";
        let Some(world) = World::from_env().unwrap() else {
            return check(&run_on_stub(NAME, ("STUB_ABSENT", "1"), "0"));
        };
        let error = connect(&world, Duration::from_secs(2)).unwrap_err();
        let error = error.to_string();
        let expected = format!(
            "with NCCL on rank {} of 2: NCCL did not connect",
            world.rank
        );
        assert!(error.contains(&expected), "{error}");
        println!("part done");
    }
}

mod needs_cuda {
    use super::*;

    fn loss(weights: &[Tensor], batch: &Tensor) -> Tensor {
        let output = weights
            .iter()
            .fold(batch.shallow_clone(), |x, weight| x.matmul(weight).tanh());
        output.square().mean(Kind::Float)
    }

    fn weights(device: Device) -> Vec<Tensor> {
        (0..4)
            .map(|layer| {
                let numbers = Tensor::arange(64 * 64, (Kind::Float, Device::Cpu)) + layer;
                let weight = (numbers * 0.7).sin().reshape([64, 64]) / 8.0;
                weight.to_device(device).set_requires_grad(true)
            })
            .collect()
    }

    fn reduce_on_device(world: &World, device: Device) {
        let store = Store::connect(world, TIMEOUT).unwrap();
        let group = ProcessGroup::nccl(&store, world, "test", device, TIMEOUT).unwrap();
        let (rank, size) = (world.rank as i64, world.size as i64);
        let own = |device: Device| Tensor::from_slice(&[rank, 1]).to_device(device);
        // Tensors on the CPU are reduced by Gloo.
        for device in [device, Device::Cpu] {
            let sum = own(device);
            group.all_reduce_(&sum, Reduce::Sum).unwrap();
            let expected = [size * (size - 1) / 2, size];
            assert_eq!(Vec::<i64>::try_from(&sum).unwrap(), expected);
            let last = own(device);
            group.broadcast_(&last, world.size - 1).unwrap();
            assert_eq!(Vec::<i64>::try_from(&last).unwrap(), [size - 1, 1]);
            let all = group.all_gather(&own(device)).unwrap();
            let firsts = all.iter().map(|one| one.int64_value(&[0]));
            assert!(firsts.eq(0..size));
        }

        let rows = Tensor::arange(8 * 64, (Kind::Float, Device::Cpu));
        let rows = (rows.reshape([8, 64]) * 0.37).cos().to_device(device);
        let whole = weights(device);
        loss(&whole, &rows).backward();
        let share = rows.narrow(0, rank * (8 / size), 8 / size);
        for (dtype, error) in [(None, 1e-4), (Some(Kind::BFloat16), 2e-2)] {
            let weights = weights(device);
            let settings = ReducerSettings {
                bucket_bytes: 2 * 64 * 64 * 4,
                dtype,
            };
            let mut reducer: Option<Reducer> = None;
            for _ in 0..3 {
                torch_ext::optim::clear_grads(&weights).unwrap();
                let loss = loss(&weights, &share);
                let reducer = reducer.get_or_insert_with(|| {
                    Reducer::new(&weights, &loss, &group, settings).unwrap()
                });
                reducer.backward(&loss).unwrap();
                for (whole, weight) in whole.iter().zip(&weights) {
                    let largest = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
                    let difference = largest(whole.grad() - weight.grad());
                    assert!(difference <= error * largest(whole.grad()), "{dtype:?}");
                }
            }
        }
        // A barrier waits for what is queued on the devices.
        let sum = Tensor::ones([1 << 20], (Kind::Float, device));
        group.all_reduce_(&sum, Reduce::Sum).unwrap();
        group.barrier().unwrap();
        drop(group);
        assert_eq!(f64::try_from(sum.min()).unwrap(), size as f64);
    }

    #[test]
    #[ignore = "needs a CUDA device: `cargo xtask test --cuda`"]
    fn tensors_and_gradients_are_reduced_on_cuda_devices() {
        const NAME: &str = "needs_cuda::tensors_and_gradients_are_reduced_on_cuda_devices";
        if let Some(world) = World::from_env().unwrap() {
            reduce_on_device(&world, Device::Cuda(world.local_rank));
            println!("part done");
            return;
        }
        device::load_cuda().unwrap();
        let path = plugin().to_str().unwrap();
        let devices = usize::try_from(Cuda::device_count()).unwrap();
        for size in [1, 2].into_iter().filter(|size| *size <= devices) {
            for wait in ["0", "1"] {
                let variables = [
                    ("IREPA_NCCL_PLUGIN", path),
                    ("TORCH_NCCL_BLOCKING_WAIT", wait),
                ];
                check(&run_ranks(NAME, size, &variables));
            }
        }
    }
}
