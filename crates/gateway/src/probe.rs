//! Looking at something outside: does it answer?
//!
//! Nothing is sent that changes anything, no credentials are shown, and private addresses are refused unless they are allowed:
//! also behind a name, each time that it is resolved.

use crate::target;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How something is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// A GET that answers 200 to 299.
    Http(String),
    /// A connection to host and port.
    Tcp(String),
    /// A Redis server.
    Redis(String),
    /// A PostgreSQL server.
    Postgres(String),
}

/// `SSLRequest` of PostgreSQL's protocol: its length and its number.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Looks once; why it does not answer, for people.
pub async fn look(look: &Look, allow_private: bool, timeout: Duration) -> Result<(), String> {
    let looked = async {
        match look {
            Look::Http(url) => http(url, allow_private).await,
            Look::Tcp(address) => connected(address, allow_private).await.map(|_| ()),
            Look::Redis(address) => redis(address, allow_private).await,
            Look::Postgres(address) => postgres(address, allow_private).await,
        }
    };
    tokio::time::timeout(timeout, looked).await.unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis())))
}

/// What is wrong with how something is to be looked at, as far as that can be told without doing it.
pub fn problem(look: &Look, allow_private: bool) -> Option<String> {
    match look {
        Look::Http(url) => match target::check(url, allow_private) {
            // It is shown to everybody who may see components.
            Ok(url) if url.query().is_some() => Some("must have no query: secrets do not belong into it".into()),
            checked => checked.err(),
        },
        Look::Tcp(address) | Look::Redis(address) | Look::Postgres(address) => {
            let has_port = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            let is_plain = address.len() <= 255 && !address.contains(['/', '@', ' ', '?', '#']);
            if !has_port || !is_plain {
                return Some("must be HOST:PORT".into());
            }
            target::check(&format!("http://{address}/"), allow_private).err()
        }
    }
}

/// One client for all looks: to make one is to read every certificate of the system.
fn client(allow_private: bool) -> Result<reqwest::Client, String> {
    static CLIENTS: [OnceLock<reqwest::Client>; 2] = [const { OnceLock::new() }; 2];
    let place = &CLIENTS[usize::from(allow_private)];
    if let Some(client) = place.get() {
        return Ok(client.clone());
    }
    // A connection that is kept would say nothing about whether one can be made.
    let built = target::client(allow_private).pool_max_idle_per_host(0).build();
    let built = built.map_err(|e| format!("no HTTP client could be made: {e}"))?;
    Ok(place.get_or_init(|| built).clone())
}

async fn http(url: &str, allow_private: bool) -> Result<(), String> {
    let url = target::check(url, allow_private)?;
    let answered = client(allow_private)?.get(url).send().await;
    let answered = answered.map_err(|e| if e.is_connect() { "no connection" } else { "no answer" })?;
    let status = answered.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answered HTTP {}", status.as_u16())) }
}

async fn connected(address: &str, allow_private: bool) -> Result<TcpStream, String> {
    // Whether a name is not known or leads to a private address is nobody's business.
    let found = target::resolve(address.to_owned(), allow_private).await;
    let found: Vec<SocketAddr> = found.map_err(|_| "its name leads nowhere that may be reached".to_owned())?;
    TcpStream::connect(found.as_slice()).await.map_err(|e| format!("no connection: {}", e.kind()))
}

async fn redis(address: &str, allow_private: bool) -> Result<(), String> {
    let mut stream = connected(address, allow_private).await?;
    stream.write_all(b"PING\r\n").await.map_err(|_| "the connection broke")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.map_err(|_| "the connection broke")?;
    match &answer {
        // One that wants a password first works.
        b"+PONG" | b"-NOAU" => Ok(()),
        _ => Err("it does not answer as Redis does".into()),
    }
}

async fn postgres(address: &str, allow_private: bool) -> Result<(), String> {
    let mut stream = connected(address, allow_private).await?;
    stream.write_all(&SSL_REQUEST).await.map_err(|_| "the connection broke")?;
    match stream.read_u8().await.map_err(|_| "the connection broke")? {
        b'S' | b'N' => Ok(()),
        _ => Err("it does not answer as PostgreSQL does".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_none_or_private_are_refused() {
        let problem = |address: &str, allow_private| problem(&Look::Tcp(address.into()), allow_private);
        for bad in ["", "db", "db:", ":5432", "db:99999", "http://db:1", "user@db:1", "127.0.0.1:80/x"] {
            assert!(problem(bad, true).is_some(), "{bad}");
        }
        assert_eq!(problem("db.example:5432", false), None);
        assert_eq!(problem("[2606:4700::1111]:80", false), None);
        for private in ["127.0.0.1:80", "localhost:80", "[::1]:80", "10.0.0.1:5432", "169.254.169.254:80"] {
            assert!(problem(private, false).is_some(), "{private}");
            assert_eq!(problem(private, true), None, "{private}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_refused_when_it_is_resolved() {
        let look = async |address: &str| look(&Look::Redis(address.into()), false, Duration::from_secs(20)).await.unwrap_err();
        let refused = look("localhost:1").await;
        assert!(refused.contains("may be reached"), "{refused}");
        assert_eq!(refused, look("no-such-name.invalid:1").await, "which of the two it is, is not told");
    }
}
