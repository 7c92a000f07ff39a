//! Names in bodies and paths: parsed here, so that inside there is nothing left to check.

use super::envelope::Failure;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use kernel::{Kind, Rejection, limits, text};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Declares a text type with its pattern in the document and its check in one place.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $pattern:expr, $max:expr, $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name(pub String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                let is_good: fn(&str) -> bool = $check;
                match is_good(&text) {
                    true => Ok($name(text)),
                    false => Err(serde::de::Error::custom(concat!("is not a valid ", stringify!($name)))),
                }
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let object = ObjectBuilder::new()
                    .schema_type(SchemaType::Type(Type::String))
                    .pattern(Some($pattern))
                    .min_length(Some(1))
                    .max_length(Some($max));
                object.into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )*};
}

const NAME: &str = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$";

texts! {
    /// A name that people type: no control characters, no blanks at its ends.
    Name: NAME, limits::NAME_CHARS_MAX, |t| text::is_name(t, limits::NAME_CHARS_MAX);
    /// A short name for addresses: a-z, 0-9 and `-`.
    Slug: "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", limits::SLUG_CHARS_MAX, |t| text::is_slug(t, limits::SLUG_CHARS_MAX);
    /// A permission: `area.thing.verb`, a prefix ending in `.*`, or `*`; `:own` limits it.
    Permission: r"^(\*|[a-z0-9_-]+(\.[a-z0-9_-]+)*\.\*(:own)?|[a-z0-9_-]+(\.[a-z0-9_-]+)+(:own)?)$", 128, domain::policy::is_permission;
    /// A text that says something.
    Text: r"\S", limits::DESCRIPTION_CHARS_MAX, |t| !t.trim().is_empty() && t.chars().count() <= limits::DESCRIPTION_CHARS_MAX;
}

/// The texts of a list.
pub(crate) fn strings(names: Vec<Name>) -> Vec<String> {
    names.into_iter().map(|name| name.0).collect()
}

/// The permissions of a list.
pub(crate) fn permissions(list: Vec<Permission>) -> Vec<String> {
    list.into_iter().map(|permission| permission.0).collect()
}

/// The id or name in a path. What cannot be either is not found.
pub(crate) struct Handle(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Handle {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(handle)) if is_handle(&handle) => Ok(Handle(handle)),
            _ => Err(no_handle()),
        }
    }
}

/// The two ids or names in a path.
pub(crate) struct Handles(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for Handles {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((one, other))) if is_handle(&one) && is_handle(&other) => Ok(Handles(one, other)),
            _ => Err(no_handle()),
        }
    }
}

fn is_handle(text: &str) -> bool {
    text::is_name(text, limits::NAME_CHARS_MAX)
}

fn no_handle() -> Failure {
    let (message, hint) = ("The path does not hold an id or a name.", "Use an id from an earlier answer.");
    Rejection::new(Kind::NotFound, "HANDLE_INVALID", message, hint).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_pattern_takes_the_check_takes_too() {
        let pattern = |schema: RefOr<Schema>| serde_json::to_value(schema).unwrap();
        for (schema, good, bad) in [
            (pattern(Name::schema()), vec!["a", "Käthe's agent", "a b"], vec!["", " a", "a ", "a\nb", "\u{85}"]),
            (pattern(Slug::schema()), vec!["a", "team-7"], vec!["-a", "A", ""]),
            (pattern(Permission::schema()), vec!["*", "a.*", "a.b", "a.b:own", "a.*:own"], vec!["a", ".*", "*:own", "a..b"]),
            (pattern(Text::schema()), vec!["a", " a "], vec!["", " \n"]),
        ] {
            let validator = jsonschema::options().offline().build(&schema).unwrap();
            for text in good {
                assert!(validator.is_valid(&text.into()), "{text:?} {schema}");
            }
            for text in bad {
                assert!(!validator.is_valid(&text.into()), "{text:?} {schema}");
            }
        }
        assert!(text::is_name("Käthe's agent", 128) && domain::policy::is_permission("a.*:own"));
    }
}
