//! What changed between two positions or instants.

use crate::app::App;
use crate::{Answer, Caller};
use kernel::{Problem, Rejection};
use std::collections::BTreeMap;
use store::ScanFilter;

/// Events that one comparison looks at.
const EVENTS_MAX: usize = 20_000;
/// Events that are read at a time.
const PAGE_EVENTS: usize = 1_000;

/// What changed.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Only events after this position count.
    pub from: u64,
    /// Up to here was looked at.
    pub to: u64,
    /// How many events lie between.
    pub events: u64,
    /// Whether everything was looked at that was asked for; otherwise go on from `to`.
    pub is_complete: bool,
    /// What changed, by stream.
    pub entities: BTreeMap<String, Change>,
}

/// How one entity changed.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Its version at the beginning; 0 when it did not exist.
    pub version_before: u64,
    /// Its version at the end.
    pub version_after: u64,
    /// What happened, and how often.
    pub types: BTreeMap<String, u64>,
}

impl App {
    /// What changed in the caller's tenant between two positions or instants.
    pub async fn changes(&self, caller: &Caller, from: &str, to: Option<&str>) -> Answer<Changes> {
        let tenant = caller.actor.tenant;
        let from = self.as_of(caller, from).await?;
        let wanted = match to {
            Some(to) => self.as_of(caller, to).await?,
            None => self.engine().store().head(tenant).await.map_err(crate::errors::of_store)?,
        };
        if wanted < from {
            let message = "is before 'from'".to_owned();
            return Err(Rejection::invalid(&[Problem { pointer: "/to".into(), message }]));
        }
        let mut found = Changes { from, to: from, ..Changes::default() };
        while found.to < wanted && (found.events as usize) < EVENTS_MAX {
            let page = self.scan(tenant, found.to, ScanFilter::default(), PAGE_EVENTS).await?;
            for event in page.events.iter().filter(|event| event.header.position <= wanted) {
                let header = &event.header;
                let change = found
                    .entities
                    .entry(header.stream.clone())
                    .or_insert_with(|| Change { version_before: header.version - 1, ..Change::default() });
                change.version_after = header.version;
                *change.types.entry(header.kind.clone()).or_default() += 1;
                found.events += 1;
            }
            if page.position <= found.to {
                break;
            }
            found.to = page.position.min(wanted);
        }
        found.is_complete = found.to >= wanted;
        Ok(found)
    }
}
