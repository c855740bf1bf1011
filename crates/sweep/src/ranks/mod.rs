//! Several processes that train one model.
//!
//! They meet in a store, compare what they are about to do (`Ranks::compare`), and then share each batch. Rank 0 runs
//! the cell as a single process does: it writes the folder, evaluates and measures. The others `follow`. Their steps are
//! tied together by the reduction of the gradients alone. Only where rank 0 may take long, before the first step and after
//! an evaluation, do the others wait for its word (`Ranks::go`).
//!
//! A rank that fails says so in the store ([`Ranks::report`]), so that the reason is printed once: the others fail too,
//! because they cannot reach it.

mod devices;
mod follow;
mod launch;
mod peers;

use std::thread;
use std::time::{Duration, Instant};

use files::Checksum;
use serde::{Deserialize, Serialize};
use tch::Device;
use terminal::interrupts::INTERRUPTED_CODE;
use thiserror::Error;
use torch_ext::TorchError;
use torch_ext::distributed::{ProcessGroup, Store, World};

use crate::config_file;
use crate::failure::Reason;
use crate::planned::Planned;
use crate::resume::list_differences;

pub use devices::{DevicesError, device_of, devices};
pub(crate) use follow::follow;
pub use launch::{Launch, LaunchError, launch};
pub(crate) use peers::GroupPeers;

/// How long a rank waits for the others when it starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a rank waits for the others in a step. A step, a checkpoint and an image that a file server delivers late
/// must take less. A rank that ends is noticed at once.
const STEP_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How long a rank that cannot reach another one waits for the reason.
const REASON_TIMEOUT: Duration = Duration::from_secs(3);

const CHECK_EVERY: Duration = Duration::from_millis(50);

/// Why several processes cannot train a model together.
#[derive(Debug, Error)]
pub enum RanksError {
    /// The processes cannot meet, or the store does not answer.
    #[error(transparent)]
    Store(#[from] TorchError),
    /// Another rank did not come.
    #[error("rank {rank} did not start within {} s", START_TIMEOUT.as_secs())]
    Absent {
        /// The rank.
        rank: usize,
    },
    /// Ranks are not about to do the same.
    #[error(
        "rank {rank} on {host} differs from rank 0: {difference}; start all ranks with the same {what}"
    )]
    Different {
        /// The rank.
        rank: usize,
        /// Its machine.
        host: String,
        /// What must be the same.
        what: &'static str,
        /// How it differs.
        difference: String,
    },
    /// Another rank failed.
    #[error("{0}")]
    Failed(RankFailure),
}

/// A rank that failed, as it says itself or as the process says that started it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RankFailure {
    /// The rank.
    pub rank: usize,
    /// Its machine.
    pub host: String,
    /// The reason.
    pub reason: String,
    /// Exit code of the rank.
    pub code: u8,
}

impl std::fmt::Display for RankFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} on {}: {}", self.rank, self.host, self.reason)
    }
}

/// What a rank is about to do.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    host: String,
    /// The configuration as a file.
    config: String,
    /// Hash of the configuration, the data sets, the encoders and the judges.
    inputs: String,
    /// SHA-256 of the program.
    program: String,
}

/// This process among those that train one model.
#[derive(Debug)]
pub struct Ranks {
    world: World,
    store: Store,
    host: String,
}

/// Name of the group that reduces gradients.
const TRAINING: &str = "training";
/// Name of the group that reads the data.
const DATA: &str = "data";
/// Key of the number of ranks that have failed.
const FAILURES: &str = "failures";
/// Key of the first [`RankFailure`].
const FAILURE: &str = "failure";
/// Key of the number of ranks that have read it.
const READ: &str = "failure-read";

impl Ranks {
    /// Meets the other processes of `world`.
    ///
    /// # Errors
    /// The port is in use; the address does not answer within 60 s.
    pub fn connect(world: World) -> Result<Self, RanksError> {
        Ok(Self {
            store: Store::connect(&world, START_TIMEOUT)?,
            host: host(),
            world,
        })
    }

    /// Returns which process this is.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether this process writes the files.
    pub fn is_first(&self) -> bool {
        self.world.rank == 0
    }

    /// Waits for all ranks, and checks that they have the same program, configuration and inputs.
    pub(crate) fn compare(&self, planned: &Planned) -> Result<(), RanksError> {
        let config = config_file::to_file(&planned.cell.config).unwrap_or_default();
        let program = std::env::current_exe().and_then(|path| Checksum::of_file(&path));
        let own = Intent {
            host: self.host.clone(),
            config,
            inputs: planned.hash.clone(),
            program: program.map_or_else(|error| error.to_string(), |sum| sum.sha256),
        };
        let text = serde_json::to_vec(&own).unwrap_or_default();
        self.store.set(&intent_of(self.world.rank), &text)?;
        let first = self.intent(0)?;
        for rank in 1..self.world.size {
            let other = self.intent(rank)?;
            let different = |what, difference| {
                Err(RanksError::Different {
                    rank,
                    host: other.host.clone(),
                    what,
                    difference,
                })
            };
            if other.program != first.program {
                return different("program", "its program is another build".to_owned());
            }
            if other.config != first.config {
                let difference = list_differences(&first.config, &other.config);
                return different("settings", difference);
            }
            if other.inputs != first.inputs {
                let difference =
                    "its data set, an encoder or another input file has other contents";
                return different("files", difference.to_owned());
            }
        }
        Ok(())
    }

    /// Waits until all ranks have come to the `place`, at most for `timeout`. A group is only connected after this: a rank
    /// that fails before is noticed here, but not by a group that waits for it.
    pub(crate) fn meet(&self, place: &str, timeout: Option<Duration>) -> Result<(), RanksError> {
        let key = |rank: usize| format!("{place}/{rank}");
        self.store.set(&key(self.world.rank), &[])?;
        for rank in 0..self.world.size {
            let found = self.wait(&key(rank), timeout)?;
            found.ok_or(RanksError::Absent { rank })?;
        }
        Ok(())
    }

    /// Waits until all ranks of a sweep have planned its cells.
    pub(crate) fn meet_to_sweep(&self) -> Result<(), RanksError> {
        self.meet("planned", Some(START_TIMEOUT))
    }

    fn intent(&self, rank: usize) -> Result<Intent, RanksError> {
        let key = intent_of(rank);
        let text = self.wait(&key, Some(START_TIMEOUT))?;
        let text = text.ok_or(RanksError::Absent { rank })?;
        Ok(serde_json::from_slice(&text)
            .map_err(|error| TorchError::Libtorch(format!("`{key}` in the store: {error}")))?)
    }

    /// Checks that the ranks can reduce gradients on `device`.
    pub(crate) fn check_device(&self, device: Device) -> Result<(), RanksError> {
        match device {
            Device::Cuda(_) => Ok(ProcessGroup::check_nccl(device)?),
            _ => Ok(()),
        }
    }

    /// Connects the ranks for the reduction of gradients on `device`, when all are ready: rank 0 when the run is open, the
    /// others when they have loaded what they need.
    pub(crate) fn training_group(&self, device: Device) -> Result<ProcessGroup, RanksError> {
        self.meet("ready", None)?;
        let (store, world) = (&self.store, &self.world);
        Ok(match device {
            Device::Cuda(_) => ProcessGroup::nccl(store, world, TRAINING, device, STEP_TIMEOUT)?,
            _ => ProcessGroup::gloo(store, world, TRAINING, STEP_TIMEOUT)?,
        })
    }

    /// Connects the ranks as readers of one data stream.
    pub(crate) fn peers(&self) -> Result<GroupPeers, TorchError> {
        let group = ProcessGroup::gloo(&self.store, &self.world, DATA, STEP_TIMEOUT)?;
        Ok(GroupPeers(group))
    }

    /// Tells the others, as rank 0, whether they continue after `step`.
    pub(crate) fn go(&self, step: u64, continues: bool) -> Result<(), TorchError> {
        self.store.set(&go_after(step), &[u8::from(continues)])
    }

    /// Waits until rank 0 says whether to continue after `step`.
    pub(crate) fn wait_to_go(&self, step: u64) -> Result<bool, RanksError> {
        let word = self.wait(&go_after(step), None)?;
        Ok(word.is_some_and(|word| word == [1]))
    }

    /// Waits for the value of a key. Returns `None` after `timeout`.
    fn wait(&self, key: &str, timeout: Option<Duration>) -> Result<Option<Vec<u8>>, RanksError> {
        let start = Instant::now();
        while !self.store.contains(key)? {
            if let Some(failure) = self.failure()? {
                return Err(RanksError::Failed(failure));
            }
            if timeout.is_some_and(|timeout| start.elapsed() > timeout) {
                return Ok(None);
            }
            thread::sleep(CHECK_EVERY);
        }
        Ok(Some(self.store.get(key)?))
    }

    /// The rank that failed first, if any.
    fn failure(&self) -> Result<Option<RankFailure>, TorchError> {
        if !self.store.contains(FAILURE)? {
            return Ok(None);
        }
        let text = self.store.get(FAILURE)?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Ends this rank without an error. Others that still wait for a word of rank 0, because it was interrupted, end too.
    pub fn end(&self) {
        if self.is_first() {
            let failure = RankFailure {
                rank: 0,
                host: self.host.clone(),
                reason: "interrupted".to_owned(),
                code: INTERRUPTED_CODE,
            };
            if let Err(error) = claim(&self.store, &failure) {
                tracing::debug!("the store has ended: {error}");
            }
        }
    }

    /// Reports that this rank ends with `code` for a reason. Returns the failure that this rank is to print. If another
    /// rank failed before, which has printed its reason, that failure is returned as `Err`.
    ///
    /// # Errors
    /// The failure of another rank.
    pub fn report(&self, reason: String, code: u8) -> Result<RankFailure, RankFailure> {
        // The end of another rank may be the reason. That rank then has the first word. If all ranks fail alike, as at a
        // loss that is not finite, rank 0 says more.
        let is_consequence = !self.is_first() || Reason(reason.clone()).is_of_ranks();
        let own = RankFailure {
            rank: self.world.rank,
            host: self.host.clone(),
            reason,
            code,
        };
        let start = Instant::now();
        while is_consequence && start.elapsed() < REASON_TIMEOUT {
            match self.failure() {
                Ok(Some(other)) => {
                    let _unread = self.store.add(READ, 1);
                    return Err(other);
                }
                // The store has ended, so this rank says what it knows.
                Err(_) => return Ok(own),
                Ok(None) => thread::sleep(CHECK_EVERY),
            }
        }
        match claim(&self.store, &own) {
            Ok(None) | Err(_) => {}
            Ok(Some(other)) => {
                let _unread = self.store.add(READ, 1);
                return Err(other);
            }
        }
        // Rank 0 may serve the store, which must outlive the others' questions.
        let start = Instant::now();
        let others = self.world.size as i64 - 1;
        while self.is_first() && start.elapsed() < REASON_TIMEOUT {
            match self.store.add(READ, 0) {
                Ok(read) if read < others => thread::sleep(CHECK_EVERY),
                _ => break,
            }
        }
        Ok(own)
    }
}

/// Writes the failure to the store, unless another one was written before, which is returned.
fn claim(store: &Store, failure: &RankFailure) -> Result<Option<RankFailure>, TorchError> {
    if store.add(FAILURES, 1)? == 1 {
        let text = serde_json::to_vec(failure).unwrap_or_default();
        store.set(FAILURE, &text)?;
        return Ok(None);
    }
    let text = store.get(FAILURE)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn intent_of(rank: usize) -> String {
    format!("intent/{rank}")
}

fn go_after(step: u64) -> String {
    format!("go/{step}")
}

/// The name of this machine.
fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
