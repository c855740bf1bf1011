//! Settings of libtorch that change a run's results on a GPU: TF32 and deterministic operators.

use tch::Device;
use torch_ext::device;

use crate::config::InvalidConfig;
use crate::{Config, TrainError};

/// Environment variable that must have one of [`WORKSPACES`] before the program starts, for cuBLAS to be deterministic.
const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";
const WORKSPACES: [&str; 2] = [":4096:8", ":16:8"];

/// The values of libtorch's settings for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Switches {
    tf32: bool,
    deterministic: bool,
}

impl Config {
    /// Applies `train.tf32` and `train.deterministic` to libtorch. These settings hold for the whole process, so they
    /// are applied before each part of a run's work on `device`. On the CPU this does nothing: CPU operators compute
    /// in float32 and are deterministic.
    ///
    /// # Errors
    /// `train.deterministic` is set, but not the environment variable that cuBLAS needs for it; a libtorch operation
    /// failed.
    pub fn apply_numerics(&self, device: Device) -> Result<(), TrainError> {
        let workspace = std::env::var(WORKSPACE).ok();
        if let Some(switches) = self.switches(device, workspace.as_deref())? {
            device::set_tf32(switches.tf32)?;
            device::set_deterministic(switches.deterministic)?;
        }
        Ok(())
    }

    fn switches(
        &self,
        device: Device,
        workspace: Option<&str>,
    ) -> Result<Option<Switches>, InvalidConfig> {
        if !device.is_cuda() {
            return Ok(None);
        }
        let (tf32, deterministic) = (self.train.tf32, self.train.deterministic);
        if deterministic && !workspace.is_some_and(|found| WORKSPACES.contains(&found)) {
            return Err(InvalidConfig {
                key: "train.deterministic",
                reason: format!(
                    "is true, but {WORKSPACE} is {}: cuBLAS is deterministic only if it is {} when the program starts",
                    workspace.unwrap_or("not set"),
                    WORKSPACES.join(" or ")
                ),
            });
        }
        Ok(Some(Switches {
            tf32,
            deterministic,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_effect_on_a_gpu_and_not_on_the_cpu() {
        let mut config = Config::default();
        let gpu = Device::Cuda(0);
        let switches = |tf32, deterministic| {
            Some(Switches {
                tf32,
                deterministic,
            })
        };
        // By default float32 operations are not rounded to TF32.
        assert_eq!(config.switches(gpu, None), Ok(switches(false, false)));
        config.train.tf32 = true;
        assert_eq!(config.switches(gpu, None), Ok(switches(true, false)));
        config.train.deterministic = true;
        let found = config.switches(gpu, Some(":4096:8"));
        assert_eq!(found, Ok(switches(true, true)));
        assert_eq!(config.switches(Device::Cpu, None), Ok(None));
        for workspace in [None, Some(":0:0")] {
            let error = config.switches(gpu, workspace).unwrap_err().to_string();
            for words in ["`train.deterministic`", WORKSPACE, ":4096:8"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }
}
