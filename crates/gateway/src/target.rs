//! Which addresses an upstream may have: everything public; private ones only where the operator allows them.
//!
//! A name is checked each time it is resolved, at the connection that uses the answer, so that a name which changes its
//! address in between (DNS rebinding) gains nothing. Redirects are not followed.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use url::{Host, Url};

/// Checks what can be told from a URL alone.
pub fn check(url: &str, allow_private: bool) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|e| format!("is no URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password; use headers".into());
    }
    let address = match url.host() {
        None => return Err("has no host".into()),
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(name)) => is_local_name(name).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    match address {
        Some(address) if !allow_private && is_private(address) => Err(refusal(url.host_str().unwrap_or_default())),
        _ => Ok(url),
    }
}

/// A client for addresses of others: it follows no redirect, uses no proxy, and resolves no name to a private address unless that
/// is allowed.
pub(crate) fn client(allow_private: bool) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent(concat!("keiko/", env!("CARGO_PKG_VERSION")));
    builder.dns_resolver(Arc::new(Checked { allow_private }))
}

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The one client of an MCP server, made when it is wanted: its connections are kept for the next request, and end with it.
#[derive(Default)]
pub(crate) struct Kept(OnceLock<reqwest::Client>);

impl Kept {
    pub fn client(&self, allow_private: bool) -> Result<reqwest::Client, String> {
        if let Some(kept) = self.0.get() {
            return Ok(kept.clone());
        }
        let made = client(allow_private).connect_timeout(CONNECT_TIMEOUT).build();
        let made = made.map_err(|e| format!("no HTTP client could be made: {e}"))?;
        Ok(self.0.get_or_init(|| made).clone())
    }
}

fn refusal(host: &str) -> String {
    format!("'{host}' is a private address; set gateway.allow_private to reach it")
}

fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Names that are looked up at the same time, whoever wants it: each takes a thread for as long as its name servers are silent.
static LOOKUPS: Semaphore = Semaphore::const_new(32);

/// The addresses of `HOST:PORT`, if none of them is refused. Whoever stops waiting leaves the lookup its place until it ends.
pub(crate) async fn resolve(address: String, allow_private: bool) -> Result<Vec<SocketAddr>, String> {
    let looking = tokio::spawn(async move {
        let _place = LOOKUPS.acquire().await;
        let found: Vec<SocketAddr> = tokio::net::lookup_host(&address).await.map_err(|e| e.to_string())?.collect();
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        all_allowed(&found, host, allow_private).map(|()| found)
    });
    looking.await.unwrap_or_else(|_| Err("the lookup ended".into()))
}

/// Resolves names with the system's resolver, and answers nothing private unless that is allowed.
pub(crate) struct Checked {
    pub allow_private: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = resolve(format!("{}:0", name.as_str()), allow_private).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Refuses what a name was resolved to when any of it is private.
fn all_allowed(found: &[SocketAddr], host: &str, allow_private: bool) -> Result<(), String> {
    if !allow_private && found.iter().any(|address| is_private(address.ip())) { Err(refusal(host)) } else { Ok(()) }
}

/// Whether an address is not one of the public internet.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space, protocol assignments, relay anycast, benchmarking.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    if let Some(inside) = inside_v6(address) {
        return is_private_v4(inside);
    }
    let first = address.segments()[0];
    // Only 2000::/3 is public; of it not: documentation, Teredo, ORCHID and benchmarking (2001:0000::/23), 2001:db8::/32.
    (first & 0xe000) != 0x2000
        || (first == 0x2001 && (address.segments()[1] & 0xfe00) == 0)
        || (first == 0x2001 && address.segments()[1] == 0x0db8)
        || first == 0x3fff
}

/// The IPv4 address that an IPv6 address stands for: mapped, NAT64, 6to4.
fn inside_v6(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_targets_are_refused_in_every_spelling() {
        for bad in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0/",
            "http://10.1.2.3:8080/mcp",
            "http://169.254.169.254/latest/meta-data",
            "http://192.168.0.1/",
            "http://100.64.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
        ] {
            assert!(check(bad, false).is_err(), "{bad}");
            assert!(check(bad, true).is_ok(), "{bad}");
        }
    }

    #[test]
    fn public_targets_pass_and_odd_urls_do_not() {
        for good in ["https://tools.example/mcp", "http://8.8.8.8/", "https://[2606:4700::1111]/"] {
            assert!(check(good, false).is_ok(), "{good}");
        }
        for bad in ["file:///etc/passwd", "ftp://tools.example/", "https://user:pw@tools.example/", "tools.example", ""] {
            assert!(check(bad, true).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_refused() {
        let name = || "localhost".parse::<Name>().unwrap();
        assert!(Checked { allow_private: false }.resolve(name()).await.is_err());
        assert!(Checked { allow_private: true }.resolve(name()).await.is_ok());
    }
}
