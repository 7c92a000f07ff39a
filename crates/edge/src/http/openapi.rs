//! The API document: generated from the routes, completed with what all of them share, committed, compared.

use super::access::{Access, EXTENSION, table};
use super::envelope::ErrorEnvelope;
use super::routes;
use super::state::{EdgeState, openapi_text};
use axum::Router;
use domain::policy::{ROLES, Reach, builtin_role, reach};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

const ABOUT: &str = "The backbone of a fleet of agents: identity, registry, tasks, record. Every answer has the form {data, meta} or {error, meta}; \
errors carry a stable code, a message and a hint. Times are RFC 3339 in UTC. Unknown fields are errors.";

const TAGS: [(&str, &str); 11] = [
    ("identity", "Who is who: logins, tenants, users, services, roles and API keys."),
    ("agents", "Agents, what they can do, and whether they are there."),
    ("discovery", "Find agents by capability, tag, health and free text."),
    ("tasks", "Work: submit it, see what became of it and why."),
    ("work", "What agents do: claim tasks, and say how they go."),
    ("a2a", "Agents as A2A agents: cards, messages, tasks, over JSON-RPC and HTTP with JSON."),
    ("tools", "Tools of MCP servers: register servers, find, approve and call tools, over HTTP and MCP."),
    ("journal", "Observations: calls of tools, privileged actions."),
    ("audit", "Proofs that the record is whole: checkpoints, tiles, inclusion and consistency."),
    ("events", "The record: everything that happened, in order."),
    ("operations", "Health, metrics and this document."),
];

/// Router and completed document.
pub(super) fn split(routes: OpenApiRouter<Arc<EdgeState>>) -> (Router<Arc<EdgeState>>, Value) {
    let (router, document) = routes.split_for_parts();
    // The document is plain data; it always has a JSON form.
    let mut document = serde_json::to_value(&document).unwrap_or_default();
    complete(&mut document);
    (router, document)
}

/// The API document as it is committed.
pub fn document() -> Result<String, String> {
    openapi_text(&split(routes()).1)
}

fn complete(document: &mut Value) {
    document["info"] = json!({
        "title": "Keiko API", "version": super::envelope::API_VERSION, "description": ABOUT,
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    document["tags"] = TAGS.iter().map(|(name, description)| json!({ "name": name, "description": description })).collect();
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
        "api_key": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
    });
    let mut schemas = vec![];
    ErrorEnvelope::schemas(&mut schemas);
    schemas.push((ErrorEnvelope::name().into_owned(), ErrorEnvelope::schema()));
    for (name, schema) in schemas {
        document["components"]["schemas"][name] = serde_json::to_value(schema).unwrap_or_default();
    }
    // Each of these refuses unknown fields like everything else; the generator knows that of structs only.
    for choice in ["NewTransportBody", "NewSubjectBody", "ProbeBody", "NewAuthenticationBody"] {
        let kinds = document.pointer_mut(&format!("/components/schemas/{choice}/oneOf")).and_then(Value::as_array_mut);
        kinds.into_iter().flatten().for_each(|kind| kind["additionalProperties"] = json!(false));
    }
    for (_, operations) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in operations.as_object_mut().into_iter().flatten() {
            complete_operation(operation);
        }
    }
}

fn complete_operation(operation: &mut Value) {
    let is_open = operation[EXTENSION] == "open";
    if !is_open {
        operation["security"] = json!([{ "bearer": [] }, { "api_key": [] }]);
    }
    let mut content = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/ErrorEnvelope" } } });
    if operation["tags"] == json!(["a2a"]) {
        // What A2A itself says of an operation has its own form; who may come in is said as everywhere.
        content["application/a2a+json"] = json!({ "schema": { "type": "object" } });
    }
    let error = |description: &str| json!({ "description": description, "content": content });
    let responses = &mut operation["responses"];
    if !is_open {
        responses["401"] = error("Nobody known asks.");
        responses["403"] = error("The caller may not do this.");
    }
    if responses.get("4XX").is_none() {
        responses["4XX"] = error("The request is refused; the code says why.");
    }
    if responses.get("5XX").is_none() && responses.get("503").is_none() {
        responses["5XX"] = error("The server cannot answer now.");
    }
}

/// Every route with its permission and the roles that hold it, as Markdown.
pub fn permission_table() -> Result<String, String> {
    let (_, document) = split(routes());
    let names: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
    let mut out = format!("| route | permission | {} |\n|---|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for ((method, path), access) in table(&document)? {
        let (permission, cells) = match &access {
            Access::Open => ("open".to_owned(), names.iter().map(|_| "yes").collect::<Vec<_>>()),
            Access::Permission(permission) => (permission.clone(), names.iter().map(|role| cell(role, permission)).collect()),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| `{method} {path}` | `{permission}` | {} |", cells.join(" | "));
    }
    Ok(out)
}

fn cell(role: &str, permission: &str) -> &'static str {
    match reach(&builtin_role(role).unwrap_or_default(), permission) {
        Reach::All => "yes",
        Reach::Own => "own",
        Reach::None => "",
    }
}
