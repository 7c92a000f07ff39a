//! Processes that an earlier Keiko started and could not end, because it was killed: they carry its mark in their environment,
//! and so does whatever they started.
//!
//! Only what is surely left over is ended: whoever started it must be known not to exist any more, in this space of processes
//! and since this start of the machine. Another Keiko, this process and whoever started it are never touched.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Once, OnceLock};

/// The variable that says who started a process.
pub(crate) const MARK: &str = "KEIKO_STARTED_BY";

/// Who started a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Starter {
    process: u32,
    /// When it was started itself, in ticks since the machine was: numbers of processes are used again.
    at: u64,
    /// Where these numbers count: the start of the machine, and the namespace.
    space: String,
}

impl std::fmt::Display for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.process, self.at, self.space)
    }
}

impl std::str::FromStr for Starter {
    type Err = ();

    fn from_str(mark: &str) -> Result<Self, ()> {
        let mut parts = mark.splitn(3, ':');
        let mut next = || parts.next().ok_or(());
        let (process, at, space) = (next()?.parse().map_err(drop)?, next()?.parse().map_err(drop)?, next()?.to_owned());
        Ok(Starter { process, at, space })
    }
}

/// Who starts processes here; nothing where that cannot be told.
pub(crate) fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| myself().map(|starter| starter.to_string()).unwrap_or_default())
}

fn myself() -> Option<Starter> {
    let process = std::process::id();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = format!("{}/{}", boot.trim(), std::fs::read_link("/proc/self/ns/pid").ok()?.display());
    Some(Starter { process, at: started(process).ok()?, space })
}

/// Ends what is left of those who are gone, once in the life of this process.
pub(crate) fn end_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for process in myself().map(|own| orphans(&own)).unwrap_or_default() {
            tracing::warn!(process, "a process of a tool server that nobody looks after is ended");
            if let Some(process) = Pid::from_raw(process.cast_signed()) {
                // It may have ended by itself.
                let _ = kill_process(process, Signal::KILL);
            }
        }
    });
}

/// Processes of this space whose starter is not there any more.
fn orphans(own: &Starter) -> Vec<u32> {
    let (spared, program) = (ancestors(own.process), std::fs::read_link("/proc/self/exe").ok());
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_orphan = |process: &u32| {
        let of = |name: &str| PathBuf::from(format!("/proc/{process}/{name}"));
        // Of others' processes nothing can be read.
        let environment = std::fs::read(of("environ")).unwrap_or_default();
        !spared.contains(process)
            && starter(&environment).is_some_and(|starter| starter.space == own.space && is_gone(&starter))
            && std::fs::read_link(of("ns/pid")).ok() == namespace
            && std::fs::read_link(of("exe")).ok() != program
    };
    numbers.filter(is_orphan).collect()
}

/// This process, whoever started it, and so on.
fn ancestors(own: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([own]);
    let mut last = own;
    while let Some(parent) = field(last, 1).ok().and_then(|parent| u32::try_from(parent).ok())
        && parent > 0
        && found.insert(parent)
    {
        last = parent;
    }
    found
}

/// Who started a process with this environment.
fn starter(environment: &[u8]) -> Option<Starter> {
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    variables.filter_map(|variable| variable.strip_prefix(MARK)?.strip_prefix('=')).next()?.parse().ok()
}

/// Whether somebody is surely not there any more: what cannot be read may be.
fn is_gone(starter: &Starter) -> bool {
    match started(starter.process) {
        Ok(at) => at != starter.at,
        Err(kind) => kind == ErrorKind::NotFound,
    }
}

/// When a process was started, in ticks since the machine was.
fn started(process: u32) -> Result<u64, ErrorKind> {
    field(process, 19)
}

/// A number of a process's `stat`, counted from behind its name, which stands in parentheses and may hold anything.
fn field(process: u32, at: usize) -> Result<u64, ErrorKind> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).map_err(|e| e.kind())?;
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields.split_whitespace().nth(at).and_then(|number| number.parse().ok()).ok_or(ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_whatever_stands_beside_it() {
        let read = starter(b"A=1\0KEIKO_STARTED_BY=12:345:boot/pid:[7]\0B=\xff").unwrap();
        assert_eq!((read.process, read.at, read.space.as_str()), (12, 345, "boot/pid:[7]"));
        for none in
            [&b""[..], b"KEIKO_STARTED_BY=", b"KEIKO_STARTED_BY=12:1", b"KEIKO_STARTED_BY=a:b:c", b"X_KEIKO_STARTED_BY=1:2:3"]
        {
            assert_eq!(starter(none), None);
        }
    }

    #[test]
    fn whoever_is_there_or_may_be_is_not_gone() {
        let own = myself().unwrap();
        assert_eq!(starter(format!("{MARK}={}", mark()).as_bytes()), Some(own.clone()));
        assert!(!is_gone(&own) && is_gone(&Starter { at: own.at + 1, ..own.clone() }));
        assert!(is_gone(&Starter { process: u32::MAX, ..own.clone() }));
        assert!(ancestors(own.process).len() >= 2);
    }
}
