//! MCP over the standard streams of a process: one JSON-RPC message per line.

use super::rpc::{AsideSender, Call, Over, Pending, Taken, Wire, WireError, message, response};
use crate::GatewaySettings;
use crate::process::{Excess, Process, next_line};
use async_trait::async_trait;
use serde_json::Value;
use serde_json::value::RawValue;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Messages that wait to be written.
const OUTGOING_MAX: usize = 64;
/// Lines in a row that are no JSON-RPC.
const GARBAGE_MAX: usize = 1_000;
/// Messages per second that nobody asked for; beyond, reading pauses, so that the pipe holds the server up.
const UNASKED_PER_SECOND_MAX: usize = 2_000;

/// A connection to a process.
pub(crate) struct StdioWire {
    out: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    over: Over,
}

impl StdioWire {
    /// Starts the process and what reads from it and writes to it.
    pub fn start(
        command: &str,
        args: &[String],
        env: &[(String, String)],
        settings: &GatewaySettings,
        over: Over,
    ) -> Result<Self, String> {
        let message_bytes_max = settings.message_bytes_max;
        let (process, input, output) = Process::start(command, args, env, settings.process)?;
        let (out, outgoing) = mpsc::channel(OUTGOING_MAX);
        let pending = Pending::default();
        let writer = tokio::spawn(write(input, outgoing, over.clone()));
        let reader = tokio::spawn(read(output, message_bytes_max, pending.clone(), out.clone(), over.clone()));
        over.tasks.spawn(keep(process, writer, reader, pending.clone(), over.clone()));
        Ok(StdioWire { out, pending, over })
    }
}

#[async_trait]
impl Wire for StdioWire {
    async fn request(&self, call: Call<'_>, aside: Option<&AsideSender>) -> Result<Box<RawValue>, WireError> {
        let (answer, _forget) = self.pending.wait(call.id, aside);
        if self.over.is_over() || self.out.send(message(Some(call.id), call.method, call.params)).await.is_err() {
            return Err(WireError::Over(self.over.reason()));
        }
        answer.await.unwrap_or_else(|_| Err(WireError::Over(self.over.reason())))
    }

    async fn notify(&self, method: &str, params: &RawValue) {
        // A server that reads nothing must not hold up whoever tells it something.
        let _ = self.out.try_send(message(None, method, params));
    }

    async fn respond(&self, id: &RawValue, answer: Result<&Value, (i64, &str)>) {
        let _ = self.out.send(response(id, answer)).await;
    }

    fn agreed(&self, _: &str, _: bool) {}

    fn forget_session(&self) {}

    async fn close(&self) {
        // Closing its input says it.
    }
}

/// Watches the process, and ends everything when it or the connection is over.
async fn keep(mut process: Process, writer: JoinHandle<()>, reader: JoinHandle<()>, pending: Pending, over: Over) {
    tokio::select! {
        reason = process.ended() => over.end(reason),
        _ = over.ended() => {}
    }
    pending.fail(&over.reason());
    reader.abort();
    // Ends the writer, which closes the process's input.
    writer.abort();
    let _ = writer.await;
    process.end().await;
}

async fn write(mut input: ChildStdin, mut outgoing: mpsc::Receiver<Vec<u8>>, over: Over) {
    while let Some(mut line) = outgoing.recv().await {
        line.push(b'\n');
        if input.write_all(&line).await.is_err() {
            // The process may be ending and say why; give it the word first.
            tokio::time::sleep(Duration::from_millis(200)).await;
            return over.end("it reads no more");
        }
    }
}

async fn read(output: ChildStdout, bytes_max: usize, pending: Pending, out: mpsc::Sender<Vec<u8>>, over: Over) {
    let mut output = BufReader::with_capacity(64 * 1024, output);
    let mut line = vec![];
    let (mut garbage, mut unasked, mut second) = (0, 0, Instant::now());
    loop {
        match next_line(&mut output, &mut line, bytes_max, Excess::Refuse).await {
            Ok(true) => {}
            Ok(false) => {
                // The process ends by itself in most cases, and its status says more.
                tokio::time::sleep(Duration::from_millis(500)).await;
                return over.end("it closed its output");
            }
            Err(reason) => return over.end(reason),
        }
        for taken in pending.take(&line, None, &over) {
            garbage = if taken == Taken::Garbage { garbage + 1 } else { 0 };
            unasked += usize::from(taken != Taken::Answer);
            if let Taken::Reply(reply) = taken {
                let _ = out.try_send(reply);
            }
        }
        if garbage > GARBAGE_MAX {
            return over.end(format!("it printed {garbage} lines in a row that are no JSON-RPC"));
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, unasked) = (Instant::now(), 0);
        } else if unasked > UNASKED_PER_SECOND_MAX {
            tokio::time::sleep(Duration::from_secs(1) - second.elapsed()).await;
        }
        if line.capacity() > 1024 * 1024 {
            line = vec![];
        }
    }
}
