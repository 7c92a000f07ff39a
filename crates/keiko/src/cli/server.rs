//! The address of a server: parsed once, and refused where a credential could be overheard.
//!
//! Owns the rule that credentials travel over https or stay on this machine. Never connects.

use super::error::hinted;
use reqwest::Url;
use std::net::IpAddr;

/// Where a server is when nobody says.
pub const DEFAULT: &str = "http://127.0.0.1:8080";

/// The base address of a server, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    base: String,
    is_loopback: bool,
    is_tls: bool,
}

impl Server {
    /// Parses an address. Plain http to another machine needs `insecure_http`.
    pub fn parse(text: &str, insecure_http: bool) -> anyhow::Result<Self> {
        let url = Url::parse(text.trim()).ok().filter(is_base).ok_or_else(|| no_address(text))?;
        let is_loopback = url.host_str().is_some_and(names_loopback);
        let is_tls = url.scheme() == "https";
        if !is_tls && !is_loopback && !insecure_http {
            return Err(hinted(
                format!("Refused to send a credential to {url} over plain http: anybody on the way could read it."),
                "use https, a tunnel to 127.0.0.1, or --insecure-http where the whole network is trusted",
            ));
        }
        let base = url.as_str().trim_end_matches('/').to_owned();
        Ok(Server { base, is_loopback, is_tls })
    }

    /// The address as people write it; also the name under which a login is stored.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        self.is_loopback
    }

    /// Whether it is spoken to by https.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The address of a path below the interface's base.
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.base)
    }
}

/// Whether a URL can be a base: http or https, and nothing that a base address must not have.
fn is_base(url: &Url) -> bool {
    let is_http = matches!(url.scheme(), "http" | "https");
    let has_user = !url.username().is_empty() || url.password().is_some();
    is_http && !has_user && url.query().is_none() && url.fragment().is_none()
}

fn names_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    }
}

fn no_address(text: &str) -> anyhow::Error {
    // The text is not repeated: it may hold a password before an '@'.
    let what = if text.contains('@') { "The server's address holds a user name." } else { "This is no server address." };
    hinted(what, "write it as http://127.0.0.1:8080 or https://keiko.example.com, in --server or KEIKO_SERVER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_loses_its_last_slash() {
        let server = Server::parse("http://localhost:8080/", false).unwrap();
        assert_eq!(server.url("agents"), "http://localhost:8080/api/v1/agents");
        let below = Server::parse("https://example.com/keiko/", false).unwrap();
        assert_eq!(below.url("agents"), "https://example.com/keiko/api/v1/agents");
    }

    #[test]
    fn plain_http_leaves_the_machine_only_when_asked() {
        for here in ["http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:80", "http://localhost"] {
            assert!(Server::parse(here, false).is_ok_and(|s| s.is_loopback()), "{here}");
        }
        for away in ["http://10.0.0.1:8080", "http://localhost.example.com", "http://127.0.0.1.example.com", "http://0.0.0.0"] {
            assert!(Server::parse(away, false).is_err(), "{away}");
            assert!(Server::parse(away, true).is_ok(), "{away}");
        }
        assert!(Server::parse("https://example.com", false).is_ok_and(|s| s.is_tls() && !s.is_loopback()));
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_a_password() {
        for bad in ["", "localhost:8080", "127.0.0.1:8080", "ftp://a", "http://a?b", "http://127.0.0.1/#c"] {
            assert!(Server::parse(bad, true).is_err(), "{bad}");
        }
        let error = Server::parse("https://me:hunter2@example.com", false).unwrap_err().to_string();
        assert!(error.contains("user name") && !error.contains("hunter2"), "{error}");
    }
}
