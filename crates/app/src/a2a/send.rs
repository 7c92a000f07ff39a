//! What a message asks for: a task for an agent of the fleet, or more about a task that is there.

use super::card::ANY;
use super::{Door, context_of, over};
use crate::app::App;
use crate::{Answer, Caller, DiscoveryQuery, NewTask};
use domain::agent::{Agent, Capability};
use domain::task::{Message, Task};
use engine::Handled;
use kernel::id::ConversationTag;
use kernel::text::words;
use kernel::{Decider, Json, Kind, Problem, Rejection, limits, text};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// The key of a message's metadata that names a skill of the card.
pub const SKILL: &str = "skillId";
/// Agents that are looked at when the words of a message choose a skill.
const FOUND_MAX: usize = 5;

/// A message to a door.
#[derive(Clone, Debug)]
pub struct SendOrder {
    /// The message.
    pub message: Message,
    /// What it belongs to, if that is said.
    pub context: Option<String>,
    /// The task that it is about, if it is about one.
    pub task: Option<String>,
    /// The skill that it asks for, if it says one.
    pub skill: Option<String>,
}

impl App {
    /// Takes a message. The same message twice is the same task.
    pub async fn a2a_send(&self, caller: &Caller, door: &Door, order: SendOrder) -> Answer<Handled<Task>> {
        match &order.task {
            Some(id) => {
                let task = self.a2a_task(caller, door, id).await?;
                self.go_on(caller, task, order).await
            }
            None => self.begin(caller, door, order).await,
        }
    }

    /// More about a task that is there.
    async fn go_on(&self, caller: &Caller, task: Handled<Task>, order: SendOrder) -> Answer<Handled<Task>> {
        if order.context.as_ref().is_some_and(|context| context != context_of(&task)) {
            let message = "is not the contextId of the task".to_owned();
            return Err(Rejection::invalid(&[Problem { pointer: "/message/contextId".into(), message }]));
        }
        if Task::is_terminal(&task.state) {
            return Err(over(&task.state));
        }
        let id = task.stream.parse().map_err(|_| domain::task::not_found(&task.stream))?;
        Ok(self.say(caller, id, order.message).await?.entity)
    }

    /// A new task.
    async fn begin(&self, caller: &Caller, door: &Door, order: SendOrder) -> Answer<Handled<Task>> {
        let parts = order.message.parts.value();
        let said = texts(&parts);
        let (capability, schema) = self.skill(caller, door, order.skill.as_deref(), &said)?;
        let fits = |input: &Value| schema.as_ref().is_none_or(|schema| self.0.schemas.problems(schema, input, "").is_empty());
        let description = description(&said, &capability);
        let (input, context) = input(&parts, &said, &description, fits);
        let json = |value: &Value| Json::of(value).map_err(|e| crate::app::internal(e.to_string()));
        let caller = Caller { idempotency: Some(self.once(door, &order)), if_match: None, ..caller.clone() };
        let conversation = order.context.unwrap_or_else(|| self.env().id::<ConversationTag>().to_string());
        let new = NewTask {
            input: json(&input)?,
            context: json(&context)?,
            description,
            capability,
            priority: None,
            delay_ms: None,
            deadline: None,
            max_attempts: None,
            queue: None,
            collision: None,
            agent: match door {
                Door::Fleet => None,
                Door::Agent(agent) => Some(agent.stream.clone()),
            },
            conversation: Some(conversation),
            message: Some(order.message),
        };
        Ok(self.submit(&caller, new).await?.entity)
    }

    /// What makes a message that is sent again the same: its id, its door and what it says.
    fn once(&self, door: &Door, order: &SendOrder) -> (String, [u8; 32]) {
        let said =
            format!("{:?} {:?} {} {}", order.context, order.skill, order.message.parts.text(), order.message.metadata.text());
        (format!("a2a:{}:{}", door.name(), order.message.id), Sha256::digest(said).into())
    }

    /// The capability that a message asks for, with the schema of its input.
    fn skill(&self, caller: &Caller, door: &Door, named: Option<&str>, said: &str) -> Answer<(String, Option<Json>)> {
        let wanted: BTreeSet<String> = words(said).into_iter().collect();
        match (door, named.filter(|name| *name != ANY)) {
            (Door::Agent(agent), Some(name)) => {
                let found =
                    agent.state.capability(name).ok_or_else(|| no_skill(&format!("has no skill '{name}'"), &agent.state))?;
                Ok((found.name.clone(), found.input_schema.clone()))
            }
            (Door::Agent(agent), None) => {
                let found = best(&agent.state, &wanted).ok_or_else(|| no_skill("declares no skill", &agent.state))?;
                Ok((found.name.clone(), found.input_schema.clone()))
            }
            // Which schema counts is known when an agent is chosen.
            (Door::Fleet, Some(name)) => Ok((name.to_owned(), None)),
            (Door::Fleet, None) => {
                let query = DiscoveryQuery { q: Some(said.to_owned()), limit: FOUND_MAX, ..DiscoveryQuery::default() };
                let (found, _) = self.discover(caller, &query)?;
                let found = found.iter().find_map(|found| best(&found.agent.state, &wanted));
                found.map(|skill| (skill.name.clone(), skill.input_schema.clone())).ok_or_else(|| {
                    let message = "No agent of the fleet answers to the words of this message.";
                    let hint = format!("Name a skill of the extended card as \"{SKILL}\" in the message's metadata.");
                    Rejection::new(Kind::Refused, "CAPABILITY_UNKNOWN", message, hint)
                })
            }
        }
    }
}

fn no_skill(what: &str, agent: &Agent) -> Rejection {
    let profile = &agent.profile;
    let has: Vec<&str> = profile.capabilities.iter().map(|c| c.name.as_str()).collect();
    let message = format!("The agent '{}' {what}.", profile.name);
    Rejection::new(Kind::Refused, "CAPABILITY_UNKNOWN", message, "See the skills of its card.").with("near", has)
}

/// The capability that most of the words speak of; the first one when none does.
fn best<'a>(agent: &'a Agent, wanted: &BTreeSet<String>) -> Option<&'a Capability> {
    let hits = |capability: &Capability| {
        let all =
            [vec![capability.name.clone(), capability.description.clone()], capability.tags.clone(), capability.domains.clone()];
        words(&all.concat().join(" ")).iter().filter(|word| wanted.contains(*word)).count()
    };
    // The first of equals: `max_by_key` takes the last.
    agent.profile.capabilities.iter().rev().max_by_key(|capability| hits(capability))
}

/// What a message says in words.
fn texts(parts: &Value) -> String {
    let texts = parts.as_array().into_iter().flatten().filter_map(|part| part.get("text")?.as_str());
    texts.collect::<Vec<_>>().join("\n")
}

/// What is to be done, for people and agents; the whole message goes with the task.
fn description(said: &str, capability: &str) -> String {
    match said.trim() {
        "" => format!("A message for '{capability}' without words."),
        said => said.chars().take(limits::DESCRIPTION_CHARS_MAX).collect(),
    }
}

/// What the task works on: the data of the message. Without any, nothing, or its words where the agent wants an input. What
/// neither input nor description holds stands in the context by its hash: other files are other work.
fn input(parts: &Value, said: &str, description: &str, fits: impl Fn(&Value) -> bool) -> (Value, Value) {
    let all = parts.as_array().map(Vec::as_slice).unwrap_or_default();
    let data: Vec<&Value> = all.iter().filter_map(|part| part.get("data")).collect();
    let input = match data[..] {
        [one] if one.is_object() => one.clone(),
        [] if !fits(&json!({})) && fits(&json!({ "text": said })) => json!({ "text": said }),
        [] => json!({}),
        _ => json!({ "data": data }),
    };
    let is_more = said.trim() != description || all.iter().any(|part| part.get("url").or(part.get("raw")).is_some());
    let mut context = Map::new();
    if is_more && let Ok(canonical) = kernel::json::canonical(parts) {
        context.insert("message_sha256".into(), json!(text::hex(&Sha256::digest(canonical))));
    }
    (input, Value::Object(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_message_then_its_data_is_the_input_and_its_words_the_description() {
        let parts = json!([{"text": "Review"}, {"data": {"path": "a.rs"}}, {"text": "this"}]);
        let said = texts(&parts);
        assert_eq!(said, "Review\nthis");
        assert_eq!(input(&parts, &said, "Review\nthis", |_| true), (json!({"path": "a.rs"}), json!({})));
        let two = json!([{"data": 1}, {"data": {"a": 2}}]);
        assert_eq!(input(&two, "", "", |_| true).0, json!({"data": [1, {"a": 2}]}));
        let only_text = |input: &Value| input.get("text").is_some();
        assert_eq!(input(&json!([{"text": "hi"}]), "hi", "hi", only_text).0, json!({"text": "hi"}));
        assert_eq!(input(&json!([{"text": "hi"}]), "hi", "hi", |_| true).0, json!({}));
    }

    #[test]
    fn given_other_files_then_it_is_other_work() {
        let context = |url: &str| input(&json!([{"url": url}]), "", "", |_| true).1["message_sha256"].clone();
        assert!(context("https://a.example").is_string());
        assert_ne!(context("https://a.example"), context("https://b.example"));
    }
}
