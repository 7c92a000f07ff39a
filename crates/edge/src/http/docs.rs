//! The API document for people: one page, made on the server, without scripts and without outside requests.

use super::access::EXTENSION;
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark; --line: light-dark(#d8dee6, #30363d); --soft: light-dark(#f5f7fa, #161b22); --text: light-dark(#1b2430, #dbe2ea); --dim: light-dark(#5b6775, #8b97a5); --accent: light-dark(#0b62d6, #6cb0ff); }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: light-dark(#fff, #0d1117); display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
nav { border-right: 1px solid var(--line); padding: 1.5rem 1rem; height: 100vh; position: sticky; top: 0; overflow: auto; font-size: 13px; }
nav a { display: block; color: var(--text); text-decoration: none; padding: .1rem 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
nav a:hover { color: var(--accent); } nav h3 { margin: 1rem 0 .25rem; font-size: 11px; text-transform: uppercase; letter-spacing: .06em; color: var(--dim); }
main { padding: 2rem 2.5rem 6rem; max-width: 62rem; } h1 { margin: 0 0 .25rem; } h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; text-transform: capitalize; }
article { border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; } article > header { padding: .6rem 1rem; background: var(--soft); border-radius: 8px 8px 0 0; display: flex; gap: .75rem; flex-wrap: wrap; align-items: baseline; }
.method { font: 700 12px ui-monospace, monospace; color: var(--accent); min-width: 3.5rem; } code, pre { font: 13px/1.5 ui-monospace, monospace; } .perm { margin-left: auto; color: var(--dim); font-size: 12px; }
.body { padding: .6rem 1rem 1rem; } .body p { margin: .25rem 0 .5rem; } table { border-collapse: collapse; width: 100%; font-size: 13px; } td, th { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--dim); font-weight: 600; }
h4 { margin: .9rem 0 .25rem; font-size: 12px; color: var(--dim); } @media (max-width: 800px) { body { display: block; } nav { display: none; } main { padding: 1.25rem; } }
";

/// The whole page.
pub(super) fn page(document: &Value) -> String {
    let mut nav = String::new();
    let mut main = String::new();
    for tag in document["tags"].as_array().into_iter().flatten() {
        let name = tag["name"].as_str().unwrap_or_default();
        // Writing to a string cannot fail, here and below.
        let _ = write!(nav, "<h3>{}</h3>", escape(name));
        let _ = write!(main, "<h2>{}</h2><p>{}</p>", escape(name), escape(tag["description"].as_str().unwrap_or_default()));
        for (path, method, operation) in operations(document).filter(|(_, _, o)| o["tags"][0].as_str() == Some(name)) {
            let anchor = escape(operation["operationId"].as_str().unwrap_or_default());
            let short = path.trim_start_matches("/api/v1");
            let _ = write!(nav, "<a href=\"#{anchor}\">{} {}</a>", method.to_uppercase(), escape(short));
            main += &article(document, path, method, operation, &anchor);
        }
    }
    let info = &document["info"];
    let (title, about) =
        (escape(info["title"].as_str().unwrap_or_default()), escape(info["description"].as_str().unwrap_or_default()));
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><nav><strong>{title}</strong>{nav}</nav><main><h1>{title}</h1><p>{about}</p>\
         <p>For programs: <a href=\"/openapi.json\">/openapi.json</a></p>{main}</main></body></html>"
    )
}

fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, operations)| operations.as_object().into_iter().flatten().map(move |(method, o)| (path, method, o)))
}

fn article(document: &Value, path: &str, method: &str, operation: &Value, anchor: &str) -> String {
    let text = |key: &str| escape(operation[key].as_str().unwrap_or_default());
    let mut body = format!("<p>{}</p><p>{}</p>", text("summary"), text("description"));
    let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
    if !parameters.is_empty() {
        body += "<h4>Parameters</h4><table><tr><th>name</th><th>in</th><th>type</th><th></th></tr>";
        for p in parameters {
            let cell = |key: &str| escape(p[key].as_str().unwrap_or_default());
            let _ = write!(
                body,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>",
                cell("name"),
                cell("in"),
                kind(&p["schema"]),
                cell("description")
            );
        }
        body += "</table>";
    }
    let request = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !request.is_null() {
        let _ = write!(body, "<h4>Body</h4>{}", fields(document, request));
    }
    body += "<h4>Answers</h4><table>";
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let schema =
            response["content"].as_object().and_then(|c| c.values().next()).map(|c| kind(&c["schema"])).unwrap_or_default();
        let about = escape(response["description"].as_str().unwrap_or_default());
        let _ = write!(body, "<tr><td><code>{status}</code></td><td>{schema}</td><td>{about}</td></tr>");
    }
    body += "</table>";
    format!(
        "<article id=\"{anchor}\"><header><span class=\"method\">{}</span><code>{}</code><span class=\"perm\">{}</span></header><div class=\"body\">{body}</div></article>",
        method.to_uppercase(),
        escape(path),
        text(EXTENSION)
    )
}

fn fields(document: &Value, schema: &Value) -> String {
    let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()).unwrap_or_default();
    let schema = if name.is_empty() { schema } else { &document["components"]["schemas"][name] };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = "<table><tr><th>field</th><th>type</th><th></th></tr>".to_owned();
    for (field, shape) in schema["properties"].as_object().into_iter().flatten() {
        let star = if required.contains(&field.as_str()) { " <strong>required</strong>" } else { "" };
        let about = escape(shape["description"].as_str().unwrap_or_default());
        let _ = write!(out, "<tr><td><code>{}</code>{star}</td><td>{}</td><td>{about}</td></tr>", escape(field), kind(shape));
    }
    out + "</table>"
}

/// A short word for a schema.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return escape(name);
    }
    if let Some(values) = schema["enum"].as_array() {
        return escape(&values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" | "));
    }
    if let Some(one) = schema["oneOf"].as_array() {
        return one.iter().map(kind).filter(|k| k != "null").collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::String(word) if word == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(word) => escape(word),
        Value::Array(words) => {
            escape(&words.iter().filter_map(Value::as_str).filter(|w| *w != "null").collect::<Vec<_>>().join(" or "))
        }
        _ => "any".to_owned(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
