//! What a server says when it lets nobody in: `WWW-Authenticate` (RFC 6750, RFC 9728).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Scopes of a challenge that are looked at.
const SCOPES_MAX: usize = 50;

/// A `Bearer` challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// Where the server describes itself.
    pub resource_metadata: Option<String>,
    /// What is needed for what was asked.
    pub scopes: Vec<String>,
    /// `insufficient_scope`, `invalid_token` and the like.
    pub error: Option<String>,
}

impl Challenge {
    /// The first `Bearer` challenge of an answer.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let values = headers.get_all(WWW_AUTHENTICATE).into_iter().filter_map(|value| value.to_str().ok());
        values.filter_map(Challenge::parse).next()
    }

    fn parse(value: &str) -> Option<Challenge> {
        let mut challenge = None;
        let mut rest = value.trim_start();
        while !rest.is_empty() {
            let (name, after) = token(rest)?;
            let after_space = after.trim_start();
            if let Some(value) = after_space.strip_prefix('=') {
                let (value, after) = parameter(value.trim_start())?;
                if let Some(challenge) = &mut challenge {
                    take(challenge, name, value);
                }
                rest = after;
            } else {
                // The next scheme begins.
                if challenge.is_some() {
                    break;
                }
                challenge = name.eq_ignore_ascii_case("bearer").then(Challenge::default);
                rest = after;
            }
            rest = rest.trim_start_matches([' ', '\t', ',']);
        }
        challenge
    }

    /// Whether the token is good, and allows too little.
    pub fn wants_more(&self) -> bool {
        self.error.as_deref() == Some("insufficient_scope")
    }
}

fn take(challenge: &mut Challenge, name: &str, value: String) {
    match name.to_ascii_lowercase().as_str() {
        "resource_metadata" => challenge.resource_metadata = Some(value),
        "scope" => challenge.scopes = scopes(&value),
        "error" => challenge.error = Some(value),
        _ => {}
    }
}

/// Whether a text can be sent as a scope: 1 to 200 visible characters of ASCII, without `"` and `\`.
pub fn is_scope(text: &str) -> bool {
    let is_char = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    (1..=200).contains(&text.len()) && text.bytes().all(is_char)
}

/// The scopes of a list, those that can be sent on.
pub(super) fn scopes(list: &str) -> Vec<String> {
    let good = list.split_ascii_whitespace().filter(|scope| is_scope(scope));
    good.take(SCOPES_MAX).map(str::to_owned).collect()
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A token or a quoted string.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Option<Challenge> {
        Challenge::parse(value)
    }

    #[test]
    fn a_challenge_says_where_and_what_for() {
        let found = parsed(
            r#"Bearer error="insufficient_scope", scope="files:read files:write", resource_metadata="https://a.example/.well-known/x""#,
        );
        let found = found.unwrap();
        assert!(found.wants_more());
        assert_eq!(found.scopes, ["files:read", "files:write"]);
        assert_eq!(found.resource_metadata.as_deref(), Some("https://a.example/.well-known/x"));
    }

    #[test]
    fn challenges_are_read_in_every_spelling() {
        assert_eq!(parsed("Bearer"), Some(Challenge::default()));
        assert_eq!(parsed("bearer scope=a").unwrap().scopes, ["a"]);
        assert_eq!(parsed(r#"Basic realm="x", Bearer scope="b""#).unwrap().scopes, ["b"]);
        assert_eq!(parsed(r#"Bearer realm="a, Bearer scope=\"z\"", scope="c", DPoP algs="ES256""#).unwrap().scopes, ["c"]);
        assert_eq!(parsed(r#"Basic realm="x""#), None);
        for broken in [r#"Bearer scope="a"#, "=", r#"Bearer scope="a\"#, "\u{7f}"] {
            assert_eq!(parsed(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_cannot_be_sent_on_is_no_scope() {
        let many = "s ".repeat(90);
        assert_eq!(scopes(&many).len(), SCOPES_MAX);
        assert_eq!(scopes("good bad\\one \u{e4} a\"b"), ["good"]);
    }
}
