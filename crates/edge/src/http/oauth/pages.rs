//! The few pages of the authorization server: written here, without a script, under a policy that lets nothing else in.

use super::form::Fields;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const STYLE: &str = include_str!("pages.css");

/// What allows this style and no other.
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| STANDARD.encode(Sha256::digest(STYLE.as_bytes())));

/// Text that may stand in HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Direction marks and the like could make a name look like another one.
            c if c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {}
            c => out.push(c),
        }
    }
    out
}

/// A page with at most one form.
pub(super) struct Page {
    title: String,
    above: String,
    form: String,
    buttons: String,
    below: String,
    /// Where the form may lead beside this server.
    leads_to: String,
}

impl Page {
    pub fn new(title: &str, leads_to: &str) -> Self {
        let (above, form, buttons, below) = Default::default();
        Page { title: title.into(), above, form, buttons, below, leads_to: leads_to.into() }
    }

    /// A paragraph.
    pub fn text(mut self, text: &str) -> Self {
        self.above += &format!("<p>{}</p>", escaped(text));
        self
    }

    /// A code that people compare.
    pub fn code(mut self, code: &str) -> Self {
        self.above += &format!("<p class=\"code\">{}</p>", escaped(code));
        self
    }

    /// A paragraph that must not be overlooked.
    pub fn warning(mut self, text: &str) -> Self {
        self.above += &format!("<p class=\"warning\" role=\"alert\">{}</p>", escaped(text));
        self
    }

    /// A list: what each is, with its technical name.
    pub fn list(mut self, items: &[(String, String)]) -> Self {
        let item = |(text, name): &(String, String)| format!("<li>{} <code>{}</code></li>", escaped(text), escaped(name));
        self.above += &format!("<ul>{}</ul>", items.iter().map(item).collect::<String>());
        self
    }

    /// Something that the form carries.
    pub fn hidden(mut self, name: &str, value: &str) -> Self {
        self.form += &format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escaped(name), escaped(value));
        self
    }

    /// What the form carries on from the request before.
    pub fn kept(mut self, fields: &Fields) -> Self {
        for name in ["client_id", "id_token_hint", "post_logout_redirect_uri", "state"] {
            if let Some(value) = fields.get(name) {
                self = self.hidden(name, &value);
            }
        }
        self
    }

    /// A field: name, what it is for, its kind, what a browser may fill in, and what stands in it.
    pub fn field(mut self, name: &str, label: &str, kind: &str, fills: &str, value: &str) -> Self {
        // The person goes on at the first one that is empty.
        let focus = if value.is_empty() && !self.form.contains(" autofocus") { " autofocus" } else { "" };
        self.form += &format!(
            "<label>{}<input name=\"{name}\" type=\"{kind}\" autocomplete=\"{fills}\" autocapitalize=\"none\" spellcheck=\"false\" required{focus} value=\"{}\"></label>",
            escaped(label),
            escaped(value)
        );
        self
    }

    /// What sends the form.
    pub fn button(mut self, name: &str, value: &str, label: &str) -> Self {
        let class = if value == "deny" { " class=\"quiet\"" } else { "" };
        self.buttons += &format!("<button{class} name=\"{name}\" value=\"{value}\">{}</button>", escaped(label));
        self
    }

    /// Another page of this server, below the form.
    pub fn link(mut self, path: &str, label: &str) -> Self {
        self.below += &format!("<p class=\"below\"><a href=\"{}\">{}</a></p>", escaped(path), escaped(label));
        self
    }

    /// The page as an answer.
    pub fn answer(self, status: StatusCode) -> Response {
        let form = match self.buttons.is_empty() {
            true => String::new(),
            false => format!("<form method=\"post\">{}<div class=\"buttons\">{}</div></form>", self.form, self.buttons),
        };
        let title = escaped(&self.title);
        let html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title} · Keiko</title><style>{STYLE}</style></head><body><main><p class=\"brand\">Keiko</p><h1>{title}</h1>{}{form}{}</main></body></html>",
            self.above, self.below
        );
        let leads_to = if self.leads_to.is_empty() { String::new() } else { format!(" {}", self.leads_to) };
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; form-action 'self'{leads_to}; base-uri 'none'; frame-ancestors 'none'",
            *STYLE_HASH
        );
        let mut response = (status, Html(html)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'")),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        response
    }
}

/// A page that says one thing.
pub(super) fn message(status: StatusCode, title: &str, text: &str) -> Response {
    Page::new(title, "").text(text).answer(status)
}

/// Where a form may lead that is answered with a redirect: browsers hold that against the policy too.
pub(super) fn leads_to(redirect_uri: &str) -> String {
    let Some((scheme, rest)) = redirect_uri.split_once(':') else { return String::new() };
    match (scheme, rest.strip_prefix("//")) {
        ("http" | "https", Some(rest)) => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            // An IPv6 address has no place in a policy: its scheme must do.
            if authority.starts_with('[') { format!("{scheme}:") } else { format!("{scheme}://{authority}") }
        }
        _ => format!("{scheme}:"),
    }
}

/// What a scope means, for people.
pub(super) fn scope_text(scope: &str) -> String {
    match scope {
        "openid" => "Know who you are".into(),
        "profile" => "See your user name".into(),
        "email" => "See your e-mail address".into(),
        "offline_access" => "Stay connected when you sign out here".into(),
        "discovery.read" => "Find agents and tools".into(),
        "tools.call" => "Call tools in your name".into(),
        _ => {
            let (area, verb) = scope.rsplit_once('.').unwrap_or(("", scope));
            let verb = verb.replace(['-', '_'], " ");
            let mut chars = verb.chars();
            let verb = chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default();
            format!("{verb} {} in your name", area.replace(['-', '_', '.'], " "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_becomes_markup_or_turns_text_around() {
        assert_eq!(escaped("<b a=\"1\">&'\u{202e}x\n"), "&lt;b a=&quot;1&quot;&gt;&amp;&#39;x");
    }

    #[test]
    fn a_form_may_lead_to_the_client_and_nowhere_else() {
        assert_eq!(leads_to("https://client.example:8443/back?x"), "https://client.example:8443");
        assert_eq!(leads_to("http://127.0.0.1:5000/back"), "http://127.0.0.1:5000");
        assert_eq!(leads_to("http://[::1]:5000/back"), "http:");
        assert_eq!(leads_to("com.example.app:/back"), "com.example.app:");
    }

    #[test]
    fn scopes_have_words() {
        assert_eq!(scope_text("tasks.create"), "Create tasks in your name");
        assert_eq!(scope_text("mcp-servers.spawn"), "Spawn mcp servers in your name");
    }
}
