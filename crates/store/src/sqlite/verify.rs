//! Looks at everything that is stored, for `keiko doctor`: SQLite's own check, gapless positions, hashes of every event.

use super::read;
use super::{Directory, SqliteStore};
use crate::*;

/// What was looked at and what was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Logs looked at.
    pub logs: usize,
    /// Events looked at.
    pub events: u64,
    /// What is wrong, if anything.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// In which log.
    pub log: Option<TenantId>,
    /// At which position.
    pub position: Option<u64>,
    /// What.
    pub problem: String,
}

/// Findings after which no further ones are listed.
const FINDINGS_MAX: usize = 100;
const PAGE: usize = 1_000;

impl SqliteStore {
    /// Checks the database of a directory that this process holds. Reads only.
    pub fn verify(directory: &Directory) -> Result<Verified, StoreError> {
        let c = directory.open_database().reading().map_err(read::failed)?;
        let mut verified = Verified::default();
        let mut check = c.prepare("PRAGMA integrity_check(20)").map_err(read::failed)?;
        let lines = check.query_map([], |row| row.get::<_, String>(0)).map_err(read::failed)?;
        for line in lines {
            let problem = line.map_err(read::failed)?;
            if problem != "ok" {
                verified.findings.push(Finding { log: None, position: None, problem });
            }
        }
        for log in read::logs(&c).map_err(read::failed)? {
            verified.logs += 1;
            verify_log(&c, log, &mut verified).map_err(read::failed)?;
        }
        Ok(verified)
    }
}

fn verify_log(c: &rusqlite::Connection, log: TenantId, verified: &mut Verified) -> rusqlite::Result<()> {
    let (mut after, mut recorded_at) = (0, Timestamp(i64::MIN));
    loop {
        let page = read::scan(c, log, after, &ScanFilter::default(), PAGE)?;
        for event in &page.events {
            let header = &event.header;
            let mut wrong = |problem: &str| {
                if verified.findings.len() < FINDINGS_MAX {
                    verified.findings.push(Finding {
                        log: Some(log),
                        position: Some(header.position),
                        problem: problem.to_owned(),
                    });
                }
            };
            if header.position != after + 1 {
                wrong("positions have a gap before it");
            }
            if !event.is_intact() {
                wrong("its content does not match its hash");
            }
            if header.recorded_at < recorded_at {
                wrong("its time is before the previous event's");
            }
            (after, recorded_at) = (header.position, header.recorded_at);
            verified.events += 1;
        }
        if page.events.is_empty() {
            return Ok(());
        }
    }
}
