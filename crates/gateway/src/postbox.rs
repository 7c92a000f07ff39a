//! The way of mails: to an SMTP server, or into a folder where people and programs of this machine can read them.

use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Body, Mailbox};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use url::Url;

/// How long an SMTP server may take for a step of the conversation.
const STEP_TIME_MAX: Duration = Duration::from_secs(30);
/// How long handing over one mail may take altogether.
const MAIL_TIME_MAX: Duration = Duration::from_secs(120);
/// Mails that are handed over at a time.
const AT_A_TIME: usize = 4;
/// Longest line of a mail (RFC 5322, 2.1.1).
const LINE_BYTES_MAX: usize = 998;
/// Longest address (RFC 5321, 4.5.3.1.3, without the brackets).
const ADDRESS_CHARS_MAX: usize = 254;

/// How mails go out.
#[derive(Clone, Debug)]
pub struct MailSettings {
    /// From whom: an address, perhaps with a name.
    pub from: String,
    /// Which way.
    pub way: Way,
}

/// Which way mails go.
#[derive(Clone)]
pub enum Way {
    /// To an SMTP server.
    Smtp {
        /// `smtps://user:password@host:465`, or `smtp://…:587` for STARTTLS.
        url: String,
        /// Certificate authorities, PEM; the system's when nothing is said.
        authorities: Option<Vec<u8>>,
    },
    /// Each into a file of this folder.
    Folder(PathBuf),
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // The address may hold a password.
            Way::Smtp { .. } => f.write_str("Smtp"),
            Way::Folder(folder) => write!(f, "Folder({})", folder.display()),
        }
    }
}

/// A mail.
pub struct Letter {
    /// To which address.
    pub to: String,
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub text: String,
    /// The same for each try, so that a mail that was taken twice can be known.
    pub id: String,
}

/// Why a mail or notice was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// It never will be.
    #[error("{0}")]
    Permanent(String),
    /// It may be, later.
    #[error("{0}")]
    Transient(String),
}

/// Hands mails over.
pub struct Postbox {
    from: Mailbox,
    host: String,
    way: Opened,
    places: Semaphore,
}

enum Opened {
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
    Folder(PathBuf),
}

/// Whether a text is an address that mails can be sent to.
pub fn is_address(text: &str) -> bool {
    // Letters outside ASCII look like others, and few servers take them; domains have a form in ASCII.
    let is_written_well = text.is_ascii() && text.len() <= ADDRESS_CHARS_MAX && text.parse::<Address>().is_ok();
    is_written_well && text.rsplit_once('@').is_some_and(|(_, domain)| !domain.starts_with('['))
}

/// What is wrong with the address of an SMTP server; never repeats the address, which may hold a password.
pub fn smtp_problem(url: &str) -> Option<String> {
    Server::parse(url).err()
}

/// An SMTP server, from its address.
struct Server {
    host: String,
    port: u16,
    /// TLS from the first byte; otherwise after STARTTLS.
    is_implicit: bool,
    /// No TLS: only without credentials.
    is_plain: bool,
    credentials: Option<(String, String)>,
}

impl Server {
    fn parse(text: &str) -> Result<Server, String> {
        const FORM: &str = "must look like smtps://user:password@host:465, or smtp://user:password@host:587 for STARTTLS";
        let url = Url::parse(text).map_err(|_| FORM.to_owned())?;
        let is_implicit = match url.scheme() {
            "smtps" => true,
            "smtp" => false,
            _ => return Err(FORM.to_owned()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| FORM.to_owned())?.to_owned();
        let is_plain = match url.query() {
            None => false,
            Some("tls=none") if !is_implicit => true,
            Some(_) => return Err("knows no parameter but tls=none, for smtp://".to_owned()),
        };
        let decoded = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            decoded.map(String::from).map_err(|_| "has a user or password that is not UTF-8".to_owned())
        };
        let credentials = match (url.username(), url.password()) {
            ("", _) => None,
            (user, password) => Some((decoded(user)?, decoded(password.unwrap_or_default())?)),
        };
        if is_plain && credentials.is_some() {
            return Err("would send a password without TLS; leave tls=none or the password out".to_owned());
        }
        let port = url.port().unwrap_or(if is_implicit { 465 } else { 587 });
        Ok(Server { host, port, is_implicit, is_plain, credentials })
    }
}

impl Postbox {
    /// Gets ready; nothing is connected to yet.
    pub fn new(settings: &MailSettings) -> Result<Postbox, String> {
        let from: Mailbox = settings.from.parse().map_err(|_| "mail.from is no address such as Keiko <keiko@example.com>")?;
        let way = match &settings.way {
            Way::Smtp { url, authorities } => Opened::Smtp(Box::new(transport(url, authorities.as_deref())?)),
            Way::Folder(folder) => Opened::Folder(folder.clone()),
        };
        let host = from.email.domain().to_owned();
        Ok(Postbox { from, host, way, places: Semaphore::new(AT_A_TIME) })
    }

    /// Where mails lie, if they are not sent.
    pub fn folder(&self) -> Option<&Path> {
        match &self.way {
            Opened::Folder(folder) => Some(folder),
            Opened::Smtp(_) => None,
        }
    }

    /// Hands a mail over. Trying again what was handed over before may deliver it twice, under the same Message-ID.
    pub async fn hand_over(&self, letter: &Letter) -> Result<(), PostError> {
        let written = self.written(letter).map_err(PostError::Permanent)?;
        match &self.way {
            Opened::Folder(folder) => {
                put(folder, &letter.id, &written.formatted()).map_err(|e| PostError::Transient(e.to_string()))
            }
            Opened::Smtp(transport) => {
                let closed = |_| PostError::Transient("the server stops".into());
                let _place = self.places.acquire().await.map_err(closed)?;
                match tokio::time::timeout(MAIL_TIME_MAX, transport.send(written)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(of_smtp(&error)),
                    Err(_) => Err(PostError::Transient("the mail server took too long".into())),
                }
            }
        }
    }

    fn written(&self, letter: &Letter) -> Result<Message, String> {
        let to: Address = letter.to.parse().map_err(|_| "the address is none")?;
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(&letter.subject)
            .message_id(Some(format!("<{}@{}>", letter.id, self.host)))
            // Nobody answers a machine's mail with another machine's (RFC 3834).
            .header(AutoSubmitted)
            .header(ContentType::TEXT_PLAIN)
            .body(body(&letter.text))
            .map_err(|e| e.to_string())
    }
}

/// Plain where it can be, so that a link stays in one piece for whoever reads the mail as it is.
fn body(text: &str) -> Body {
    let is_plain = text.is_ascii() && !text.contains('\r') && text.lines().all(|line| line.len() <= LINE_BYTES_MAX);
    match is_plain {
        true => Body::dangerous_pre_encoded(text.replace('\n', "\r\n").into_bytes(), ContentTransferEncoding::SevenBit),
        false => Body::new(text.to_owned()),
    }
}

/// `Auto-Submitted: auto-generated`
#[derive(Clone)]
struct AutoSubmitted;

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

fn transport(url: &str, authorities: Option<&[u8]>) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let server = Server::parse(url).map_err(|problem| format!("mail.smtp_url {problem}"))?;
    let mut tls = TlsParameters::builder(server.host.clone());
    if let Some(pem) = authorities {
        let certificate = Certificate::from_pem(pem).map_err(|_| "mail.tls_ca is no certificate in a PEM file")?;
        tls = tls.add_root_certificate(certificate);
    }
    let tls = tls.build().map_err(|e| format!("TLS to the mail server: {e}"))?;
    let tls = match (server.is_plain, server.is_implicit) {
        (true, _) => Tls::None,
        (_, true) => Tls::Wrapper(tls),
        _ => Tls::Required(tls),
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&server.host)
        .port(server.port)
        .tls(tls)
        .timeout(Some(STEP_TIME_MAX));
    if let Some((user, password)) = server.credentials {
        builder = builder.credentials(Credentials::new(user, password));
    }
    Ok(builder.build())
}

/// What a server says often names the address: only its codes are told. A refusal for ever is one by the server about this mail; wrong credentials and the like are for whoever runs Keiko to repair.
fn of_smtp(error: &SmtpError) -> PostError {
    let said: String = error.to_string().chars().filter(|c| !c.is_control()).take(300).collect();
    let text = match error.status() {
        Some(code) => [Some(format!("the mail server answered {code}")), enhanced(&said)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        None => said,
    };
    let is_about_mail = error.status().is_some_and(|code| !matches!(u16::from(code), 530 | 534 | 535 | 538));
    if error.is_permanent() && is_about_mail { PostError::Permanent(text) } else { PostError::Transient(text) }
}

/// The enhanced status code of an answer, such as `5.1.1` (RFC 3463).
fn enhanced(said: &str) -> Option<String> {
    let is_one = |word: &&str| {
        let parts: Vec<&str> = word.split('.').collect();
        let is_number = |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        parts.len() == 3 && parts.iter().all(is_number) && matches!(parts[0], "4" | "5")
    };
    said.split_whitespace().find(is_one).map(str::to_owned)
}

/// Each mail is a file that is whole from the moment it has its name.
fn put(folder: &Path, id: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let unfinished = folder.join(format!(".{id}.tmp"));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    std::fs::rename(&unfinished, folder.join(format!("{id}.eml")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_server_says_how_it_is_reached() {
        let server = Server::parse("smtps://ada%40example.com:p%2Fw@mail.example.com").unwrap();
        assert_eq!((server.host.as_str(), server.port, server.is_implicit), ("mail.example.com", 465, true));
        assert_eq!(server.credentials, Some(("ada@example.com".into(), "p/w".into())));
        let server = Server::parse("smtp://mail.example.com").unwrap();
        assert_eq!((server.port, server.is_implicit, server.is_plain), (587, false, false));
        assert!(Server::parse("smtp://localhost:2525?tls=none").unwrap().is_plain);
        for bad in ["", "mail.example.com", "https://x", "smtp://", "smtps://x?tls=none", "smtp://u:p@x?tls=none", "smtp://x?a=b"]
        {
            assert!(smtp_problem(bad).is_some(), "{bad}");
        }
        assert!(!smtp_problem("smtp://u:hunter2@x?tls=none").unwrap().contains("hunter2"));
    }

    #[test]
    fn an_address_is_one_address() {
        for good in ["ada@example.com", "a.b+c@mail.example.com", "ada@localhost"] {
            assert!(is_address(good), "{good}");
        }
        let long = format!("{}@example.com", "x".repeat(250));
        for bad in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a b@example.com",
            "a@b@c",
            "ada@example.com\r\nBcc: x@y.z",
            "a@x, b@y",
            "ada@[127.0.0.1]",
            "ada@\u{212a}eiko.example",
            &long,
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn of_what_a_server_says_only_codes_are_told() {
        assert_eq!(enhanced("permanent error (550): 5.1.1 <ada@example.com>: unknown"), Some("5.1.1".into()));
        assert_eq!(enhanced("permanent error (550): no such user 127.0.0.1 1.2.3"), None);
    }

    #[test]
    fn what_a_mail_says_cannot_become_a_header() {
        let settings = MailSettings { from: "Keiko <keiko@example.com>".into(), way: Way::Folder("unused".into()) };
        let postbox = Postbox::new(&settings).unwrap();
        let letter = Letter {
            to: "ada@example.com".into(),
            subject: "Hello\r\nBcc: eve@example.com".into(),
            text: "Text\r\n.\r\nRCPT TO:<eve@example.com>".into(),
            id: "mail_1".into(),
        };
        let text = String::from_utf8(postbox.written(&letter).unwrap().formatted()).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.lines().any(|line| line.to_ascii_lowercase().starts_with("bcc:")), "{head}");
        assert!(head.contains("Message-ID: <mail_1@example.com>") && head.contains("Auto-Submitted: auto-generated"), "{head}");
    }

    #[test]
    fn a_link_stays_in_one_piece() {
        let settings = MailSettings { from: "keiko@example.com".into(), way: Way::Folder("unused".into()) };
        let link = format!("https://keiko.example.com/account/join?token={}", "x".repeat(100));
        let written = |text: String| {
            let letter = Letter { to: "ada@example.com".into(), subject: "Hello".into(), text, id: "mail_1".into() };
            String::from_utf8(Postbox::new(&settings).unwrap().written(&letter).unwrap().formatted()).unwrap()
        };
        assert!(written(format!("Here:\n\n{link}\n")).contains(&format!("\r\n\r\n{link}\r\n")));
        let coded = written(format!("Für Ada: {link}"));
        assert!(coded.contains("quoted-printable") && coded.is_ascii());
    }
}
