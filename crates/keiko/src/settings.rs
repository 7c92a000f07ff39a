//! Settings: one table, four layers. Flags win over the environment, that over files, those over defaults.
//!
//! `claim.ttl` in a file is `KEIKO_CLAIM_TTL` in the environment and `--claim-ttl` as a flag. Files are `base.yaml` and
//! `<environment>.yaml` of the folder in `KEIKO_CONFIG_DIR`; `${NAME}` in them is replaced from the environment.

mod mail;

use anyhow::{Context, bail};
use app::{Rate, VerifierKey};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::postgres::PostgresSettings;

/// One setting: name, default, help, and whether it is a secret.
pub struct Declared {
    /// `category.name`
    pub key: &'static str,
    /// When nothing is said; empty for none.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Never shown, never read from a file.
    pub is_secret: bool,
}

const fn declared(key: &'static str, default: &'static str, help: &'static str) -> Declared {
    Declared { key, default, help, is_secret: false }
}

const fn secret(key: &'static str, help: &'static str) -> Declared {
    Declared { key, default: "", help, is_secret: true }
}

/// Every setting.
pub const DECLARED: &[Declared] = &[
    declared("data.dir", "./.keiko", "Where everything is kept"),
    secret(
        "database.url",
        "PostgreSQL instead of the data directory: postgres://user:password@host:5432/database?sslmode=require",
    ),
    declared("database.connections_max", "16", "Connections to the database at most, of this process"),
    declared("database.tls_ca", "", "Certificate authorities of the database as a PEM file; the system's when nothing is said"),
    declared(
        "database.size_max",
        "",
        "Size of the database from which on writes are refused, such as 500GiB; none when nothing is said",
    ),
    declared("cluster.lease", "6s", "How long other replicas on the same database wait before they take over from this one"),
    declared(
        "keys.dir",
        "",
        "Where the key files are: the same on every replica; the folder 'keys' of data.dir when nothing is said",
    ),
    declared("server.listen", "127.0.0.1:8080", "Address and port to listen on"),
    declared(
        "server.public_url",
        "",
        "Address under which everybody knows this server, such as https://keiko.example.com; that of server.listen when nothing is said",
    ),
    declared("tls.cert", "", "Certificate of this server as a PEM file, its issuers behind it: HTTPS instead of HTTP"),
    declared("tls.key", "", "Private key of the certificate as a PEM file"),
    declared("tls.self_signed", "false", "HTTPS with a certificate that is made at the first start: for development"),
    declared(
        "security.profile",
        "auto",
        "development or production; auto: development when embedded, on a loopback address and not known by another",
    ),
    declared("password.chars_min", "8", "Characters that a password has at least, 8 to 128"),
    declared(
        "password.breached_file",
        "",
        "Passwords that nobody may have: sorted SHA-1 hashes (HASH:COUNT), or a plain list; none when nothing is said",
    ),
    declared("users.registration", "invited", "Who may make an account: closed, invited, or open to everybody with an address"),
    declared("users.registration_roles", "user", "Roles, apart by commas, of whoever made an account without being invited"),
    secret("mail.smtp_url", "Where mails go: smtps://user:password@host:465, or smtp://user:password@host:587 for STARTTLS"),
    declared("mail.from", "", "From whom mails are, such as Keiko <keiko@example.com>"),
    declared("mail.tls_ca", "", "Certificate authorities of the mail server as a PEM file; the system's when nothing is said"),
    declared(
        "mail.folder",
        "auto",
        "Folder that mails are put into when they are not sent; off for none; auto: 'mails' of data.dir in development",
    ),
    declared("limit.tenant", "auto", "Requests of a tenant, such as 5000/s; off for none; auto: 5000/s in production, else off"),
    declared("limit.read", "auto", "Reads of one caller (user, key or agent); auto: 500/s in production, else off"),
    declared("limit.write", "auto", "Changes by one caller; auto: 200/s in production, else off"),
    declared("limit.call", "auto", "Calls of tools by one caller; auto: 200/s in production, else off"),
    declared("limit.auth", "auto", "Logins and tokens from one address; auto: 20/s in production, else off"),
    declared(
        "limit.address",
        "auto",
        "Other requests from one address by nobody known, and bad credentials; auto: 100/s in production, else off",
    ),
    declared("limit.mail", "auto", "Mails that one address or one caller has sent; auto: 60/m in production, else off"),
    declared("mfa.required", "auto", "Whether administrators need a second factor; auto: in production"),
    declared("mfa.max_age", "15m", "How old the proof of a second factor may be that dangerous actions want"),
    declared("oauth.registration", "auto", "Whether OAuth clients may register themselves; auto: in development only"),
    declared("grpc.listen", "", "Address and port of the gRPC interface, such as 127.0.0.1:8090; none when nothing is said"),
    declared("server.body_max", "1MiB", "Largest request body"),
    declared("server.json_depth_max", "64", "Deepest JSON"),
    declared("server.shutdown_timeout", "10s", "How long running requests may take when the server stops"),
    declared("claim.ttl", "30s", "How long a claim holds without a heartbeat"),
    declared("agent.lease", "30s", "How long an agent counts as there without a call"),
    declared("retry.delay_base", "1s", "Delay of a task's first retry; doubled each time, at most 60s"),
    declared("token.ttl", "15m", "How long an access token is good"),
    declared("token.algorithm", "ES256", "What new keys sign tokens with: ES256 or Ed25519"),
    declared("token.key_lifetime", "720h", "How long a key signs tokens before another one takes over; at least 1h"),
    declared("session.ttl", "720h", "How long a login lasts"),
    declared("session.refresh_grace", "10s", "How long a used refresh token counts as an honest repetition"),
    declared("store.disk_free_min", "256MiB", "Free disk space below which writes are refused"),
    declared("gateway.allow_private", "false", "Whether MCP servers at private and link-local addresses may be reached"),
    declared("gateway.allow_spawn", "true", "Whether MCP servers may be started as processes"),
    declared("gateway.call_timeout", "60s", "How long a call of a tool may take at most"),
    declared("gateway.start_timeout", "30s", "How long an MCP server may take to start"),
    declared("gateway.message_max", "16MiB", "Largest message of an MCP server"),
    declared(
        "gateway.client_document",
        "",
        "Where Keiko's client metadata document lies for authorization servers of MCP servers; /oauth/client.json when empty",
    ),
    declared("gateway.process_memory", "4GiB", "Memory that each process of an MCP server may allocate; off for no limit"),
    declared("gateway.process_cpu", "off", "Processor time after which a process of an MCP server is ended; off for no limit"),
    declared("gateway.process_files", "1024", "Files that each process of an MCP server may have open"),
    declared("journal.tool_call_retention", "720h", "How long arguments and results of tool calls are kept"),
    declared("journal.security_retention", "61320h", "How long the content of security entries is kept"),
    declared(
        "audit.witnesses",
        "",
        "Public keys of witnesses (name+id+key, apart by commas) whose signatures on checkpoints are kept",
    ),
    declared("log.level", "info", "error, warn, info, debug or trace; also a filter such as app=debug"),
    declared("log.format", "auto", "text, json, or auto: text on a terminal"),
    secret("admin.password", "Password of 'admin' at the first start; random when nothing is said"),
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Environment(_) => f.write_str("environment"),
            Source::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Every value with its source, before it is understood.
#[derive(Clone, Debug)]
pub struct Layers(BTreeMap<&'static str, (String, Source)>);

/// The environment variable of a setting.
pub fn variable(key: &str) -> String {
    format!("KEIKO_{}", key.replace('.', "_").to_uppercase())
}

/// The flag of a setting, without the dashes. `server.listen` is simply `listen`.
pub fn flag(key: &str) -> String {
    if key == "server.listen" { "listen".to_owned() } else { key.replace(['.', '_'], "-") }
}

impl Layers {
    /// Puts the layers together. `flags` holds settings by key, `environment` is the process's.
    pub fn read(flags: &BTreeMap<String, String>, environment: &BTreeMap<String, String>) -> anyhow::Result<Layers> {
        let mut layers: BTreeMap<&'static str, (String, Source)> =
            DECLARED.iter().map(|d| (d.key, (d.default.to_owned(), Source::Default))).collect();
        if let Some(folder) = environment.get("KEIKO_CONFIG_DIR") {
            read_folder(Path::new(folder), environment, &mut layers)?;
        }
        for declared in DECLARED {
            let name = variable(declared.key);
            if let Some(value) = environment.get(&name) {
                layers.insert(declared.key, (value.clone(), Source::Environment(name)));
            }
            if let Some(value) = flags.get(declared.key) {
                layers.insert(declared.key, (value.clone(), Source::Flag(format!("--{}", flag(declared.key)))));
            }
        }
        Ok(Layers(layers))
    }

    /// Every value as it may be shown, with its source.
    pub fn shown(&self) -> Vec<(&'static str, String, String)> {
        let row = |d: &Declared| {
            let (value, source) = &self.0[d.key];
            let value = if d.is_secret && !value.is_empty() { "********".to_owned() } else { value.clone() };
            (d.key, value, source.to_string())
        };
        DECLARED.iter().map(row).collect()
    }

    fn parsed<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> anyhow::Result<T> {
        let value = &self.0[key].0;
        parse(value).map_err(|problem| anyhow::anyhow!("setting '{key}' ({}): '{value}' {problem}", self.place(key)))
    }

    /// Where the value of a setting comes from, in words.
    fn place(&self, key: &'static str) -> String {
        match &self.0[key].1 {
            Source::Environment(name) => format!("environment, {name}"),
            other => other.to_string(),
        }
    }
}

fn read_folder(
    folder: &Path,
    environment: &BTreeMap<String, String>,
    layers: &mut BTreeMap<&'static str, (String, Source)>,
) -> anyhow::Result<()> {
    if !folder.is_dir() {
        bail!("KEIKO_CONFIG_DIR: '{}' is no folder; make it, with a base.yaml, or unset the variable", folder.display());
    }
    let profile = environment.get("KEIKO_ENVIRONMENT").map(|name| format!("{name}.yaml"));
    for name in std::iter::once("base.yaml".to_owned()).chain(profile) {
        let path = folder.join(name);
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            read_file(&path, &text, environment, layers)?;
        }
    }
    Ok(())
}

fn read_file(
    path: &Path,
    text: &str,
    environment: &BTreeMap<String, String>,
    layers: &mut BTreeMap<&'static str, (String, Source)>,
) -> anyhow::Result<()> {
    let at = |key: &str| {
        // Good enough to find the line: the name as it stands in the file.
        let name = key.rsplit('.').next().unwrap_or(key);
        let line = text.lines().position(|line| line.trim_start().starts_with(name)).map_or(1, |n| n + 1);
        format!("{}:{line}", path.display())
    };
    let value: Value = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{}: is not YAML: {e}", path.display()))?;
    for (key, value) in flatten(&value) {
        let Some(declared) = DECLARED.iter().find(|d| d.key == key) else {
            bail!("{}: there is no setting '{key}'; 'keiko config show' lists all", at(&key));
        };
        if declared.is_secret {
            bail!("{}: '{key}' is a secret and is not read from files; set {} instead", at(&key), variable(&key));
        }
        let value = substituted(&value, environment).map_err(|problem| anyhow::anyhow!("{}: '{key}': {problem}", at(&key)))?;
        layers.insert(declared.key, (value, Source::File(path.to_owned())));
    }
    Ok(())
}

/// `{claim: {ttl: 30s}}` as `claim.ttl` and `30s`.
fn flatten(value: &Value) -> Vec<(String, String)> {
    let mut found = vec![];
    for (category, settings) in value.as_object().into_iter().flatten() {
        match settings {
            Value::Object(settings) => {
                found.extend(settings.iter().map(|(name, value)| (format!("{category}.{name}"), scalar(value))));
            }
            other => found.push((category.clone(), scalar(other))),
        }
    }
    found
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn substituted(text: &str, environment: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, tail) = after.split_once('}').ok_or("'${' without '}'")?;
        let value = environment.get(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
        out += before;
        out += value;
        rest = tail;
    }
    Ok(out + rest)
}

/// Settings, understood.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the key files are.
    pub keys_dir: PathBuf,
    /// The database, when it is not embedded.
    pub database: Option<PostgresSettings>,
    /// How long other replicas wait before they take over from this one.
    pub lease_ms: u64,
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long running requests may take when the server stops.
    pub shutdown_timeout: Duration,
    /// Free disk space below which writes are refused.
    pub disk_free_min_bytes: u64,
    /// Of the HTTP interface.
    pub http: edge::http::HttpSettings,
    /// Of the application.
    pub app: app::AppSettings,
    /// Where the gRPC interface listens.
    pub grpc_listen: Option<SocketAddr>,
    /// How connections are protected, if they are.
    pub tls: Option<Tls>,
    /// Of MCP servers.
    pub gateway: gateway::GatewaySettings,
    /// How mails go out, if they do.
    pub mail: Option<gateway::MailSettings>,
    /// Filter of log lines.
    pub log_level: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Password of the first administrator.
    pub admin_password: Option<Secret>,
    /// How strict the server is.
    pub profile: Profile,
}

/// How connections are protected.
#[derive(Clone, Debug)]
pub enum Tls {
    /// With this certificate.
    Files(edge::http::TlsFiles),
    /// With one that is made at the first start.
    SelfSigned,
}

/// How strict the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// On one's own machine.
    Development,
    /// For others.
    Production,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// Text on a terminal.
    Auto,
}

/// A value that debug output does not show.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("********")
    }
}

impl Settings {
    /// Understands the layers, or says which value is wrong, where it comes from and what would be right.
    pub fn from_layers(layers: &Layers) -> anyhow::Result<Settings> {
        let ms = |key| layers.parsed(key, duration_ms);
        let listen: SocketAddr =
            layers.parsed("server.listen", |v| v.parse().map_err(|_| "is no address such as 127.0.0.1:8080".to_owned()))?;
        let database = database(layers)?;
        let known_as = layers.parsed("server.public_url", public_url)?;
        let profile = layers.parsed("security.profile", |v| match v {
            "development" => Ok(Profile::Development),
            "production" => Ok(Profile::Production),
            "auto" if database.is_none() && listen.ip().is_loopback() && is_at_home(&known_as) => Ok(Profile::Development),
            "auto" => Ok(Profile::Production),
            _ => Err("is none of auto, development, production".to_owned()),
        })?;
        let data_dir = PathBuf::from(&layers.0["data.dir"].0);
        let mail = mail::mail(layers, &data_dir, database.is_none(), profile)?;
        let app = app_settings(layers, profile, &known_as, mail.is_some())?;
        let http = edge::http::HttpSettings {
            body_bytes_max: usize::try_from(layers.parsed("server.body_max", size_bytes)?)?,
            json_depth_max: layers.parsed("server.json_depth_max", whole)?,
            ..edge::http::HttpSettings::default()
        };
        let gateway = gateway::GatewaySettings {
            allow_private: layers.parsed("gateway.allow_private", yes_no)?,
            allow_spawn: layers.parsed("gateway.allow_spawn", yes_no)?,
            call_timeout: Duration::from_millis(ms("gateway.call_timeout")?),
            start_timeout: Duration::from_millis(ms("gateway.start_timeout")?),
            message_bytes_max: usize::try_from(layers.parsed("gateway.message_max", size_bytes)?)?,
            process: gateway::ProcessLimits {
                memory_bytes: layers.parsed("gateway.process_memory", or_off(size_bytes))?,
                cpu_s: layers.parsed("gateway.process_cpu", or_off(duration_ms))?.map(|ms| ms.div_ceil(1_000).max(1)),
                files: layers.parsed("gateway.process_files", whole)?.try_into()?,
            },
        };
        let password = layers.0["admin.password"].0.clone();
        let keys_dir = match layers.0["keys.dir"].0.as_str() {
            "" => data_dir.join("keys"),
            folder => PathBuf::from(folder),
        };
        Ok(Settings {
            data_dir,
            keys_dir,
            database,
            lease_ms: layers.parsed("cluster.lease", |v| {
                duration_ms(v).and_then(|ms| if ms >= 1_000 { Ok(ms) } else { Err("is less than 1s".to_owned()) })
            })?,
            listen,
            grpc_listen: layers.parsed("grpc.listen", |v| match v {
                "" => Ok(None),
                v => v.parse().map(Some).map_err(|_| "is no address such as 127.0.0.1:8090".to_owned()),
            })?,
            tls: tls(layers)?,
            shutdown_timeout: Duration::from_millis(ms("server.shutdown_timeout")?),
            disk_free_min_bytes: layers.parsed("store.disk_free_min", size_bytes)?,
            http,
            app,
            gateway,
            mail,
            log_level: layers.parsed("log.level", log_level)?,
            log_format: layers.parsed("log.format", |v| match v {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                "auto" => Ok(LogFormat::Auto),
                _ => Err("is none of text, json, auto".to_owned()),
            })?,
            admin_password: (!password.is_empty()).then_some(Secret(password)),
            profile,
        })
    }
}

/// Of the application.
fn app_settings(layers: &Layers, profile: Profile, public_url: &str, has_mail: bool) -> anyhow::Result<app::AppSettings> {
    let ms = |key| layers.parsed(key, duration_ms);
    Ok(app::AppSettings {
        claim_ttl_ms: ms("claim.ttl")?,
        agent_lease_ms: ms("agent.lease")?,
        retry_delay_base_ms: ms("retry.delay_base")?,
        access_token_ttl_ms: ms("token.ttl")?,
        session_ttl_ms: ms("session.ttl")?,
        tool_call_retention_ms: ms("journal.tool_call_retention")?,
        security_retention_ms: ms("journal.security_retention")?,
        public_url: public_url.to_owned(),
        token_algorithm: layers
            .parsed("token.algorithm", |v| app::Algorithm::parse(v).ok_or_else(|| "is none of ES256, Ed25519".to_owned()))?,
        signing_key_lifetime_ms: layers.parsed("token.key_lifetime", |v| {
            duration_ms(v).and_then(|ms| if ms >= 3_600_000 { Ok(ms) } else { Err("is less than 1h".to_owned()) })
        })?,
        refresh_grace_ms: ms("session.refresh_grace")?,
        client_registration: layers.parsed("oauth.registration", |v| match v {
            "auto" => Ok(profile == Profile::Development),
            v => yes_no(v).map_err(|_| "is none of auto, true, false".to_owned()),
        })?,
        breached: layers.parsed("password.breached_file", |v| match v {
            "" => Ok(None),
            v => app::Breached::open(Path::new(v)).map(|list| Some(Arc::new(list))),
        })?,
        password_chars_min: layers.parsed("password.chars_min", |v| match whole(v)? {
            n if (8..=128).contains(&n) => Ok(n),
            _ => Err("is not between 8 and 128".to_owned()),
        })?,
        registration: mail::registration(layers, has_mail)?,
        registration_roles: mail::registration_roles(layers)?,
        limits: limits(layers, profile)?,
        mfa_required: layers.parsed("mfa.required", |v| match v {
            "auto" => Ok(profile == Profile::Production),
            v => yes_no(v).map_err(|_| "is none of auto, true, false".to_owned()),
        })?,
        step_up_max_age_ms: ms("mfa.max_age")?,
        fetch_private: layers.parsed("gateway.allow_private", yes_no)?,
        client_document: layers.parsed("gateway.client_document", |v| match v {
            "" => Ok(None),
            v if v.starts_with("https://") => Ok(Some(v.to_owned())),
            _ => Err("must begin with https://".to_owned()),
        })?,
        witnesses: layers.parsed("audit.witnesses", |v| {
            let keys = v.split(',').map(str::trim).filter(|key| !key.is_empty());
            keys.map(|key| VerifierKey::parse(key).ok_or_else(|| "is no list of keys name+id+key".to_owned())).collect()
        })?,
    })
}

/// How connections are protected.
fn tls(layers: &Layers) -> anyhow::Result<Option<Tls>> {
    let (cert, key) = (layers.0["tls.cert"].0.clone(), layers.0["tls.key"].0.clone());
    match (cert.is_empty(), key.is_empty(), layers.parsed("tls.self_signed", yes_no)?) {
        (true, true, false) => Ok(None),
        (true, true, true) => Ok(Some(Tls::SelfSigned)),
        (false, false, false) => Ok(Some(Tls::Files(edge::http::TlsFiles { cert: cert.into(), key: key.into() }))),
        (false, false, true) => bail!("'tls.self_signed' and 'tls.cert' exclude each other; leave one of them out"),
        _ => bail!("'tls.cert' and 'tls.key' go together; set both or none"),
    }
}

/// How much everybody may ask for.
fn limits(layers: &Layers, profile: Profile) -> anyhow::Result<app::LimitSettings> {
    let rate = |key, usual: &str| {
        layers.parsed(key, |v| match (v, profile) {
            ("off", _) | ("auto", Profile::Development) => Ok(None),
            ("auto", Profile::Production) => Ok(Rate::parse(usual)),
            (v, _) => {
                Rate::parse(v).map(Some).ok_or_else(|| "is no rate such as 200/s, 600/m or 5000/h, nor off or auto".to_owned())
            }
        })
    };
    Ok(app::LimitSettings {
        tenant: rate("limit.tenant", "5000/s")?,
        read: rate("limit.read", "500/s")?,
        write: rate("limit.write", "200/s")?,
        call: rate("limit.call", "200/s")?,
        auth: rate("limit.auth", "20/s")?,
        address: rate("limit.address", "100/s")?,
        mail: rate("limit.mail", "60/m")?,
    })
}

/// Whether a server is for its own machine only: one that others know by a name of its own stands behind a proxy.
fn is_at_home(public_url: &str) -> bool {
    let host = url::Url::parse(public_url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.is_none_or(|host| matches!(host.as_str(), "127.0.0.1" | "[::1]" | "localhost"))
}

/// The address under which everybody knows the server; empty for that of the listener.
fn public_url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let wrong = || "is no address such as https://keiko.example.com, without a path behind it".to_owned();
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    is_plain.then(|| url.origin().ascii_serialization()).ok_or_else(wrong)
}

/// How the database is reached, if there is one.
fn database(layers: &Layers) -> anyhow::Result<Option<PostgresSettings>> {
    let connections_max = layers.parsed("database.connections_max", |v| match whole(v)? {
        n if (4..=1_000).contains(&n) => Ok(n),
        _ => Err("is not between 4 and 1000".to_owned()),
    })?;
    let size_max_bytes = layers.parsed("database.size_max", |v| if v.is_empty() { Ok(None) } else { size_bytes(v).map(Some) })?;
    let (url, tls_ca) = (layers.0["database.url"].0.clone(), &layers.0["database.tls_ca"].0);
    let tls_ca = (!tls_ca.is_empty()).then(|| PathBuf::from(tls_ca));
    Ok((!url.is_empty()).then_some(PostgresSettings { url, connections_max, tls_ca, size_max_bytes }))
}

/// `1500ms`, `30s`, `5m`, `12h` in milliseconds; at least 1 ms.
fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || "is no duration such as 500ms, 30s, 5m or 12h".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|ms| *ms > 0).ok_or_else(wrong)
}

/// `off`, or a value.
fn or_off<T>(read: fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| if text == "off" { Ok(None) } else { read(text).map(Some) }
}

/// `512`, `16KiB`, `1MiB`, `2GiB`, `1TiB` in bytes.
fn size_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "is no size such as 512, 16KiB, 1MiB or 2GiB".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A level, or a filter of `target=level` parts.
fn log_level(text: &str) -> Result<String, String> {
    let is_level = |level: &str| matches!(level, "error" | "warn" | "info" | "debug" | "trace" | "off");
    let is_part =
        |part: &str| part.split_once('=').map_or_else(|| is_level(part), |(target, level)| !target.is_empty() && is_level(level));
    match text.split(',').all(|part| is_part(part.trim())) {
        true => Ok(text.to_owned()),
        false => Err("is none of error, warn, info, debug, trace, and no filter such as info,app=debug".to_owned()),
    }
}

fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is none of true, false".to_owned()),
    }
}

fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "is no whole number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::TempDir::new().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_files() {
        let files = folder(&[
            ("base.yaml", "claim:\n  ttl: 1s\nagent:\n  lease: ${LEASE}\nlog:\n  level: warn\n"),
            ("prod.yaml", "claim:\n  ttl: 2s\n"),
        ]);
        let mut environment = map(&[("KEIKO_ENVIRONMENT", "prod"), ("LEASE", "7s"), ("KEIKO_LOG_LEVEL", "debug")]);
        environment.insert("KEIKO_CONFIG_DIR".into(), files.path().display().to_string());
        let layers = Layers::read(&map(&[("log.level", "trace")]), &environment).unwrap();
        let settings = Settings::from_layers(&layers).unwrap();
        assert_eq!(
            (settings.app.claim_ttl_ms, settings.app.agent_lease_ms, settings.log_level.as_str()),
            (2_000, 7_000, "trace")
        );
        let shown = layers.shown();
        let source = |key: &str| shown.iter().find(|(k, ..)| *k == key).unwrap().2.clone();
        assert!(source("claim.ttl").ends_with("prod.yaml"));
        assert_eq!(source("log.level"), "--log-level");
        assert_eq!(source("token.ttl"), "default");
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let read = |text: &str| {
            let files = folder(&[("base.yaml", text)]);
            let environment = map(&[("KEIKO_CONFIG_DIR", &files.path().display().to_string())]);
            Layers::read(&BTreeMap::new(), &environment).and_then(|l| Settings::from_layers(&l)).unwrap_err().to_string()
        };
        assert!(read("claim:\n  tttl: 1s\n").contains("base.yaml:2: there is no setting 'claim.tttl'"));
        assert!(read("claim:\n  ttl: soon\n").contains("'soon' is no duration"));
        assert!(read("claim:\n  ttl: ${NOBODY_SET_THIS}\n").contains("NOBODY_SET_THIS is not set"));
        assert!(read("admin:\n  password: hunter2\n").contains("set KEIKO_ADMIN_PASSWORD instead"));
        assert!(!read("admin:\n  password: hunter2\n").contains("hunter2"));
    }

    #[test]
    fn mail_goes_to_a_folder_at_home_and_to_a_server_elsewhere() {
        let read = |pairs: &[(&str, &str)]| Layers::read(&BTreeMap::new(), &map(pairs)).and_then(|l| Settings::from_layers(&l));
        let url = ("KEIKO_MAIL_SMTP_URL", "smtp://keiko:hunter22@mail.example.com:587");
        let from = ("KEIKO_MAIL_FROM", "Keiko <keiko@example.com>");
        let way = |pairs: &[(&str, &str)]| read(pairs).unwrap().mail.map(|mail| format!("{:?}", mail.way));
        assert_eq!(way(&[]).as_deref(), Some("Folder(./.keiko/mails)"));
        assert_eq!(way(&[("KEIKO_SECURITY_PROFILE", "production")]), None);
        assert_eq!(way(&[("KEIKO_MAIL_FOLDER", "off")]), None);
        assert_eq!(way(&[url, from]).as_deref(), Some("Smtp"));
        let problem = |pairs: &[(&str, &str)]| format!("{:#}", read(pairs).unwrap_err());
        assert!(problem(&[url]).contains("needs 'mail.from'"));
        let unknown = problem(&[("KEIKO_MAIL_SMTP_URL", "pop3://keiko:hunter22@mail.example.com"), from]);
        assert!(unknown.contains("KEIKO_MAIL_SMTP_URL") && !unknown.contains("hunter22"), "{unknown}");
        assert!(!format!("{:?}", read(&[url, from]).unwrap()).contains("hunter22"));
        let open = ("KEIKO_USERS_REGISTRATION", "open");
        assert!(problem(&[open, ("KEIKO_MAIL_FOLDER", "off")]).contains("no mail goes out"));
        assert!(problem(&[open, ("KEIKO_USERS_REGISTRATION_ROLES", "user, admin")]).contains("everybody an administrator"));
    }

    #[test]
    fn secrets_are_masked() {
        let layers = Layers::read(&BTreeMap::new(), &map(&[("KEIKO_ADMIN_PASSWORD", "hunter22")])).unwrap();
        assert!(!format!("{:?}", layers.shown()).contains("hunter22"));
        assert!(!format!("{:?}", Settings::from_layers(&layers).unwrap()).contains("hunter22"));
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration_ms("1500ms"), Ok(1_500));
        assert_eq!(duration_ms("2h"), Ok(7_200_000));
        assert_eq!(size_bytes("16MiB"), Ok(16 * 1024 * 1024));
        assert_eq!(size_bytes("512"), Ok(512));
        for bad in ["", "s", "5", "-1s", "0s", "99999999999999999999s", "5days", "1 s"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
        for bad in ["", "MiB", "1MB", "99999999TiB"] {
            assert!(size_bytes(bad).is_err(), "{bad}");
        }
    }
}
