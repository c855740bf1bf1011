//! Which process something belongs to.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// A process, named so that processes of other containers, hosts and boots are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of the host or container.
    pub host: String,
    /// Number of the process, in its own container.
    pub process: u32,
    /// When the process started, in ticks since the boot; 0 where the system does not say.
    started: u64,
    /// Hash of host, boot and container; 0 where the system does not say.
    machine: u64,
}

/// What is known of an [`Owner`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It has ended.
    Ended,
    /// It belongs to another host, container or boot, so that this process cannot tell.
    Unknown,
}

impl Owner {
    /// This process.
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

    /// Whether the process still runs, as far as this process can tell.
    pub fn state(&self) -> State {
        let here = Self::current();
        if self.machine == 0 || self.machine != here.machine {
            return State::Unknown;
        }
        match started(self.process) {
            // A number is given again, a number and a time are not.
            Some(started) if started == self.started => State::Running,
            _ => State::Ended,
        }
    }

    /// The part of a temporary name that says whose it is.
    pub(crate) fn tag(&self) -> String {
        format!("{:016x}-{}-{}", self.machine, self.process, self.started)
    }

    /// The owner that a [`tag`](Self::tag) names; its host is not in it.
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

    /// As a line of text, for lock files.
    pub(crate) fn line(&self) -> String {
        format!("{} {}\n", self.tag(), self.host)
    }

    /// The owner of a [`line`](Self::line).
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

/// Hash of what a process number is unique in.
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

/// When a process of this container started; `None` if it does not run.
fn started(process: u32) -> Option<u64> {
    let path = Path::new("/proc").join(process.to_string()).join("stat");
    let text = fs::read_to_string(path).ok()?;
    // The second field, the program's name in brackets, may hold blanks and brackets.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // What has ended and was not waited for keeps its number.
    (!matches!(state, "Z" | "X")).then_some(())?;
    // Field 22; the state is the third.
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
        assert_eq!(me.state(), State::Running);
        assert_eq!(Owner::of_line(&me.line()), Some(me.clone()));
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let mut other = Owner {
            process: child.id(),
            started: started(child.id()).unwrap(),
            ..me.clone()
        };
        assert_eq!(other.state(), State::Running);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(other.state(), State::Ended);
        // Another process with this one's number.
        other = me.clone();
        other.started += 1;
        assert_eq!(other.state(), State::Ended);
        // Of another container, whose numbers say nothing here.
        other = me;
        other.machine ^= 1;
        assert_eq!(other.state(), State::Unknown);
    }

    #[test]
    fn other_texts_name_no_owner() {
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
