//! Which process this is, and where the processes meet.

use std::fmt;
use std::ptr::NonNull;

use thiserror::Error;

use crate::{TorchError, ffi};

/// What started the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// torchrun, or any program that sets its variables.
    Torchrun,
    /// srun of SLURM.
    Slurm,
    /// mpirun of Open MPI.
    OpenMpi,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::Slurm => "SLURM",
            Self::OpenMpi => "Open MPI",
        })
    }
}

/// Which process this is of how many, and where they meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process on its machine, from 0. It is also the number of its device.
    pub local_rank: usize,
    /// Host of the store.
    pub address: String,
    /// Port of the store.
    pub port: u16,
    /// What started the processes.
    pub launcher: Launcher,
    /// Begins all keys in the store, so that a restart does not read those of the attempt before.
    pub(super) prefix: String,
    /// Whether torchrun's agent serves the store, instead of rank 0.
    pub(super) agent_serves: bool,
}

/// The environment does not say which process this is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WorldError {
    /// A variable is missing beside another one.
    #[error(
        "{launcher}: {present} is set, but {missing} is not; set both, or none to run as a single process"
    )]
    Missing {
        /// Whose variables were found.
        launcher: Launcher,
        /// The variable that is set.
        present: &'static str,
        /// The variable that is missing.
        missing: &'static str,
    },

    /// A variable has a value that is not allowed.
    #[error("{variable}={value:?} must be {allowed}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        allowed: String,
    },
}

/// The names of a launcher's variables.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// In the order in which they are tried: torchrun also works under srun.
const LAUNCHERS: [Variables; 3] = [
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        size: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
    },
    // srun sets the size of its step. The script of a job, which runs outside any step, has only the other two.
    Variables {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
    },
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
];

const ADDRESS: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";
/// The port if no variable names one, as in PyTorch.
const DEFAULT_PORT: u16 = 29500;

impl World {
    /// Reads the variables of torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`), else SLURM's,
    /// else Open MPI's. Returns `None` if there are none.
    ///
    /// Under SLURM, the store is on the first node of the step, at a port that depends on the job. `MASTER_ADDR` and
    /// `MASTER_PORT` override both.
    ///
    /// # Errors
    /// A variable is missing or has a value that is not allowed.
    pub fn from_env() -> Result<Option<Self>, WorldError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Like [`from_env`](Self::from_env), with `variable` in place of the environment.
    ///
    /// # Errors
    /// Those of [`from_env`](Self::from_env).
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, WorldError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_set = |names: &&Variables| match names.launcher {
            // `RANK` alone is a mistake. A job's script under SLURM has a rank, but no step.
            Launcher::Torchrun => variable(names.rank).or(variable(names.size)).is_some(),
            Launcher::Slurm | Launcher::OpenMpi => variable(names.size).is_some(),
        };
        let Some(names) = LAUNCHERS.iter().find(is_set) else {
            return Ok(None);
        };
        let launcher = names.launcher;
        let missing = |present, missing| WorldError::Missing {
            launcher,
            present,
            missing,
        };
        let size_text = variable(names.size).ok_or_else(|| missing(names.rank, names.size))?;
        let rank_text = variable(names.rank).ok_or_else(|| missing(names.size, names.rank))?;
        let size = whole(names.size, size_text, 1, None)?;
        let rank = whole(names.rank, rank_text, 0, Some(size))?;
        let local_rank = match variable(names.local_rank) {
            Some(text) => whole(names.local_rank, text, 0, Some(size))?,
            None if size == 1 => 0,
            None => return Err(missing(names.size, names.local_rank)),
        };
        let address = match (variable(ADDRESS), launcher) {
            (Some(address), _) => address,
            (None, Launcher::Slurm) => ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]
                .into_iter()
                .find_map(&variable)
                .map(|nodes| first_node(&nodes))
                .ok_or_else(|| missing(names.size, "SLURM_STEP_NODELIST"))?,
            (None, _) if size == 1 => "127.0.0.1".to_owned(),
            (None, _) => return Err(missing(names.size, ADDRESS)),
        };
        let port = match (variable(PORT), variable("SLURM_JOB_ID")) {
            (Some(text), _) => whole(PORT, text, 1, Some(1 << 16))? as u16,
            // Two jobs may share a node.
            (None, Some(job)) if launcher == Launcher::Slurm => {
                let job: u64 = job.parse().unwrap_or_default();
                20_000 + (job % 10_000) as u16
            }
            (None, _) if launcher == Launcher::Torchrun && size > 1 => {
                return Err(missing(names.size, PORT));
            }
            (None, _) => DEFAULT_PORT,
        };
        let attempt = ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"]
            .into_iter()
            .find_map(&variable)
            .unwrap_or_else(|| "0".to_owned());
        let agent = variable("TORCHELASTIC_USE_AGENT_STORE");
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            address,
            port,
            launcher,
            prefix: format!("irepa/attempt-{attempt}"),
            agent_serves: agent.is_some_and(|value| value.eq_ignore_ascii_case("true")),
        }))
    }

    /// Converts a status of the shim to a result that names the operation and this rank.
    pub(super) fn check(
        &self,
        operation: impl FnOnce() -> String,
        status: i32,
    ) -> Result<(), TorchError> {
        ffi::check(status).map_err(|error| TorchError::Distributed {
            operation: operation(),
            rank: self.rank,
            size: self.size,
            reason: match error {
                TorchError::Libtorch(reason) => reason,
                other => other.to_string(),
            },
        })
    }

    /// Takes the object that a shim function wrote, if it succeeded.
    pub(super) fn take<T>(
        &self,
        operation: impl Fn() -> String,
        status: i32,
        out: *mut T,
    ) -> Result<NonNull<T>, TorchError> {
        self.check(&operation, status)?;
        NonNull::new(out).ok_or_else(|| TorchError::Distributed {
            operation: operation(),
            rank: self.rank,
            size: self.size,
            reason: "libtorch returned nothing".to_owned(),
        })
    }
}

/// Reads a whole number from `least` up to, but not including, `end`.
fn whole(
    variable: &'static str,
    value: String,
    least: usize,
    end: Option<usize>,
) -> Result<usize, WorldError> {
    match value.parse() {
        Ok(number) if number >= least && end.is_none_or(|end| number < end) => Ok(number),
        _ => Err(WorldError::Invalid {
            variable,
            value,
            allowed: match end {
                Some(end) => format!("a whole number from {least} to {}", end - 1),
                None => format!("a whole number, {least} or more"),
            },
        }),
    }
}

/// Returns the first host of a list in SLURM's notation, such as `node[03-05,9],login`.
fn first_node(nodes: &str) -> String {
    let end = nodes.find([',', '[']).unwrap_or(nodes.len());
    let (name, rest) = nodes.split_at(end);
    let Some(numbers) = rest.strip_prefix('[') else {
        return name.to_owned();
    };
    let digits = numbers.chars().take_while(char::is_ascii_digit);
    let suffix = numbers
        .split_once(']')
        .map_or("", |(_, rest)| rest.split(',').next().unwrap_or_default());
    format!("{name}{}{suffix}", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<Option<World>, WorldError> {
        World::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29400"),
    ];

    #[test]
    fn the_variables_of_each_launcher_are_read() {
        assert_eq!(world(&[]).unwrap(), None);
        let read = world(&TORCHRUN).unwrap().unwrap();
        let expected = World {
            rank: 5,
            size: 8,
            local_rank: 1,
            address: "node0".to_owned(),
            port: 29400,
            launcher: Launcher::Torchrun,
            prefix: "irepa/attempt-0".to_owned(),
            agent_serves: false,
        };
        assert_eq!(read, expected);
        let agent = [
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let read = world(&[&TORCHRUN[..], &agent].concat()).unwrap().unwrap();
        assert!(read.agent_serves);
        assert_eq!(read.prefix, "irepa/attempt-2");

        let slurm = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
            ("SLURM_JOB_ID", "1234567"),
        ];
        let read = world(&slurm).unwrap().unwrap();
        assert_eq!((read.rank, read.size, read.local_rank), (3, 4, 1));
        assert_eq!((read.address.as_str(), read.port), ("gpu07", 24567));
        let elsewhere = [("MASTER_ADDR", "head"), ("MASTER_PORT", "4000")];
        let read = world(&[&slurm[..], &elsewhere].concat()).unwrap().unwrap();
        assert_eq!((read.address.as_str(), read.port), ("head", 4000));
        // The script of a job is one process, whatever the number of tasks of the job.
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert_eq!(world(&script).unwrap(), None);

        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("MASTER_ADDR", "localhost"),
        ];
        let read = world(&mpi).unwrap().unwrap();
        assert_eq!(
            (read.launcher, read.port),
            (Launcher::OpenMpi, DEFAULT_PORT)
        );
    }

    #[test]
    fn missing_and_invalid_variables_are_named() {
        for (name, _) in TORCHRUN {
            let rest: Vec<_> = TORCHRUN.into_iter().filter(|(n, _)| *n != name).collect();
            let message = world(&rest).unwrap_err().to_string();
            assert!(message.contains(&format!("{name} is not")), "{message}");
        }
        for (name, value, allowed) in [
            ("RANK", "8", "from 0 to 7"),
            ("WORLD_SIZE", "0", "1 or more"),
            ("WORLD_SIZE", "many", "1 or more"),
            ("MASTER_PORT", "65536", "from 1 to 65535"),
        ] {
            let changed = TORCHRUN.map(|(n, old)| (n, if n == name { value } else { old }));
            let message = world(&changed).unwrap_err().to_string();
            assert!(
                message.contains(&format!("{name}={value:?}")) && message.contains(allowed),
                "{message}"
            );
        }
    }

    #[test]
    fn the_first_node_of_a_list_is_found() {
        for (nodes, first) in [
            ("login", "login"),
            ("a,b", "a"),
            ("node[03-05,9],login", "node03"),
            ("rack[1-2]-gpu,x", "rack1-gpu"),
        ] {
            assert_eq!(first_node(nodes), first);
        }
    }
}
