//! Identifies the process that a temporary file or a lock belongs to.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// A process, identified uniquely across containers, hosts and boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of the host or container.
    pub host: String,
    /// Process number (PID) within its container.
    pub process: u32,
    /// Start time of the process, in clock ticks since the boot; 0 if the system does not report it.
    started: u64,
    /// Hash of host, boot and container; 0 if the system does not report them.
    machine: u64,
}

/// Whether the process of an [`Owner`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// The process runs.
    Running,
    /// The process has ended.
    Ended,
    /// The process belongs to another host, container or boot, so that this process cannot check it.
    Unknown,
}

impl Owner {
    /// Identifies this process.
    pub fn current() -> Self {
        let process = std::process::id();
        let host = read("/proc/sys/kernel/hostname");
        Self {
            machine: machine(&host),
            host: match host.is_empty() {
                true => "unknown".to_owned(),
                false => host,
            },
            process,
            started: started(process).unwrap_or(0),
        }
    }

    /// Determines whether the process still runs.
    pub fn state(&self) -> OwnerState {
        let current = Self::current();
        if self.machine == 0 || self.machine != current.machine {
            return OwnerState::Unknown;
        }
        match started(self.process) {
            // Process numbers are reused; the pair of number and start time is unique.
            Some(started) if started == self.started => OwnerState::Running,
            _ => OwnerState::Ended,
        }
    }

    /// The part of a temporary name that identifies its owner.
    pub(crate) fn tag(&self) -> String {
        format!("{:016x}-{}-{}", self.machine, self.process, self.started)
    }

    /// Parses a [`tag`](Self::tag). A tag does not include the host, so that `host` is empty.
    pub(crate) fn of_tag(tag: &str) -> Option<Self> {
        let mut parts = tag.split('-');
        let owner = Self {
            host: String::new(),
            machine: u64::from_str_radix(parts.next()?, 16).ok()?,
            process: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(owner)
    }

    /// The owner as a line of text, for lock files.
    pub(crate) fn line(&self) -> String {
        format!("{} {}\n", self.tag(), self.host)
    }

    /// Parses a [`line`](Self::line).
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (tag, host) = line.strip_suffix('\n')?.split_once(' ')?;
        Some(Self {
            host: host.to_owned(),
            ..Self::of_tag(tag)?
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on host {}", self.process, self.host)
    }
}

/// Hash of the boot, container and host, within which a process number is unique at any time.
fn machine(host: &str) -> u64 {
    let boot = read("/proc/sys/kernel/random/boot_id");
    let container = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if boot.is_empty() || container.as_os_str().is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (boot, container, host).hash(&mut hasher);
    hasher.finish().max(1)
}

/// Start time of a process of this container; `None` if it does not run.
fn started(process: u32) -> Option<u64> {
    let path = Path::new("/proc").join(process.to_string()).join("stat");
    let text = fs::read_to_string(path).ok()?;
    // The second field is the program name in parentheses, which may itself have spaces and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // A process that has ended but was not waited for keeps its number.
    (!matches!(state, "Z" | "X")).then_some(())?;
    // The start time is field 22; the state is field 3.
    fields.nth(18)?.parse().ok()
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_running_until_it_ends() {
        let me = Owner::current();
        assert_eq!(me.state(), OwnerState::Running);
        assert_eq!(Owner::of_line(&me.line()), Some(me.clone()));
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let mut other = Owner {
            process: child.id(),
            started: started(child.id()).unwrap(),
            ..me.clone()
        };
        assert_eq!(other.state(), OwnerState::Running);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(other.state(), OwnerState::Ended);
        // An earlier process with the same number as this one.
        other = me.clone();
        other.started += 1;
        assert_eq!(other.state(), OwnerState::Ended);
        // A process of another container, whose numbers are independent.
        other = me;
        other.machine ^= 1;
        assert_eq!(other.state(), OwnerState::Unknown);
    }

    #[test]
    fn invalid_lines_are_not_parsed() {
        for text in [
            "",
            "12",
            "a b\n",
            "0-1-2-3 host\n",
            "00ff-1-2 host",
            "x-1-2 host\n",
        ] {
            assert_eq!(Owner::of_line(text), None, "{text:?}");
        }
    }
}
