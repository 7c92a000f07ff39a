//! One keep-alive connection to the server, with as little between the figures and the wire as possible.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, HeaderName, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// As whom a request is made.
#[derive(Clone)]
pub(crate) struct Credential(Option<(HeaderName, HeaderValue)>);

impl Credential {
    /// The header it is shown in.
    pub fn header(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.0.as_ref()
    }

    /// As nobody.
    pub fn none() -> Self {
        Credential(None)
    }

    /// With an access token.
    pub fn bearer(token: &str) -> anyhow::Result<Self> {
        Ok(Credential(Some((AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?))))
    }

    /// With an API key.
    pub fn key(key: &str) -> anyhow::Result<Self> {
        Ok(Credential(Some((HeaderName::from_static("x-api-key"), HeaderValue::from_str(key)?))))
    }
}

/// An answer, read to its end.
pub(crate) struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body, if the status is the wanted one.
    pub fn expect(self, status: u16) -> anyhow::Result<Bytes> {
        if self.status != status {
            bail!("answered {} instead of {status}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(self.body)
    }

    /// The body as JSON, if the status is the wanted one.
    pub fn whole(self, status: u16) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.expect(status)?)?)
    }

    /// `data` of the body, if the status is the wanted one.
    pub fn data(self, status: u16) -> anyhow::Result<Value> {
        let mut body: Value = serde_json::from_slice(&self.expect(status)?)?;
        Ok(body["data"].take())
    }
}

/// An answer to a browser, with where it leads and the cookie that it sets.
pub(crate) struct Page {
    /// Status and body.
    pub answer: Answer,
    /// Where it leads.
    pub location: Option<String>,
    /// The cookie that it sets, as it is sent back.
    pub cookie: Option<String>,
}

/// An HTTP/1.1 connection; requests go one after another.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("no connection to {address}"))?;
        stream.set_nodelay(true)?;
        Self::over(stream, address).await
    }

    /// Connects with TLS.
    pub async fn open_with_tls(address: SocketAddr, connector: &TlsConnector) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("no connection to {address}"))?;
        stream.set_nodelay(true)?;
        Self::over(connector.connect(ServerName::IpAddress(address.ip().into()), stream).await?, address).await
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        address: SocketAddr,
    ) -> anyhow::Result<Connection> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // What went wrong is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Connection { sender, host: HeaderValue::from_str(&address.to_string())? })
    }

    /// Reads.
    pub async fn get(&mut self, by: &Credential, path: &str) -> anyhow::Result<Answer> {
        let request = self.request(Method::GET, by, path, Bytes::new())?;
        self.answer(request).await
    }

    /// Creates or acts.
    pub async fn post(&mut self, by: &Credential, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let request = self.request(Method::POST, by, path, serde_json::to_vec(body)?.into())?;
        self.answer(request).await
    }

    /// Creates or acts under an `Idempotency-Key`.
    pub async fn post_once(&mut self, by: &Credential, path: &str, body: &Value, key: &str) -> anyhow::Result<Answer> {
        let mut request = self.request(Method::POST, by, path, serde_json::to_vec(body)?.into())?;
        request.headers_mut().insert("idempotency-key", HeaderValue::from_str(key)?);
        self.answer(request).await
    }

    /// Posts a body that is written already, with further headers.
    pub async fn post_with(
        &mut self,
        by: &Credential,
        path: &str,
        body: Bytes,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Answer> {
        let response = self.respond(Method::POST, by, path, body, headers).await?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: response.into_body().collect().await?.to_bytes() })
    }

    /// Asks with further headers, and does not read the answer.
    pub async fn respond(
        &mut self,
        method: Method,
        by: &Credential,
        path: &str,
        body: Bytes,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = self.request(method, by, path, body)?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value)?);
        }
        self.response(request).await
    }

    /// Reads an answer that does not end.
    pub async fn stream(mut self, by: &Credential, path: &str) -> anyhow::Result<Incoming> {
        let request = self.request(Method::GET, by, path, Bytes::new())?;
        let response = self.response(request).await?;
        anyhow::ensure!(response.status() == 200, "{path} answered {}", response.status());
        Ok(response.into_body())
    }

    /// Sends a form.
    pub async fn form(&mut self, path: &str, fields: &str, cookie: Option<&str>) -> anyhow::Result<Page> {
        let mut request = self.request(Method::POST, &Credential::none(), path, fields.to_owned().into())?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        self.page(request, cookie).await
    }

    /// Reads a page.
    pub async fn form_page(&mut self, path: &str, cookie: Option<&str>) -> anyhow::Result<Page> {
        let request = self.request(Method::GET, &Credential::none(), path, Bytes::new())?;
        self.page(request, cookie).await
    }

    async fn page(&mut self, mut request: Request<Full<Bytes>>, cookie: Option<&str>) -> anyhow::Result<Page> {
        if let Some(cookie) = cookie {
            request.headers_mut().insert(COOKIE, HeaderValue::from_str(cookie)?);
        }
        let response = self.response(request).await?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let cookie = text(SET_COOKIE).and_then(|cookie| cookie.split(';').next().map(str::to_owned));
        let (location, status) = (text(LOCATION), response.status().as_u16());
        Ok(Page { answer: Answer { status, body: response.into_body().collect().await?.to_bytes() }, location, cookie })
    }

    fn request(&self, method: Method, by: &Credential, path: &str, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.host.clone());
        if let Some((name, value)) = &by.0 {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        request.body(Full::new(body)).with_context(|| format!("no request: {path}"))
    }

    async fn response(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    async fn answer(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let response = self.response(request).await?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: response.into_body().collect().await?.to_bytes() })
    }
}

/// A text that every answer of its kind has.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("an answer has no text at {pointer}"))
}
