//! Signing in with a browser, here or on another machine: the command line as an OAuth client like any other.
//!
//! Owns the two flows and the listener that takes a browser's answer. Stores nothing and shows no token.

use super::error::hinted;
use super::print;
use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// The client that every server knows.
pub const CLIENT: &str = "keiko-cli";
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// How long a person may take.
const PATIENCE: Duration = Duration::from_secs(300);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The tokens of a login.
#[derive(Deserialize)]
pub struct Tokens {
    /// Shown with each request.
    pub access_token: String,
    /// Exchanged for the next pair.
    pub refresh_token: String,
}

#[derive(Deserialize)]
struct Device {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: String,
    expires_in: u64,
    interval: u64,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// What the token endpoint says.
pub enum Told<T> {
    /// What was asked for.
    Granted(T),
    /// Not that: the registered code, and what is wrong.
    Refused(String, String),
}

/// Sends a form to the authorization server.
pub async fn ask<T: for<'de> Deserialize<'de>>(
    http: &reqwest::Client,
    base: &str,
    endpoint: &str,
    fields: &[(&str, &str)],
) -> anyhow::Result<Told<T>> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = http.post(format!("{base}/oauth/{endpoint}")).timeout(REQUEST_TIMEOUT);
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
    let response = request.send().await.map_err(|_| {
        hinted(format!("No Keiko answers at {base}."), "start one with: keiko serve (or name another address with --server)")
    })?;
    let is_success = response.status().is_success();
    let bytes = response.bytes().await.context("the answer broke off")?;
    if is_success {
        return Ok(Told::Granted(serde_json::from_slice(&bytes).context("the answer is not of the known form")?));
    }
    let refusal: Refusal = serde_json::from_slice(&bytes).context("the refusal is not of the known form")?;
    Ok(Told::Refused(refusal.error, refusal.error_description))
}

fn secret() -> String {
    URL_SAFE_NO_PAD.encode(engine::Env::system().bytes::<32>())
}

fn refused(description: &str) -> anyhow::Error {
    hinted(format!("The server refused the login: {description}"), "try again: keiko login")
}

/// Signs in with a browser on this machine.
pub async fn with_browser(http: &reqwest::Client, base: &str) -> anyhow::Result<Tokens> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen for the browser's answer")?;
    let redirect_uri = format!("http://{}/callback", listener.local_addr()?);
    let (verifier, state) = (secret(), secret());
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("response_type", "code")
        .append_pair("client_id", CLIENT)
        .append_pair("redirect_uri", &redirect_uri)
        .append_pair("code_challenge", &challenge)
        .append_pair("code_challenge_method", "S256")
        .append_pair("state", &state)
        .finish();
    let address = format!("{base}/oauth/authorize?{query}");
    print::note(&format!("Sign in with your browser. If it does not open by itself, go to:\n\n  {address}\n"));
    open_browser(&address);
    let waited = tokio::time::timeout(PATIENCE, answer(&listener, &state)).await;
    let code =
        waited.map_err(|_| hinted("Nobody signed in within 5 minutes.", "run: keiko login (or keiko login --device)"))??;
    let fields = [
        ("grant_type", "authorization_code"),
        ("client_id", CLIENT),
        ("code", &code),
        ("redirect_uri", &redirect_uri),
        ("code_verifier", &verifier),
    ];
    match ask(http, base, "token", &fields).await? {
        Told::Granted(tokens) => Ok(tokens),
        Told::Refused(_, description) => Err(refused(&description)),
    }
}

/// Waits for the browser's answer to this login; others are turned away.
async fn answer(listener: &TcpListener, state: &str) -> anyhow::Result<String> {
    loop {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        // A request line is short; what is longer, or slow, is none of ours.
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(1..=8_192))) {
            continue;
        }
        let target = line.split(' ').nth(1).unwrap_or_default();
        let query = target.strip_prefix("/callback?").unwrap_or_default();
        let get = |name: &str| {
            url::form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
        };
        let is_ours = get("state").as_deref() == Some(state);
        let text = if is_ours {
            "You can close this page and go back to the terminal."
        } else {
            "This is not the login that is waited for."
        };
        let page = format!("<!doctype html><meta charset=utf-8><title>Keiko</title><p>{text}</p>");
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", page.len());
        // The browser may have gone; the answer counts all the same.
        let _ = stream.get_mut().write_all((head + &page).as_bytes()).await;
        let _ = stream.get_mut().shutdown().await;
        match (is_ours, get("code"), get("error")) {
            (true, Some(code), _) => return Ok(code),
            (true, None, Some(error)) => return Err(refused(&get("error_description").unwrap_or(error))),
            _ => {}
        }
    }
}

/// Opens the browser, if there is something that can.
fn open_browser(address: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let null = std::process::Stdio::null;
    // Without one, the address stands above.
    drop(std::process::Command::new(program).arg(address).stdin(null()).stdout(null()).stderr(null()).spawn());
}

/// Signs in with a browser on any machine, by a code.
pub async fn with_device(http: &reqwest::Client, base: &str) -> anyhow::Result<Tokens> {
    let device: Device = match ask(http, base, "device_authorization", &[("client_id", CLIENT)]).await? {
        Told::Granted(device) => device,
        Told::Refused(_, description) => return Err(refused(&description)),
    };
    print::note(&format!(
        "Go to {} on any machine and enter the code:\n\n  {}\n\nor open: {}",
        device.verification_uri, device.user_code, device.verification_uri_complete
    ));
    let end = tokio::time::Instant::now() + Duration::from_secs(device.expires_in);
    let mut interval_s = device.interval;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(interval_s)).await;
        let fields = [("grant_type", DEVICE_GRANT), ("client_id", CLIENT), ("device_code", &device.device_code)];
        match ask(http, base, "token", &fields).await? {
            Told::Granted(tokens) => return Ok(tokens),
            Told::Refused(code, _) if code == "authorization_pending" => {}
            Told::Refused(code, _) if code == "slow_down" => interval_s += 5,
            Told::Refused(_, description) => return Err(refused(&description)),
        }
    }
    Err(hinted("Nobody signed in in time.", "run: keiko login --device"))
}
