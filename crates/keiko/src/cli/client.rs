//! The connection to a server: sends calls with the caller's credential, and keeps a login alive.
//!
//! Owns authentication (API key or stored login, refreshed once when the server no longer takes it) and what people are
//! told when nobody answers. Follows no redirect: a credential goes to the server it was given for and nowhere else.

use super::Connection;
use super::answer::Answer;
use super::call::Call;
use super::credentials::{Credentials, Login, Store};
use super::error::{ApiError, hinted, is_building, is_passing, unreachable};
use super::oauth::{self, Told};
use super::server::{self, Server};
use super::table::clean;
use anyhow::Context;
use reqwest::header::{ACCEPT, USER_AGENT};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use std::error::Error;
use std::io;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long between two looks at a list of the past that is being put together.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const AGENT: &str = concat!("keiko-cli/", env!("CARGO_PKG_VERSION"));

/// Who asks.
#[derive(Clone)]
enum Auth {
    Nobody,
    Key(String),
    Login(Store, Login),
}

/// A connection to one server as one identity.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Server,
    auth: Auth,
    /// The latest log position that an answer reflected: what is read next must not be older.
    position: u64,
    /// How everything that is read was, instead of how it is.
    at: Option<String>,
}

impl Client {
    /// A connection with the API key that was given, else with the stored login.
    pub fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let key = given(&connection.api_key);
        let mut client = Client::of_login(connection)?;
        if let Some(key) = key {
            client.auth = Auth::Key(key);
        }
        Ok(client)
    }

    /// A connection with the stored login, even where an API key was given.
    pub fn of_login(connection: &Connection) -> anyhow::Result<Self> {
        let store = Store::of_user().ok();
        let mut stored = store.as_ref().map_or_else(|| Ok(Credentials::default()), Store::load)?;
        let address = given(&connection.server).or(stored.current.take());
        let server = Server::parse(address.as_deref().unwrap_or(server::DEFAULT), connection.insecure_http)?;
        let auth = match (store, stored.logins.remove(server.base())) {
            (Some(store), Some(login)) => Auth::Login(store, login),
            _ => Auth::Nobody,
        };
        Ok(Client { http: http(&server)?, server, auth, position: 0, at: None })
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        self.server.base()
    }

    /// The connection below the interface.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// From now on this login is used.
    pub fn become_login(&mut self, store: Store, login: Login) {
        self.auth = Auth::Login(store, login);
    }

    /// The stored login in use, and its store.
    pub fn login(&self) -> Option<(&Store, &Login)> {
        match &self.auth {
            Auth::Login(store, login) => Some((store, login)),
            Auth::Nobody | Auth::Key(_) => None,
        }
    }

    /// From now on everything is read as it was, and nothing is changed.
    pub fn look_back(&mut self, at: String) {
        self.at = Some(at);
    }

    /// Sends a call and reads its answer.
    pub async fn send(&mut self, mut call: Call) -> anyhow::Result<Answer> {
        if let Some(at) = &self.at {
            if call.method != Method::GET {
                return Err(hinted("The past cannot be changed.", "leave out 'at' and the moment"));
            }
            call.query.push(("at", at.clone()));
        }
        let response = loop {
            match self.open(&call).await {
                Err(error) if is_building(&error) => {
                    super::print::note(&error.to_string());
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                answered => break answered?,
            }
        };
        let body = response.bytes().await.map_err(|e| self.explain(&e))?;
        let answer = Answer::read(&body)?;
        self.position = self.position.max(answer.position().unwrap_or(0));
        Ok(answer)
    }

    /// Sends a call and leaves the body of its answer to be read.
    pub async fn open(&mut self, call: &Call) -> anyhow::Result<Response> {
        let mut response = self.dispatch(call).await?;
        if response.status() == StatusCode::UNAUTHORIZED && !call.is_anonymous && self.renew().await? {
            response = self.dispatch(call).await?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|e| self.explain(&e))?;
        Err(ApiError::read(status, &body).into())
    }

    /// The header that says who asks; none when nobody does.
    pub fn credential(&self) -> Option<(&'static str, String)> {
        match &self.auth {
            Auth::Nobody => None,
            Auth::Key(key) => Some(("x-api-key", key.clone())),
            Auth::Login(_, login) => Some(("authorization", format!("Bearer {}", login.access_token))),
        }
    }

    /// After a 401 with this credential: whether there is now another one to try with.
    pub async fn renew_after(&mut self, refused: Option<&(&'static str, String)>) -> anyhow::Result<bool> {
        if self.credential().as_ref() != refused { Ok(true) } else { self.renew().await }
    }

    async fn dispatch(&self, call: &Call) -> anyhow::Result<Response> {
        let mut request = self.http.request(call.method.clone(), self.server.url(&call.path)).header(USER_AGENT, AGENT);
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        if let Some(key) = &call.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(id) = &call.last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        if call.method == Method::GET && self.position > 0 {
            request = request.header("Keiko-Min-Position", self.position);
        }
        request = match call.timeout {
            Some(limit) => request.timeout(limit),
            None => request.header(ACCEPT, "text/event-stream"),
        };
        request = match &self.auth {
            _ if call.is_anonymous => request,
            Auth::Nobody => request,
            Auth::Key(key) => request.header("X-API-Key", key),
            Auth::Login(_, login) => request.bearer_auth(&login.access_token),
        };
        request.send().await.map_err(|e| self.explain(&e))
    }

    /// After a 401: whether there is now another credential to try with.
    async fn renew(&mut self) -> anyhow::Result<bool> {
        let (store, used) = match &self.auth {
            Auth::Key(_) => return Ok(false),
            Auth::Nobody => return Err(self.nobody()),
            Auth::Login(store, login) => (store.clone(), login.clone()),
        };
        // Under the lock, so that of several commands at once only one spends the refresh token.
        let locked = store.lock()?;
        let mut stored = locked.load()?;
        let renewed = match stored.logins.remove(self.base()) {
            None => return Err(self.ended()),
            Some(login) if login.access_token != used.access_token => login,
            Some(login) => {
                let login = self.exchange(login).await?;
                stored.logins.insert(self.base().to_owned(), login.clone());
                locked.save(&stored)?;
                login
            }
        };
        self.auth = Auth::Login(store, renewed);
        Ok(true)
    }

    /// Exchanges the refresh token for the next pair.
    async fn exchange(&self, login: Login) -> anyhow::Result<Login> {
        if let Some(client) = login.client.clone() {
            let fields = [("grant_type", "refresh_token"), ("client_id", &client), ("refresh_token", &login.refresh_token)];
            return match oauth::ask::<oauth::Tokens>(&self.http, self.base(), "token", &fields).await? {
                Told::Granted(oauth::Tokens { access_token, refresh_token }) => {
                    Ok(Login { access_token, refresh_token, ..login })
                }
                Told::Refused(code, _) if code == "temporarily_unavailable" => {
                    Err(unreachable(format!("{} is busy.", self.base()), "try again in a moment"))
                }
                Told::Refused(..) => Err(self.ended()),
            };
        }
        let call = Call::post("auth/refresh", json!({ "refresh_token": login.refresh_token })).anonymous();
        let response = self.dispatch(&call).await?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.explain(&e))?;
        if !status.is_success() {
            let refused: anyhow::Error = ApiError::read(status.as_u16(), &body).into();
            return Err(if is_passing(&refused) { refused } else { self.ended() });
        }
        let answer = Answer::read(&body)?;
        let token = |name| answer.text(name).map(str::to_owned);
        Ok(Login { access_token: token("access_token")?, refresh_token: token("refresh_token")?, ..login })
    }

    fn nobody(&self) -> anyhow::Error {
        hinted(format!("Nobody is logged in at {}.", self.base()), "log in with: keiko login (or set KEIKO_API_KEY)")
    }

    fn ended(&self) -> anyhow::Error {
        hinted(format!("The login at {} has ended.", self.base()), "log in again with: keiko login")
    }

    /// What went wrong below HTTP, in words; the library's own text is kept only as a reason.
    fn explain(&self, error: &reqwest::Error) -> anyhow::Error {
        let base = self.base();
        let root = root_cause(error);
        let reason = clean(&root.to_string());
        if error.is_builder() {
            let hint = "check the API key for characters that do not belong there";
            return hinted(format!("The request cannot be written: {reason}."), hint);
        }
        let is_refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        if root.downcast_ref::<io::Error>().is_some_and(is_refused) {
            let hint = "start one with: keiko serve (or name another address with --server)";
            return unreachable(format!("No Keiko answers at {base}."), hint);
        }
        if error.is_timeout() {
            let hint = "see whether it is overloaded, in its log";
            return unreachable(format!("{base} did not answer in time."), hint);
        }
        if error.is_connect() {
            let hint = "check --server and the network; SSL_CERT_FILE names a certificate that the system does not know";
            return unreachable(format!("Cannot connect to {base}: {reason}."), hint);
        }
        let hint = match base.starts_with("http:") && reason.contains("invalid HTTP version") {
            true => "perhaps the server speaks HTTPS: name it with https://",
            false => "try again; what was acknowledged is kept",
        };
        unreachable(format!("The connection to {base} broke: {reason}."), hint)
    }
}

/// What an argument or the environment holds, unless it is blank.
fn given(text: &Option<String>) -> Option<String> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn http(server: &Server) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT);
    if server.is_loopback() {
        // A proxy is another machine.
        builder = builder.no_proxy();
    }
    if !server.is_tls() {
        // Reading the system's certificates takes longer than most commands, and fails where there are none.
        builder = builder.tls_certs_only([]);
    }
    builder.build().context("cannot prepare connections")
}

fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root
}
