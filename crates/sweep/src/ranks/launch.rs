//! Starts the ranks of one machine.

use std::io;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use terminal::errln;
use terminal::interrupts::INTERRUPTED_CODE;
use thiserror::Error;
use torch_ext::TorchError;
use torch_ext::distributed::{Store, World, WorldError};

use super::{CHECK_EVERY, RankFailure, START_TIMEOUT, claim, host};

/// How long the other ranks have to notice by themselves that one has failed, and then to save and end.
const GRACE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

const HOST: &str = "127.0.0.1";

/// Which ranks to start.
pub struct Launch<'a> {
    /// Number of ranks.
    pub size: usize,
    /// Number of threads of each, unless `OMP_NUM_THREADS` is set.
    pub threads: usize,
    /// The command that starts a rank. The end of its standard input must interrupt it.
    pub command: &'a dyn Fn() -> io::Result<Command>,
    /// Set by a signal, which all ranks then receive.
    pub interrupted: &'a AtomicBool,
}

impl std::fmt::Debug for Launch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("size", &self.size)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Why ranks cannot be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The port cannot be used.
    #[error(transparent)]
    Store(#[from] TorchError),
    /// `MASTER_PORT` is not a port.
    #[error(transparent)]
    Port(#[from] WorldError),
    /// A process cannot be started.
    #[error("cannot start a rank: {0}")]
    Process(#[from] io::Error),
}

/// Starts ranks on this machine and waits for their end. Returns the exit code: that of the first rank that failed, or
/// 0. This process serves their store, which therefore outlives all of them.
///
/// If a rank ends early, the others are interrupted, and killed if they do not end within a minute.
///
/// # Errors
/// The store cannot be served, or a process cannot be started. Those that were started are ended.
pub fn launch(launch: &Launch<'_>) -> Result<u8, LaunchError> {
    let port = match std::env::var("MASTER_PORT") {
        Ok(port) if !port.is_empty() => port,
        _ => free_port()?.to_string(),
    };
    let size = launch.size.to_string();
    let variables = |rank: &str| {
        [
            ("RANK", rank.to_owned()),
            ("LOCAL_RANK", rank.to_owned()),
            ("WORLD_SIZE", size.clone()),
            ("LOCAL_WORLD_SIZE", size.clone()),
            ("MASTER_ADDR", HOST.to_owned()),
            ("MASTER_PORT", port.clone()),
        ]
    };
    let own = variables("0");
    let value = |name: &str| {
        let found = own.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.clone())
    };
    let Some(world) = World::from_variables(value)? else {
        return Ok(0);
    };
    let store = Store::connect(&world, START_TIMEOUT)?;
    let mut ranks = Vec::new();
    for rank in 0..launch.size {
        let mut command = (launch.command)()?;
        command.envs(variables(&rank.to_string()));
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
        for variable in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, launch.threads.max(1).to_string());
            }
        }
        if rank > 0 {
            command.stdout(Stdio::null());
        }
        // In a group of its own, so that Ctrl-C in a terminal reaches this process alone, which passes it on once.
        let child = command.stdin(Stdio::piped()).process_group(0).spawn();
        match child {
            Ok(child) => ranks.push(Rank {
                rank,
                child,
                status: None,
            }),
            Err(error) => {
                ranks.iter_mut().for_each(Rank::kill);
                return Err(error.into());
            }
        }
    }
    Ok(attend(&mut ranks, &store, launch.interrupted))
}

/// Waits for the end of all ranks.
fn attend(ranks: &mut [Rank], store: &Store, interrupted: &AtomicBool) -> u8 {
    let mut code = 0;
    let mut failed_at: Option<Instant> = None;
    // How often the ranks were told to end.
    let mut told = 0;
    while ranks.iter().any(|rank| rank.status.is_none()) {
        for rank in ranks.iter_mut() {
            let Some(status) = rank.ended() else { continue };
            if status.success() {
                continue;
            }
            if failed_at.is_none() {
                failed_at = Some(Instant::now());
                code = exit_code(status);
            }
            // A rank that fails by itself has said why.
            if let Some(signal) = status.signal() {
                let failure = RankFailure {
                    rank: rank.rank,
                    host: host(),
                    reason: format!("was ended by signal {signal}"),
                    code: 1,
                };
                if !matches!(claim(store, &failure), Ok(Some(_))) {
                    errln!("error: {failure}");
                }
            }
        }
        if interrupted.load(Ordering::Relaxed) && told == 0 {
            ranks.iter().for_each(|rank| rank.send(Signal::INT));
            told = 1;
        }
        if let Some(failed_at) = failed_at {
            if told == 0 && failed_at.elapsed() > GRACE[0] {
                ranks.iter().for_each(|rank| rank.send(Signal::TERM));
                told = 1;
            }
            if failed_at.elapsed() > GRACE[1] {
                ranks.iter_mut().for_each(Rank::kill);
            }
        }
        thread::sleep(CHECK_EVERY);
    }
    code
}

/// A rank that was started.
struct Rank {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
}

impl Rank {
    /// The exit status, the first time that it is known.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_some() {
            return None;
        }
        self.status = self.child.try_wait().ok().flatten();
        self.status
    }

    /// Sends a signal, if the rank runs.
    fn send(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(id), None) = (id, self.status)
            && let Err(error) = kill_process(id, signal)
        {
            tracing::debug!("rank {} cannot be told to end: {error}", self.rank);
        }
    }

    fn kill(&mut self) {
        if self.status.is_none()
            && let Err(error) = self.child.kill()
        {
            tracing::debug!("rank {} cannot be ended: {error}", self.rank);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    match status.code() {
        Some(code) => u8::try_from(code).unwrap_or(1),
        None if status.signal() == Some(Signal::INT.as_raw()) => INTERRUPTED_CODE,
        None => 1,
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((HOST, 0))?.local_addr()?.port())
}
