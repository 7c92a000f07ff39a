//! What a server lists: tools, prompts, resources, within bounds, each with a hash of all that it says of itself.

use super::mirror::{self, Mirrored};
use kernel::Json;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Entries of one list.
pub(crate) const ENTRIES_MAX: usize = 1_000;
/// Bytes of one tool's entry, and of a whole list: they are kept for ever.
const ENTRY_BYTES_MAX: usize = 128 * 1024;
pub(crate) const LISTING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Pages of a list.
pub(crate) const PAGES_MAX: usize = 200;
const TOOL_NAME_CHARS_MAX: usize = 128;
const URI_BYTES_MAX: usize = 4 * 1024;

/// A tool as its server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolListing {
    /// Its name at the server.
    pub name: String,
    /// For people and models.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: Json,
    /// JSON Schema of its structured result.
    pub output_schema: Option<Json>,
    /// What else it says of itself: title, annotations, icons, and whatever is not known here.
    pub more: Json,
    /// SHA-256 of the whole entry in RFC 8785 form, hexadecimal.
    pub hash: String,
    /// Arguments that are said in headers too.
    pub(crate) mirrored: Vec<Mirrored>,
}

/// A prompt, a resource or a template of resources, as its server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// A prompt's name, a resource's URI, a template.
    pub name: String,
    /// Everything that it says of itself.
    pub entry: Json,
}

/// Everything that a server offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// By name.
    pub tools: Vec<ToolListing>,
    /// In the server's order.
    pub prompts: Vec<Offer>,
    /// In the server's order.
    pub resources: Vec<Offer>,
    /// In the server's order.
    pub templates: Vec<Offer>,
}

/// Kinds of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// `tools/list`
    Tools,
    /// `prompts/list`
    Prompts,
    /// `resources/list` and `resources/templates/list`
    Resources,
}

/// A page of any list.
#[derive(Deserialize)]
pub(crate) struct Page {
    #[serde(flatten)]
    members: Map<String, Value>,
    #[serde(rename = "nextCursor")]
    pub next_cursor: Option<String>,
}

impl Page {
    /// The entries under the list's name.
    pub fn entries(&mut self, field: &str) -> Vec<Value> {
        match self.members.remove(field) {
            Some(Value::Array(entries)) => entries,
            _ => vec![],
        }
    }
}

/// The tools of a list. One whose headers cannot be sent is left out; any other flaw refuses the list.
pub(crate) fn tools(entries: Vec<Value>, over_http: bool) -> Result<Vec<ToolListing>, String> {
    let mut tools: Vec<ToolListing> = vec![];
    for entry in entries {
        let mirrored = if over_http { mirror::of_schema(&entry["inputSchema"]) } else { Ok(vec![]) };
        let tool = tool(entry)?;
        if tools.iter().any(|known| known.name == tool.name) {
            return Err(format!("it lists the tool '{}' twice", tool.name));
        }
        match mirrored {
            Ok(mirrored) => tools.push(ToolListing { mirrored, ..tool }),
            Err(problem) => tracing::warn!(tool = %tool.name, %problem, "a tool is left out: its headers cannot be sent"),
        }
    }
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tools)
}

/// The entries of another list. One without a usable name is left out: nobody could ask for it.
pub(crate) fn offers(entries: Vec<Value>, name: &str) -> Vec<Offer> {
    let mut found: Vec<Offer> = vec![];
    for entry in entries {
        let named = entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        // That is how Keiko tells one server's resources from another's.
        let is_usable =
            !named.starts_with("mcp+") && (1..=URI_BYTES_MAX).contains(&named.len()) && !named.contains(char::is_control);
        if let (true, Ok(entry)) = (is_usable && !found.iter().any(|known| known.name == named), Json::of(&entry)) {
            found.push(Offer { name: named, entry });
        }
    }
    found
}

/// One entry of a list of tools, with the hash of all of it.
fn tool(entry: Value) -> Result<ToolListing, String> {
    let canonical = serde_json_canonicalizer::to_vec(&entry).map_err(|e| format!("a tool's entry cannot be used: {e}"))?;
    if canonical.len() > ENTRY_BYTES_MAX {
        return Err(format!("it lists a tool whose entry has more than {ENTRY_BYTES_MAX} bytes"));
    }
    let Value::Object(mut entry) = entry else { return Err("it lists a tool that is no object".into()) };
    let mut text = |name: &str| entry.remove(name).as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, description) = (text("name"), text("description"));
    let is_name = |name: &str| {
        (1..=TOOL_NAME_CHARS_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
    };
    if !is_name(&name) {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(format!(
            "it lists a tool with the name '{shown}'; names have 1 to {TOOL_NAME_CHARS_MAX} of A-Z, a-z, 0-9, _ - . /"
        ));
    }
    let mut schema =
        |field: &str| entry.remove(field).filter(|v| !v.is_null()).map(|v| Json::of(&v)).transpose().map_err(|e| e.to_string());
    Ok(ToolListing {
        description,
        input_schema: schema("inputSchema")?.unwrap_or_default(),
        output_schema: schema("outputSchema")?,
        more: Json::of(&entry).map_err(|e| e.to_string())?,
        hash: kernel::text::hex(&Sha256::digest(&canonical)),
        mirrored: vec![],
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_covers_every_field_and_not_their_order() {
        let of = |text: &str| tool(serde_json::from_str(text).unwrap()).unwrap();
        let a = of(r#"{"name":"t","description":"d","annotations":{"readOnlyHint":true}}"#);
        assert_eq!(a.hash, of(r#"{"annotations":{"readOnlyHint":true},"description":"d","name":"t"}"#).hash);
        assert_ne!(a.hash, of(r#"{"name":"t","description":"d","annotations":{"readOnlyHint":false}}"#).hash);
        assert_eq!(a.more.text(), r#"{"annotations":{"readOnlyHint":true}}"#);
    }

    #[test]
    fn odd_names_are_refused() {
        for bad in [r#"{"name":""}"#, r#"{"name":"a b"}"#, r#"{"name":7}"#, r#"{"name":"\u0000"}"#, "{}", "7"] {
            assert!(tool(serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tool_whose_headers_cannot_be_sent_is_left_out_and_harms_no_other() {
        let with = |name: &str, header: &str| json!({ "name": name, "inputSchema": { "properties": { "a": { "type": "string", "x-mcp-header": header } } } });
        let listed = tools(vec![with("bad", "a b"), with("good", "Region")], true).unwrap();
        assert_eq!(listed.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!(tools(vec![with("bad", "a b")], false).unwrap().len(), 1, "other transports have no headers");
    }

    #[test]
    fn what_has_no_name_or_comes_twice_is_offered_once() {
        let entries = vec![
            json!({"uri": "a:1", "name": "x"}),
            json!({"uri": "a:1"}),
            json!({"uri": ""}),
            json!({"uri": "mcp+b:memo:x"}),
            json!({"name": "y"}),
            json!(7),
        ];
        let found = offers(entries, "uri");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "a:1");
    }
}
