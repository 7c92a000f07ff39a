//! A small JSON document at somebody's address, fetched with the same care as everything outside.

use crate::target;
use reqwest::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use std::time::Duration;

/// How long a document may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A document that was fetched.
pub struct Document {
    /// Its bytes.
    pub body: Vec<u8>,
    /// How long its owner lets it be kept, if that is said.
    pub max_age: Option<Duration>,
}

/// Fetches a document of at most `bytes_max` bytes. Redirects are not followed, private addresses refused.
pub async fn fetch(url: &str, allow_private: bool, bytes_max: usize) -> Result<Document, String> {
    let url = target::check(url, allow_private)?;
    let client =
        target::client(allow_private).timeout(TIMEOUT).build().map_err(|e| format!("no HTTP client could be made: {e}"))?;
    let mut response = client.get(url).header(ACCEPT, "application/json").send().await.map_err(|_| "could not be fetched")?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("answered {}", response.status().as_u16()));
    }
    let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let kind = header(CONTENT_TYPE);
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind != "application/json" && !kind.ends_with("+json") {
        return Err("is no JSON".into());
    }
    let cache = header(CACHE_CONTROL);
    let directives: Vec<&str> = cache.split(',').map(str::trim).collect();
    let max_age = match directives.iter().any(|d| matches!(*d, "no-store" | "no-cache")) {
        true => Some(Duration::ZERO),
        false => directives.iter().find_map(|d| d.strip_prefix("max-age=")?.parse().ok()).map(Duration::from_secs),
    };
    let mut body = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|_| "broke off")? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("has more than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Document { body, max_age })
}
