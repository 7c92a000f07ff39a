//! Arguments of a tool that are said in headers too (`x-mcp-header`), so that others on the way need not read bodies.

use base64::Engine as _;
use serde_json::Value;

/// An argument that is said in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The part of the header's name behind `Mcp-Param-`.
    pub header: String,
    /// Where it stands in the arguments.
    path: Vec<String>,
    is_integer: bool,
}

/// Subschemas that are looked at.
const NODES_MAX: usize = 10_000;
/// Integers beyond are not the same for everybody.
const SAFE_INTEGER_MAX: i64 = (1 << 53) - 1;

/// What a tool's schema of arguments wants in headers; an error when it asks for what must not be.
pub fn of_schema(schema: &Value) -> Result<Vec<Mirrored>, String> {
    let mut found: Vec<Mirrored> = vec![];
    let mut left = NODES_MAX;
    properties(schema, &mut vec![], &mut found, &mut left)?;
    let mut everywhere = 0;
    count(schema, &mut everywhere, &mut left)?;
    if everywhere != found.len() {
        return Err("it marks a parameter with 'x-mcp-header' that is not reached by 'properties' alone".into());
    }
    for (i, one) in found.iter().enumerate() {
        if found[..i].iter().any(|other| other.header.eq_ignore_ascii_case(&one.header)) {
            return Err(format!("it uses the header '{}' twice", one.header));
        }
    }
    Ok(found)
}

/// The values to send, for the arguments that have one.
pub fn values(mirrored: &[Mirrored], arguments: &Value) -> Vec<(String, String)> {
    let value = |one: &Mirrored| one.path.iter().try_fold(arguments, |at, name| at.get(name)).and_then(text);
    mirrored.iter().filter_map(|one| Some((one.header.clone(), value(one)?))).collect()
}

/// A value as a header may carry it.
pub fn written(value: &str) -> String {
    let is_plain = value.bytes().all(|b| matches!(b, 0x20..=0x7e | b'\t'))
        && value.trim_matches([' ', '\t']) == value
        && !(value.starts_with("=?base64?") && value.ends_with("?="));
    if is_plain {
        return value.to_owned();
    }
    format!("=?base64?{}?=", base64::engine::general_purpose::STANDARD.encode(value))
}

impl Mirrored {
    /// Whether a header's value (`None`: it is not there) says the same as the arguments.
    pub fn agrees(&self, arguments: &Value, header: Option<&str>) -> bool {
        let value = self.path.iter().try_fold(arguments, |at, name| at.get(name)).and_then(text);
        match (value, header) {
            (None, None) => true,
            (Some(value), Some(header)) if self.is_integer => {
                let number = |text: &str| text.parse::<f64>().ok();
                number(&value).is_some() && number(&value) == number(header)
            }
            (Some(value), Some(header)) => value == header,
            _ => false,
        }
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn properties(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Mirrored>, left: &mut usize) -> Result<(), String> {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        *left = left.checked_sub(1).ok_or("its schema is too large")?;
        path.push(name.clone());
        if let Some(header) = property.get("x-mcp-header") {
            found.push(mirrored(header, property, path)?);
        }
        properties(property, path, found, left)?;
        path.pop();
    }
    Ok(())
}

fn mirrored(header: &Value, property: &Value, path: &[String]) -> Result<Mirrored, String> {
    let header = header.as_str().unwrap_or_default();
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if header.is_empty() || !header.bytes().all(is_token) {
        let shown: String = header.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(format!("'{shown}' is no name of a header"));
    }
    let kind = property.get("type").and_then(Value::as_str).unwrap_or_default();
    let is_safe = |bound: &str| property.get(bound).and_then(Value::as_i64).is_none_or(|n| n.abs() <= SAFE_INTEGER_MAX);
    if !matches!(kind, "string" | "integer" | "boolean") || !is_safe("minimum") || !is_safe("maximum") {
        return Err(format!("the header '{header}' is for a parameter that is no string, integer or boolean"));
    }
    Ok(Mirrored { header: header.to_owned(), path: path.to_vec(), is_integer: kind == "integer" })
}

/// How many schemas carry the mark, wherever they stand.
fn count(schema: &Value, found: &mut usize, left: &mut usize) -> Result<(), String> {
    *left = left.checked_sub(1).ok_or("its schema is too large")?;
    match schema {
        Value::Object(members) => {
            *found += usize::from(members.contains_key("x-mcp-header"));
            members.iter().try_for_each(|(name, inner)| match (name.as_str(), inner) {
                // Values are no schemas.
                ("const" | "enum" | "default" | "examples", _) => Ok(()),
                // Names of these are chosen freely.
                ("properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas", Value::Object(named)) => {
                    named.values().try_for_each(|schema| count(schema, found, left))
                }
                _ => count(inner, found, left),
            })
        }
        Value::Array(items) => items.iter().try_for_each(|item| count(item, found, left)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(properties: Value) -> Value {
        json!({ "type": "object", "properties": properties })
    }

    #[test]
    fn arguments_are_found_at_their_place() {
        let nested = schema(json!({
            "region": { "type": "string", "x-mcp-header": "Region" },
            "at": { "type": "object", "properties": { "n": { "type": "integer", "x-mcp-header": "N" } } },
            "dry": { "type": "boolean", "x-mcp-header": "Dry" },
        }));
        let found = of_schema(&nested).unwrap();
        let mut sent = values(&found, &json!({ "region": "eu", "at": { "n": 42 }, "dry": null }));
        sent.sort();
        assert_eq!(sent, [("N".into(), "42".into()), ("Region".into(), "eu".into())]);
    }

    #[test]
    fn what_must_not_be_mirrored_is_refused() {
        let text = |header: Value| json!({ "type": "string", "x-mcp-header": header });
        for bad in [
            schema(json!({ "a": text(json!("")) })),
            schema(json!({ "a": text(json!("a b")) })),
            schema(json!({ "a": text(json!("a\r\nb")) })),
            schema(json!({ "a": text(json!(7)) })),
            schema(json!({ "a": { "type": "number", "x-mcp-header": "A" } })),
            schema(json!({ "a": { "type": "array", "x-mcp-header": "A" } })),
            schema(json!({ "a": { "x-mcp-header": "A" } })),
            schema(json!({ "a": text(json!("A")), "b": text(json!("a")) })),
            schema(json!({ "a": { "type": "array", "items": text(json!("A")) } })),
            schema(json!({ "a": { "oneOf": [text(json!("A"))] } })),
            json!({ "$defs": { "a": text(json!("A")) } }),
        ] {
            assert!(of_schema(&bad).is_err(), "{bad}");
        }
        for fine in [json!({ "a": { "default": { "x-mcp-header": "A" } } }), json!({ "x-mcp-header": { "type": "string" } })] {
            assert_eq!(of_schema(&schema(fine)), Ok(vec![]));
        }
    }

    #[test]
    fn values_are_carried_in_headers_whatever_they_hold() {
        assert_eq!(written("us-west1"), "us-west1");
        assert_eq!(written(""), "");
        assert_eq!(written(" padded "), "=?base64?IHBhZGRlZCA=?=");
        assert_eq!(written("line1\nline2"), "=?base64?bGluZTEKbGluZTI=?=");
        assert_eq!(written("=?base64?literal?="), "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?=");
        assert_eq!(written("Gr\u{fc}\u{df}e"), "=?base64?R3LDvMOfZQ==?=");
    }

    #[test]
    fn headers_are_compared_with_the_arguments() {
        let found = of_schema(&schema(json!({ "n": { "type": "integer", "x-mcp-header": "N" } }))).unwrap();
        let agrees = |arguments: Value, header| found[0].agrees(&arguments, header);
        assert!(agrees(json!({ "n": 42 }), Some("42.0")) && agrees(json!({}), None) && agrees(json!({ "n": null }), None));
        assert!(!agrees(json!({ "n": 42 }), Some("43")) && !agrees(json!({ "n": 42 }), None) && !agrees(json!({}), Some("42")));
    }
}
