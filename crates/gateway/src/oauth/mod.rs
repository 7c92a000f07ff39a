//! Keiko as an OAuth client of MCP servers: what a refusal says ([`challenge`]), which authorization server a server has
//! ([`discovery`]), and getting tokens there ([`exchange`]). Nothing is kept here; secrets come in and go out.

mod challenge;
mod discovery;
mod exchange;

pub use challenge::{Challenge, is_scope};
pub use discovery::{Authority, discover, probe};
pub use exchange::{Authentication, Client, ExchangeError, Registration, Tokens, exchange, register, revoke};

use crate::target;
use reqwest::{Response, Url};
use std::time::Duration;

/// How long an authorization server may take: less than a stopping Keiko waits for what it has begun.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Largest answer.
const BYTES_MAX: usize = 64 * 1024;

/// An address of an authorization server: `https`, and plain `http` only where private addresses are allowed.
fn checked(url: &str, allow_private: bool) -> Result<Url, String> {
    let url = target::check(url, allow_private)?;
    if url.scheme() != "https" && !allow_private {
        return Err("must begin with https://".into());
    }
    Ok(url)
}

/// All of an answer within its bound.
async fn whole(mut answered: Response) -> Result<Vec<u8>, String> {
    let mut body = vec![];
    while let Some(chunk) = answered.chunk().await.map_err(|_| "its answer broke off")? {
        if body.len() + chunk.len() > BYTES_MAX {
            return Err(format!("its answer has more than {BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
