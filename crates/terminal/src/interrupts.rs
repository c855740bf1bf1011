//! Ctrl-C and the other signals that end a command.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::errln;

/// Set by the first Ctrl-C. Commands then save their state and end.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Exit code of an interrupted command: 128 plus the number of SIGINT.
pub const INTERRUPTED_CODE: u8 = 130;

/// The signals that interrupt a command.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Handles SIGINT (Ctrl-C), SIGTERM and SIGHUP. The first signal sets the returned flag and prints a line. A second
/// SIGINT or SIGTERM ends the process in the signal handler, whatever its threads are doing.
///
/// # Errors
/// A handler or its thread cannot be installed.
pub fn watch_interrupts() -> io::Result<&'static AtomicBool> {
    let interrupted = watch_interrupts_silently()?;
    let mut signals = Signals::new(SIGNALS)?;
    // In a separate thread, because writing to standard error may block, and saving must not wait for it.
    thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                errln!("interrupted: saving and ending; press Ctrl-C again to end at once");
            }
        })?;
    Ok(interrupted)
}

/// As [`watch_interrupts`], but prints nothing: for a process whose parent receives the same signals and says so.
///
/// # Errors
/// A handler cannot be installed.
pub fn watch_interrupts_silently() -> io::Result<&'static AtomicBool> {
    // Registered before the flag is, so that the first signal does not end the process. Not for SIGHUP, which a closed
    // terminal sends more than once.
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(INTERRUPTED_CODE);
        flag::register_conditional_shutdown(signal, code, Arc::clone(&INTERRUPTED))?;
    }
    for signal in SIGNALS {
        flag::register(signal, Arc::clone(&INTERRUPTED))?;
    }
    Ok(&INTERRUPTED)
}

/// As [`watch_interrupts`] if this process `says` that it was interrupted, else as [`watch_interrupts_silently`].
///
/// # Errors
/// A handler or its thread cannot be installed.
pub fn watch(says: bool) -> io::Result<&'static AtomicBool> {
    match says {
        true => watch_interrupts(),
        false => watch_interrupts_silently(),
    }
}

/// Interrupts the command at the end of standard input, which the process holds open that started this one.
///
/// # Errors
/// A thread cannot be started.
pub fn watch_input() -> io::Result<()> {
    thread::Builder::new().name("input".to_owned()).spawn(|| {
        // Nothing is sent. An error ends the input too.
        let _end = io::copy(&mut io::stdin(), &mut io::sink());
        INTERRUPTED.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}
