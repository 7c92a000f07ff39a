//! `keiko events replay`: one entity's story, step by step: each event, and what it changed.

use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::print;
use crate::cli::table::{compact, pretty, short_time};
use serde_json::{Map, Value, json};

/// Where the entities of a prefix are found.
const PLACES: [(&str, &str); 8] = [
    ("agent", "agents"),
    ("task", "tasks"),
    ("user", "users"),
    ("role", "roles"),
    ("key", "api-keys"),
    ("tnt", "tenants"),
    ("mcp", "mcp-servers"),
    ("tool", "tools"),
];
/// Events that one request asks for.
const PAGE: u32 = 500;

/// Shows every event of an entity with the attributes that it changed.
pub async fn run(id: &str, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let prefix = id.split('_').next().unwrap_or_default();
    let Some((_, place)) = PLACES.iter().find(|(known, _)| *known == prefix) else {
        let known: Vec<&str> = PLACES.iter().map(|(prefix, _)| *prefix).collect();
        return Err(hinted(
            format!("'{id}' is no id of something that can be shown."),
            format!("ids begin with one of: {}", known.join(", ")),
        ));
    };
    let (mut steps, mut before, mut after) = (vec![], Map::new(), 0);
    loop {
        let call = Call::get("events").query("stream", Some(id)).query("after", Some(after)).query("limit", Some(PAGE));
        let answer = client.send(call).await?;
        let Some(last) = answer.items().last() else { break };
        after = last["position"].as_u64().unwrap_or(after);
        for event in answer.items().to_vec() {
            let now = state(client, place, id, &event["position"]).await?;
            let changed = changes(&before, &now);
            if output == Output::Table {
                show(&event, &changed)?;
            }
            steps.push(json!({ "event": event, "changed": changed }));
            before = now;
        }
    }
    match output {
        _ if steps.is_empty() => {
            Err(hinted(format!("There are no events of '{id}'."), "check the id, and the tenant you are logged in to"))
        }
        Output::Json => print::line(&pretty(&Value::from(steps))),
        Output::Table => Ok(()),
    }
}

/// The entity's attributes right after an event; none when it was gone.
async fn state(client: &mut Client, place: &str, id: &str, position: &Value) -> anyhow::Result<Map<String, Value>> {
    match client.send(Call::get(path(&[place, id])).query("at", Some(position))).await {
        Ok(answer) => Ok(answer.attributes().as_object().cloned().unwrap_or_default()),
        Err(error) if format!("{error:#}").contains("_NOT_FOUND") => Ok(Map::new()),
        Err(error) => Err(error),
    }
}

/// Every attribute that is another one now; null for one that is gone.
fn changes(before: &Map<String, Value>, now: &Map<String, Value>) -> Map<String, Value> {
    let is_noise = |name: &str| matches!(name, "version" | "updated_at");
    let new = now.iter().filter(|(name, value)| {
        !is_noise(name) && before.get(*name) != Some(value) && (!value.is_null() || before.contains_key(*name))
    });
    let gone = before.keys().filter(|name| !is_noise(name) && !now.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    new.map(|(name, value)| (name.clone(), value.clone())).chain(gone).collect()
}

fn show(event: &Value, changed: &Map<String, Value>) -> anyhow::Result<()> {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    print::line(&format!(
        "{:>6}  {}  {}  by {}",
        event["position"],
        short_time(&text("timestamp")),
        text("type"),
        text("source")
    ))?;
    for (name, value) in changed {
        print::line(&crate::cli::table::clean(&format!("        {name}: {}", compact(value))))?;
    }
    Ok(())
}
