//! Runs work that cannot read the interrupt flag itself, such as loading a network or an eigendecomposition.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How often the interrupt flag is read while the work runs.
const POLL_EVERY: Duration = Duration::from_millis(50);

static ABANDONED: AtomicBool = AtomicBool::new(false);

/// Runs `work` in its own thread and returns its result, or `None` soon after `interrupted` is set. The thread is
/// then abandoned: it keeps running until the process ends. A panic of `work` resumes in the caller.
pub fn interruptible<T: Send + 'static>(
    interrupted: &AtomicBool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    if interrupted.load(Ordering::Relaxed) {
        return None;
    }
    let (send, receive) = mpsc::sync_channel(1);
    let worker = thread::spawn(move || {
        // Sending fails if the work was abandoned, because the receiver is dropped.
        let _abandoned = send.send(work());
    });
    loop {
        match receive.recv_timeout(POLL_EVERY) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Timeout) => {
                if interrupted.load(Ordering::Relaxed) {
                    ABANDONED.store(true, Ordering::Relaxed);
                    return None;
                }
            }
            Err(RecvTimeoutError::Disconnected) => match worker.join() {
                Err(panic) => panic::resume_unwind(panic),
                // Unreachable: the sender is dropped without a message only by a panic.
                Ok(()) => return None,
            },
        }
    }
}

/// Returns whether a thread was abandoned. The process must then end without running the destructors of libraries
/// whose data the thread may still use.
pub fn has_abandoned_work() -> bool {
    ABANDONED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_abandoned_once_the_flag_is_set() {
        static FLAG: AtomicBool = AtomicBool::new(false);
        let (release, held) = mpsc::channel::<()>();
        thread::spawn(|| {
            thread::sleep(Duration::from_millis(100));
            FLAG.store(true, Ordering::Relaxed);
        });
        // Without the flag the call would block forever: the work ends only after the call returns.
        let result = interruptible(&FLAG, move || held.recv());
        assert!(result.is_none());
        assert!(has_abandoned_work());
        drop(release);
    }

    #[test]
    fn work_that_ends_returns_its_result() {
        let never = AtomicBool::new(false);
        assert_eq!(interruptible(&never, || 6 * 7), Some(42));
        assert!(interruptible(&AtomicBool::new(true), || ()).is_none());
    }

    #[test]
    #[should_panic(expected = "of the work")]
    fn a_panic_of_the_work_resumes_in_the_caller() {
        let _never = interruptible(&AtomicBool::new(false), || panic!("of the work"));
    }
}
