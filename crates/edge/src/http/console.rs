//! The console: built files inside the binary, compressed beforehand, under a policy that lets nothing else in.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use rust_embed::{Embed, EmbeddedFile};

#[derive(Embed)]
#[folder = "../../console/dist"]
#[allow_missing = true]
struct Files;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const MISSING: &str = "<!doctype html><meta charset=utf-8><title>Keiko</title><p>This binary was built without its console. \
    Build it with Node 20: <code>make run</code>. The API is there: <a href=/docs>/docs</a>.</p>";

/// The file at a path of the console; `None` when the path is none of its own.
pub(super) fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    if method != Method::GET && method != Method::HEAD {
        return None;
    }
    let name = match path {
        "/" => "index.html",
        other => other.strip_prefix('/').filter(|name| name.starts_with("assets/"))?,
    };
    if name == "index.html" && Files::get(name).is_none() {
        return Some(response(StatusCode::NOT_FOUND, "text/html; charset=utf-8", MISSING.as_bytes().to_vec()));
    }
    let whole = Files::get(name)?;
    let (file, encoding) = compressed(name, headers).map_or((whole, None), |(file, encoding)| (file, Some(encoding)));
    let mut answer = response(StatusCode::OK, kind(name), file.data.into_owned());
    let set = answer.headers_mut();
    if let Some(encoding) = encoding {
        set.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    set.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // Names of assets hold a hash of their content.
    let cache = if name == "index.html" { "no-cache" } else { "public, max-age=31536000, immutable" };
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    Some(answer)
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let set = answer.headers_mut();
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    set.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    set.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// The best form that the client takes.
fn compressed(name: &str, headers: &HeaderMap) -> Option<(EmbeddedFile, &'static str)> {
    let takes = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let takes = |encoding: &str| takes.split(',').any(|part| part.split(';').next().is_some_and(|e| e.trim() == encoding));
    let forms = [("br", "br"), ("gz", "gzip")];
    forms
        .into_iter()
        .filter(|(_, encoding)| takes(encoding))
        .find_map(|(end, encoding)| Some((Files::get(&format!("{name}.{end}"))?, encoding)))
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
