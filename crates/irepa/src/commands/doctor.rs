//! `runner doctor`.

use std::path::Path;
use std::process::ExitCode;

use encoders::Status;
use tch::{Cuda, Device};
use torch_ext::{cuda, device};

use crate::failure::Failure;
use terminal::outln;

/// Prints what is installed. A missing component is not an error; its line says so.
pub fn run() -> Result<ExitCode, Failure> {
    outln!("runner         {}", env!("CARGO_PKG_VERSION"));
    let folder = device::library_dir()?;
    outln!(
        "libtorch       {} from {}",
        device::torch_version(),
        folder.display()
    );
    outln!("CPU threads    {}", tch::get_num_threads());
    match device::load_cuda() {
        Ok(()) => {
            outln!("CUDA           {} device(s)", Cuda::device_count());
            outln!("cuDNN          {}", yes_no(Cuda::cudnn_is_available()));
        }
        Err(error) => outln!("CUDA           no: {error}"),
    }
    match cuda::compiler_version() {
        Ok((major, minor)) => outln!("CUDA kernels   compiled by NVRTC {major}.{minor}"),
        Err(error) => outln!("CUDA kernels   composed of libtorch's operators: {error}"),
    }
    let bf16 = bf16_speed()?;
    outln!("bf16 on CPU    {bf16:.1} times the speed of float32");
    let data = Path::new("experiments/data/emoji64");
    match data::open(
        data,
        &data::OpenOptions {
            split: Some("train".into()),
            ..Default::default()
        },
    ) {
        Ok(dataset) => outln!(
            "embedded data  {} images in {}",
            dataset.len(),
            data.display()
        ),
        Err(error) => outln!("embedded data  missing: {error}"),
    }
    let registry = encoders::Registry::of_project(None);
    let mut installed = Vec::new();
    let mut missing = 0;
    for name in registry.names() {
        match registry.status(&name)? {
            Status::Missing { .. } => missing += 1,
            _ => installed.push(name),
        }
    }
    outln!(
        "encoders       {} installed: {}",
        installed.len(),
        installed.join(", ")
    );
    outln!("               {missing} missing; `runner encoders list` shows how to install them");
    Ok(ExitCode::SUCCESS)
}

fn yes_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

/// The speed of a matrix product in bfloat16, relative to float32. It shows whether `train.precision = "bf16"` is faster
/// on this processor.
fn bf16_speed() -> Result<f64, Failure> {
    use std::time::Instant;
    use tch::{Kind, Tensor};
    let time = |kind| -> Result<f64, tch::TchError> {
        let x = Tensor::f_ones([1024, 1024], (kind, Device::Cpu))?;
        let _warm_up = x.f_matmul(&x)?;
        let started = Instant::now();
        for _ in 0..8 {
            let _product = x.f_matmul(&x)?;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    Ok(time(Kind::Float)? / time(Kind::BFloat16)?)
}
