//! Process groups with NCCL: what is missing on a machine without CUDA, the build of the plugin, and reductions on CUDA
//! devices.
//!
//! Each test starts this program again with its own name as the filter, because libraries are loaded once per process. In
//! those processes, the environment has a rank.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
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

/// Builds the plugin in a folder of its own. The folder is removed when the value is dropped.
struct Plugin {
    folder: PathBuf,
}

impl Plugin {
    fn build() -> Self {
        let folder = std::env::temp_dir().join(format!("torch-ext-nccl-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let plugin = Self { folder };
        let output = Command::new(env!("CARGO"))
            .args(["xtask", "nccl", "--out"])
            .arg(plugin.path())
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
            .env_remove("CARGO_MANIFEST_DIR")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        plugin
    }

    fn path(&self) -> PathBuf {
        self.folder.join("plugin.so")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ignored = std::fs::remove_dir_all(&self.folder);
    }
}

mod needs_python {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::*;

    #[test]
    #[ignore = "needs the full set-up, with the CUDA libraries: `cargo xtask test --python`"]
    fn the_plugin_compiles_and_all_its_symbols_are_found() {
        let plugin = Plugin::build();
        // Without a device this is an error, but the library stays loaded.
        let loaded = device::load_cuda();
        // SAFETY: the initialisers of the plugin only fill constants.
        let library = unsafe { Library::open(Some(plugin.path()), RTLD_NOW | RTLD_LOCAL) };
        let library = library.unwrap_or_else(|error| panic!("{error:?}, CUDA: {loaded:?}"));
        // SAFETY: the function is not called.
        let function = unsafe { library.get::<unsafe extern "C" fn()>(b"te_nccl_attach_1\0") };
        assert!(function.is_ok(), "{function:?}");
        // c10d's headers register types, which must not outlive their code.
        std::mem::forget(library);
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
        let plugin = Plugin::build();
        let path = plugin.path();
        let path = path.to_str().unwrap();
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
