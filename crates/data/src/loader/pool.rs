//! The worker threads that read and decode samples.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::order::{StreamPosition, Task};
use super::reader::SampleReader;
use crate::error::DataError;
use crate::render::Rendered;

/// The result of a task, with its position in the stream.
type TaskResult = (StreamPosition, Result<Rendered, DataError>);

/// Threads that take tasks in order and return results in any order.
pub(super) struct Pool {
    tasks: Option<Sender<(StreamPosition, Task)>>,
    results: Receiver<TaskResult>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(workers: usize, reader: Arc<SampleReader>) -> Result<Self, DataError> {
        let (tasks, queue) = mpsc::channel::<(StreamPosition, Task)>();
        let (result_sender, results) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = Pool {
            tasks: Some(tasks),
            results,
            stop,
            threads: Vec::new(),
        };
        for worker in 0..workers {
            let (reader, queue) = (Arc::clone(&reader), Arc::clone(&queue));
            let result_sender = result_sender.clone();
            let stop = Arc::clone(&pool.stop);
            let work = move || {
                while !stop.load(Ordering::Relaxed) {
                    // One worker waits for a task while it holds the lock; the others wait for the lock.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((position, task)) = next else { return };
                    if result_sender.send((position, reader.read(task))).is_err() {
                        return;
                    }
                }
            };
            // On failure, dropping the pool ends the threads that were started.
            let thread = thread::Builder::new()
                .name(format!("loader-{worker}"))
                .spawn(work);
            pool.threads
                .push(thread.map_err(|error| DataError::Workers {
                    problem: format!("cannot be started: {error}"),
                })?);
        }
        Ok(pool)
    }

    pub(super) fn submit(&self, position: StreamPosition, task: Task) -> Result<(), DataError> {
        let sent = self
            .tasks
            .as_ref()
            .is_some_and(|tasks| tasks.send((position, task)).is_ok());
        if sent { Ok(()) } else { Err(worker_ended()) }
    }

    /// Waits for the next result, in order of completion.
    pub(super) fn receive(&self) -> Result<TaskResult, DataError> {
        self.results.recv().map_err(|_| worker_ended())
    }
}

fn worker_ended() -> DataError {
    DataError::Workers {
        problem: "ended unexpectedly".to_owned(),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks = None;
        for thread in self.threads.drain(..) {
            // Workers catch the panics of decoders. The panic hook has already printed any other panic.
            let _ = thread.join();
        }
    }
}
