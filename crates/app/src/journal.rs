//! The journal: what use cases write into it, and how it is read.

use crate::app::App;
use crate::errors::of_store;
use crate::{Answer, Caller};
use kernel::event::Content;
use kernel::journal::Class;
use kernel::{Json, Kind, Rejection, limits};
use serde::Serialize;
use std::collections::BTreeMap;
use store::journal::{Entry, JournalQuery, NewEntry};

/// How often content is looked at whose time is over.
const LOOK_EVERY_MS: u64 = 3_600_000;

/// Content of an entry with large values put aside.
#[derive(Default)]
pub(crate) struct Values(Vec<([u8; 32], Vec<u8>)>);

impl Values {
    /// The value itself, or a reference to it when it is large.
    pub fn put(&mut self, value: &Json) -> Json {
        match value.offload(limits::VALUE_INLINE_BYTES_MAX) {
            None => value.clone(),
            Some((reference, hash)) => {
                self.0.push((hash, value.text().as_bytes().to_vec()));
                reference
            }
        }
    }
}

impl App {
    /// Writes an observation, without waiting; what cannot be kept is counted by the journal.
    pub(crate) fn observe(&self, caller: &Caller, class: Class, kind: &'static str, data: &impl Serialize, values: Values) {
        if let Some(entry) = self.entry_of(caller, class, kind, data, values) {
            self.0.journal.offer(entry);
        }
    }

    /// Writes the entry of a privileged action and waits for it: without it the action must not happen.
    pub(crate) async fn witness(&self, caller: &Caller, kind: &'static str, data: &impl Serialize) -> Answer<()> {
        let refused = |reason: String| {
            tracing::error!(%reason, kind, "a privileged action was refused: its journal entry could not be written");
            Rejection::new(
                Kind::Unavailable,
                "JOURNAL_UNAVAILABLE",
                "This action needs an entry in the journal, which cannot be written.",
                "Look at the server's log and at /ready; free disk space, or start the server again.",
            )
        };
        let entry = self.entry_of(caller, Class::Security, kind, data, Values::default());
        let entry = entry.ok_or_else(|| refused("it could not be put into words".into()))?;
        self.0.journal.record(entry).await.map(|_| ()).map_err(|error| refused(error.to_string()))
    }

    fn entry_of(
        &self,
        caller: &Caller,
        class: Class,
        kind: &'static str,
        data: &impl Serialize,
        values: Values,
    ) -> Option<NewEntry> {
        Some(NewEntry {
            id: self.env().id(),
            tenant: caller.actor.tenant,
            class,
            kind: kind.into(),
            at: self.env().now(),
            actor: caller.actor.who.clone(),
            correlation: caller.correlation.clone(),
            content: Content::Whole { salt: self.env().bytes(), bytes: serde_json::to_vec(data).ok()? },
            values: values.0,
        })
    }

    /// Entries of the caller's tenant, in order. Whoever sees only its own sees what it did itself.
    pub async fn journal(&self, caller: &Caller, query: JournalQuery) -> Answer<Vec<Entry>> {
        let actor = (!caller.sees_all()).then(|| caller.actor.who.id.clone());
        let query = JournalQuery { actor, ..query };
        self.0.journal.entries(caller.actor.tenant, query).await.map_err(of_store)
    }

    /// One entry with its large values.
    pub async fn journal_entry(&self, caller: &Caller, position: u64) -> Answer<(Entry, serde_json::Value)> {
        let query = JournalQuery { after: position.saturating_sub(1), limit: 1, ..JournalQuery::default() };
        let found = self.journal(caller, query).await?.into_iter().find(|entry| entry.header.position == position);
        let entry = found.ok_or_else(|| {
            let message = format!("There is no entry at position {position} of this tenant's journal.");
            Rejection::new(Kind::NotFound, "JOURNAL_ENTRY_NOT_FOUND", message, "List entries with GET /api/v1/journal.")
        })?;
        let mut data: serde_json::Value =
            entry.data.as_deref().and_then(|data| serde_json::from_slice(data).ok()).unwrap_or_default();
        for pointer in ["/arguments", "/result", "/result/content", "/result/structured_content"] {
            if let Some(value) = data.pointer_mut(pointer) {
                self.resolve_value(caller, value).await?;
            }
        }
        Ok((entry, data))
    }

    async fn resolve_value(&self, caller: &Caller, value: &mut serde_json::Value) -> Answer<()> {
        let hash = Json::of(&*value).ok().and_then(|json| json.reference());
        if let Some(hash) = hash
            && let Some(bytes) = self.0.journal.value(caller.actor.tenant, &hash).await.map_err(of_store)?
        {
            *value = serde_json::from_slice(&bytes).unwrap_or_default();
        }
        Ok(())
    }

    /// How the journal is.
    pub fn journal_health(&self) -> store::journal::JournalHealth {
        self.0.journal.health()
    }
}

/// Removes content whose time is over, now and then, until the server stops.
pub(crate) async fn keep_to_retention(app: App) {
    loop {
        let (now, settings) = (app.env().now(), &app.0.settings);
        let before = BTreeMap::from([
            (Class::ToolCall, now.minus_ms(settings.tool_call_retention_ms)),
            (Class::Security, now.minus_ms(settings.security_retention_ms)),
        ]);
        let forgotten = if app.leads_all() { app.0.journal.forget(before).await } else { Ok(0) };
        match forgotten {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "journal entries lost their content: their time is over"),
            Err(error) => tracing::warn!(%error, "the journal could not be cleared of old content"),
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            () = app.env().sleep_ms(LOOK_EVERY_MS) => {}
        }
    }
}
