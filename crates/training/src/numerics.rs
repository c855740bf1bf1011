//! Switches of libtorch that change a run's numbers on a GPU.

use tch::Device;
use torch_ext::device;

use crate::config::InvalidConfig;
use crate::{Config, TrainError};

/// What must be set for cuBLAS to be deterministic, before the program starts.
const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";
const WORKSPACES: [&str; 2] = [":4096:8", ":16:8"];

/// The switches of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Switches {
    tf32: bool,
    deterministic: bool,
}

impl Config {
    /// Sets libtorch's switches as `train.tf32` and `train.deterministic` say. They are the process's, and so are set
    /// before each part of a run's work on `device`. On the CPU there is nothing to switch: its kernels compute in
    /// float32 and are deterministic.
    ///
    /// # Errors
    /// `train.deterministic` without the environment that cuBLAS needs for it; libtorch refused.
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
                    "is true, but {WORKSPACE} is {}: cuBLAS is deterministic only where it is {} when the program starts",
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
    fn settings_become_switches_on_a_gpu_and_nothing_on_the_cpu() {
        let mut config = Config::default();
        let gpu = Device::Cuda(0);
        let of = |tf32, deterministic| {
            Some(Switches {
                tf32,
                deterministic,
            })
        };
        // float32 says float32.
        assert_eq!(config.switches(gpu, None), Ok(of(false, false)));
        config.train.tf32 = true;
        assert_eq!(config.switches(gpu, None), Ok(of(true, false)));
        config.train.deterministic = true;
        assert_eq!(config.switches(gpu, Some(":4096:8")), Ok(of(true, true)));
        assert_eq!(config.switches(Device::Cpu, None), Ok(None));
        for workspace in [None, Some(":0:0")] {
            let error = config.switches(gpu, workspace).unwrap_err().to_string();
            for words in ["`train.deterministic`", WORKSPACE, ":4096:8"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }
}
