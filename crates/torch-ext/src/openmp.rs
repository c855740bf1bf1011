//! The threads of OpenMP, with which libtorch computes on a CPU.

use std::env;

/// Number of rounds that a thread of libgomp looks for work at a barrier before it sleeps.
///
/// libgomp's own default is some milliseconds. Beside another busy process the threads that look for work then take the
/// processor from those that work. What a quiet machine loses by the smaller number is within the noise
/// (`docs/results/busy-machine.md`).
const SPINS: &str = "5000";

/// The variables with which a user decides this: the first one is libgomp's own, the second one OpenMP's.
const DECIDED_BY_USER: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// Limits how long idle threads look for work, unless `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` is set. Must be called first
/// in `main`.
///
/// libgomp reads these variables when it is loaded, which is before `main`. So this replaces the process by the same
/// program with the variable set; process id, arguments, files and working directory stay. If that fails, only the
/// speed on a busy machine differs.
#[cfg(target_os = "linux")]
pub fn limit_spinning() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    if DECIDED_BY_USER
        .iter()
        .any(|name| env::var_os(name).is_some())
    {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut command = Command::new(program);
    let mut arguments = env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only if it failed.
    let _error = command
        .args(arguments)
        .env(DECIDED_BY_USER[0], SPINS)
        .exec();
}

/// Does nothing: other platforms have another OpenMP runtime.
#[cfg(not(target_os = "linux"))]
pub fn limit_spinning() {}
