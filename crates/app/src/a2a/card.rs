//! Agent cards: what is behind a door, signed, so that whoever has the card knows that it is whole.
//!
//! Nothing in a card is empty: how empty fields are written before they are signed is understood differently.

use super::{AVAILABILITY, Door, VERSION};
use crate::app::{App, internal};
use crate::{Answer, Caller};
use domain::agent::{Agent, Capability};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Skills of one card.
const SKILLS_MAX: usize = 500;
/// The skill of the fleet when nobody in particular is asked.
pub(super) const ANY: &str = "any";

impl App {
    /// What everybody may know of this server.
    pub fn a2a_public_card(&self) -> Answer<Value> {
        let skill = json!({
            "id": ANY, "name": "Work of the fleet", "tags": ["fleet"],
            "description": "Gives a message to an agent of the fleet that fits. Sign in and ask for the extended card to see what they can do.",
        });
        self.card("Keiko", "A fleet of agents behind one door.", env!("CARGO_PKG_VERSION"), "/a2a/fleet", vec![skill], None)
    }

    /// What somebody who has signed in may know of what is behind a door.
    pub async fn a2a_card(&self, caller: &Caller, door: &Door) -> Answer<Value> {
        let availability = self.a2a_availability(caller, door).await?;
        match door {
            Door::Fleet => {
                let description = format!("The fleet of the tenant '{}' behind one door.", caller.actor.tenant_slug);
                self.card("Keiko", &description, env!("CARGO_PKG_VERSION"), "/a2a/fleet", self.fleet_skills(caller)?, None)
            }
            Door::Agent(agent) => {
                let profile = &agent.state.profile;
                let path = format!("/a2a/{}", agent.stream);
                let description = said_or(&profile.description, &profile.name);
                let version = format!("{}", agent.version);
                self.card(&profile.name, description, &version, &path, skills(&agent.state), availability)
            }
        }
    }

    fn fleet_skills(&self, caller: &Caller) -> Answer<Vec<Value>> {
        let fleet = self.fleet(caller)?;
        let fleet = fleet.read();
        let mut by_name: BTreeMap<&str, &Capability> = BTreeMap::new();
        for (_, agent) in fleet.all() {
            for capability in &agent.state.profile.capabilities {
                by_name.entry(&capability.name).or_insert(capability);
            }
        }
        let any = json!({
            "id": ANY, "name": "Work of the fleet", "description": "Gives a message to an agent that fits its words.", "tags": ["fleet"],
        });
        Ok(std::iter::once(any).chain(by_name.values().map(|c| skill(c))).take(SKILLS_MAX).collect())
    }

    fn card(
        &self,
        name: &str,
        description: &str,
        version: &str,
        path: &str,
        skills: Vec<Value>,
        availability: Option<Value>,
    ) -> Answer<Value> {
        let issuer = self.issuer();
        let url = format!("{issuer}{path}");
        let interface = |binding: &str| json!({ "url": url, "protocolBinding": binding, "protocolVersion": VERSION });
        let mut extension = json!({
            "uri": AVAILABILITY,
            "description": "Whether the agent can take work now: status, running, waiting, maxConcurrency, expectedWaitMs.",
        });
        if let Some(availability) = availability {
            extension["params"] = availability;
        }
        let mut card = json!({
            "name": name,
            "description": description,
            "version": version,
            "supportedInterfaces": [interface("JSONRPC"), interface("HTTP+JSON")],
            "provider": { "organization": "Keiko", "url": issuer },
            "documentationUrl": format!("{issuer}/docs"),
            "capabilities": {
                "streaming": true, "pushNotifications": true, "extendedAgentCard": true, "extensions": [extension],
            },
            "defaultInputModes": ["text/plain", "application/json", "application/octet-stream"],
            "defaultOutputModes": ["text/plain", "application/json"],
            "skills": skills,
        });
        secure(&mut card, issuer);
        let signature = self.signed(&card, issuer)?;
        card["signatures"] = json!([signature]);
        Ok(card)
    }

    /// The signature over the canonical form (RFC 8785) of a card; the public keys lie where its header says.
    fn signed(&self, card: &Value, issuer: &str) -> Answer<Value> {
        let canonical = kernel::json::canonical(card).map_err(internal)?;
        let header = json!({ "typ": "JOSE", "jku": format!("{issuer}/.well-known/jwks.json") });
        let token = self.sign_bytes(header, &canonical)?;
        match token.split('.').collect::<Vec<_>>()[..] {
            [protected, _, signature] => Ok(json!({ "protected": protected, "signature": signature })),
            _ => Err(internal("a signed card has three parts".into())),
        }
    }
}

/// How a client proves who it is.
fn secure(card: &mut Value, issuer: &str) {
    let scopes = json!({ "tasks.create": "Give work", "tasks.read": "See own work", "tasks.update": "Answer and call off" });
    let names: Vec<&String> = scopes.as_object().into_iter().flat_map(Map::keys).collect();
    let needs = |scheme: &str| json!({ "schemes": { scheme: { "list": names } } });
    card["securityRequirements"] = json!([needs("apiKey"), needs("bearer"), needs("oauth2")]);
    let flow = json!({ "tokenUrl": format!("{issuer}/oauth/token"), "scopes": scopes });
    card["securitySchemes"] = json!({
        "apiKey": { "apiKeySecurityScheme": { "location": "header", "name": "X-API-Key" } },
        "bearer": { "httpAuthSecurityScheme": { "scheme": "Bearer", "bearerFormat": "JWT" } },
        "oauth2": { "oauth2SecurityScheme": {
            "flows": { "clientCredentials": flow },
            "oauth2MetadataUrl": format!("{issuer}/.well-known/oauth-authorization-server"),
        } },
    });
}

fn skills(agent: &Agent) -> Vec<Value> {
    agent.profile.capabilities.iter().map(skill).collect()
}

fn skill(capability: &Capability) -> Value {
    let mut tags: Vec<&String> = capability.tags.iter().chain(&capability.domains).collect();
    if tags.is_empty() {
        tags.push(&capability.name);
    }
    json!({
        "id": capability.name, "name": capability.name, "tags": tags,
        "description": said_or(&capability.description, &capability.name),
    })
}

fn said_or<'a>(said: &'a str, otherwise: &'a str) -> &'a str {
    if said.trim().is_empty() { otherwise } else { said }
}
