//! Calls of tools: the bare MCP server, and the same server behind Keiko.

use crate::Scale;
use crate::http::Connection;
use crate::machine::Place;
use crate::report::{Figure, Goal, Section};
use crate::server::{Server, repository};
use crate::stats::percentile;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const WARM_UP: usize = 50;
const CALLS: usize = 1_000;
const TOOLS: &str = r#"[{"name":"echo","inputSchema":{"type":"object","properties":{"text":{"type":"string"}}}}]"#;

/// The P50 and P99 of a call, bare and behind Keiko.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let listed = folder.path().join("tools.json");
    std::fs::write(&listed, TOOLS)?;
    let args = [repository().join("tests/servers/odd.py").canonicalize()?.display().to_string(), listed.display().to_string()];
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    let transport = json!({ "type": "stdio", "command": "python3", "args": [args[0], args[1], "well"] });
    connection.post(&admin, "/api/v1/mcp-servers", &json!({ "name": "odd", "transport": transport })).await?.data(201)?;
    let begun = Instant::now();
    while connection.get(&admin, "/api/v1/tools/odd__echo").await?.expect(200).is_err() {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(30), "the tool was not listed within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut bare, mut ours) = (vec![], vec![]);
    for _ in 0..scale.runs {
        bare.push(
            tokio::task::spawn_blocking({
                let args = args.clone();
                move || bare_run(Path::new(&args[0]), Path::new(&args[1]))
            })
            .await??,
        );
        let mut times = vec![];
        for n in 0..WARM_UP + CALLS {
            let begun = Instant::now();
            let body = json!({ "arguments": { "text": format!("call {n}") } });
            connection.post_once(&admin, "/api/v1/tools/odd__echo/actions/call", &body, &format!("k{n}")).await?.expect(200)?;
            times.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
        ours.push(times.split_off(WARM_UP));
    }
    server.stop()?;
    let of = |runs: &[Vec<f64>], share| runs.iter().map(|times| percentile(times, share)).collect::<Vec<_>>();
    let added: Vec<f64> = of(&ours, 0.5).iter().zip(of(&bare, 0.5)).map(|(ours, bare)| ours - bare).collect();
    let mut section = Section::new("Tool calls");
    section.add(Figure::new("the bare server over its pipes, P50", "ms", &of(&bare, 0.5)));
    section.add(Figure::new("through Keiko over HTTP, P50", "ms", &of(&ours, 0.5)));
    section.add(Figure::new("through Keiko over HTTP, P99", "ms", &of(&ours, 0.99)));
    section.add(Figure::new("added by Keiko, P50", "ms", &added).goal(Goal::Below(1.0)));
    section.note(format!(
        "{CALLS} calls one after another per run, after a warm-up, to the same small Python MCP server: authentication, \
         permission, the check against the schema, the call, and the journal's entry (arguments and result) are all in."
    ));
    Ok(section)
}

/// Times of calls without Keiko, in milliseconds.
fn bare_run(script: &Path, listed: &Path) -> anyhow::Result<Vec<f64>> {
    let mut child: Child = Command::new("python3")
        .args([script, listed, Path::new("well")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("python3 could not be started")?;
    let mut input = child.stdin.take().context("no input")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    ask(&mut input, &mut output, 0, "initialize", &json!({}))?;
    let mut times = vec![];
    for n in 0..WARM_UP + CALLS {
        let begun = Instant::now();
        ask(
            &mut input,
            &mut output,
            n + 1,
            "tools/call",
            &json!({ "name": "echo", "arguments": { "text": format!("call {n}") } }),
        )?;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    drop(input);
    child.wait()?;
    Ok(times.split_off(WARM_UP))
}

fn ask(
    input: &mut ChildStdin,
    output: &mut BufReader<ChildStdout>,
    id: usize,
    method: &str,
    params: &Value,
) -> anyhow::Result<()> {
    let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
    input.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    output.read_line(&mut line)?;
    anyhow::ensure!(line.contains("\"result\""), "no result: {line}");
    Ok(())
}
