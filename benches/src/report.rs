//! What the report is made of: figures beside their goals, in Markdown.

use crate::stats::Spread;
use std::fmt;

/// What a figure should reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Less than this.
    Below(f64),
    /// This or more.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Goal::Below(limit) => value < limit,
            Goal::AtLeast(limit) => value >= limit,
        }
    }
}

/// A figure: one value per run.
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    runs: Vec<f64>,
    goal: Option<Goal>,
    limit: String,
}

impl Figure {
    /// A figure without a goal.
    pub fn new(name: impl Into<String>, unit: &'static str, runs: &[f64]) -> Self {
        Figure { name: name.into(), unit, runs: runs.to_vec(), goal: None, limit: String::new() }
    }

    /// With what it should reach.
    pub fn goal(self, goal: Goal) -> Self {
        Figure { goal: Some(goal), ..self }
    }

    /// With what the machine allows at best, measured in the same run.
    pub fn limit(self, limit: impl Into<String>) -> Self {
        Figure { limit: limit.into(), ..self }
    }

    fn row(&self) -> String {
        let spread = Spread::of(&self.runs);
        let goal = match self.goal {
            None => String::new(),
            Some(Goal::Below(limit)) => format!("< {} {}", number(limit), self.unit),
            Some(Goal::AtLeast(limit)) => format!("≥ {} {}", number(limit), self.unit),
        };
        let met = match self.goal {
            None => "",
            Some(goal) if goal.is_met(spread.median) => "yes",
            Some(_) => "**no**",
        };
        let value = format!("{} {} ({}–{})", number(spread.median), self.unit, number(spread.min), number(spread.max));
        format!("| {} | {value} | {goal} | {} | {met} |", self.name, self.limit)
    }
}

/// A group of figures that were measured together.
pub(crate) struct Section {
    title: &'static str,
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Section {
    /// A group without figures yet.
    pub fn new(title: &'static str) -> Self {
        Section { title, figures: vec![], notes: vec![] }
    }

    /// Adds a figure.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds what must be known to read the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {}\n", self.title)?;
        writeln!(f, "| figure | median (min–max) | goal | limit | goal met |\n|---|---|---|---|---|")?;
        for figure in &self.figures {
            writeln!(f, "{}", figure.row())?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "- {note}"))
    }
}

/// A number with about three digits that say something; thousands are set apart.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        return "not measured".into();
    }
    if size < 10.0 {
        return format!("{value:.2}");
    }
    if size < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", size);
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_what_matters() {
        let shown: Vec<String> = [0.1234, 12.34, 123.4, 1234.0, 30_000.0, 1_234_567.0].map(number).into();
        assert_eq!(shown, ["0.12", "12.3", "123", "1,234", "30,000", "1,234,567"]);
    }

    #[test]
    fn a_missed_goal_is_said_to_be_missed() {
        let row = |runs: &[f64], goal| Figure::new("f", "ms", runs).goal(goal).row();
        assert!(row(&[1.0, 2.0, 9.0], Goal::Below(3.0)).ends_with("| yes |"));
        assert!(row(&[1.0, 3.0, 9.0], Goal::Below(3.0)).ends_with("| **no** |"));
        assert!(row(&[3.0], Goal::AtLeast(3.0)).ends_with("| yes |"));
        assert!(row(&[], Goal::Below(3.0)).ends_with("| **no** |"), "what was not measured is not met");
    }
}
