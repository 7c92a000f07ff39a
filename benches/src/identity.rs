//! Tokens, logins, and what it costs to be recognised.

use crate::Scale;
use crate::http::{Connection, Credential, text};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::{PASSWORD, Server};
use crate::stats::percentile;
use argon2::{Algorithm, Argon2, Params, Version};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 16;
const REDIRECT: &str = "http%3A%2F%2F127.0.0.1%2Fcallback";
/// SHA-256 of [`VERIFIER`] in base64url.
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
/// The verifier of RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// Tokens, logins and recognised requests.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let machine = machine(&server, &admin).await?;
    people(&server, &admin).await?;
    let mut section = Section::new("Identity");

    let (mut tokens, mut fresh, mut logins) = (vec![], vec![], vec![]);
    let (mut cached, mut first, mut open) = (vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        let asked = scale.requests * 5;
        let before = server.cpu_seconds()?;
        issue(server.address, &machine, asked).await?;
        tokens.push(asked as f64 / (server.cpu_seconds()? - before));
        let before = server.cpu_seconds()?;
        issue_each(scale.requests, || Connection::open(server.address), &machine).await?;
        fresh.push(scale.requests as f64 / (server.cpu_seconds()? - before));
        let before = server.cpu_seconds()?;
        let count = scale.requests / 20;
        sign_in(server.address, count).await?;
        logins.push(count as f64 / (server.cpu_seconds()? - before));
        let (seen, unseen, nobody) = recognised(server.address, &machine, scale.requests).await?;
        cached.push((seen - nobody) * 1_000.0);
        first.push((unseen - nobody) * 1_000.0);
        open.push(nobody * 1_000.0);
    }
    let per_core = "tokens/s per core";
    section.add(
        Figure::new("client credentials, connections kept", per_core, &tokens)
            .goal(Goal::AtLeast(500.0))
            .limit("Keycloak: 120 per vCPU"),
    );
    section.add(Figure::new("client credentials, a new TCP connection each", per_core, &fresh).goal(Goal::AtLeast(500.0)));
    section.add(
        Figure::new("logins by password, our default (19 MiB, t=2, p=1)", "logins/s per core", &logins)
            .limit("Keycloak: 15 per vCPU"),
    );
    let hashes: Vec<f64> = (0..scale.runs).map(|_| hashes(7 * 1_024, 5)).collect();
    section.add(
        Figure::new("password hashes alone at 7 MiB, t=5, p=1 (Keycloak's)", "hashes/s per core", &hashes)
            .goal(Goal::AtLeast(50.0)),
    );
    let usual: Vec<f64> = (0..scale.runs).map(|_| hashes_of_ours()).collect();
    section.add(Figure::new("password hashes alone at 19 MiB, t=2, p=1 (ours)", "hashes/s per core", &usual));
    section.add(
        Figure::new("an authorised request above an open one, P50, token seen before", "µs", &cached).goal(Goal::Below(30.0)),
    );
    section.add(Figure::new("the same, P50, token seen for the first time", "µs", &first));
    section.add(Figure::new("the open request itself (`/health`), P50", "µs", &open));
    sessions(&server, scale, &mut section).await?;
    section.note(format!(
        "Per core means: counted over the processor time of the server alone, so that the client beside it does not count. {CONNECTIONS} \
         connections for tokens and logins, one for the single requests."
    ));
    server.stop()?;
    section.add(with_tls(folder.path(), &machine, scale).await?);
    Ok(section)
}

/// Tokens over a TLS connection of their own each, by the same server with a certificate.
async fn with_tls(folder: &Path, form: &str, scale: &Scale) -> anyhow::Result<Figure> {
    let (server, connector) = Server::start_with_tls(folder)?;
    let mut tokens = vec![];
    for _ in 0..scale.runs {
        let before = server.cpu_seconds()?;
        issue_each(scale.requests, || Connection::open_with_tls(server.address, &connector), form).await?;
        tokens.push(scale.requests as f64 / (server.cpu_seconds()? - before));
    }
    server.stop()?;
    let name = "client credentials, a new TLS 1.3 connection each (full handshake, P-256, X25519MLKEM768)";
    Ok(Figure::new(name, "tokens/s per core", &tokens).goal(Goal::AtLeast(500.0)))
}

/// So many tokens, each over a connection of its own, [`CONNECTIONS`] at a time.
async fn issue_each<F: Future<Output = anyhow::Result<Connection>>>(
    count: usize,
    open: impl Fn() -> F,
    form: &str,
) -> anyhow::Result<()> {
    let one = |_| async { token(&mut open().await?, form).await.map(|_| ()) };
    futures_util::stream::iter(0..count).map(one).buffer_unordered(CONNECTIONS).try_collect().await
}

/// A service with a client of its own: the form that asks for a token.
async fn machine(server: &Server, admin: &Credential) -> anyhow::Result<String> {
    let mut connection = Connection::open(server.address).await?;
    let service = json!({ "username": "machine", "kind": "service", "roles": ["developer"] });
    connection.post(admin, "/api/v1/users", &service).await?.expect(201)?;
    let client = json!({ "name": "machine", "subject": "machine", "grant_types": ["client_credentials"],
        "token_endpoint_auth_method": "client_secret_post" });
    let made = connection.post(admin, "/api/v1/clients", &client).await?.data(201)?;
    let (id, secret) = (text(&made, "/attributes/client_id")?, text(&made, "/attributes/client_secret")?);
    Ok(format!("grant_type=client_credentials&client_id={id}&client_secret={secret}"))
}

/// As many people as connections: logins of one account at the same time are slowed down on purpose.
async fn people(server: &Server, admin: &Credential) -> anyhow::Result<()> {
    let mut connection = Connection::open(server.address).await?;
    for n in 0..CONNECTIONS {
        let person = json!({ "username": format!("person-{n}"), "password": PASSWORD, "roles": ["user"] });
        connection.post(admin, "/api/v1/users", &person).await?.expect(201)?;
    }
    Ok(())
}

async fn token(connection: &mut Connection, form: &str) -> anyhow::Result<Value> {
    connection.form("/oauth/token", form, None).await?.answer.whole(200)
}

async fn issue(address: SocketAddr, form: &str, count: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, form) = (next.clone(), form.to_owned());
        workers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            while next.fetch_add(1, Ordering::Relaxed) < count {
                token(&mut connection, &form).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = workers.join_next().await {
        joined??;
    }
    Ok(())
}

async fn sign_in(address: SocketAddr, count: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for n in 0..CONNECTIONS {
        let next = next.clone();
        workers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let body = json!({ "username": format!("person-{n}"), "password": PASSWORD });
            while next.fetch_add(1, Ordering::Relaxed) < count {
                connection.post(&Credential::none(), "/api/v1/auth/login", &body).await?.expect(200)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = workers.join_next().await {
        joined??;
    }
    Ok(())
}

/// P50 in milliseconds: with a token that was seen before, with one that was not, and of an open request.
async fn recognised(address: SocketAddr, form: &str, count: usize) -> anyhow::Result<(f64, f64, f64)> {
    let mut connection = Connection::open(address).await?;
    let mut times = [vec![], vec![], vec![]];
    let fresh: Vec<Credential> = {
        let mut made = vec![];
        for _ in 0..count / 4 {
            made.push(Credential::bearer(text(&token(&mut connection, form).await?, "/access_token")?)?);
        }
        made
    };
    for credential in &fresh {
        for (kind, path) in [(1, "/oauth/userinfo"), (0, "/oauth/userinfo"), (2, "/health")] {
            let begun = Instant::now();
            connection.get(credential, path).await?.expect(200)?;
            times[kind].push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    let [seen, unseen, nobody] = times.map(|times| percentile(&times, 0.5));
    Ok((seen, unseen, nobody))
}

fn hashes(memory_kib: u32, passes: u32) -> f64 {
    const COUNT: usize = 20;
    let Ok(params) = Params::new(memory_kib, passes, 1, None) else { return f64::NAN };
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut out = [0; 32];
    let begun = Instant::now();
    for n in 0..COUNT {
        if argon2.hash_password_into(PASSWORD.as_bytes(), &[n as u8; 16], &mut out).is_err() {
            return f64::NAN;
        }
    }
    COUNT as f64 / begun.elapsed().as_secs_f64()
}

fn hashes_of_ours() -> f64 {
    hashes(19 * 1_024, 2)
}

/// Memory while many people sign in with a client.
async fn sessions(server: &Server, scale: &Scale, section: &mut Section) -> anyhow::Result<()> {
    let cookie = browser(server.address).await?;
    let total = scale.sessions;
    let tenth = total / 10;
    let begun = Instant::now();
    open_sessions(server.address, &cookie, tenth).await?;
    let early = server.resident_mib()?;
    open_sessions(server.address, &cookie, total - tenth).await?;
    let late = server.resident_mib()?;
    let name = format!("memory after {} sessions", number(total as f64));
    section.add(Figure::new(name, "MiB", &[late]).limit(format!("{} MiB after {}", number(early), number(tenth as f64))));
    section.note(format!(
        "Each of the {} sessions is an authorization code redeemed for tokens by the command line's client, with its refresh token: {} per \
         second.",
        number(total as f64),
        number(total as f64 / begun.elapsed().as_secs_f64())
    ));
    Ok(())
}

fn ask() -> String {
    format!(
        "/oauth/authorize?response_type=code&client_id=keiko-cli&redirect_uri={REDIRECT}&code_challenge={CHALLENGE}&code_challenge_method=S256"
    )
}

/// The cookies of somebody who has signed in.
async fn browser(address: SocketAddr) -> anyhow::Result<String> {
    let mut connection = Connection::open(address).await?;
    let page = connection.form_page(&ask(), None).await?;
    let form = page.cookie.clone().unwrap_or_default();
    let body = String::from_utf8_lossy(&page.answer.body).into_owned();
    let csrf = body.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let fields = format!("step=login&csrf={csrf}&tenant=default&username=admin&password={}", PASSWORD.replace(' ', "+"));
    let signed = connection.form(&ask(), &fields, Some(&form)).await?;
    let login = signed.cookie.ok_or_else(|| anyhow::anyhow!("the sign-in failed: {}", signed.answer.status))?;
    Ok(format!("{form}; {login}"))
}

async fn open_sessions(address: SocketAddr, cookie: &str, count: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, cookie) = (next.clone(), cookie.to_owned());
        workers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let mut asked = connection.form_page(&ask(), Some(&cookie)).await?;
                if asked.location.is_none() {
                    // A client on the person's own machine is asked for each time: the answer is yes.
                    let body = String::from_utf8_lossy(&asked.answer.body).into_owned();
                    let csrf = body.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
                    let fields = format!("step=consent&decision=allow&csrf={csrf}");
                    asked = connection.form(&ask(), &fields, Some(&cookie)).await?;
                }
                let location = asked.location.unwrap_or_default();
                let code = location.split("code=").nth(1).and_then(|rest| rest.split('&').next()).unwrap_or_default().to_owned();
                let fields = format!(
                    "grant_type=authorization_code&client_id=keiko-cli&code={code}&code_verifier={VERIFIER}&redirect_uri={REDIRECT}"
                );
                connection.form("/oauth/token", &fields, None).await?.answer.expect(200)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = workers.join_next().await {
        joined??;
    }
    Ok(())
}
