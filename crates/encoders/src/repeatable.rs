//! Checks that the outputs of a TorchScript file do not depend on the run, the rest of the batch or the device.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Tensor};
use zip::ZipArchive;

use crate::{EncoderError, Precision};

/// Largest difference between two passes of the same images on the CPU in float32, relative to the largest
/// value. It allows for sums in another order, but for nothing else.
const REPEAT_TOLERANCE: f64 = 1e-4;

/// Refuses a file whose code refers to a fixed device. Tracing writes the device into the code where the module
/// creates a tensor (`torch.arange(n, device=x.device)`). Weights and buffers move with the module, such tensors
/// do not.
///
/// # Errors
/// [`EncoderError::TiedToDevice`]. A file that is not an archive passes, because libtorch reports it better.
pub(crate) fn check_devices(path: &Path) -> Result<(), EncoderError> {
    let Some(found) = find_device_in_file(path) else {
        return Ok(());
    };
    Err(EncoderError::TiedToDevice {
        path: path.to_owned(),
        found,
    })
}

/// Returns the first piece of the file's code that refers to a device.
fn find_device_in_file(path: &Path) -> Option<String> {
    let mut archive = ZipArchive::new(BufReader::new(File::open(path).ok()?)).ok()?;
    let code: Vec<String> = archive
        .file_names()
        .filter(|name| name.contains("/code/") && name.ends_with(".py"))
        .map(str::to_owned)
        .collect();
    code.iter().find_map(|name| {
        let mut text = String::new();
        archive.by_name(name).ok()?.read_to_string(&mut text).ok()?;
        find_device_in_code(&text)
    })
}

/// Returns the first device literal, device attribute, or call that moves a tensor to the CPU or to CUDA.
fn find_device_in_code(code: &str) -> Option<String> {
    code.lines().find_map(|line| {
        let literal = line.find("torch.device(\"").map(|start| {
            let rest = &line[start..];
            let end = rest.find(')').map_or(rest.len(), |end| end + 1);
            rest[..end].to_owned()
        });
        let call = ["torch.cpu(", "torch.cuda("]
            .into_iter()
            .find(|call| line.contains(call))
            .map(|call| format!("{call})"));
        let attribute = line
            .trim()
            .strip_suffix(" : Device")
            .map(|name| format!("attribute `{name}`"));
        literal.or(call).or(attribute)
    })
}

/// The tensors that a network computes from a batch of images.
pub(crate) trait Outputs {
    /// Returns all tensors, `[B, ...]` each.
    fn tensors(&self) -> Vec<&Tensor>;

    /// Returns the largest absolute difference from `others`, relative to the largest absolute value of each tensor;
    /// NaN if a difference is NaN.
    fn difference<'a>(
        &self,
        others: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<f64, EncoderError> {
        let mut largest: f64 = 0.0;
        for (own, other) in self.tensors().into_iter().zip(others) {
            let scale = f64::try_from(other.f_abs()?.f_max()?)?.max(f64::MIN_POSITIVE);
            let difference = f64::try_from(own.f_sub(other)?.f_abs()?.f_max()?)? / scale;
            if difference.is_nan() {
                return Ok(difference);
            }
            largest = largest.max(difference);
        }
        Ok(largest)
    }

    /// Returns the tensors of image `index`, `[1, ...]` each.
    fn of_image(&self, index: i64) -> Result<Vec<Tensor>, EncoderError> {
        let tensors = self.tensors().into_iter();
        Ok(tensors
            .map(|tensor| tensor.f_narrow(0, index, 1))
            .collect::<Result<_, _>>()?)
    }
}

/// Runs the network on the same images again, then on the first one alone, and compares the results with `outputs`.
/// Because large encoders are slow, this runs only once per process for each file (`identity`), device and precision.
///
/// # Errors
/// [`EncoderError::NotRepeatable`], [`EncoderError::DependsOnBatch`], or the error of a failed pass.
pub(crate) fn check_repeatable<T: Outputs>(
    name: &str,
    (identity, device, precision): (&str, Device, Precision),
    images: &Tensor,
    outputs: &T,
    run: impl Fn(&Tensor) -> Result<T, EncoderError>,
) -> Result<(), EncoderError> {
    static CHECKED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let key = format!("{identity} {device:?} {precision:?}");
    let is_checked = |checked: &Option<HashSet<String>>| {
        checked
            .as_ref()
            .is_some_and(|checked| checked.contains(&key))
    };
    if is_checked(&CHECKED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(());
    }
    let tolerance = precision.tolerance();
    let repeat_tolerance = match (device, precision) {
        (Device::Cpu, Precision::Fp32) => REPEAT_TOLERANCE,
        _ => tolerance,
    };
    let difference = outputs.difference(run(images)?.tensors())?;
    if difference.is_nan() || difference > repeat_tolerance {
        let name = name.to_owned();
        return Err(EncoderError::NotRepeatable { name, difference });
    }
    let alone = run(&images.f_narrow(0, 0, 1)?)?;
    let difference = alone.difference(&outputs.of_image(0)?)?;
    if difference.is_nan() || difference > tolerance {
        let name = name.to_owned();
        return Err(EncoderError::DependsOnBatch { name, difference });
    }
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    checked.get_or_insert_default().insert(key);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_refers_to_a_device_is_found() {
        let traced = "    _1 = torch.ones([8], dtype=6, layout=0, device=torch.device(\"cpu\"), pin_memory=False)";
        assert_eq!(
            find_device_in_code(traced).unwrap(),
            "torch.device(\"cpu\")"
        );
        assert_eq!(
            find_device_in_code("  device : Device").unwrap(),
            "attribute `device`"
        );
        assert_eq!(
            find_device_in_code("a = 1\nb = torch.cuda(x)").unwrap(),
            "torch.cuda()"
        );
        for code in [
            "_2 = torch.ones([8], dtype=None, layout=None, device=ops.prim.device(x))",
            "  training : bool",
            "",
        ] {
            assert_eq!(find_device_in_code(code), None, "{code}");
        }
    }
}
