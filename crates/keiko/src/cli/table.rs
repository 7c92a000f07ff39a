//! Tables for people: lists, the view of one resource, and text made safe for a terminal.
//!
//! Owns how values look. Never prints, never asks the server. Whatever comes from outside passes `clean` or `pretty`
//! here: a name in the log must not move the cursor of the person who reads it.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use serde_json::Value;
use std::fmt::Write;

/// Characters of a text in a list.
const BRIEF_CHARS_MAX: usize = 48;
/// Attributes that people look for first.
const FIRST_FIELDS: [&str; 8] = ["name", "slug", "username", "key", "status", "capability", "description", "tenant"];

/// How a column looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Id,
    Text,
    Brief,
    Time,
    Number,
}

/// A column of a list: its title, and the JSON pointer of its value in each item.
pub struct Column {
    title: &'static str,
    pointer: &'static str,
    look: Look,
}

impl Column {
    /// An id or a name: never wrapped.
    pub const fn id(title: &'static str, pointer: &'static str) -> Self {
        Column { title, pointer, look: Look::Id }
    }

    /// A text: wrapped where the terminal is narrow.
    pub const fn text(title: &'static str, pointer: &'static str) -> Self {
        Column { title, pointer, look: Look::Text }
    }

    /// A long text: only its beginning.
    pub const fn brief(title: &'static str, pointer: &'static str) -> Self {
        Column { title, pointer, look: Look::Brief }
    }

    /// A moment, to the second.
    pub const fn time(title: &'static str, pointer: &'static str) -> Self {
        Column { title, pointer, look: Look::Time }
    }

    /// A number, on the right.
    pub const fn number(title: &'static str, pointer: &'static str) -> Self {
        Column { title, pointer, look: Look::Number }
    }

    fn cell(&self, item: &Value) -> String {
        let value = item.pointer(self.pointer);
        match self.look {
            Look::Brief => brief(&plain(value)),
            Look::Time => short_time(&plain(value)),
            Look::Id | Look::Text | Look::Number => plain(value),
        }
    }
}

/// How a column of a grid takes its place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As wide as its content.
    Whole,
    /// Wrapped where the terminal is narrow.
    Wrapped,
    /// As wide as its content, on the right.
    Right,
}

/// A list as a table.
pub fn list(items: &[Value], columns: &[Column]) -> String {
    let fit = |look| match look {
        Look::Id | Look::Time => Fit::Whole,
        Look::Text | Look::Brief => Fit::Wrapped,
        Look::Number => Fit::Right,
    };
    let titles: Vec<(String, Fit)> = columns.iter().map(|c| (c.title.to_owned(), fit(c.look))).collect();
    let rows = items.iter().map(|item| columns.iter().map(|c| c.cell(item)).collect()).collect();
    grid(&titles, rows)
}

/// Rows of finished cells as a table without borders.
pub fn grid(titles: &[(String, Fit)], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(titles.iter().map(|(title, _)| title));
    table.add_rows(rows);
    for (index, (_, fit)) in titles.iter().enumerate() {
        let Some(column) = table.column_mut(index) else { continue };
        column.set_padding((0, 2));
        if *fit != Fit::Wrapped {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        if *fit == Fit::Right {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// One resource: a line for each attribute, what people look for first on top.
pub fn details(data: &Value) -> String {
    let Some(attributes) = data["attributes"].as_object() else {
        return pretty(data);
    };
    let first = FIRST_FIELDS.iter().filter_map(|name| attributes.get_key_value(*name));
    let rest = attributes.iter().filter(|(name, _)| !FIRST_FIELDS.contains(&name.as_str()));
    let mut fields: Vec<(String, String)> = Vec::new();
    fields.extend(data["id"].as_str().map(|id| ("id".to_owned(), clean(id))));
    fields.extend(first.chain(rest).map(|(name, value)| (clean(name), field(name, value))));
    lines(&fields)
}

fn lines(fields: &[(String, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        for (row, part) in value.lines().enumerate() {
            let label = if row == 0 { name.as_str() } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{label:width$}  {part}");
        }
    }
    out.trim_end().to_owned()
}

fn field(name: &str, value: &Value) -> String {
    let is_time = name.ends_with("_at") || name == "deadline";
    match value {
        Value::String(time) if is_time => format!("{} UTC", short_time(&clean(time))),
        Value::Object(map) if !map.is_empty() => pretty(value),
        Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => pretty(value),
        _ => plain(Some(value)),
    }
}

/// A value on one line. Nothing is a dash; objects in a list are called by their names.
pub fn plain(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => clean(text),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Array(items)) => items.iter().map(called).collect::<Vec<_>>().join(", "),
        Some(Value::Object(map)) if map.is_empty() => String::new(),
        Some(object) => clean(&object.to_string()),
    };
    if text.is_empty() { "-".to_owned() } else { text }
}

fn called(item: &Value) -> String {
    let name = item.get("name").filter(|name| name.is_string());
    plain(Some(name.unwrap_or(item)))
}

/// The beginning of a text.
pub fn brief(text: &str) -> String {
    if text.chars().count() <= BRIEF_CHARS_MAX {
        return text.to_owned();
    }
    let beginning: String = text.chars().take(BRIEF_CHARS_MAX - 1).collect();
    format!("{beginning}…")
}

/// `2026-01-31T12:00:00.123Z` as `2026-01-31 12:00:00`; anything else as it is.
pub fn short_time(time: &str) -> String {
    match (time.get(..10), time.get(10..11), time.get(11..19)) {
        (Some(day), Some("T"), Some(second)) => format!("{day} {second}"),
        _ => time.to_owned(),
    }
}

/// JSON over several lines. What a terminal acts on is written as an escape, which means the same to programs.
pub fn pretty(value: &Value) -> String {
    escape(&format!("{value:#}"))
}

/// JSON on one line, with the same escapes.
pub fn compact(value: &Value) -> String {
    escape(&value.to_string())
}

/// In JSON, characters other than line ends that a terminal acts on occur only inside of strings.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_acted_on(c) {
            // Writing to a string cannot fail. All of these characters have at most 16 bits.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// A text on one line with nothing in it that a terminal acts on.
pub fn clean(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' | '\t' => ' ',
        c if is_acted_on(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(safe).collect()
}

/// Control characters, line separators and marks that reverse the direction of text.
fn is_acted_on(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_that_a_terminal_acts_on_gets_through() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e"), "a\u{fffd}[2Jb c\u{fffd}d\u{fffd}e");
        let hostile = json!({"name": "a\u{1b}[2J\u{9b}\u{202e}", "ok": "ä"});
        for shown in [pretty(&hostile), compact(&hostile)] {
            assert!(!shown.chars().any(|c| c != '\n' && is_acted_on(c)), "{shown:?}");
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), hostile);
        }
        let listed = list(&[json!({"name": "x\u{1b}]0;y\u{7}"})], &[Column::text("NAME", "/name")]);
        assert!(!listed.contains('\u{1b}') && !listed.contains('\u{7}'), "{listed:?}");
    }

    #[test]
    fn a_list_has_a_title_line_and_a_line_for_each_item() {
        let columns = [Column::id("ID", "/id"), Column::number("N", "/attributes/n"), Column::time("AT", "/at")];
        let items = [
            json!({"id": "task_1", "attributes": {"n": 7}, "at": "2026-01-31T12:00:00.123Z"}),
            json!({"id": "task_10", "attributes": {"n": 1234}}),
        ];
        let shown = list(&items, &columns);
        assert_eq!(shown, "ID          N  AT\ntask_1      7  2026-01-31 12:00:00\ntask_10  1234  -");
    }

    #[test]
    fn one_resource_has_a_line_for_each_attribute() {
        let data = json!({"id": "a_1", "attributes": {"agent_type": "x", "name": "n", "none": null, "tags": ["a", "b"],
            "created_at": "2026-01-31T12:00:00.000Z", "capabilities": [{"name": "c"}]}});
        let shown = details(&data);
        assert!(shown.starts_with("id            a_1\nname          n\n"), "{shown}");
        for line in ["none          -", "tags          a, b", "created_at    2026-01-31 12:00:00 UTC"] {
            assert!(shown.lines().any(|l| l == line), "{line:?} in {shown}");
        }
        assert!(shown.contains("\"name\": \"c\""), "{shown}");
    }

    #[test]
    fn a_value_fits_on_one_line() {
        assert_eq!(plain(None), "-");
        assert_eq!(plain(Some(&json!([{"name": "a"}, "b", 3]))), "a, b, 3");
        assert_eq!(plain(Some(&json!(true))), "yes");
        assert_eq!(brief(&"ä".repeat(100)).chars().count(), BRIEF_CHARS_MAX);
        assert_eq!(short_time("soon"), "soon");
    }
}
