//! What the program says: results on standard output, everything else on standard error.
//!
//! Nothing here fails or panics. A reader that goes away (`| head -1`, a `tee` that Ctrl-C ended too) must not end
//! a run that has hours behind it. [`outln!`](crate::outln), [`out!`](crate::out) and [`errln!`](crate::errln) take
//! the place of the standard library's macros, which panic.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Why standard output did not take everything, other than that its reader went away.
static FIRST_ERROR: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes a line to standard output.
#[macro_export]
macro_rules! outln {
    () => { $crate::output::print(::std::format_args!("\n")) };
    ($($text:tt)*) => {
        $crate::output::print(::std::format_args!("{}\n", ::std::format_args!($($text)*)))
    };
}

/// Writes to standard output.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::output::print(::std::format_args!($($text)*)) };
}

/// Writes a line to standard error.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => { $crate::output::print_line_to_stderr(::std::format_args!($($text)*)) };
}

/// Writes to standard output; see [`out!`](crate::out).
pub fn print(text: Arguments<'_>) {
    record_error(io::stdout().write_fmt(text));
}

/// Writes a line to standard error; see [`errln!`](crate::errln).
pub fn print_line_to_stderr(text: Arguments<'_>) {
    // There is no place left to say that it failed. One write, so that lines of several threads stay whole.
    let _closed = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Ends the output. `Some` says why results were lost: the disk behind standard output is full, for example.
/// That its reader went away is no error.
pub fn finish() -> Option<io::Error> {
    record_error(io::stdout().flush());
    FIRST_ERROR
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

fn record_error(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let mut first = FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }
}

/// Standard error for a log: a write that fails is passed over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _closed = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
