//! The door to tools: calls through it beside the bare upstream, how much it adds, long lists, idle sessions.

use crate::Scale;
use crate::http::{Connection, Credential};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use crate::stats::percentile;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-11-25";
/// Connections that calls are made over.
const CONNECTIONS: usize = 64;
/// Calls a second of the run with a fixed pace.
const PACE: usize = 3_000;
const SERVERS: usize = 50;
const TOOLS_OF_EACH: usize = 20;
const SESSIONS: usize = 2_000;
const WARM_UP: Duration = Duration::from_secs(1);

/// Everything about the door.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    crate::fanout::raise_files()?;
    let upstream = upstream()?;
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[("KEIKO_GATEWAY_ALLOW_PRIVATE", "true")])?;
    let admin = server.admin().await?;
    register(&server, &admin, upstream).await?;
    let mut section = Section::new("The door to tools");
    calls(&mut section, &server, &admin, upstream, scale).await?;
    lists(&mut section, &server, &admin, scale).await?;
    sessions(&mut section, place, scale).await?;
    server.stop()?;
    section.note(format!(
        "The upstream is a small MCP server over HTTP on a thread of its own; it, Keiko and whoever calls share the cores. Calls go \
         over {CONNECTIONS} connections. Authentication, permission, approval, the check of arguments, the layers around the upstream and \
         the journal's entry (arguments and result) are all in; the entry need not be on disk before the answer."
    ));
    section.note(format!("At {PACE}/s each call has its time and counts from then on, also when the one before it is late."));
    Ok(section)
}

/// Where calls go, and what they say.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    by: Credential,
    path: &'static str,
    tool: &'static str,
    version: &'static str,
}

async fn calls(
    section: &mut Section,
    server: &Server,
    admin: &Credential,
    upstream: SocketAddr,
    scale: &Scale,
) -> anyhow::Result<()> {
    let bare = Target { address: upstream, by: Credential::none(), path: "/0", tool: "t0", version: LEGACY };
    let ours = Target { address: server.address, by: admin.clone(), path: "/mcp", tool: "s0__t0", version: MODERN };
    let (mut rates, mut bare_rates, mut added, mut p99, mut bare_p99, mut p50, mut cpu) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..scale.throughput_runs {
        bare_rates.push(busy(&bare, scale.door).await?);
        let (used, begun) = (server.cpu_seconds()?, Instant::now());
        let rate = busy(&ours, scale.door).await?;
        cpu.push((server.cpu_seconds()? - used) * 1e6 / (rate * begun.elapsed().as_secs_f64()));
        rates.push(rate);
        let (theirs, mine) = (paced(&bare, scale.door).await?, paced(&ours, scale.door).await?);
        p50.push(percentile(&mine, 0.5) - percentile(&theirs, 0.5));
        bare_p99.push(percentile(&theirs, 0.99));
        p99.push(percentile(&mine, 0.99));
        added.push(percentile(&mine, 0.99) - percentile(&theirs, 0.99));
    }
    let beside = |runs: &[f64], unit: &str| format!("bare upstream {}{unit}", number(percentile(runs, 0.5)));
    section.add(
        Figure::new("federated tools/call, as many as go", "/s", &rates)
            .goal(Goal::AtLeast(6_000.0))
            .limit(beside(&bare_rates, "/s")),
    );
    section.add(Figure::new("processor time of the server per call", "µs", &cpu));
    section.add(Figure::new(format!("added at {PACE}/s, P50"), "ms", &p50));
    section.add(
        Figure::new(format!("added at {PACE}/s, P99"), "ms", &added).goal(Goal::Below(0.35)).limit(beside(&bare_p99, " ms")),
    );
    section.add(Figure::new(format!("through Keiko at {PACE}/s, P99"), "ms", &p99));
    Ok(())
}

fn message(target: &Target, n: usize) -> Bytes {
    let mut params = json!({ "name": target.tool, "arguments": { "text": format!("call {n}") } });
    if target.version == MODERN {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        });
    }
    json!({ "jsonrpc": "2.0", "id": n, "method": "tools/call", "params": params }).to_string().into()
}

fn headers(version: &'static str, method: &'static str, name: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    let mut headers = vec![("accept", "application/json, text/event-stream"), ("mcp-protocol-version", version)];
    if version == MODERN {
        headers.push(("mcp-method", method));
        headers.extend(name.map(|name| ("mcp-name", name)));
    }
    headers
}

async fn call(connection: &mut Connection, target: &Target, n: usize) -> anyhow::Result<()> {
    let headers = headers(target.version, "tools/call", Some(target.tool));
    let body = connection.post_with(&target.by, target.path, message(target, n), &headers).await?.expect(200)?;
    let is_answered =
        body.windows(8).any(|part| part == b"\"result\"") && !body.windows(14).any(|part| part == b"\"isError\":true,");
    ensure!(is_answered, "no result: {}", String::from_utf8_lossy(&body));
    Ok(())
}

/// Calls a second when each connection makes the next one at once.
async fn busy(target: &Target, lasts: Duration) -> anyhow::Result<f64> {
    let from = Instant::now() + WARM_UP;
    let mut all = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let target = target.clone();
        all.spawn(async move {
            let mut connection = Connection::open(target.address).await?;
            let mut counted = 0_usize;
            for n in 0.. {
                call(&mut connection, &target, n).await?;
                if from.elapsed() >= lasts {
                    break;
                }
                counted += usize::from(Instant::now() >= from);
            }
            anyhow::Ok(counted)
        });
    }
    let mut counted = 0;
    while let Some(done) = all.join_next().await {
        counted += done??;
    }
    Ok(counted as f64 / lasts.as_secs_f64())
}

/// Times of calls in milliseconds, each from the moment that it was to begin.
async fn paced(target: &Target, lasts: Duration) -> anyhow::Result<Vec<f64>> {
    let begun = Instant::now() + Duration::from_millis(100);
    let step = Duration::from_secs_f64(CONNECTIONS as f64 / PACE as f64);
    let rounds = ((WARM_UP + lasts).as_secs_f64() / step.as_secs_f64()) as u32;
    let mut all = JoinSet::new();
    for one in 0..CONNECTIONS {
        let target = target.clone();
        all.spawn(async move {
            let mut connection = Connection::open(target.address).await?;
            let mut times = vec![];
            let first = begun + step.mul_f64(one as f64 / CONNECTIONS as f64);
            for round in 0..rounds {
                let due = first + step * round;
                // Whoever is still busy is late, and that counts. That the runtime's timer is up to a millisecond late does not.
                let mut begun_at = due;
                if Instant::now() < due {
                    tokio::time::sleep_until(due.into()).await;
                    begun_at = Instant::now();
                }
                call(&mut connection, &target, round as usize).await?;
                if due >= begun + WARM_UP {
                    times.push(begun_at.elapsed().as_secs_f64() * 1_000.0);
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = vec![];
    while let Some(done) = all.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

/// All tools of all servers, page by page.
async fn lists(section: &mut Section, server: &Server, admin: &Credential, scale: &Scale) -> anyhow::Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let headers = headers(MODERN, "tools/list", None);
    let (mut times, mut bytes) = (vec![], 0);
    for _ in 0..scale.requests.min(200) {
        let begun = Instant::now();
        let (mut cursor, mut tools) = (None, 0);
        bytes = 0;
        loop {
            let meta =
                json!({ "io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {} });
            let mut params = json!({ "_meta": meta });
            if let Some(cursor) = cursor {
                params["cursor"] = cursor;
            }
            let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params });
            let body = connection.post_with(admin, "/mcp", request.to_string().into(), &headers).await?.expect(200)?;
            bytes += body.len();
            tools += body.windows(14).filter(|part| part == b"\"inputSchema\":").count();
            // The cursor is looked for without reading the tools: reading is the client's time.
            let mut answer: Cursor = serde_json::from_slice(&body)?;
            match answer.result.next_cursor.take() {
                Some(next) => cursor = Some(Value::from(next)),
                None => break,
            }
        }
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
        ensure!(tools >= SERVERS * TOOLS_OF_EACH, "only {tools} tools are listed");
    }
    let name = format!("tools/list of {} tools of {SERVERS} servers, {} kB", SERVERS * TOOLS_OF_EACH, bytes / 1_000);
    section.add(Figure::new(name, "ms", &times).goal(Goal::Below(5.0)));
    Ok(())
}

#[derive(serde::Deserialize)]
struct Cursor {
    result: Listed,
}

#[derive(serde::Deserialize)]
struct Listed {
    #[serde(rename = "nextCursor")]
    next_cursor: Option<String>,
}

/// What sessions cost that only wait: each with a stream that is open.
async fn sessions(section: &mut Section, place: &Place, scale: &Scale) -> anyhow::Result<()> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    tokio::time::sleep(scale.idle).await;
    let before = server.resident_mib()?;
    let mut open = vec![];
    for _ in 0..SESSIONS {
        open.push(session(server.address, &admin).await?);
    }
    tokio::time::sleep(scale.idle).await;
    let after = server.resident_mib()?;
    drop(open);
    server.stop()?;
    let limit = format!("{} MiB before", number(before));
    section.add(
        Figure::new(format!("the server's memory with {SESSIONS} idle sessions"), "MiB", &[after])
            .goal(Goal::Below(100.0))
            .limit(limit),
    );
    Ok(())
}

async fn session(address: SocketAddr, admin: &Credential) -> anyhow::Result<Incoming> {
    let mut connection = Connection::open(address).await?;
    let about = json!({ "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": { "name": "bench", "version": "1" } });
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about });
    let response =
        connection.respond(Method::POST, admin, "/mcp", request.to_string().into(), &headers(LEGACY, "", None)).await?;
    ensure!(response.status() == 200, "initialize answered {}", response.status());
    let id = response.headers().get("mcp-session-id").context("no session")?.to_str()?.to_owned();
    response.into_body().collect().await?;
    let of_session = [("accept", "text/event-stream"), ("mcp-protocol-version", LEGACY), ("mcp-session-id", id.as_str())];
    let response = connection.respond(Method::GET, admin, "/mcp", Bytes::new(), &of_session).await?;
    ensure!(response.status() == 200, "the stream answered {}", response.status());
    // The connection lives as long as its answer is read.
    Ok(response.into_body())
}

async fn register(server: &Server, admin: &Credential, upstream: SocketAddr) -> anyhow::Result<()> {
    let mut connection = Connection::open(server.address).await?;
    for n in 0..SERVERS {
        let transport = json!({ "type": "http", "url": format!("http://{upstream}/{n}") });
        connection
            .post(admin, "/api/v1/mcp-servers", &json!({ "name": format!("s{n}"), "transport": transport }))
            .await?
            .data(201)?;
    }
    let begun = Instant::now();
    loop {
        let answer = connection.get(admin, "/api/v1/mcp-servers?limit=100").await?.data(200)?;
        let servers = answer.as_array().context("no list")?;
        if servers.iter().filter(|server| server["attributes"]["status"] == "ready").count() == SERVERS {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "the servers were not ready within 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts the upstream on a thread of its own, for as long as the process lives.
fn upstream() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(serve)),
                );
            }
        });
    });
    Ok(address)
}

async fn serve(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_post = request.method() == Method::POST;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answer = serde_json::from_slice(&body).ok().filter(|_| is_post).and_then(|asked: Value| answer(&asked));
    let (status, body) = match answer {
        Some(answer) => (200, answer.to_string()),
        None => (if is_post { 202 } else { 405 }, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

fn answer(asked: &Value) -> Option<Value> {
    let id = asked.get("id")?;
    let result = match asked["method"].as_str()? {
        "initialize" => json!({
            "protocolVersion": LEGACY,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "bench", "version": "1" },
        }),
        "tools/list" => json!({ "tools": (0..TOOLS_OF_EACH).map(tool).collect::<Vec<_>>() }),
        "tools/call" => {
            json!({ "content": [{ "type": "text", "text": asked["params"]["arguments"]["text"] }], "isError": false })
        }
        "ping" => json!({}),
        _ => return Some(json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "no such method" } })),
    };
    Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

fn tool(n: usize) -> Value {
    let properties = json!({ "text": { "type": "string", "description": "What to say" }, "times": { "type": "integer" } });
    json!({
        "name": format!("t{n}"),
        "description": format!("Says a text again, in the manner of number {n}. Give it what to say, and how often."),
        "inputSchema": { "type": "object", "properties": properties, "required": ["text"] },
    })
}
