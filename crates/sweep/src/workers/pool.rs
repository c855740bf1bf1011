//! The side of the program that the user started.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use tch::Device;

use super::message::{self, Answer, HeldCell, Task};
use crate::SweepError;
use crate::cell_lock::{Held, fail_all};
use crate::context::Context;
use crate::failure::Reason;
use crate::mutex::lock;
use crate::planned::Planned;
use crate::progress::{Progress, Update};

/// Free memory in bytes that each worker must have: libtorch, an encoder, judges and small cells.
const MEMORY_OF_A_WORKER: u64 = 2 << 30;

/// Interval at which the pool looks for an interruption.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// How often a cohort is given to a worker if the workers end before they complete it.
const ATTEMPTS: usize = 2;

/// How a sweep divides its cohorts among processes.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    /// Number of processes that train at the same time; `None` for one per thread on a CPU and 1 on CUDA.
    pub count: Option<usize>,
    /// Devices that train at the same time, with a worker each; empty for the device of the sweep.
    pub devices: &'a [Device],
    /// The command that starts a worker: this program with the arguments of this sweep and `--worker DEVICE`.
    pub command: &'a (dyn Fn(&str) -> io::Result<Command> + Sync),
}

impl std::fmt::Debug for Workers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// The default number of workers of a plan with `cohorts`.
///
/// On a CPU it is the number of libtorch's threads, of which each worker gets its share: a small model on one thread
/// loses nothing at barriers, neither the time in which one thread waits for another nor, beside another busy process,
/// the time until a thread that was suspended continues (`docs/results/busy-machine.md`). On CUDA it is 1.
///
/// It depends on nothing that changes between two calls of the same sweep, such as the cells that are done or the free
/// memory, because the roundings of some of libtorch's operators depend on the number of threads.
pub(crate) fn default_count(device: Device, threads: usize, cohorts: usize) -> usize {
    match device {
        Device::Cpu => threads.min(cohorts).max(1),
        _ => 1,
    }
}

/// How many of `count` workers run at the same time: as many as there are cohorts to run and as fit into the free
/// memory.
pub(crate) fn running(count: usize, cohorts: usize, free: Option<u64>) -> usize {
    let by_memory = free.map_or(usize::MAX, |free| {
        usize::try_from(free / MEMORY_OF_A_WORKER).unwrap_or(usize::MAX)
    });
    count.min(cohorts).min(by_memory).max(1)
}

/// Splits the largest groups of cells until there are `count`, or every cell is alone: cells of a cohort share one encoder
/// pass, but a worker without cells shares nothing.
pub(crate) fn split_for<T>(mut groups: Vec<Vec<T>>, count: usize) -> Vec<Vec<T>> {
    while groups.len() < count {
        let largest =
            (0..groups.len()).max_by_key(|&index| (groups[index].len(), usize::MAX - index));
        let Some(index) = largest.filter(|&index| groups[index].len() > 1) else {
            break;
        };
        let half = groups[index].len().div_ceil(2);
        let second = groups[index].split_off(half);
        groups.insert(index + 1, second);
    }
    groups
}

/// Workers that take the cohorts of a sweep from a queue.
pub(crate) struct Pool<'a> {
    progress: &'a Progress,
    interrupted: &'a AtomicBool,
    command: &'a (dyn Fn(&str) -> io::Result<Command> + Sync),
    count: usize,
    /// Names of the workers' devices, in turn.
    devices: Vec<String>,
    /// Number of libtorch's threads of each worker.
    threads: usize,
    /// Maximum size in bytes of the state of the cells that one worker trains at the same time.
    memory_limit: Option<u64>,
    /// Whether a worker has received a task.
    is_started: AtomicBool,
    /// Whether workers must save their cells and end.
    is_stopped: AtomicBool,
}

/// Cells in the queue.
struct Cohort<'a> {
    cells: Vec<&'a Planned>,
    /// Number of workers that have ended without completing them.
    failed_attempts: usize,
}

type Queue<'a> = Mutex<VecDeque<Cohort<'a>>>;

/// What the thread of a worker reports.
enum Report<'a> {
    /// The cohort has ended, with these reasons of failures and cells of other processes.
    Ended(Vec<&'a Planned>, BTreeMap<String, String>, Vec<HeldCell>),
    /// The cohort was given up.
    Lost(Vec<&'a Planned>, Reason),
    /// The thread cannot continue.
    Error(SweepError),
}

impl<'a> Pool<'a> {
    /// A pool of `count` (at least one) workers on `devices` (at least one), each with `threads` threads of libtorch. The
    /// workers of a device share `memory` bytes.
    pub(crate) fn new(
        (progress, interrupted): (&'a Progress, &'a AtomicBool),
        command: &'a (dyn Fn(&str) -> io::Result<Command> + Sync),
        devices: Vec<String>,
        count: usize,
        threads: usize,
        memory: Option<u64>,
    ) -> Self {
        let per_device = count.div_ceil(devices.len().max(1)).max(1);
        Self {
            progress,
            interrupted,
            command,
            count,
            devices,
            threads,
            memory_limit: memory.map(|bytes| bytes / per_device as u64),
            is_started: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Runs cohorts to the end, or until interrupted, and calls `after` when one has ended. Returns the cells that are
    /// locked by processes outside of the pool.
    ///
    /// # Errors
    /// A worker cannot be started, or the first error of `after`.
    pub(crate) fn run<'c>(
        &self,
        context: &Context,
        cohorts: Vec<Vec<&'c Planned>>,
        after: &dyn Fn() -> Result<(), SweepError>,
    ) -> Result<Vec<Vec<Held<'c>>>, SweepError> {
        let cohorts = cohorts.into_iter().map(|cells| Cohort {
            cells,
            failed_attempts: 0,
        });
        let queue = Mutex::new(cohorts.collect());
        let inputs: Vec<Mutex<Option<ChildStdin>>> =
            (0..self.count).map(|_| Mutex::default()).collect();
        let mut all_held = Vec::new();
        let mut outcome = Ok(());
        thread::scope(|scope| {
            let (sender, reports) = mpsc::channel();
            let devices = self.devices.iter().cycle();
            for (input, device) in inputs.iter().zip(devices) {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || {
                    if let Err(error) = self.attend((device, input), queue, &sender) {
                        let _main_thread_waits = sender.send(Report::Error(error));
                    }
                });
            }
            drop(sender);
            loop {
                let result = match reports.recv_timeout(CHECK_EVERY) {
                    Ok(Report::Ended(cells, failures, held)) => {
                        for (cell, reason) in failures {
                            context.note_failure(&cell, &reason);
                        }
                        all_held.extend(found(&cells, held));
                        after()
                    }
                    Ok(Report::Lost(cells, reason)) => {
                        let held = fail_all(context, &cells, &reason);
                        all_held.extend((!held.is_empty()).then_some(held));
                        after()
                    }
                    Ok(Report::Error(error)) => Err(error),
                    Err(RecvTimeoutError::Timeout) => Ok(()),
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                if let Err(error) = result {
                    self.is_stopped.store(true, Ordering::Relaxed);
                    if outcome.is_ok() {
                        outcome = Err(error);
                    }
                }
                if self.is_stopping() {
                    // The threads wait for answers, so the workers' inputs are closed here.
                    inputs.iter().for_each(|input| drop(lock(input).take()));
                }
            }
        });
        outcome.map(|()| all_held)
    }

    fn is_stopping(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.is_stopped.load(Ordering::Relaxed)
    }

    /// Starts a worker and gives it cohorts until none is left. A worker that ends early is replaced.
    fn attend<'c>(
        &self,
        (device, input): (&str, &Mutex<Option<ChildStdin>>),
        queue: &Queue<'c>,
        reports: &Sender<Report<'c>>,
    ) -> Result<(), SweepError> {
        let mut process: Option<Process> = None;
        while !self.is_stopping() {
            let Some(mut cohort) = lock(queue).pop_front() else {
                break;
            };
            let worker = match &mut process {
                Some(worker) => worker,
                None => process.insert(self.start(device, input)?),
            };
            let task = self.task(&cohort);
            let written = match lock(input).as_mut() {
                Some(input) => message::write(input, &task),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            };
            let answer = match written {
                Ok(()) => self.answer(worker),
                Err(_) => None,
            };
            let report = match answer {
                Some((failures, held)) => Report::Ended(cohort.cells, failures, held),
                None => {
                    drop(lock(input).take());
                    let status = process.take().and_then(Process::wait);
                    if self.is_stopping() {
                        break;
                    }
                    cohort.failed_attempts += 1;
                    match self.lost(cohort, status) {
                        Ok(again) => {
                            lock(queue).push_front(again);
                            continue;
                        }
                        Err(report) => report,
                    }
                }
            };
            let _main_thread_waits = reports.send(report);
        }
        // The end of its input ends the worker.
        drop(lock(input).take());
        if let Some(process) = process {
            process.wait();
        }
        Ok(())
    }

    fn start(
        &self,
        device: &str,
        input: &Mutex<Option<ChildStdin>>,
    ) -> Result<Process, SweepError> {
        let worker = |source| SweepError::Worker { source };
        let threads = self.threads.to_string();
        let mut child = (self.command)(device)
            .map_err(worker)?
            .env("OMP_NUM_THREADS", &threads)
            .env("RAYON_NUM_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(worker)?;
        *lock(input) = child.stdin.take();
        let output = child
            .stdout
            .take()
            .ok_or_else(|| worker(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Process {
            child,
            output: BufReader::new(output),
        })
    }

    fn task(&self, cohort: &Cohort) -> Task {
        let fresh = cohort.cells.iter().filter(|planned| {
            // A worker that was lost has moved the previous run away, unless its result is still there.
            planned.is_fresh.load(Ordering::Relaxed)
                && (cohort.failed_attempts == 0 || planned.has_previous_result())
        });
        let id = |planned: &&Planned| planned.cell.id.clone();
        let cells = cohort.cells.iter();
        Task {
            cells: cells
                .map(|planned| (id(planned), planned.hash.clone()))
                .collect(),
            fresh: fresh.map(id).collect(),
            memory_limit: self.memory_limit,
            judges_first: !self.is_started.swap(true, Ordering::Relaxed),
        }
    }

    /// Shows the progress of a worker until its task has ended. Returns the failures and the cells that other processes
    /// run; `None` if the worker ended before.
    fn answer(&self, worker: &mut Process) -> Option<(BTreeMap<String, String>, Vec<HeldCell>)> {
        let mut open: BTreeSet<String> = BTreeSet::new();
        let answer = loop {
            let mut line = Vec::new();
            match worker.output.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break None,
                Ok(_) => {}
            }
            let update = match serde_json::from_slice(&line) {
                Ok(Answer::Progress(update)) => update,
                Ok(Answer::Ended { failures, held }) => break Some((failures, held)),
                // Libraries may print too.
                Err(_) => Update::Line {
                    line: String::from_utf8_lossy(&line).trim_end().to_owned(),
                },
            };
            match &update {
                Update::Opened { cell, .. } => {
                    open.insert(cell.clone());
                }
                Update::Done { cell, .. } | Update::Closed { cell } => {
                    open.remove(cell);
                }
                _ => {}
            }
            self.progress.show(update);
        };
        for cell in &open {
            self.progress.closed(cell);
        }
        answer
    }

    /// The cells of a lost worker, to be given to another one, or the report that they are given up.
    fn lost<'c>(
        &self,
        mut cohort: Cohort<'c>,
        status: Option<ExitStatus>,
    ) -> Result<Cohort<'c>, Report<'c>> {
        cohort
            .cells
            .retain(|planned| planned.ended_elsewhere().is_none());
        let how = status.map_or("ended".to_owned(), |status| format!("ended ({status})"));
        if cohort.failed_attempts < ATTEMPTS {
            self.progress.print(&format!(
                "a worker {how} before its cells were done; another one resumes them"
            ));
            return Ok(cohort);
        }
        let reason = Reason(format!(
            "{ATTEMPTS} workers {how} while they ran this cell and those beside it; if memory ran out, set --workers 1 or \
             a smaller --memory-limit"
        ));
        Err(Report::Lost(cohort.cells, reason))
    }
}

/// The cells that a worker found locked.
fn found<'c>(cells: &[&'c Planned], held: Vec<HeldCell>) -> Option<Vec<Held<'c>>> {
    let held: Vec<Held> = held
        .into_iter()
        .filter_map(|held| {
            let mut cells = cells.iter();
            Some(Held {
                planned: cells.find(|planned| planned.cell.id == held.cell)?,
                reason: Reason(held.reason),
                is_by_file: held.is_by_file,
            })
        })
        .collect();
    (!held.is_empty()).then_some(held)
}

/// A running worker. Its standard input is kept apart, because another thread closes it.
struct Process {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Process {
    /// Waits until the worker has ended.
    fn wait(mut self) -> Option<ExitStatus> {
        // Reads to the end, so that the worker never blocks on a full pipe.
        let _rest = io::copy(&mut self.output, &mut io::sink());
        self.child.wait().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_count_is_the_number_of_threads_at_most_one_per_cohort() {
        assert_eq!(default_count(Device::Cpu, 8, 20), 8);
        assert_eq!(default_count(Device::Cpu, 8, 3), 3);
        assert_eq!(default_count(Device::Cpu, 8, 0), 1);
        assert_eq!(default_count(Device::Cuda(0), 8, 20), 1);
    }

    #[test]
    fn cohorts_are_split_only_for_workers_that_would_be_idle() {
        let groups = vec![vec![0, 1, 2, 3, 4], vec![5], vec![6, 7]];
        assert_eq!(split_for(groups.clone(), 3), groups);
        let four = [vec![0, 1, 2], vec![3, 4], vec![5], vec![6, 7]];
        assert_eq!(split_for(groups.clone(), 4), four);
        assert_eq!(split_for(groups, 20).len(), 8);
        assert_eq!(split_for(Vec::<Vec<u8>>::new(), 2), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn fewer_workers_run_if_cohorts_or_memory_are_few() {
        let gib = |count: u64| Some(count << 30);
        assert_eq!(running(8, 20, gib(64)), 8);
        assert_eq!(running(8, 3, gib(64)), 3);
        assert_eq!(running(8, 20, gib(6)), 3);
        assert_eq!(running(8, 20, gib(1)), 1);
        assert_eq!(running(8, 20, None), 8);
    }
}
