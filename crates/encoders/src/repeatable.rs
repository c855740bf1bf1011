//! Whether a TorchScript file gives an image the same outputs every time, beside any other image, and on any
//! device.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Tensor};
use zip::ZipArchive;

use crate::{EncoderError, Precision};

/// Largest difference, relative to the largest value, of the outputs of two passes of the same images on one
/// device in float32: sums in another order, not more.
const REPEATED: f64 = 1e-4;

/// Refuses a file whose code names a device. Tracing leaves such names where the module makes a tensor
/// (`torch.arange(n, device=x.device)`); weights and buffers move with the module, these do not.
///
/// # Errors
/// [`EncoderError::TiedToDevice`]. A file that is no archive passes: libtorch says what it is.
pub(crate) fn check_devices(path: &Path) -> Result<(), EncoderError> {
    let Some(found) = named_device(path) else {
        return Ok(());
    };
    Err(EncoderError::TiedToDevice {
        path: path.to_owned(),
        found,
    })
}

/// The first piece of the file's code that names a device.
fn named_device(path: &Path) -> Option<String> {
    let mut archive = ZipArchive::new(BufReader::new(File::open(path).ok()?)).ok()?;
    let code: Vec<String> = archive
        .file_names()
        .filter(|name| name.contains("/code/") && name.ends_with(".py"))
        .map(str::to_owned)
        .collect();
    code.iter().find_map(|name| {
        let mut text = String::new();
        archive.by_name(name).ok()?.read_to_string(&mut text).ok()?;
        device_in(&text)
    })
}

/// A literal device, an attribute of that type, or a move to one kind of device.
fn device_in(code: &str) -> Option<String> {
    code.lines().find_map(|line| {
        let literal = line.find("torch.device(\"").map(|start| {
            let rest = &line[start..];
            let end = rest.find(')').map_or(rest.len(), |end| end + 1);
            rest[..end].to_owned()
        });
        let moved = ["torch.cpu(", "torch.cuda("]
            .into_iter()
            .find(|call| line.contains(call))
            .map(|call| format!("{call})"));
        let attribute = line
            .trim()
            .strip_suffix(" : Device")
            .map(|name| format!("attribute `{name}`"));
        literal.or(moved).or(attribute)
    })
}

/// What a network computes of a batch of images.
pub(crate) trait Outputs {
    /// All tensors, `[B, ...]` each.
    fn tensors(&self) -> Vec<&Tensor>;

    /// Largest difference from `others`, relative to the largest value of each tensor; NaN if there is one.
    fn difference<'a>(
        &self,
        others: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<f64, EncoderError> {
        let mut most: f64 = 0.0;
        for (own, other) in self.tensors().into_iter().zip(others) {
            let scale = f64::try_from(other.f_abs()?.f_max()?)?.max(f64::MIN_POSITIVE);
            let off = f64::try_from(own.f_sub(other)?.f_abs()?.f_max()?)? / scale;
            if off.is_nan() {
                return Ok(off);
            }
            most = most.max(off);
        }
        Ok(most)
    }

    /// The part of image `index`, `[1, ...]` each.
    fn of_image(&self, index: i64) -> Result<Vec<Tensor>, EncoderError> {
        let tensors = self.tensors().into_iter();
        Ok(tensors
            .map(|tensor| tensor.f_narrow(0, index, 1))
            .collect::<Result<_, _>>()?)
    }
}

/// Passes the same images through `run` again, and the first one alone, and compares with their `outputs`.
/// Done once in a process for a file, `identity`, on a device in a precision: large encoders take long.
///
/// # Errors
/// [`EncoderError::NotRepeatable`], [`EncoderError::DependsOnBatch`], or a pass failed.
pub(crate) fn check_passes<T: Outputs>(
    name: &str,
    (identity, device, precision): (&str, Device, Precision),
    images: &Tensor,
    outputs: &T,
    run: impl Fn(&Tensor) -> Result<T, EncoderError>,
) -> Result<(), EncoderError> {
    static CHECKED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let key = format!("{identity} {device:?} {precision:?}");
    let known = |checked: &Option<HashSet<String>>| {
        checked
            .as_ref()
            .is_some_and(|checked| checked.contains(&key))
    };
    if known(&CHECKED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(());
    }
    let rounding = precision.tolerance();
    let repeated = match (device, precision) {
        (Device::Cpu, Precision::Fp32) => REPEATED,
        _ => rounding,
    };
    let difference = outputs.difference(run(images)?.tensors())?;
    if difference.is_nan() || difference > repeated {
        let name = name.to_owned();
        return Err(EncoderError::NotRepeatable { name, difference });
    }
    let alone = run(&images.f_narrow(0, 0, 1)?)?;
    let difference = alone.difference(&outputs.of_image(0)?)?;
    if difference.is_nan() || difference > rounding {
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
    fn code_that_names_a_device_is_found() {
        let traced = "    _1 = torch.ones([8], dtype=6, layout=0, device=torch.device(\"cpu\"), pin_memory=False)";
        assert_eq!(device_in(traced).unwrap(), "torch.device(\"cpu\")");
        assert_eq!(
            device_in("  device : Device").unwrap(),
            "attribute `device`"
        );
        assert_eq!(
            device_in("a = 1\nb = torch.cuda(x)").unwrap(),
            "torch.cuda()"
        );
        for code in [
            "_2 = torch.ones([8], dtype=None, layout=None, device=ops.prim.device(x))",
            "  training : bool",
            "",
        ] {
            assert_eq!(device_in(code), None, "{code}");
        }
    }
}
