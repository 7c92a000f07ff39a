//! Which authorization server an MCP server has: its description of itself (RFC 9728), and that of the authorization server
//! (RFC 8414, OpenID Connect Discovery). What does not fit together is refused.

use super::{BYTES_MAX, Challenge, TIMEOUT, challenge, checked};
use crate::mcp::{MODERN, refused};
use crate::{document, target};
use reqwest::header::ACCEPT;
use serde::Deserialize;
use serde_json::json;
use url::Url;

/// Where tokens for a server come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Who makes them; what an answer must name.
    pub issuer: String,
    /// What they are for: the server, as it names itself.
    pub resource: String,
    /// Where people are sent.
    pub authorization_endpoint: Option<String>,
    /// Where tokens are got.
    pub token_endpoint: String,
    /// Where clients register themselves.
    pub registration_endpoint: Option<String>,
    /// Where tokens are given back.
    pub revocation_endpoint: Option<String>,
    /// What to ask for, where the server says it.
    pub scopes: Option<Vec<String>>,
    /// How clients may show who they are; empty when nothing is said.
    pub auth_methods: Vec<String>,
    /// Whether codes can be bound to whoever asked for them.
    pub has_pkce: bool,
    /// Whether answers always name who made them.
    pub names_itself: bool,
    /// Whether a client may be a document at its own address.
    pub takes_documents: bool,
    /// Whether tokens can be asked for that outlive the person's presence.
    pub has_offline_access: bool,
}

impl Authority {
    /// The origin of the page that people are sent to.
    pub fn page_origin(&self) -> String {
        let page = self.authorization_endpoint.as_deref().and_then(|endpoint| Url::parse(endpoint).ok());
        page.map(|page| page.origin().ascii_serialization()).unwrap_or_default()
    }
}

/// How a server describes itself.
#[derive(Deserialize)]
struct Resource {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
    scopes_supported: Option<Vec<String>>,
}

/// How an authorization server describes itself.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: String,
    registration_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    scopes_supported: Vec<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    #[serde(default)]
    client_id_metadata_document_supported: bool,
}

/// What a server says to somebody who shows nothing, and asks what would need a token.
pub async fn probe(server: &str, allow_private: bool) -> Option<Challenge> {
    let url = checked(server, allow_private).ok()?;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": { "name": "keiko", "version": env!("CARGO_PKG_VERSION") },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": meta } });
    let http = target::client(allow_private).timeout(TIMEOUT).build().ok()?;
    let request = http.post(url).header(ACCEPT, "application/json, text/event-stream").header("mcp-method", "tools/list");
    let answered = request.header("mcp-protocol-version", MODERN).json(&body).send().await.ok()?;
    refused(&answered)
}

/// Finds out where tokens for a server come from. `challenge` is what it said when it let nobody in.
pub async fn discover(server: &str, challenge: Option<&Challenge>, allow_private: bool) -> Result<Authority, String> {
    let url = checked(server, allow_private).map_err(|problem| format!("the server's URL {problem}"))?;
    let Some(resource) = resource(&url, challenge, allow_private).await? else {
        return of_2025_03_26(&url, allow_private).await;
    };
    if !is_of(&url, &resource.resource) {
        let named = short(&resource.resource);
        return Err(format!("the server says that it is '{named}', which is not where it is"));
    }
    let Some(issuer) = resource.authorization_servers.first() else {
        return Err("the server names no authorization server".into());
    };
    let metadata = metadata(issuer, allow_private)
        .await?
        .ok_or_else(|| format!("the authorization server '{}' describes itself nowhere that is known", short(issuer)))?;
    let scopes = resource.scopes_supported.map(|scopes| challenge::scopes(&scopes.join(" ")));
    authority(metadata, issuer, resource.resource, scopes, allow_private)
}

/// How the server describes itself: where its challenge says, else at the usual places.
async fn resource(url: &Url, challenge: Option<&Challenge>, allow_private: bool) -> Result<Option<Resource>, String> {
    if let Some(named) = challenge.and_then(|challenge| challenge.resource_metadata.as_deref()) {
        let body =
            fetched(named, allow_private).await.map_err(|why| format!("'{}', where it describes itself, {why}", short(named)))?;
        let resource = serde_json::from_slice(&body);
        return resource.map(Some).map_err(|e| format!("how the server describes itself cannot be used: {e}"));
    }
    for place in resource_places(url) {
        if let Ok(body) = fetched(&place, allow_private).await
            && let Ok(resource) = serde_json::from_slice(&body)
        {
            return Ok(Some(resource));
        }
    }
    Ok(None)
}

/// How an authorization server describes itself; nothing where it does not.
async fn metadata(issuer: &str, allow_private: bool) -> Result<Option<Metadata>, String> {
    let url = checked(issuer, allow_private).map_err(|problem| format!("the authorization server's address {problem}"))?;
    for place in metadata_places(&url) {
        let Ok(body) = fetched(&place, allow_private).await else { continue };
        let found: Metadata = match serde_json::from_slice(&body) {
            Ok(found) => found,
            Err(_) => continue,
        };
        // Somebody else's description here would send codes and secrets astray.
        if found.issuer != issuer {
            let (found, wanted) = (short(&found.issuer), short(issuer));
            return Err(format!("the authorization server '{wanted}' calls itself '{found}'"));
        }
        return Ok(Some(found));
    }
    Ok(None)
}

/// The oldest version that has authorization: the server is its own authorization server, at paths that are known.
async fn of_2025_03_26(url: &Url, allow_private: bool) -> Result<Authority, String> {
    let origin = url.origin().ascii_serialization();
    let resource = resource_of(url);
    if let Some(metadata) = metadata(&origin, allow_private).await? {
        return authority(metadata, &origin, resource, None, allow_private);
    }
    Ok(Authority {
        authorization_endpoint: Some(format!("{origin}/authorize")),
        token_endpoint: format!("{origin}/token"),
        registration_endpoint: Some(format!("{origin}/register")),
        issuer: origin,
        resource,
        revocation_endpoint: None,
        scopes: None,
        auth_methods: vec![],
        has_pkce: true,
        names_itself: false,
        takes_documents: false,
        has_offline_access: false,
    })
}

fn authority(
    found: Metadata,
    issuer: &str,
    resource: String,
    scopes: Option<Vec<String>>,
    allow_private: bool,
) -> Result<Authority, String> {
    let endpoints = [&found.authorization_endpoint, &found.registration_endpoint, &found.revocation_endpoint];
    for endpoint in endpoints.into_iter().flatten().chain([&found.token_endpoint]) {
        checked(endpoint, allow_private).map_err(|problem| format!("the address '{}' {problem}", short(endpoint)))?;
    }
    Ok(Authority {
        issuer: issuer.to_owned(),
        resource,
        authorization_endpoint: found.authorization_endpoint,
        token_endpoint: found.token_endpoint,
        registration_endpoint: found.registration_endpoint,
        revocation_endpoint: found.revocation_endpoint,
        scopes,
        auth_methods: found.token_endpoint_auth_methods_supported,
        has_pkce: found.code_challenge_methods_supported.iter().any(|method| method == "S256"),
        names_itself: found.authorization_response_iss_parameter_supported,
        takes_documents: found.client_id_metadata_document_supported,
        has_offline_access: found.scopes_supported.iter().any(|scope| scope == "offline_access"),
    })
}

async fn fetched(url: &str, allow_private: bool) -> Result<Vec<u8>, String> {
    checked(url, allow_private)?;
    document::fetch(url, allow_private, BYTES_MAX).await.map(|document| document.body)
}

/// A server's URL as a name for it: without a query, a fragment, or a slash that says nothing.
fn resource_of(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.as_str().trim_end_matches('/').to_owned()
}

/// Whether a server at `url` may call itself `named`: the same origin, and its path or one above.
fn is_of(url: &Url, named: &str) -> bool {
    let Ok(named) = Url::parse(named) else { return false };
    let above = named.path().trim_end_matches('/');
    let is_above = url.path() == above || url.path().strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    named.origin() == url.origin() && named.fragment().is_none() && is_above
}

/// Where a server describes itself when it does not say where: beneath the path of its own, then for the whole host.
fn resource_places(url: &Url) -> Vec<String> {
    const PLACE: &str = "/.well-known/oauth-protected-resource";
    let (origin, path) = (url.origin().ascii_serialization(), url.path().trim_end_matches('/'));
    let mut places = vec![format!("{origin}{PLACE}{path}"), format!("{origin}{PLACE}")];
    places.dedup();
    places
}

/// Where an authorization server may describe itself, in order.
fn metadata_places(issuer: &Url) -> Vec<String> {
    let (origin, path) = (issuer.origin().ascii_serialization(), issuer.path().trim_end_matches('/'));
    let (oauth, openid) = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration");
    match path {
        "" => vec![format!("{origin}{oauth}"), format!("{origin}{openid}")],
        path => vec![format!("{origin}{oauth}{path}"), format!("{origin}{openid}{path}"), format!("{origin}{path}{openid}")],
    }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn documents_are_looked_for_in_the_order_of_the_specification() {
        assert_eq!(
            resource_places(&url("https://a.example/public/mcp")),
            [
                "https://a.example/.well-known/oauth-protected-resource/public/mcp",
                "https://a.example/.well-known/oauth-protected-resource"
            ]
        );
        assert_eq!(resource_places(&url("https://a.example/")).len(), 1);
        assert_eq!(
            metadata_places(&url("https://a.example/tenant1")),
            [
                "https://a.example/.well-known/oauth-authorization-server/tenant1",
                "https://a.example/.well-known/openid-configuration/tenant1",
                "https://a.example/tenant1/.well-known/openid-configuration"
            ]
        );
        assert_eq!(metadata_places(&url("https://a.example")).len(), 2);
    }

    #[test]
    fn a_server_names_itself_and_nobody_else() {
        let server = url("https://a.example/mcp/one");
        for good in ["https://a.example/mcp/one", "https://A.example/mcp", "https://a.example", "https://a.example/mcp/one/"] {
            assert!(is_of(&server, good), "{good}");
        }
        for bad in [
            "https://b.example/mcp/one",
            "http://a.example/mcp/one",
            "https://a.example:8443/mcp",
            "https://a.example/mcp/o",
            "https://a.example/mcp/one/more",
            "https://a.example/mcp#x",
            "mcp",
        ] {
            assert!(!is_of(&server, bad), "{bad}");
        }
    }

    #[test]
    fn an_authorization_server_that_sends_people_or_secrets_elsewhere_in_the_clear_is_refused() {
        let metadata = |authorization: &str, token: &str| Metadata {
            issuer: "https://a.example".into(),
            authorization_endpoint: Some(authorization.into()),
            token_endpoint: token.into(),
            registration_endpoint: None,
            revocation_endpoint: None,
            scopes_supported: vec![],
            token_endpoint_auth_methods_supported: vec![],
            code_challenge_methods_supported: vec!["plain".into()],
            authorization_response_iss_parameter_supported: false,
            client_id_metadata_document_supported: false,
        };
        let of = |found| authority(found, "https://a.example", "https://m.example".into(), None, false);
        let good = of(metadata("https://a.example/go", "https://a.example/token")).unwrap();
        assert!(!good.has_pkce, "'plain' protects nothing");
        for (authorization, token) in [
            ("javascript:alert(1)", "https://a.example/token"),
            ("http://a.example/go", "https://a.example/token"),
            ("https://a.example/go", "http://a.example/token"),
            ("https://a.example/go", "https://127.0.0.1/token"),
        ] {
            assert!(of(metadata(authorization, token)).is_err(), "{authorization} {token}");
        }
    }
}
