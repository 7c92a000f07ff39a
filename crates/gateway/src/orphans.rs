//! Processes that an earlier Keiko started and could not end, because it was killed: they carry its mark in their environment,
//! and so does whatever they started.

use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::sync::{Once, OnceLock};

/// The variable that says who started a process.
pub(crate) const MARK: &str = "KEIKO_STARTED_BY";

/// Who starts processes here: the number of this process and when it was started, which together no other process has.
pub(crate) fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| {
        let own = std::process::id();
        format!("{own}:{}", started(own).unwrap_or_default())
    })
}

/// Ends what is left of those who are gone, once in the life of this process.
pub(crate) fn end_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for process in orphans(Path::new("/proc")) {
            tracing::warn!(process, "a process of a tool server that nobody looks after is ended");
            if let Some(process) = Pid::from_raw(process) {
                // It may have ended by itself.
                let _ = kill_process(process, Signal::KILL);
            }
        }
    });
}

/// Processes whose mark names a process that is not there any more.
fn orphans(proc: &Path) -> Vec<i32> {
    let all = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_orphan = |process: &i32| {
        // Of others' processes nothing can be read.
        let environment = std::fs::read(proc.join(format!("{process}/environ"))).unwrap_or_default();
        starter(&environment).is_some_and(|(starter, at)| started(starter) != Some(at))
    };
    numbers.filter(is_orphan).collect()
}

/// Who started a process with this environment.
fn starter(environment: &[u8]) -> Option<(u32, u64)> {
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok());
    let mark = variables.filter_map(|variable| variable.strip_prefix(MARK)?.strip_prefix('=')).next()?;
    let (process, at) = mark.split_once(':')?;
    Some((process.parse().ok()?, at.parse().ok()?))
}

/// When a process was started, in ticks since the machine was.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; the 20th field behind it is the time.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_whatever_stands_beside_it() {
        assert_eq!(starter(b"A=1\0KEIKO_STARTED_BY=12:345\0B=\xff"), Some((12, 345)));
        for none in [&b""[..], b"KEIKO_STARTED_BY=", b"KEIKO_STARTED_BY=12", b"KEIKO_STARTED_BY=a:b", b"X_KEIKO_STARTED_BY=1:2"] {
            assert_eq!(starter(none), None);
        }
    }

    #[test]
    fn whoever_is_alive_has_no_orphans() {
        let own = std::process::id();
        let (process, at) = starter(format!("{MARK}={}", mark()).as_bytes()).unwrap();
        assert_eq!((process, Some(at)), (own, started(own)));
        assert_eq!(started(u32::MAX), None);
    }
}
