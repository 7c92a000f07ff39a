//! Telling clients what changed behind their door: lists, and resources that they asked about.

use super::message::notification;
use crate::http::state::EdgeState;
use app::Caller;
use app::mcp::{Change, Door, Key, ListKind, View, Watched, What};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Resources that one client asks about.
pub(super) const RESOURCES_MAX: usize = 200;
/// How long somebody who was allowed to follow is taken to be.
const ALLOWED_FOR: Duration = Duration::from_millis(500);

/// What a client wants to be told.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
}

impl Wanted {
    pub const ALL: Wanted = Wanted { tools: true, prompts: true, resources: true };

    fn wants(self, kind: ListKind) -> bool {
        match kind {
            ListKind::Tools => self.tools,
            ListKind::Prompts => self.prompts,
            ListKind::Resources => self.resources,
        }
    }
}

/// Resources that a client asked about, by their URIs as the client knows them.
#[derive(Default)]
pub(super) struct Resources(Mutex<BTreeMap<String, (Key, String, Watched)>>);

impl Resources {
    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Key, String, Watched)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; a refusal when it is not there, or there are too many.
    pub fn add(&self, state: &EdgeState, caller: &Caller, door: Door, uri: &str) -> Result<(), kernel::Rejection> {
        if self.map().len() >= RESOURCES_MAX {
            let message = format!("A client may ask about {RESOURCES_MAX} resources.");
            let hint = "Ask about fewer at a time.";
            return Err(kernel::Rejection::new(kernel::Kind::Refused, "QUOTA_REACHED", message, hint));
        }
        let watched = state.app.watch_resource(caller, door, uri)?;
        self.map().insert(uri.to_owned(), watched);
        Ok(())
    }

    /// One less.
    pub fn remove(&self, uri: &str) {
        self.map().remove(uri);
    }

    fn uris(&self) -> Vec<String> {
        self.map().keys().cloned().collect()
    }

    fn named(&self, key: Key, own: &str) -> Option<String> {
        let map = self.map();
        map.iter().find(|(_, (of, name, _))| *of == key && name == own).map(|(uri, _)| uri.clone())
    }
}

/// Follows what changes behind a door.
pub(super) struct Changes {
    state: Arc<EdgeState>,
    caller: Caller,
    door: Door,
    wanted: Wanted,
    catalogue: watch::Receiver<u64>,
    gateway: broadcast::Receiver<Change>,
    tools_stamp: u64,
}

impl Changes {
    pub fn new(state: &Arc<EdgeState>, caller: &Caller, door: Door, wanted: Wanted) -> Result<Self, kernel::Rejection> {
        let catalogue = state.app.mcp_changes(caller)?;
        let gateway = state.app.gateway_changes();
        let tools_stamp = state.app.mcp_view(caller, door)?.tools_stamp;
        Ok(Changes { state: state.clone(), caller: caller.clone(), door, wanted, catalogue, gateway, tools_stamp })
    }

    fn view(&self) -> Option<Arc<View>> {
        self.state.app.mcp_view(&self.caller, self.door).ok()
    }

    /// The texts of notifications, one after another, until nobody reads them or the server is about to stop. `tag` is the
    /// `_meta` of each.
    pub async fn tell(mut self, resources: &Resources, tag: Option<Value>, over: &CancellationToken, out: &mpsc::Sender<String>) {
        let draining = self.state.app.draining().clone();
        let mut look = tokio::time::interval(ALLOWED_FOR);
        loop {
            let told = tokio::select! {
                () = draining.cancelled() => return,
                () = over.cancelled() => return,
                () = out.closed() => return,
                // Whoever signed out, or lost the key or the permission, is told nothing more.
                _ = look.tick() => match self.state.app.mcp_may_still(&self.caller, self.door).await {
                    true => vec![],
                    false => return,
                },
                changed = self.catalogue.changed() => match changed {
                    Ok(()) => self.tools_changed(),
                    Err(_) => return,
                },
                change = self.gateway.recv() => match change {
                    Ok(change) => self.changed(&change, resources),
                    // What was missed may have been anything.
                    Err(broadcast::error::RecvError::Lagged(_)) => self.all(resources),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            };
            for (method, mut params) in told {
                if let Some(tag) = &tag {
                    params["_meta"] = tag.clone();
                }
                if out.send(notification(&method, &params)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Everything that may have changed unseen.
    fn all(&self, resources: &Resources) -> Vec<(String, Value)> {
        let lists = [(self.wanted.prompts, "prompts"), (self.wanted.resources, "resources")];
        let lists = lists.into_iter().filter(|(is_wanted, _)| *is_wanted).map(|(_, name)| list_changed(name));
        lists.chain(resources.uris().into_iter().map(|uri| updated(&uri))).collect()
    }

    fn tools_changed(&mut self) -> Vec<(String, Value)> {
        let Some(view) = self.view() else { return vec![] };
        if view.tools_stamp == self.tools_stamp {
            return vec![];
        }
        self.tools_stamp = view.tools_stamp;
        if self.wanted.tools { vec![list_changed("tools")] } else { vec![] }
    }

    fn changed(&self, change: &Change, resources: &Resources) -> Vec<(String, Value)> {
        match &change.what {
            What::Resource(own) => {
                let uri = resources.named(change.key, own);
                uri.map(|uri| updated(&uri)).into_iter().collect()
            }
            // Tools are told of when the catalogue has them.
            What::List(ListKind::Tools) => vec![],
            What::List(kind) => {
                let is_own = change.key.tenant == self.caller.actor.tenant
                    && self.view().is_some_and(|view| view.parts.iter().any(|part| part.id == change.key.server));
                let name = if *kind == ListKind::Prompts { "prompts" } else { "resources" };
                if is_own && self.wanted.wants(*kind) { vec![list_changed(name)] } else { vec![] }
            }
        }
    }
}

fn updated(uri: &str) -> (String, Value) {
    ("notifications/resources/updated".to_owned(), json!({ "uri": uri }))
}

fn list_changed(list: &str) -> (String, Value) {
    (format!("notifications/{list}/list_changed"), json!({}))
}
