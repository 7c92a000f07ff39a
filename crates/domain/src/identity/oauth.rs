//! The pure rules of the authorization server: where answers may be sent, what a scope is, what is left of one.

use crate::policy::{Reach, is_permission, reach};

/// Scopes that are no permission: who somebody is, and staying signed in.
pub const IDENTITY_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];
/// What a client gets that asks for nothing: finding tools and agents, and calling them.
pub const DEFAULT_SCOPES: [&str; 2] = ["discovery.read", "tools.call"];
/// Schemes of apps that are no domain backwards.
const APP_SCHEMES: [&str; 9] = ["claude", "cursor", "goose", "raycast", "vscode", "vscode-insiders", "warp", "windsurf", "zed"];
/// Scopes of one request.
pub const SCOPES_MAX: usize = 64;
/// Deepest chain of those who act for one another.
pub const ACTORS_MAX: usize = 5;

/// The scopes of a request, each once; `None` when one of them is none. There are no wildcards: those live in roles.
pub fn scopes(text: &str) -> Option<Vec<String>> {
    let mut found: Vec<String> = vec![];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !is_scope(word) {
            return None;
        }
        if !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    (found.len() <= SCOPES_MAX).then_some(found)
}

/// Whether a word may be a scope.
pub fn is_scope(word: &str) -> bool {
    IDENTITY_SCOPES.contains(&word) || (is_permission(word) && !word.contains('*') && !word.ends_with(":own"))
}

/// The scopes of which somebody who holds `held` has at least a part, so that nothing is granted in name only.
pub fn within(held: &[String], scopes: &[String]) -> Vec<String> {
    let is_held = |scope: &&String| IDENTITY_SCOPES.contains(&scope.as_str()) || reach(held, scope) != Reach::None;
    scopes.iter().filter(is_held).cloned().collect()
}

/// The permissions of somebody who holds `held` with a token that is limited to `scopes`.
pub fn narrowed<'a>(held: &[String], scopes: impl Iterator<Item = &'a str>) -> Vec<String> {
    scopes
        .filter(|scope| !IDENTITY_SCOPES.contains(scope))
        .filter_map(|scope| match reach(held, scope) {
            Reach::All => Some(scope.to_owned()),
            Reach::Own => Some(format!("{scope}:own")),
            Reach::None => None,
        })
        .collect()
}

/// Whether a client may be registered with this redirect URI: `https`, a loopback address, or a scheme of its own. Without
/// a fragment, a user or a wildcard.
pub fn is_redirect_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else { return false };
    let is_plain =
        uri.len() <= 2_000 && uri.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'*' | b'\\' | b'"' | b'<' | b'>'));
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.'));
    if !is_plain || !is_scheme || has_dot_segment(rest) {
        return false;
    }
    match (scheme, rest.strip_prefix("//")) {
        ("https", Some(rest)) => is_host(authority(rest)),
        ("http", Some(rest)) => is_loopback(authority(rest)),
        ("http" | "https", _) => false,
        // A scheme of its own is a domain backwards (RFC 8252), so that two apps do not meet and no scheme of the system is
        // opened; some that are not are known.
        (scheme, _) => !rest.is_empty() && (scheme.contains('.') || APP_SCHEMES.contains(&scheme)),
    }
}

/// Whether a path climbs, also in the spellings that browsers understand.
fn has_dot_segment(rest: &str) -> bool {
    let path = rest.split('?').next().unwrap_or_default().to_ascii_lowercase().replace("%2e", ".");
    path.split('/').any(|part| part == "." || part == "..")
}

fn authority(rest: &str) -> &str {
    rest.split(['/', '?']).next().unwrap_or_default()
}

fn is_host(authority: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    !authority.is_empty() && !authority.starts_with(':') && authority.bytes().all(is_plain)
}

/// Whether an authority is a loopback address, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = split_port(authority);
    matches!(host, "127.0.0.1" | "[::1]" | "localhost") && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Whether an answer may be sent to `presented`: it is registered letter by letter, but for the port of a loopback
/// address, which an app on a person's machine chooses when it starts (RFC 8252).
pub fn is_registered(registered: &[String], presented: &str) -> bool {
    registered.iter().any(|known| known == presented || loopback_form(known).is_some_and(|k| Some(k) == loopback_form(presented)))
}

/// A loopback URI without its port: host, and everything behind.
fn loopback_form(uri: &str) -> Option<(&str, &str)> {
    let rest = uri.strip_prefix("http://")?;
    let authority = authority(rest);
    (is_redirect_uri(uri) && is_loopback(authority)).then(|| (split_port(authority).0, &rest[authority.len()..]))
}

/// Whether a text has the form of a PKCE challenge or verifier: 43 to 128 unreserved characters.
pub fn is_pkce(text: &str) -> bool {
    (43..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_scope_is_a_permission_without_wildcards_or_a_word_of_openid() {
        assert_eq!(scopes("openid tasks.read  tasks.read").unwrap(), ["openid", "tasks.read"]);
        assert_eq!(scopes("").unwrap(), Vec::<String>::new());
        for bad in ["*", "tasks.*", "tasks.read:own", "all", "tasks.read\ttools.call", "Tasks.read", "tasks.read,tools.call"] {
            assert_eq!(scopes(bad), None, "{bad}");
        }
        assert_eq!(scopes(&(0..65).map(|n| format!("a.b{n} ")).collect::<String>()), None);
    }

    #[test]
    fn a_token_allows_what_is_held_and_no_more() {
        let held = texts(&["tasks.*", "agents.read:own"]);
        let scopes = ["openid", "tasks.read", "agents.read", "users.read"];
        assert_eq!(narrowed(&held, scopes.into_iter()), ["tasks.read", "agents.read:own"]);
        assert_eq!(within(&held, &texts(&scopes)), ["openid", "tasks.read", "agents.read"]);
    }

    #[test]
    fn redirect_uris_are_https_loopback_or_an_apps_own() {
        for good in [
            "https://client.example/back",
            "https://client.example:8443/back?x=1",
            "http://127.0.0.1/back",
            "http://127.0.0.1:5000/back",
            "http://[::1]:5000/back",
            "http://localhost:3000",
            "com.example.app:/back",
            "cursor://anysphere.cursor-mcp/oauth/callback",
        ] {
            assert!(is_redirect_uri(good), "{good}");
        }
        for bad in [
            "http://client.example/back",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.1@evil.example/",
            "http://localhost:1@evil.example/",
            "http://localhost:99999/",
            "https://user@client.example/",
            "https://client.example/back#x",
            "https://*.example/back",
            "https://client.example/../evil",
            "https://client.example/%2e%2e/evil",
            "https:///back",
            "https:client.example",
            "javascript:alert(1)",
            "data:text/html,x",
            "ms-msdt:/x",
            "intent://x",
            "view-source:https://client.example/",
            "https://client.example;frame-ancestors/back",
            "HTTPS://client.example/",
            "//client.example/",
            "/back",
            "",
            "https://client.example/a b",
            "https://client.example\\@evil.example/",
        ] {
            assert!(!is_redirect_uri(bad), "{bad}");
        }
    }

    #[test]
    fn only_the_port_of_a_loopback_address_may_differ() {
        let registered = texts(&["https://client.example/back", "http://127.0.0.1:1234/back"]);
        for good in ["https://client.example/back", "http://127.0.0.1:9/back", "http://127.0.0.1/back"] {
            assert!(is_registered(&registered, good), "{good}");
        }
        for bad in [
            "https://client.example/back/",
            "https://client.example/BACK",
            "https://Client.example/back",
            "https://client.example:443/back",
            "https://client.example/back?x",
            "https://client.example/back#",
            "https://client.example/%62ack",
            "https://client.example/x/../back",
            "https://x@client.example/back",
            "http://client.example/back",
            "http://localhost:1234/back",
            "http://127.0.0.1:1234/back?x=1",
            "http://127.0.0.1:1234/other",
            "https://127.0.0.1:1234/back",
            "http://127.0.0.1:1234@evil.example/back",
            "http://127.0.0.1:x/back",
        ] {
            assert!(!is_registered(&registered, bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_token_never_exceeds_its_subject(
            held in prop::collection::vec("(tasks|agents)\\.(read|update|\\*)(:own)?", 0..5),
            scopes in prop::collection::vec("(tasks|agents|users)\\.(read|update|x)", 0..5),
            wanted in "(tasks|agents|users)\\.(read|update|x)",
        ) {
            let narrow = narrowed(&held, scopes.iter().map(String::as_str));
            prop_assert!(reach(&narrow, &wanted) <= reach(&held, &wanted));
            prop_assert!(reach(&narrow, &wanted) == Reach::None || scopes.contains(&wanted));
        }
    }
}
