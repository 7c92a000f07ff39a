//! `keiko tasks decision`: why this agent, as a table in which the candidates can be compared.
//!
//! Owns the layout. Takes the scores as they are named in the answer, so that a new score shows without a change here.

use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::print;
use crate::cli::table::{self, Fit, plain};
use serde_json::{Value, json};
use std::slice;

/// Shows the decision (or, after retries, the decisions) about a task.
pub async fn show(id: &str, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let answer = client.send(Call::get(path(&["tasks", id, "decision"]))).await?;
    if output == Output::Json {
        return output.one(answer.data());
    }
    let data = answer.data();
    let decisions = data.as_array().map_or(slice::from_ref(data), Vec::as_slice);
    for decision in decisions {
        print::line(&render(decision))?;
    }
    Ok(())
}

fn render(decision: &Value) -> String {
    let attributes = &decision["attributes"];
    let mut parts = vec![table::details(&facts(decision))];
    let candidates = attributes["candidates"].as_array().map(Vec::as_slice).unwrap_or_default();
    if candidates.is_empty() {
        parts.push("No agent could be chosen.".to_owned());
    } else {
        parts.push(compare(candidates, &attributes["weights"]));
    }
    parts.extend(excluded(&attributes["excluded"]));
    parts.join("\n\n")
}

/// Everything about the decision that has no place of its own.
fn facts(decision: &Value) -> Value {
    let mut attributes = decision["attributes"].as_object().cloned().unwrap_or_default();
    for shown_apart in ["candidates", "weights", "excluded"] {
        attributes.remove(shown_apart);
    }
    json!({ "id": decision["id"], "attributes": attributes })
}

/// A line for each candidate, a column for each score, its weight in the title.
fn compare(candidates: &[Value], weights: &Value) -> String {
    let scores = score_names(candidates);
    let mut titles = vec![("RANK".to_owned(), Fit::Right), ("AGENT".to_owned(), Fit::Whole), ("SCORE".to_owned(), Fit::Right)];
    titles.extend(scores.iter().map(|name| (title(name, weights), Fit::Right)));
    let rows = candidates.iter().enumerate().map(|(index, candidate)| {
        let own = candidate["parts"].as_object();
        let mut row = vec![(index + 1).to_string(), agent(candidate), number(candidate.get("score"))];
        row.extend(scores.iter().map(|name| number(own.and_then(|own| own.get(*name)))));
        row
    });
    table::grid(&titles, rows.collect())
}

/// The names of all scores, in the order in which they first occur.
fn score_names(candidates: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for name in candidates.iter().filter_map(|c| c["parts"].as_object()).flat_map(|scores| scores.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn title(score: &str, weights: &Value) -> String {
    let name = table::clean(score).to_uppercase();
    match weights.get(score) {
        Some(weight) => format!("{name} ×{}", plain(Some(weight))),
        None => name,
    }
}

fn agent(candidate: &Value) -> String {
    let named = ["name", "agent_name", "agent_id"].iter().find_map(|field| candidate.get(*field));
    plain(named)
}

fn number(value: Option<&Value>) -> String {
    match value.and_then(Value::as_f64) {
        Some(number) => format!("{number:.3}"),
        None => plain(value),
    }
}

/// How many agents were not considered, by reason.
fn excluded(counts: &Value) -> Option<String> {
    let counts = counts.as_object().filter(|counts| !counts.is_empty())?;
    let parts: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{} {}", plain(Some(count)), table::clean(reason))).collect();
    Some(format!("Not considered: {}.", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_shown_side_by_side() {
        let decision = json!({"id": "task_1", "attributes": {
            "agent_id": "agent_1",
            "weights": {"load": 0.5},
            "candidates": [
                {"agent_id": "agent_1", "name": "a", "score": 0.75, "parts": {"load": 1.0}},
                {"agent_id": "agent_2", "score": 0.5, "parts": {"load": 0.25, "success": 1}},
            ],
            "excluded": {"busy": 2, "down": 1},
        }});
        let shown = render(&decision);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0..2], ["id        task_1", "agent_id  agent_1"]);
        assert_eq!(lines[3], "RANK  AGENT    SCORE  LOAD ×0.5  SUCCESS");
        assert_eq!(lines[4], "   1  a        0.750      1.000        -");
        assert_eq!(lines[5], "   2  agent_2  0.500      0.250    1.000");
        assert_eq!(lines[7], "Not considered: 2 busy, 1 down.");
    }

    #[test]
    fn nobody_is_an_outcome_too() {
        let shown = render(&json!({"id": "task_1", "attributes": {"candidates": [], "excluded": {"handled": 4}}}));
        assert!(shown.contains("No agent could be chosen.\n\nNot considered: 4 handled."), "{shown}");
    }
}
