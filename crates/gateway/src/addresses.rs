//! The addresses of one server. One of those that answer speaks for all: what it lists is what the server lists.

use crate::mcp::{Failure, ListKind, Offers};
use crate::{Change, Changes, Happening, Introduction, Key, Report, What};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};

/// How an address is.
pub(crate) enum Standing {
    /// Nothing was heard of it yet.
    Starting,
    /// It answers.
    Ready(Introduction, Arc<Offers>),
    /// It does not, or ended.
    Failed(Failure),
}

/// What follows for the server from what happened at an address.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The address that speaks says something, or another one speaks.
    Said(usize),
    /// None of them answers any more.
    Lost,
    /// Nothing is different.
    None,
}

/// All of them, and which one speaks.
struct Heard {
    standings: Vec<Standing>,
    voice: Option<usize>,
}

impl Heard {
    fn is_ready(&self, at: usize) -> bool {
        matches!(self.standings[at], Standing::Ready(..))
    }

    /// Takes in how an address is now. Whoever speaks goes on while it answers, so that the list does not change to and fro.
    fn take(&mut self, at: usize, standing: Standing) -> News {
        self.standings[at] = standing;
        let before = self.voice;
        let first = || (0..self.standings.len()).find(|at| self.is_ready(*at));
        self.voice = before.filter(|voice| self.is_ready(*voice)).or_else(first);
        match self.voice {
            Some(voice) if voice == at || Some(voice) != before => News::Said(voice),
            Some(_) => News::None,
            None if self.standings.iter().all(|standing| matches!(standing, Standing::Failed(_))) => News::Lost,
            None => News::None,
        }
    }

    /// Why none of them answers: the first one's reason, so that it is not another one with each attempt of another address.
    fn failure(&self) -> Option<&Failure> {
        self.standings.iter().find_map(|standing| match standing {
            Standing::Failed(failure) => Some(failure),
            Standing::Starting | Standing::Ready(..) => None,
        })
    }
}

/// See the module's words.
pub(crate) struct Addresses {
    pub key: Key,
    /// Where they are; empty for one that has no address, or no other.
    urls: Vec<String>,
    reports: mpsc::Sender<Report>,
    changes: Arc<Changes>,
    heard: Mutex<Heard>,
    /// What was listed last, also while none of them answers.
    offers: watch::Sender<Arc<Offers>>,
}

impl Addresses {
    /// `urls` says where they are when there are several.
    pub fn new(key: Key, urls: Vec<String>, reports: mpsc::Sender<Report>, changes: Arc<Changes>) -> Self {
        let standings = (0..urls.len().max(1)).map(|_| Standing::Starting).collect();
        let heard = Mutex::new(Heard { standings, voice: None });
        Addresses { key, urls, reports, changes, heard, offers: watch::Sender::new(Arc::default()) }
    }

    /// Where they are, when there are several.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Tells that circuits opened or closed; which, is read when it is written down.
    pub async fn tell_circuits(&self) {
        self.report(Happening::Circuits).await;
    }

    /// Where an address is, when there are several.
    pub fn url(&self, at: usize) -> Option<&str> {
        self.urls.get(at).map(String::as_str)
    }

    /// What the server listed last.
    pub fn offers(&self) -> Arc<Offers> {
        self.offers.borrow().clone()
    }

    /// Takes in how an address is now, and tells what that means for the server.
    pub async fn hear(&self, at: usize, standing: Standing) {
        let mut heard = self.heard.lock().await;
        let was_ready = heard.is_ready(at);
        let news = heard.take(at, standing);
        match news {
            News::Said(voice) => {
                if let Standing::Ready(introduction, offers) = &heard.standings[voice] {
                    self.list(offers);
                    self.report(Happening::Ready(introduction.clone(), offers.clone())).await;
                }
            }
            News::Lost => {
                if let Some(Failure { reason, is_locked }) = heard.failure().cloned() {
                    self.report(Happening::Failed { reason, is_locked }).await;
                }
            }
            News::None => {}
        }
        if !self.urls.is_empty() && (was_ready != heard.is_ready(at) || matches!(heard.standings[at], Standing::Failed(_))) {
            self.tell_circuits().await;
        }
    }

    /// What the server lists is what may be asked for.
    fn list(&self, offers: &Arc<Offers>) {
        let before = self.offers.send_replace(offers.clone());
        for (kind, is_changed) in [
            (ListKind::Tools, before.tools != offers.tools),
            (ListKind::Prompts, before.prompts != offers.prompts),
            (ListKind::Resources, before.resources != offers.resources || before.templates != offers.templates),
        ] {
            if is_changed {
                self.tell(What::List(kind));
            }
        }
    }

    /// Tells whoever follows the server.
    pub fn tell(&self, what: What) {
        self.changes.tell(Change { key: self.key, what });
    }

    async fn report(&self, what: Happening) {
        // Nobody listens any more when the server stops.
        let _ = self.reports.send(Report { key: self.key, what }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Standing {
        let introduction = Introduction { name: "a".into(), version: "1".into(), protocol_version: "2026-07-28".into() };
        Standing::Ready(introduction, Arc::default())
    }

    fn failed() -> Standing {
        Standing::Failed(Failure::from("gone".to_owned()))
    }

    fn three() -> Heard {
        Heard { standings: vec![Standing::Starting, Standing::Starting, Standing::Starting], voice: None }
    }

    #[test]
    fn the_first_that_answers_speaks_until_it_is_gone() {
        let mut heard = three();
        assert_eq!(heard.take(1, ready()), News::Said(1));
        assert_eq!(heard.take(0, ready()), News::None);
        assert_eq!(heard.take(1, ready()), News::Said(1), "it lists something else");
        assert_eq!(heard.take(1, failed()), News::Said(0));
        assert_eq!(heard.take(1, ready()), News::None, "who took its place goes on");
    }

    #[test]
    fn a_server_is_lost_when_none_of_its_addresses_answers() {
        let mut heard = three();
        assert_eq!(heard.take(0, failed()), News::None);
        assert_eq!(heard.take(1, failed()), News::None, "nothing is known of the third");
        assert_eq!(heard.take(2, failed()), News::Lost);
        assert_eq!(heard.take(2, Standing::Failed(Failure::from("no answer".to_owned()))), News::Lost);
        assert_eq!(heard.failure().map(|failure| failure.reason.as_str()), Some("gone"), "the reason stays the same");
        assert_eq!(heard.take(0, ready()), News::Said(0));
        assert_eq!(heard.take(0, failed()), News::Lost);
    }
}
