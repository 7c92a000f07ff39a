//! Clients that are a document at their own address (OAuth Client ID Metadata Document, draft 00, as MCP asks for it).

use super::clients::KnownClient;
use super::{Granted, OauthError};
use crate::app::App;
use domain::identity::client::{AuthMethod, GrantType, Profile};
use domain::identity::oauth::is_redirect_uri;
use kernel::{Timestamp, limits, text};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Largest document.
const BYTES_MAX: usize = 5 * 1024;
/// How long a document is kept when its owner says nothing, or more.
const KEPT_MS_MAX: u64 = 24 * 3_600_000;
const KEPT_MS: u64 = 3_600_000;
/// How long a document that is not good is left alone, so that nobody makes us ask again and again.
const BAD_KEPT_MS: u64 = 60_000;
/// Documents that are kept.
const DOCUMENTS_MAX: usize = 1_000;

/// Documents that were fetched, or why they are not good, with until when.
#[derive(Default)]
pub(crate) struct Documents(Mutex<BTreeMap<String, (Granted<KnownClient>, Timestamp)>>);

/// A document, as far as it is used; members that are not known are left alone.
#[derive(Deserialize)]
struct Metadata {
    client_id: String,
    client_name: String,
    redirect_uris: Vec<String>,
    #[serde(default)]
    post_logout_redirect_uris: Vec<String>,
    token_endpoint_auth_method: Option<String>,
    client_uri: Option<String>,
    client_secret: Option<serde_json::Value>,
}

fn refused(url: &str, why: &str) -> OauthError {
    OauthError::new("invalid_client", format!("The client's document at {url} {why}."))
}

impl App {
    /// The client that a document describes.
    pub(super) async fn client_document(&self, url: &str) -> Granted<KnownClient> {
        let allow_private = self.0.settings.fetch_private;
        check_address(url, allow_private)?;
        let now = self.env().now();
        let known = self.0.documents.0.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned();
        if let Some((known, until)) = known
            && now < until
        {
            return known;
        }
        // A flood of names must not become a flood of requests to others.
        let Ok(_place) = self.0.fetching.try_acquire() else {
            return Err(OauthError {
                retry_after_s: Some(1),
                ..OauthError::new("temporarily_unavailable", "Too many clients' documents are being fetched.")
            });
        };
        let fetched = gateway::fetch(url, allow_private, BYTES_MAX).await;
        let (found, kept_ms) = match fetched {
            Err(why) => (Err(refused(url, &why)), BAD_KEPT_MS),
            Ok(document) => {
                let asked = document.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(KEPT_MS_MAX));
                match understood(url, &document.body) {
                    Ok(client) => (Ok(client), asked.unwrap_or(KEPT_MS).min(KEPT_MS_MAX)),
                    Err(why) => (Err(refused(url, why)), BAD_KEPT_MS),
                }
            }
        };
        let mut documents = self.0.documents.0.lock().unwrap_or_else(PoisonError::into_inner);
        if documents.len() >= DOCUMENTS_MAX {
            documents.retain(|_, (_, until)| now < *until);
        }
        if documents.len() >= DOCUMENTS_MAX {
            documents.pop_first();
        }
        if kept_ms > 0 {
            documents.insert(url.to_owned(), (found.clone(), now.plus_ms(kept_ms)));
        }
        found
    }
}

/// A client's address: `https`, with a path, without a fragment, a user or anything that climbs.
fn check_address(url: &str, allow_private: bool) -> Granted<()> {
    let is_scheme = url.starts_with("https://") || (allow_private && url.starts_with("http://"));
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    let is_plain = url.len() <= 500 && url.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'@' | b'\\' | b'?'));
    let climbs = path.split('/').any(|part| matches!(part, "." | "..") || part.to_ascii_lowercase().contains("%2e"));
    match is_scheme && is_plain && !path.is_empty() && !climbs {
        true => Ok(()),
        false => {
            Err(OauthError::new("invalid_client", "A client's address is an https URL with a path, without a fragment or query."))
        }
    }
}

fn understood(url: &str, body: &[u8]) -> Result<KnownClient, &'static str> {
    let metadata: Metadata =
        serde_json::from_slice(body).map_err(|_| "is not complete: it needs client_id, client_name, redirect_uris")?;
    if metadata.client_id != url {
        return Err("names another client_id than its own address");
    }
    if metadata.client_secret.is_some() || metadata.token_endpoint_auth_method.is_some_and(|method| method != "none") {
        return Err("must be of a client without a secret");
    }
    if metadata.redirect_uris.is_empty()
        || metadata.redirect_uris.len() > 20
        || !metadata.redirect_uris.iter().all(|uri| is_redirect_uri(uri))
    {
        return Err("has no redirect_uris, too many, or some that are not allowed");
    }
    if !text::is_name(&metadata.client_name, limits::NAME_CHARS_MAX) {
        return Err("has no client_name that can be shown");
    }
    let host = url.split('/').nth(2).map(str::to_owned);
    let profile = Profile {
        name: metadata.client_name,
        redirect_uris: metadata.redirect_uris,
        post_logout_redirect_uris: metadata.post_logout_redirect_uris.into_iter().filter(|uri| is_redirect_uri(uri)).collect(),
        grant_types: vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
        auth_method: AuthMethod::None,
        scopes: vec![],
        subject: None,
        jwks: None,
        client_uri: metadata.client_uri.filter(|uri| uri.starts_with("https://")),
    };
    Ok(KnownClient { name: url.to_owned(), tenant: None, profile, secret_sha256: None, is_own: false, host })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const URL: &str = "https://app.example/client.json";

    #[test]
    fn a_document_must_name_its_own_address_letter_by_letter() {
        let document = |id: &str| json!({ "client_id": id, "client_name": "App", "redirect_uris": ["https://app.example/back"] });
        assert!(understood(URL, document(URL).to_string().as_bytes()).is_ok());
        for other in ["https://app.example/client.json/", "https://App.example/client.json", "https://app.example/other.json"] {
            assert!(understood(URL, document(other).to_string().as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn a_document_with_a_secret_or_without_a_place_for_answers_is_refused() {
        let bad = [
            json!({ "client_id": URL, "client_name": "App", "redirect_uris": [] }),
            json!({ "client_id": URL, "client_name": "App" }),
            json!({ "client_id": URL, "redirect_uris": ["https://app.example/back"] }),
            json!({ "client_id": URL, "client_name": "App", "redirect_uris": ["http://evil.example/"] }),
            json!({ "client_id": URL, "client_name": "App", "redirect_uris": ["https://a.example/"], "client_secret": "x" }),
            json!({ "client_id": URL, "client_name": "App", "redirect_uris": ["https://a.example/"], "token_endpoint_auth_method": "client_secret_post" }),
        ];
        for document in bad {
            assert!(understood(URL, document.to_string().as_bytes()).is_err(), "{document}");
        }
    }

    #[test]
    fn addresses_are_https_with_a_path() {
        assert!(check_address(URL, false).is_ok());
        assert!(check_address("http://127.0.0.1:9/client.json", true).is_ok());
        for bad in [
            "http://app.example/client.json",
            "https://app.example",
            "https://app.example/",
            "https://app.example/a/../client.json",
            "https://app.example/%2e%2e/client.json",
            "https://app.example/client.json#x",
            "https://app.example/client.json?x",
            "https://user@app.example/client.json",
        ] {
            assert!(check_address(bad, false).is_err(), "{bad}");
        }
    }
}
