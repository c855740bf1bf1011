//! The devices of the ranks of one machine.

use tch::{Cuda, Device};
use thiserror::Error;
use torch_ext::device;

/// The value of `--devices` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("--devices {value}: {reason}")]
pub struct DevicesError {
    /// The value.
    pub value: String,
    /// The reason.
    pub reason: String,
}

/// Parses a list of CUDA devices, such as `0-7`, `0,2` or `all`.
///
/// # Errors
/// It is no such list, or this machine has no such device.
pub fn devices(value: &str) -> Result<Vec<Device>, DevicesError> {
    devices_of(value, Cuda::device_count().max(0) as usize)
}

fn devices_of(value: &str, count: usize) -> Result<Vec<Device>, DevicesError> {
    let refused = |reason: String| DevicesError {
        value: value.to_owned(),
        reason,
    };
    if count == 0 {
        let reason = "this machine has no CUDA device, or libtorch is built without CUDA; --processes N starts processes \
                      on the CPU";
        return Err(refused(reason.to_owned()));
    }
    if value == "all" {
        return Ok((0..count).map(Device::Cuda).collect());
    }
    let mut devices = Vec::new();
    for part in value.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(refused("use a list such as 0-7, 0,2 or all".to_owned()));
        };
        if first > last || last >= count {
            let end = count - 1;
            return Err(refused(format!("this machine has the devices 0 to {end}")));
        }
        devices.extend((first..=last).map(Device::Cuda));
    }
    let mut sorted = devices.clone();
    sorted.sort_by_key(|device| match device {
        Device::Cuda(index) => *index,
        _ => 0,
    });
    sorted.dedup();
    match sorted.len() == devices.len() {
        true => Ok(devices),
        false => Err(refused("a device is named twice".to_owned())),
    }
}

/// The device of the rank `local_rank` of this machine: that of the list, or for a name without a number, the one that has
/// the rank's number.
///
/// # Errors
/// The name is unknown, or there is no such device. The error is that of [`device::resolve`].
pub fn device_of(
    name: &str,
    devices: Option<&[Device]>,
    local_rank: usize,
) -> Result<Device, torch_ext::TorchError> {
    if let Some(device) = devices.and_then(|devices| devices.get(local_rank)) {
        return Ok(*device);
    }
    match device::resolve(name)? {
        Device::Cuda(_) if !name.contains(':') => device::resolve(&format!("cuda:{local_rank}")),
        device => Ok(device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_devices_are_parsed() {
        let cuda = |indices: &[usize]| indices.iter().copied().map(Device::Cuda).collect();
        assert_eq!(devices_of("all", 3), Ok(cuda(&[0, 1, 2])));
        assert_eq!(devices_of("0-2", 8), Ok(cuda(&[0, 1, 2])));
        assert_eq!(devices_of("6,0-1", 8), Ok(cuda(&[6, 0, 1])));
        for (value, count, reason) in [
            ("0", 0, "no CUDA device"),
            ("0-8", 8, "0 to 7"),
            ("2-1", 8, "0 to 7"),
            ("gpu", 8, "such as 0-7"),
            ("0,0-1", 8, "named twice"),
        ] {
            let error = devices_of(value, count).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
