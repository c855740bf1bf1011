//! The threads that decode.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::stream::{Place, Task};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::render::{self, Background, Rendered};

/// What a worker made of a task, and the place in the stream that it is for.
type Done = (Place, Result<Rendered, DataError>);

/// Threads that take tasks in order and give back results in any order.
pub(super) struct Pool {
    tasks: Option<Sender<(Place, Task)>>,
    results: Receiver<Done>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(
        workers: usize,
        dataset: Arc<dyn Dataset>,
        resolution: u32,
        background: Background,
    ) -> Result<Self, DataError> {
        let (tasks, queue) = mpsc::channel::<(Place, Task)>();
        let (done, results) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = Pool {
            tasks: Some(tasks),
            results,
            stop,
            threads: Vec::new(),
        };
        for worker in 0..workers {
            let (dataset, queue, done) = (Arc::clone(&dataset), Arc::clone(&queue), done.clone());
            let stop = Arc::clone(&pool.stop);
            let work = move || {
                while !stop.load(Ordering::Relaxed) {
                    // One worker waits for a task, the others for it to let go of the queue.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((place, task)) = next else { return };
                    let read =
                        render::read(&*dataset, task.index, resolution, background, task.flip);
                    if done.send((place, read)).is_err() {
                        return;
                    }
                }
            };
            // If this fails, dropping the pool ends the threads that did start.
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

    pub(super) fn submit(&self, place: Place, task: Task) -> Result<(), DataError> {
        let sent = self
            .tasks
            .as_ref()
            .is_some_and(|tasks| tasks.send((place, task)).is_ok());
        if sent { Ok(()) } else { Err(ended()) }
    }

    /// Waits for the next result, whichever it is.
    pub(super) fn receive(&self) -> Result<Done, DataError> {
        self.results.recv().map_err(|_| ended())
    }
}

fn ended() -> DataError {
    DataError::Workers {
        problem: "has ended before its time".to_owned(),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks = None;
        for thread in self.threads.drain(..) {
            // A worker catches the panics of decoders; one of its own has been printed already.
            let _ = thread.join();
        }
    }
}
