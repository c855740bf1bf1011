//! Prints results to standard output and everything else to standard error, without ever failing.
//!
//! Nothing here returns an error while printing or panics. A reader that closes its end (`| head -1`, or a `tee` that
//! the same Ctrl-C ended) must not end a run that has worked for hours. [`outln!`](crate::outln), [`out!`](crate::out)
//! and [`errln!`](crate::errln) replace the standard library's macros, which panic.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// The first error of a write to standard output, other than a closed reader.
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
    // A failure cannot be reported anywhere. One write per line keeps the lines of several threads intact.
    let _closed = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Flushes standard output. Returns the first error that lost results, such as a full disk; a closed reader is not an
/// error.
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

/// Standard error as the writer of a log; it ignores writes that fail.
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
