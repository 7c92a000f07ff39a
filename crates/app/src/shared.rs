//! What counts on every replica together: requests that passed, tries that failed, assertions that were shown. Each tells the
//! others a few times a second what happened there.

use crate::app::App;
use crate::limits::Whose;
use crate::oauth::ShownAssertion;
use crate::throttle::Tries;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often others are told.
const TOLD_EVERY_MS: u64 = 100;
/// Entries of one kind in a message; what is more counts only where it happened.
const TOLD_MAX: usize = 2_000;

/// What happened at another replica.
#[derive(Serialize, Deserialize)]
pub(crate) struct Told {
    taken: Vec<(Whose, u32)>,
    #[serde(default)]
    tried: Vec<(String, Tries)>,
    #[serde(default)]
    shown: Vec<ShownAssertion>,
}

/// Takes what was gathered, as much as goes into a message.
pub(crate) fn gathered<K: Ord, V>(all: &mut BTreeMap<K, V>) -> Vec<(K, V)> {
    std::mem::take(all).into_iter().take(TOLD_MAX).collect()
}

impl App {
    /// Whether there are others to tell.
    pub(crate) fn tells(&self) -> bool {
        self.0.replicas.is_some()
    }

    /// What happened at another replica counts here too.
    pub(crate) fn hear_told(&self, told: Told) {
        self.hear_taken(told.taken);
        self.0.throttle.hear(told.tried, self.env().now());
        self.0.assertions.hear(told.shown, self.env().now());
    }

    fn untold(&self) -> Option<Told> {
        let mut shown = self.0.assertions.untold();
        shown.truncate(TOLD_MAX);
        let told = Told { taken: self.taken(), tried: self.0.throttle.untold(self.env().now()), shown };
        (!told.taken.is_empty() || !told.tried.is_empty() || !told.shown.is_empty()).then_some(told)
    }
}

/// Tells the other replicas what happened here, until the end; keeps an eye on the emergency that counts for strangers.
pub(crate) async fn keep_shared(app: App) {
    let mut looked_at = None;
    loop {
        let position = Some(app.position(app.0.root));
        if position != looked_at
            && let Ok(guard) = app.guard_of(app.0.root).await
        {
            looked_at = position;
            app.0.emergency.store(guard.emergency.is_some(), std::sync::atomic::Ordering::Relaxed);
        }
        if let Some(replicas) = &app.0.replicas
            && let Some(told) = app.untold()
        {
            replicas.tell_others(&told);
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            () = app.env().sleep_ms(TOLD_EVERY_MS) => {}
        }
    }
}
