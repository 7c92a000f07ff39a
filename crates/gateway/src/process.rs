//! A process of an MCP server: its environment, its output in bounds, its end.

use crate::orphans;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpriority_process, getrlimit, kill_process_group, prlimit, setpriority_process,
};
use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// What a process sees of Keiko's own environment.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// How long a process may take to end by itself once its input is closed, and again after SIGTERM.
const GRACE: Duration = Duration::from_millis(1_000);
const ERROR_LINES_MAX: usize = 8;
const ERROR_LINE_BYTES_MAX: usize = 2_000;

/// How much less important than Keiko a process is to the machine.
const NICENESS: i32 = 5;

/// What each process of a server may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Bytes of memory of its own: what it allocates, its stacks.
    pub memory_bytes: Option<u64>,
    /// Processor time over its whole life, in seconds; it is ended after that, and started again.
    pub cpu_s: Option<u64>,
    /// Files and sockets that are open at the same time.
    pub files: u64,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        ProcessLimits { memory_bytes: Some(4 << 30), cpu_s: None, files: 1_024 }
    }
}

impl ProcessLimits {
    /// Bounds a process that was just started, and what it starts from now on.
    fn put_on(self, process: Pid) -> std::io::Result<()> {
        let bound = |resource, most: u64| {
            // Nobody is allowed more than Keiko is.
            let most = Some(most.min(getrlimit(resource).maximum.unwrap_or(u64::MAX)));
            prlimit(Some(process), resource, Rlimit { current: most, maximum: most }).map(|_| ())
        };
        if let Some(bytes) = self.memory_bytes {
            bound(Resource::Data, bytes)?;
        }
        if let Some(seconds) = self.cpu_s {
            bound(Resource::Cpu, seconds)?;
        }
        bound(Resource::Nofile, self.files)?;
        // Its memory holds secrets.
        bound(Resource::Core, 0)?;
        // It is no limit: where it is not allowed, nothing is lost.
        let own = getpriority_process(None).unwrap_or_default();
        if let Err(error) = setpriority_process(Some(process), (own + NICENESS).min(19)) {
            tracing::debug!(%error, "a process is as important as Keiko");
        }
        Ok(())
    }
}

/// A running process.
pub(crate) struct Process {
    child: Child,
    /// Kept beside the child, which forgets it when it is reaped; what it started may live on in its group.
    group: Option<Pid>,
    errors: Errors,
}

/// The last lines of a process's standard error.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<VecDeque<String>>>);

impl Process {
    /// Starts it in a process group of its own, with a clean environment, within limits.
    pub fn start(
        command: &str,
        args: &[String],
        env: &[(String, String)],
        limits: ProcessLimits,
    ) -> Result<(Process, ChildStdin, ChildStdout), String> {
        orphans::end_once();
        let inherited = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = Command::new(command)
            .args(args)
            .env_clear()
            .envs(inherited)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env(orphans::MARK, orphans::mark())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("the command '{command}' could not be started: {e}"))?;
        let (Some(input), Some(output), Some(error)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err("the process has no standard streams".into());
        };
        let errors = Errors::default();
        tokio::spawn(errors.clone().follow(error));
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(Err(error)) = group.map(|process| limits.put_on(process)) {
            // Dropped, it is killed.
            return Err(format!("the limits of the command '{command}' could not be set: {error}"));
        }
        Ok((Process { child, group, errors }, input, output))
    }

    /// Waits until it ended by itself, and says how.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => {
                // What it said last may still be on its way.
                tokio::time::sleep(Duration::from_millis(20)).await;
                format!("the process ended {}{}", outcome(status), self.last_words())
            }
            Err(e) => format!("the process is lost: {e}"),
        }
    }

    /// The end of its standard error, to be put behind a reason.
    pub fn last_words(&self) -> String {
        let lines = self.errors.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() { String::new() } else { format!(": {}", lines.iter().cloned().collect::<Vec<_>>().join(" | ")) }
    }

    /// Ends it and everything that it started. Its standard input must be closed already, which asks it politely.
    pub async fn end(mut self) {
        let group = self.group;
        let signal = |signal| {
            // A group that is gone needs no signal.
            let _ = group.map(|group| kill_process_group(group, signal));
        };
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            signal(Signal::TERM);
            let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        }
        signal(Signal::KILL);
        // Reaps it, so that no zombie stays.
        let _ = self.child.wait().await;
    }
}

fn outcome(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with status {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "without a status".into(),
    }
}

impl Errors {
    async fn follow(self, error: impl AsyncRead + Unpin) {
        let mut error = BufReader::new(error);
        let mut line = vec![];
        while let Ok(true) = next_line(&mut error, &mut line, ERROR_LINE_BYTES_MAX, Excess::Cut).await {
            let text: String = String::from_utf8_lossy(&line).chars().filter(|c| !c.is_control()).take(300).collect();
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == ERROR_LINES_MAX {
                lines.pop_front();
            }
            if !text.trim().is_empty() {
                lines.push_back(text.trim().to_owned());
            }
        }
    }
}

/// What happens to a line that is too long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Its rest is dropped.
    Cut,
    /// Reading ends with an error.
    Refuse,
}

/// Reads one line without its end, never holding more than `bytes_max`. `false` at the end of the input.
pub(crate) async fn next_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    bytes_max: usize,
    excess: Excess,
) -> Result<bool, String> {
    line.clear();
    loop {
        let ready = input.fill_buf().await.map_err(|e| format!("its output cannot be read: {e}"))?;
        if ready.is_empty() {
            return Ok(!line.is_empty());
        }
        let (end, used) = match ready.iter().position(|b| *b == b'\n') {
            Some(at) => (at, at + 1),
            None => (ready.len(), ready.len()),
        };
        let is_whole = used > end;
        let room = bytes_max - line.len();
        if end > room && excess == Excess::Refuse {
            return Err(format!("it sent a message of more than {bytes_max} bytes"));
        }
        line.extend_from_slice(&ready[..end.min(room)]);
        input.consume(used);
        if is_whole {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &str, excess: Excess) -> Vec<Result<String, String>> {
        let mut input = BufReader::with_capacity(4, text.as_bytes());
        let (mut line, mut all) = (vec![], vec![]);
        loop {
            match next_line(&mut input, &mut line, 6, excess).await {
                Ok(true) => all.push(Ok(String::from_utf8(line.clone()).unwrap())),
                Ok(false) => return all,
                Err(e) => {
                    all.push(Err(e));
                    return all;
                }
            }
        }
    }

    #[tokio::test]
    async fn lines_are_read_across_buffers_and_never_beyond_their_limit() {
        let ok = |text: &str| Ok::<_, String>(text.to_owned());
        assert_eq!(lines("a\n\nlonger\nend", Excess::Cut).await, [ok("a"), ok(""), ok("longer"), ok("end")]);
        assert_eq!(lines("too long a line\nb\n", Excess::Cut).await, [ok("too lo"), ok("b")]);
        assert!(lines("too long a line\nb\n", Excess::Refuse).await[0].is_err());
    }
}
