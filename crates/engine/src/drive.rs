//! Runs a process: feeds it the log in order and what it hears, carries out what it wants, and wakes it when it is due.

use crate::Engine;
use async_trait::async_trait;
use kernel::{Process, TenantId};
use std::sync::Arc;
use store::ScanFilter;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// Events that are read at a time.
const PAGE_EVENTS: usize = 1_000;
/// Signals that are heard before the process decides.
const PAGE_SIGNALS: usize = 1_000;
/// A lost wake-up costs at most this long.
const LOOK_AGAIN_MS: u64 = 1_000;

/// Carries out what a process wants. Each command at least once; carrying one out twice must change nothing.
#[async_trait]
pub trait Executor<P: Process>: Send + Sync + 'static {
    /// Carries out a command and says what the process should hear of it.
    async fn execute(&self, command: P::Command) -> Option<P::Signal>;
}

/// A running process.
pub struct Handle<P: Process> {
    inbox: UnboundedSender<P::Signal>,
    position: watch::Receiver<u64>,
}

impl<P: Process> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Handle { inbox: self.inbox.clone(), position: self.position.clone() }
    }
}

impl<P: Process> Handle<P> {
    /// Tells the process something.
    pub fn tell(&self, signal: P::Signal) {
        // After the end nobody listens: that is what the end means.
        let _ = self.inbox.send(signal);
    }
}

impl<P: Process> Handle<P> {
    /// Waits until the process has seen the log up to `position`.
    pub async fn reaches(&self, position: u64) {
        // An error means that it has ended: nothing more is to be waited for.
        let _ = self.position.clone().wait_for(|reached| *reached >= position).await;
    }
}

/// Starts a process that has seen the log up to `position`.
pub fn drive<P, X>(engine: &Engine, log: TenantId, process: P, position: u64, executor: Arc<X>) -> Handle<P>
where
    P: Process,
    X: Executor<P>,
{
    let (inbox, heard) = unbounded_channel();
    let (reached, watcher) = watch::channel(position);
    let runner = Runner { engine: engine.clone(), log, process, position, executor, inbox: inbox.clone(), reached };
    engine.env().spawn(runner.run(heard));
    Handle { inbox, position: watcher }
}

struct Runner<P: Process, X> {
    engine: Engine,
    log: TenantId,
    process: P,
    position: u64,
    executor: Arc<X>,
    inbox: UnboundedSender<P::Signal>,
    reached: watch::Sender<u64>,
}

impl<P: Process, X: Executor<P>> Runner<P, X> {
    async fn run(mut self, mut heard: UnboundedReceiver<P::Signal>) {
        let env = self.engine.env().clone();
        let mut tail = self.engine.store().tail(self.log);
        loop {
            tail.mark_unchanged();
            self.catch_up().await;
            let now = env.now();
            for command in self.process.decide(now, env.random()) {
                self.execute(command);
            }
            let due = self.process.due().unwrap_or(now.plus_ms(LOOK_AGAIN_MS)).min(now.plus_ms(LOOK_AGAIN_MS));
            tokio::select! {
                biased;
                () = env.stop().cancelled() => return,
                Some(signal) = heard.recv() => self.hear(signal, &mut heard),
                _ = tail.changed() => {}
                () = env.sleep_until(due) => {}
            }
        }
    }

    fn hear(&mut self, first: P::Signal, heard: &mut UnboundedReceiver<P::Signal>) {
        let now = self.engine.env().now();
        self.process.signal(first, now);
        for _ in 1..PAGE_SIGNALS {
            let Ok(signal) = heard.try_recv() else { break };
            self.process.signal(signal, now);
        }
    }

    async fn catch_up(&mut self) {
        loop {
            let scanned = match self.engine.store().scan(self.log, self.position, ScanFilter::default(), PAGE_EVENTS).await {
                Ok(scanned) => scanned,
                Err(error) => {
                    tracing::error!(process = P::NAME, %error, "the log could not be read; trying again");
                    return;
                }
            };
            if scanned.position <= self.position {
                return;
            }
            let now = self.engine.env().now();
            for event in &scanned.events {
                self.process.react(event, now);
            }
            self.position = scanned.position;
            self.reached.send_replace(self.position);
        }
    }

    fn execute(&self, command: P::Command) {
        let (executor, inbox) = (self.executor.clone(), self.inbox.clone());
        self.engine.env().spawn(async move {
            if let Some(signal) = executor.execute(command).await {
                // After the end nobody listens: that is what the end means.
                let _ = inbox.send(signal);
            }
        });
    }
}
