//! The server under test: one process on one data directory.

use crate::http::{Connection, Credential};
use crate::machine::proc_value;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

pub(crate) const PASSWORD: &str = "correct horse battery";
/// Longest that a start or a stop may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `KEIKO_BIN`, else the release build.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), |dir| repository().join(dir));
    let path = std::env::var_os("KEIKO_BIN").map_or_else(|| target.join("release/keiko"), PathBuf::from);
    path.canonicalize()
        .with_context(|| format!("no server at {}; build it (cargo build --release -p keiko) or set KEIKO_BIN", path.display()))
}

/// A running server. Dropping it kills the process.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// From just before the process was made to its first 200 at `/ready`.
    pub ready_after: Duration,
}

impl Server {
    /// Starts `keiko serve` on `folder/data` with default settings but for `settings` (environment variables).
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        let (mut server, begun) = Self::begin(folder, settings)?;
        server.wait_until_ready(begun)?;
        server.ready_after = begun.elapsed();
        Ok(server)
    }

    /// The same with TLS, by a certificate of its own.
    pub fn start_with_tls(folder: &Path) -> anyhow::Result<(Server, TlsConnector)> {
        let (server, _) = Self::begin(folder, &[("KEIKO_TLS_SELF_SIGNED", "true")])?;
        let certificate = CertificateDer::from_pem_file(folder.join("data/tls/cert.pem"))?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // A handshake of its own for every connection.
        config.resumption = Resumption::disabled();
        Ok((server, TlsConnector::from(Arc::new(config))))
    }

    fn begin(folder: &Path, settings: &[(&str, &str)]) -> anyhow::Result<(Server, Instant)> {
        let log = folder.join("server.log");
        let mut command = Command::new(binary()?);
        command.arg("serve").arg("--data-dir").arg(folder.join("data")).args(["--listen", "127.0.0.1:0"]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEIKO_")) {
            command.env_remove(name);
        }
        // No settings file of whoever runs this counts.
        command.current_dir(folder).env("HOME", folder).env("XDG_CONFIG_HOME", folder.join(".config"));
        command.env("KEIKO_ADMIN_PASSWORD", PASSWORD).envs(settings.iter().copied());
        let errors = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);

        let begun = Instant::now();
        let mut child = command.spawn().context("the server could not be started")?;
        let printed = child.stdout.take().map(lines).context("the server has no standard output")?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // From here on a failure kills the process, too.
        let mut server = Server { child, log, address: any, ready_after: Duration::ZERO };
        server.address = server.listens(&printed, begun)?;
        Ok((server, begun))
    }

    fn listens(&self, printed: &Receiver<String>, begun: Instant) -> anyhow::Result<SocketAddr> {
        loop {
            let Ok(line) = printed.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) else {
                bail!("the server did not say where it listens; its log ends with:\n{}", self.log_end());
            };
            let line = line.trim();
            if let Some(address) = line.strip_prefix("listening on http://").or(line.strip_prefix("listening on https://")) {
                return address.parse().with_context(|| format!("no address: {line}"));
            }
        }
    }

    fn wait_until_ready(&self, begun: Instant) -> anyhow::Result<()> {
        while !self.is_ready().unwrap_or(false) {
            if begun.elapsed() > PATIENCE {
                bail!("/ready did not answer 200; the server's log ends with:\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn is_ready(&self) -> std::io::Result<bool> {
        const WANTED: &[u8] = b"HTTP/1.1 200";
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; WANTED.len()];
        stream.read_exact(&mut start)?;
        Ok(start == WANTED)
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Memory in use (`VmRSS`), in MiB.
    pub fn resident_mib(&self) -> anyhow::Result<f64> {
        let value = proc_value(&format!("/proc/{}/status", self.child.id()), "VmRSS").context("the server is gone")?;
        let kib: f64 = value.trim_end_matches("kB").trim().parse().with_context(|| format!("no size: {value}"))?;
        Ok(kib / 1_024.0)
    }

    /// Processor time that the server has used, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).context("the server is gone")?;
        // Behind the name in brackets: user and system time are fields 14 and 15, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// Signs the administrator in. Good for 15 minutes.
    pub async fn admin(&self) -> anyhow::Result<Credential> {
        let mut connection = Connection::open(self.address).await?;
        let body = json!({ "username": "admin", "password": PASSWORD });
        let answer = connection.post(&Credential::none(), "/api/v1/auth/login", &body).await?.data(200)?;
        let token = answer["attributes"]["access_token"].as_str().context("a login answers an access token")?;
        Credential::bearer(token)
    }

    /// Ends the server with SIGTERM and waits for it.
    pub fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                anyhow::ensure!(status.success(), "the server ended with {status}; its log ends with:\n{}", self.log_end());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the server did not stop within {PATIENCE:?}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process prints, line by line; read to its end, so that it never waits for us.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens any more: read on all the same.
            let _ = sender.send(line);
        }
    });
    receiver
}
