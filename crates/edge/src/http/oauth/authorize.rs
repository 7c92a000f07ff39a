//! What people meet: signing in, allowing a client, entering a device's code.

use super::super::state::EdgeState;
use super::anonymous;
use super::form::{Fields, Form};
use super::pages::{Page, leads_to, message, scope_text};
use app::oauth::{Asked, Browser, Credentials, DeviceAnswer, Next, Refused, Request as AuthRequest, SignedIn};
use axum::extract::{FromRequest, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel::{Kind, Rejection};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(authorize, authorize_by_post)).routes(routes!(device, device_by_post))
}

/// The cookies of a browser: who is signed in, and what makes forms ours.
pub(super) struct Cookies {
    pub login: Option<String>,
    form: Option<String>,
    is_secure: bool,
    set: Vec<String>,
}

impl Cookies {
    pub fn of(state: &EdgeState, parts: &Parts) -> Self {
        let is_secure = state.app.issuer().starts_with("https://");
        let text = parts.headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        let pairs: Vec<(&str, &str)> =
            text.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('=')).collect();
        let get = |name: String| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Cookies { login: get(name(is_secure, "login")), form: get(name(is_secure, "form")), is_secure, set: vec![] }
    }

    fn put(&mut self, which: &str, value: &str, age: &str) {
        let secure = if self.is_secure { "; Secure" } else { "" };
        self.set.push(format!("{}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}", name(self.is_secure, which)));
    }

    fn sign_in(&mut self, cookie: &str) {
        self.put("login", cookie, "");
    }

    pub fn forget_login(&mut self) {
        self.put("login", "", "; Max-Age=0");
    }

    /// Whether a form was written by us for this browser.
    pub fn is_form_good(&self, state: &EdgeState, fields: &Fields) -> bool {
        match (&self.form, fields.get("csrf")) {
            (Some(cookie), Some(sent)) => state.app.form_secret(cookie) == sent,
            _ => false,
        }
    }

    /// A page whose form is ours.
    pub fn page(mut self, state: &EdgeState, status: StatusCode, page: Page) -> Response {
        let cookie = self.form.clone().unwrap_or_else(|| {
            let fresh = state.app.engine().env().id::<kernel::id::RequestTag>().to_string()
                + &app::fresh_secret(state.app.engine().env());
            self.put("form", &fresh, "");
            fresh
        });
        let page = page.hidden("csrf", &state.app.form_secret(&cookie));
        self.with(page.answer(status))
    }

    /// An answer with the cookies that changed.
    pub fn with(self, mut response: Response) -> Response {
        for cookie in self.set {
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().append(header::SET_COOKIE, value);
            }
        }
        response
    }
}

/// Over TLS a cookie that no other host and no plain connection can set.
fn name(is_secure: bool, which: &str) -> String {
    if is_secure { format!("__Host-keiko-{which}") } else { format!("keiko-{which}") }
}

/// On to another address, which is read with GET.
pub(super) fn redirect(uri: &str) -> Response {
    match HeaderValue::from_str(uri) {
        Ok(location) => {
            let headers = [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            (StatusCode::SEE_OTHER, headers).into_response()
        }
        Err(_) => message(StatusCode::BAD_REQUEST, "This did not work", "The address to go to cannot be written."),
    }
}

fn asked(fields: &Fields) -> Asked {
    let get = |name| fields.get(name);
    Asked {
        client_id: get("client_id"),
        redirect_uri: get("redirect_uri"),
        response_type: get("response_type"),
        response_mode: get("response_mode"),
        scope: get("scope"),
        state: get("state"),
        nonce: get("nonce"),
        code_challenge: get("code_challenge"),
        code_challenge_method: get("code_challenge_method"),
        resources: fields.all("resource"),
        prompt: get("prompt"),
        max_age: get("max_age"),
        has_request_object: get("request").is_some() || get("request_uri").is_some(),
        twice: fields.twice(),
    }
}

fn refused(state: &EdgeState, refused: Refused) -> Response {
    match refused {
        Refused::Page(text) => message(
            StatusCode::BAD_REQUEST,
            "This request cannot be served",
            &format!("{text} Go back to the application and start again; if it stays, tell those who run it."),
        ),
        Refused::Redirect { uri, state: text, error } => redirect(&state.app.refusal_uri(&uri, text.as_deref(), &error)),
    }
}

pub(super) async fn browser(state: &EdgeState, cookies: &Cookies) -> Option<Browser> {
    match &cookies.login {
        Some(cookie) => state.app.browser(cookie).await.ok().flatten(),
        None => None,
    }
}

pub(super) fn sign_in_page(state: &EdgeState, tenant: &str, username: &str, leads_to: &str, purpose: &str) -> Page {
    let mut page = Page::new("Sign in", leads_to);
    if state.app.has_mail() {
        page = page.link("/account/reset", "You do not know your password?");
        if state.app.registration() == app::Registration::Open {
            page = page.link("/account/register", "You have no account?");
        }
    }
    page.text(purpose)
        .hidden("step", "login")
        .field("tenant", "Tenant", "text", "organization", if tenant.is_empty() { "default" } else { tenant })
        .field("username", "User name", "text", "username", username)
        .field("password", "Password", "password", "current-password", "")
        .button("go", "login", "Sign in")
}

fn code_of_app_page(ticket: &str, leads_to: &str) -> Page {
    Page::new("One more step", leads_to)
        .text("Enter the code of your app, or one of your recovery codes.")
        .hidden("step", "mfa")
        .hidden("ticket", ticket)
        .field("code", "Code", "text", "one-time-code", "")
        .button("go", "mfa", "Continue")
}

fn consent_page(request: &AuthRequest, browser: &Browser, scopes: Option<&[String]>, is_local_only: bool) -> Page {
    let profile = &request.client.profile;
    let place = leads_to(&request.redirect_uri);
    let mut page = Page::new(&format!("Allow {}?", profile.name), &place)
        .text(&format!("You are signed in as {} ({}). This application asks to:", browser.name, browser.slug));
    page = match scopes {
        None => page.text("Do everything that you may do."),
        Some([]) => page.text("Nothing that you may do."),
        Some(scopes) => page.list(&scopes.iter().map(|scope| (scope_text(scope), scope.clone())).collect::<Vec<_>>()),
    };
    page = page.text(&format!("You will be sent to {place}."));
    if let Some(host) = &request.client.host {
        page = page.text(&format!("{host} vouches for this application."));
    }
    if is_local_only {
        page = page.warning("The application runs on this computer. Any program here could pretend to be it: go on only if you have just started it yourself.");
    }
    page.hidden("step", "consent").button("decision", "deny", "Deny").button("decision", "allow", "Allow")
}

/// Ask a person to sign in and to allow a client (a page)
#[utoipa::path(get, path = "/oauth/authorize", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn authorize(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    match state.app.asked(asked(&fields)).await {
        Ok(request) => shown(&state, &parts, &fields, &request).await,
        Err(error) => refused(&state, error),
    }
}

async fn shown(state: &EdgeState, parts: &Parts, fields: &Fields, request: &AuthRequest) -> Response {
    let cookies = Cookies::of(state, parts);
    let browser = browser(state, &cookies).await;
    match (state.app.next(request, browser.as_ref()).await, browser) {
        (Err(error), _) => refused(state, error),
        (Ok(Next::Ask { scopes, is_local_only }), Some(browser)) => {
            cookies.page(state, StatusCode::OK, consent_page(request, &browser, scopes.as_deref(), is_local_only))
        }
        (Ok(Next::Done), Some(browser)) => allowed(state, parts, request, &browser).await,
        (Ok(_), _) => {
            let hint = fields.get("login_hint").unwrap_or_default();
            let purpose = format!("to continue to {}", request.client.profile.name);
            cookies.page(state, StatusCode::OK, sign_in_page(state, "", &hint, &leads_to(&request.redirect_uri), &purpose))
        }
    }
}

async fn allowed(state: &EdgeState, parts: &Parts, request: &AuthRequest, browser: &Browser) -> Response {
    match state.app.allow(request, browser, anonymous(parts)).await {
        Ok(uri) => redirect(&uri),
        Err(error) => refused(state, error),
    }
}

fn old_form() -> Response {
    let text = "It was open for too long, or cookies are blocked. Go back and start again.";
    Page::new("This form is not good any more", "").text(text).link("/", "Sign in").answer(StatusCode::BAD_REQUEST)
}

/// A form that was written by us for the browser that sends it; any other is answered with a page.
pub(super) struct OwnForm {
    pub form: Form,
    pub cookies: Cookies,
}

impl FromRequest<Arc<EdgeState>> for OwnForm {
    type Rejection = Response;

    async fn from_request(request: Request, state: &Arc<EdgeState>) -> Result<Self, Response> {
        let form = Form::from_request(request, state).await?;
        let cookies = Cookies::of(state, &form.parts);
        if cookies.is_form_good(state, &form.fields) { Ok(OwnForm { form, cookies }) } else { Err(old_form()) }
    }
}

/// What is said when a login failed; anything else than wrong credentials is said as it is.
fn login_failed(rejection: &Rejection) -> (StatusCode, String) {
    match rejection.kind {
        Kind::Unauthenticated => (StatusCode::BAD_REQUEST, rejection.message.clone()),
        Kind::Limited => (StatusCode::TOO_MANY_REQUESTS, format!("{} {}", rejection.message, rejection.hint)),
        _ => (StatusCode::SERVICE_UNAVAILABLE, rejection.message.clone()),
    }
}

/// Signs in with what a form says: the cookie, or the page again.
pub(super) async fn signed_in(
    state: &EdgeState,
    form: &Form,
    cookies: &mut Cookies,
    leads: &str,
    purpose: &str,
) -> Result<(), (StatusCode, Page)> {
    let get = |name| form.fields.get(name).unwrap_or_default();
    let (tenant, username) = (get("tenant"), get("username"));
    let cookie = cookies.form.clone().unwrap_or_default();
    if get("step") == "mfa" {
        let ticket = get("ticket");
        return match state.app.sign_in_with_code(&ticket, &cookie, &get("code"), anonymous(&form.parts)).await {
            Ok(login) => {
                cookies.sign_in(&login);
                Ok(())
            }
            Err(rejection) => {
                let (status, text) = login_failed(&rejection);
                Err((status, code_of_app_page(&ticket, leads).warning(&format!("{text} {}", rejection.hint))))
            }
        };
    }
    let password = get("password");
    let credentials = Credentials { tenant: &tenant, username: &username, password: &password };
    match state.app.sign_in(credentials, &cookie, anonymous(&form.parts)).await {
        Ok(SignedIn::Cookie(login)) => {
            cookies.sign_in(&login);
            Ok(())
        }
        Ok(SignedIn::Ticket(ticket)) => Err((StatusCode::OK, code_of_app_page(&ticket, leads))),
        Err(rejection) => {
            let (status, text) = login_failed(&rejection);
            Err((status, sign_in_page(state, &tenant, &username, leads, purpose).warning(&text)))
        }
    }
}

/// Sign in, allow or deny (the forms)
#[utoipa::path(post, path = "/oauth/authorize", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn authorize_by_post(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    let query = Fields::parse(form.parts.uri.query().unwrap_or_default().as_bytes());
    let mut cookies = Cookies::of(&state, &form.parts);
    let Some(step) = form.fields.get("step") else {
        // OpenID Connect lets clients send the request itself as a form: from then on it stands in the address.
        return redirect(&format!("{}/oauth/authorize?{}", state.app.issuer(), form.fields.query_without(&[])));
    };
    let request = match state.app.asked(asked(&query)).await {
        Ok(request) => request,
        Err(error) => return refused(&state, error),
    };
    if !cookies.is_form_good(&state, &form.fields) {
        return old_form();
    }
    if step == "login" || step == "mfa" {
        let purpose = format!("to continue to {}", request.client.profile.name);
        return match signed_in(&state, &form, &mut cookies, &leads_to(&request.redirect_uri), &purpose).await {
            // Whoever has just signed in need not do so again.
            Ok(()) => cookies.with(redirect(&format!("/oauth/authorize?{}", again(&query)))),
            Err((status, page)) => cookies.page(&state, status, page),
        };
    }
    let Some(browser) = browser(&state, &cookies).await else { return shown(&state, &form.parts, &query, &request).await };
    match (state.app.next(&request, Some(&browser)).await, form.fields.get("decision").as_deref()) {
        (Err(error), _) => refused(&state, error),
        (Ok(Next::Ask { .. } | Next::Done), Some("allow")) => allowed(&state, &form.parts, &request, &browser).await,
        (Ok(Next::Ask { .. } | Next::Done), _) => refused(&state, request.denied()),
        (Ok(Next::SignIn), _) => shown(&state, &form.parts, &query, &request).await,
    }
}

/// The query string of a request after the person has signed in for it.
fn again(query: &Fields) -> String {
    let prompt = query.get("prompt").unwrap_or_default();
    let left: Vec<&str> = prompt.split(' ').filter(|word| !matches!(*word, "" | "login" | "select_account")).collect();
    let rest = query.query_without(&["prompt", "max_age"]);
    if left.is_empty() { rest } else { format!("{rest}&prompt={}", left.join("%20")) }
}

/// Enter the code that a device shows (a page)
#[utoipa::path(get, path = "/oauth/device", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn device(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let cookies = Cookies::of(&state, &parts);
    let Some(browser) = browser(&state, &cookies).await else {
        return cookies.page(&state, StatusCode::OK, sign_in_page(&state, "", "", "", "to connect a device"));
    };
    match fields.get("user_code") {
        Some(code) => device_shown(&state, cookies, &browser, &code).await,
        None => cookies.page(&state, StatusCode::OK, code_page("")),
    }
}

fn code_page(code: &str) -> Page {
    Page::new("Connect a device", "")
        .text("Enter the code that the device shows.")
        .hidden("step", "code")
        .field("user_code", "Code", "text", "one-time-code", code)
        .button("go", "code", "Continue")
}

async fn device_shown(state: &EdgeState, cookies: Cookies, browser: &Browser, code: &str) -> Response {
    match state.app.device_by_code(browser, code).await {
        Ok(device) => cookies.page(state, StatusCode::OK, device_page(browser, &device)),
        Err(rejection) => cookies.page(state, StatusCode::BAD_REQUEST, code_page(code).warning(&rejection.message)),
    }
}

fn device_page(browser: &Browser, device: &DeviceAnswer) -> Page {
    let items: Vec<(String, String)> = device.scopes.iter().flatten().map(|scope| (scope_text(scope), scope.clone())).collect();
    let mut page = Page::new(&format!("Connect {}?", device.client), "")
        .text(&format!("You are signed in as {} ({}). The device will be able to:", browser.name, browser.slug));
    page = if device.scopes.is_none() { page.text("Do everything that you may do.") } else { page.list(&items) };
    page.warning("Go on only if you have the device before you and it shows this code. Nobody from support will ever ask for it.")
        .code(&device.user_code)
        .hidden("step", "consent")
        .hidden("user_code", &device.user_code)
        .button("decision", "deny", "Deny")
        .button("decision", "allow", "Connect")
}

/// Sign in, enter a code, allow or deny (the forms)
#[utoipa::path(post, path = "/oauth/device", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn device_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, mut cookies }: OwnForm) -> Response {
    let code = form.fields.get("user_code").unwrap_or_default();
    let here = form.parts.uri.query().map_or_else(|| "/oauth/device".to_owned(), |query| format!("/oauth/device?{query}"));
    if matches!(form.fields.get("step").as_deref(), Some("login" | "mfa")) {
        return match signed_in(&state, &form, &mut cookies, "", "to connect a device").await {
            Ok(()) => cookies.with(redirect(&here)),
            Err((status, page)) => cookies.page(&state, status, page),
        };
    }
    let Some(browser) = browser(&state, &cookies).await else { return redirect(&here) };
    let decision = form.fields.get("decision");
    if form.fields.get("step").as_deref() != Some("consent") || decision.is_none() {
        return device_shown(&state, cookies, &browser, &code).await;
    }
    let is_allowed = decision.as_deref() == Some("allow");
    let answered = async {
        let device = state.app.device_by_code(&browser, &code).await?;
        state.app.answer_device(&browser, &device, is_allowed, anonymous(&form.parts)).await
    };
    match answered.await {
        Ok(()) if is_allowed => message(StatusCode::OK, "Connected", "The device is connected. You can close this page."),
        Ok(()) => message(StatusCode::OK, "Denied", "The device was not connected. You can close this page."),
        Err(rejection) => cookies.page(&state, StatusCode::BAD_REQUEST, code_page(&code).warning(&rejection.message)),
    }
}
