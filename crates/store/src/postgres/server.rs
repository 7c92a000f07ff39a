//! A PostgreSQL server of its own for tests: on a private port of the loopback interface, in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A running server; its data goes with it.
pub struct Server {
    home: PathBuf,
    port: u16,
    process: std::sync::Mutex<Option<Child>>,
}

/// The one server of a test program, started when it is first asked for.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

impl Server {
    /// Makes a database cluster and starts a server on it.
    pub fn start() -> Server {
        remove_leftovers();
        let home = std::env::temp_dir().join(format!("keiko-postgres-{}-{}", std::process::id(), count()));
        std::fs::create_dir_all(&home).expect("a temporary folder");
        let data = home.join("data");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&home));
        }
        run(as_server("initdb", &home)
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-k", "-D"])
            .arg(&data));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        drop(listener);
        let server = Server { home, port, process: std::sync::Mutex::new(None) };
        server.launch();
        server
    }

    fn launch(&self) {
        let log = std::fs::File::create(self.home.join("log")).expect("a log file");
        let mut command = as_server("postgres", &self.home);
        command
            .arg("-D")
            .arg(self.home.join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "max_connections=200"])
            .arg("-k")
            .arg(&self.home)
            .stdout(Stdio::null())
            .stderr(log);
        // The server ends with the thread that started it, so it gets one that ends with the program.
        let (sender, started) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(command.spawn());
            loop {
                std::thread::park();
            }
        });
        let child = started.recv().expect("the thread answers").expect("postgres starts");
        *self.process.lock().expect("no test panicked here") = Some(child);
        let late = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            assert!(Instant::now() < late, "the database server did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        let asked = Command::new(program("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-c", "SELECT 1", "postgres"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// Runs a statement as the superuser.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let out = Command::new(program("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "postgres",
                "-At",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                statement,
                database,
            ])
            .output()
            .expect("psql runs");
        assert!(out.status.success(), "{statement}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// A new, empty database.
    pub fn database(&self) -> String {
        let name = format!("keiko_{}", count());
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends the server as a power failure would, without a word to anybody.
    pub fn kill(&self) {
        run(as_server("pg_ctl", &self.home).args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.home.join("data")));
        if let Some(mut child) = self.process.lock().expect("no test panicked here").take() {
            // It is gone: that is what was wanted.
            let _ = child.wait();
        }
    }

    /// Kills the server and starts it again.
    pub fn restart(&self) {
        self.kill();
        self.launch();
    }

    /// Starts a server that was killed.
    pub fn revive(&self) {
        self.launch();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// Removes the folders of test programs that are gone.
fn remove_leftovers() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("keiko-postgres-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn count() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program of the server, run by a user that may: PostgreSQL refuses root.
fn as_server(name: &str, home: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig=QUIT", "--"]).arg(program(name));
    command.current_dir(home).env("LC_ALL", "C");
    command
}

fn program(name: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    folders.sort();
    folders.extend(std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default());
    let found = folders.into_iter().rev().map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("'{name}' is missing: apt-get install postgresql"))
}

fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
