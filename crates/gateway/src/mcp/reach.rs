//! A server's URL with what is sent along to it, and how a request gets there: with the token of whoever it is for, and once more
//! with another one where that was not enough.

use super::rpc::WireError;
use crate::access::{Access, Holder, Token};
use crate::oauth::Challenge;
use crate::target;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use url::Url;

/// What reaches a URL with its secrets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reach {
    client: Client,
    pub url: Url,
    pub bytes_max: usize,
    fixed: HeaderMap,
    access: Option<Access>,
    holder: Holder,
}

/// What was answered, and the token that was shown for it.
pub(crate) struct Reached {
    pub response: Response,
    pub shown: Option<Token>,
}

/// Why nothing was answered.
pub(crate) enum Unreached {
    /// It could not be sent, or the connection broke.
    Http(reqwest::Error),
    /// There is nothing to be let in with.
    Locked(String),
}

impl Reach {
    /// Checks the target; nothing is sent yet.
    pub fn new(
        kept: &target::Kept,
        url: &str,
        headers: &[(String, String)],
        allow_private: bool,
        bytes_max: usize,
    ) -> Result<Self, String> {
        let url = target::check(url, allow_private).map_err(|problem| format!("the URL {problem}"))?;
        let mut fixed = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().map_err(|_| format!("'{name}' is no header name"))?;
            let mut value: HeaderValue = value.parse().map_err(|_| format!("the value of header '{name}' cannot be sent"))?;
            value.set_sensitive(true);
            fixed.append(name, value);
        }
        let client = kept.client(allow_private)?;
        Ok(Reach { client, url, bytes_max, fixed, access: None, holder: Holder::Everybody })
    }

    /// With tokens, of one holder where a request does not say another.
    pub fn with(self, access: Option<Access>, holder: Holder) -> Self {
        Reach { access, holder, ..self }
    }

    /// A request to the server's own address.
    pub fn request(&self, method: Method) -> RequestBuilder {
        self.request_to(method, self.url.clone())
    }

    /// A request to another address of the server.
    pub fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        if self.fixed.is_empty() { request } else { request.headers(self.fixed.clone()) }
    }

    /// Sends a request for a holder, the connection's own when there is none.
    pub async fn send(&self, request: RequestBuilder, holder: Option<&Holder>) -> Result<Reached, Unreached> {
        let holder = holder.unwrap_or(&self.holder);
        let Some(access) = &self.access else {
            return request.send().await.map(|response| Reached { response, shown: None }).map_err(Unreached::Http);
        };
        let shown = access.token(holder).await.map_err(Unreached::Locked)?;
        let again = request.try_clone();
        let response = showing(request, shown.as_ref()).send().await.map_err(Unreached::Http)?;
        let (Some(challenge), Some(again)) = (refused(&response), again) else { return Ok(Reached { response, shown }) };
        // It let nobody in, so it did nothing: the request can be made again.
        match access.instead(holder, shown.as_ref(), &challenge).await.map_err(Unreached::Locked)? {
            None => Ok(Reached { response, shown }),
            other => {
                let response = showing(again, other.as_ref()).send().await.map_err(Unreached::Http)?;
                Ok(Reached { response, shown: other })
            }
        }
    }
}

fn showing(request: RequestBuilder, token: Option<&Token>) -> RequestBuilder {
    let value = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {}", token.reveal())).ok());
    match value {
        Some(mut value) => {
            value.set_sensitive(true);
            // In place of a header that was given for everybody.
            request.headers(HeaderMap::from_iter([(AUTHORIZATION, value)]))
        }
        None => request,
    }
}

/// What a server says that lets nobody in: for want of a token, of a good one, or of one that allows more.
pub(crate) fn refused(response: &Response) -> Option<Challenge> {
    let challenge = Challenge::of(response.headers());
    match response.status() {
        StatusCode::UNAUTHORIZED => Some(challenge.unwrap_or_default()),
        StatusCode::FORBIDDEN => challenge.filter(Challenge::wants_more),
        _ => None,
    }
}

/// In words, for people.
pub(crate) fn locked(challenge: &Challenge, shown: bool) -> String {
    match (challenge.wants_more(), shown) {
        (true, _) if challenge.scopes.is_empty() => "it wants more rights than its credential has".into(),
        (true, _) => format!("it wants the rights '{}' beside those that its credential has", challenge.scopes.join(" ")),
        (false, true) => "it does not accept its credential any more: connect it again".into(),
        (false, false) => "it wants to know who asks: connect it to an account there".into(),
    }
}

impl WireError {
    /// Without the token that was shown, which a server may have repeated.
    pub(crate) fn without(self, shown: Option<&Token>) -> Self {
        let Some(token) = shown.map(Token::reveal).filter(|token| token.len() >= 4) else { return self };
        let clean = |text: String| text.replace(token, "********");
        match self {
            WireError::Over(reason) => WireError::Over(clean(reason)),
            WireError::Broken(reason) => WireError::Broken(clean(reason)),
            WireError::Unusable(reason) => WireError::Unusable(clean(reason)),
            WireError::Rpc(mut error) => {
                error.message = clean(error.message);
                if !error.data.is_null() {
                    error.data = serde_json::from_str(&clean(error.data.to_string())).unwrap_or_default();
                }
                WireError::Rpc(error)
            }
            other => other,
        }
    }
}
