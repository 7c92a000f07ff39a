//! What became of each file: one row for each submitted task, until every row has an end.
//!
//! Owns the result table. Never talks to a server.

use super::files::Counts;
use crate::cli::commands::submit::has_ended;
use crate::cli::table::Column;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The columns of the result.
pub const COLUMNS: [Column; 7] = [
    Column::id("FILE", "/file"),
    Column::number("LINES", "/lines"),
    Column::number("WORDS", "/words"),
    Column::number("BYTES", "/bytes"),
    Column::text("STATUS", "/status"),
    Column::id("TASK", "/task_id"),
    Column::number("POSITION", "/position"),
];

/// How a task ended.
struct End {
    status: String,
    counts: Option<Counts>,
    position: Option<u64>,
}

/// The submitted tasks in order, and their ends.
#[derive(Default)]
pub struct Board {
    tasks: Vec<(String, String)>,
    ends: BTreeMap<String, End>,
}

impl Board {
    /// Adds a task about a file.
    pub fn add(&mut self, task_id: &str, file: &str) {
        self.tasks.push((task_id.to_owned(), file.to_owned()));
    }

    /// Notes a task of ours as it is in an answer, if it has ended. Gives whether that is news.
    pub fn note(&mut self, task_id: &str, attributes: &Value, position: Option<u64>) -> bool {
        if !self.is_open(task_id) || !has_ended(attributes) {
            return false;
        }
        let status = attributes["status"].as_str().unwrap_or_default().to_owned();
        let counts = Counts::from_output(&attributes["output"]);
        self.ends.insert(task_id.to_owned(), End { status, counts, position }).is_none()
    }

    fn is_open(&self, task_id: &str) -> bool {
        !self.ends.contains_key(task_id) && self.tasks.iter().any(|(id, _)| id == task_id)
    }

    /// The tasks that have no end yet.
    pub fn open(&self) -> Vec<String> {
        self.tasks.iter().map(|(id, _)| id).filter(|id| !self.ends.contains_key(*id)).cloned().collect()
    }

    /// How many tasks are not completed.
    pub fn not_completed(&self) -> usize {
        self.tasks.len() - self.ends.values().filter(|end| end.status == "completed").count()
    }

    /// A row for each task.
    pub fn rows(&self) -> Vec<Value> {
        self.tasks.iter().map(|(id, file)| self.row(id, file)).collect()
    }

    fn row(&self, task_id: &str, file: &str) -> Value {
        let end = self.ends.get(task_id);
        let counts = end.and_then(|end| end.counts);
        json!({
            "file": file,
            "lines": counts.map(|c| c.lines),
            "words": counts.map(|c| c.words),
            "bytes": counts.map(|c| c.bytes),
            "status": end.map_or("open", |end| end.status.as_str()),
            "task_id": task_id,
            "position": end.and_then(|end| end.position),
        })
    }

    /// The sums over all completed tasks.
    pub fn totals(&self) -> Value {
        let sum = self.ends.values().filter_map(|end| end.counts).fold(Counts::default(), |sum, counts| Counts {
            lines: sum.lines + counts.lines,
            words: sum.words + counts.words,
            bytes: sum.bytes + counts.bytes,
        });
        sum.to_output()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(lines: u64) -> Value {
        json!({"status": "completed", "output": Counts { lines, words: 2, bytes: 3 }.to_output()})
    }

    #[test]
    fn every_task_ends_once() {
        let mut board = Board::default();
        board.add("task_1", "a");
        board.add("task_2", "b");
        assert!(!board.note("task_1", &json!({"status": "claimed"}), Some(1)));
        assert!(board.note("task_1", &completed(1), Some(7)));
        assert!(!board.note("task_1", &completed(9), Some(8)));
        assert!(!board.note("task_of_another", &completed(9), Some(9)));
        assert_eq!(board.open(), ["task_2"]);
        assert_eq!(board.not_completed(), 1);
        assert!(board.note("task_2", &json!({"status": "dead"}), None));
        assert_eq!(board.not_completed(), 1);
        assert_eq!(board.totals(), json!({"lines": 1, "words": 2, "bytes": 3}));
        assert_eq!(board.rows()[0]["position"], 7);
        assert_eq!(board.rows()[1]["status"], "dead");
    }
}
