//! `/api/v1/mcp-servers`: servers whose tools can be called.

use super::auth::Empty;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::{App, NewClient, NewOauth, NewServer, NewTransport};
use axum::extract::State;
use axum::http::StatusCode;
use domain::mcp_server::{CircuitOpened, ClientAuth, GivenClient, Grant, McpServer, Oauth, Part, Per, ServerStatus, Transport};
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete)).routes(routes!(restart))
}

/// How a server is reached. Values of `env` and `headers` are never shown again; `null` keeps the value that is known, while the URL stays
/// the same and no other is added.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum NewTransportBody {
    /// A process of its own. It needs the permission `mcp-servers.spawn`.
    Stdio {
        /// The program, found in the server's PATH or an absolute path.
        #[schema(min_length = 1, max_length = 1024)]
        command: String,
        /// Its arguments.
        #[serde(default)]
        #[schema(max_items = 256)]
        args: Vec<String>,
        /// Its environment, beside PATH, HOME, LANG, LC_ALL, TZ and TMPDIR.
        #[serde(default)]
        env: BTreeMap<String, Option<String>>,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        #[schema(min_length = 1, max_length = 2048)]
        url: String,
        /// Where else the same server is: calls are shared out, and an address that fails is left alone. Not with `oauth`, for a token is
        /// for one address.
        #[serde(default)]
        #[schema(max_items = 15)]
        other_urls: Vec<String>,
        /// Sent along with every request.
        #[serde(default)]
        headers: BTreeMap<String, Option<String>>,
        /// How Keiko gets tokens for it. Left out: a person who may change servers connects it, once for everybody.
        oauth: Option<NewOauthBody>,
    },
}

/// How Keiko gets tokens for a server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOauthBody {
    /// Whose account there calls use: one for everybody, or that of the person who calls or for whom is called.
    #[serde(default)]
    per: PerBody,
    /// How a token is got: a person allows it in a browser, or Keiko gets it for itself.
    #[serde(default)]
    grant: GrantBody,
    /// What is asked for, in place of what the server names.
    #[serde(default)]
    #[schema(max_items = 50)]
    scopes: Vec<String>,
    /// What Keiko is to the authorization server, where somebody registered it there by hand.
    client: Option<NewClientBody>,
}

/// Whose account there calls use.
#[derive(Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PerBody {
    /// One for everybody.
    #[default]
    Server,
    /// That of the person who calls, or for whom is called.
    User,
}

/// How a token is got.
#[derive(Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrantBody {
    /// A person allows it in a browser.
    #[default]
    AuthorizationCode,
    /// Keiko gets it for itself.
    ClientCredentials,
}

/// A client that somebody registered by hand.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewClientBody {
    /// Its id there.
    #[schema(min_length = 1, max_length = 2048)]
    id: String,
    /// The authorization server that knows it; the first that the server names when left out.
    #[schema(max_length = 2048)]
    issuer: Option<String>,
    /// How it shows who it is.
    authentication: NewAuthenticationBody,
}

/// How a client shows who it is. `null` keeps the value that is known.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum NewAuthenticationBody {
    /// By its id alone.
    None {},
    /// By a secret.
    Secret {
        /// The secret, never shown again.
        #[schema(max_length = 4096)]
        secret: Option<String>,
    },
    /// By what it signs (`private_key_jwt`).
    PrivateKey {
        /// A P-256 or Ed25519 key, PKCS#8 in PEM, never shown again.
        #[schema(max_length = 4096)]
        private_key: Option<String>,
    },
}

/// A server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct McpServerBody {
    /// Unique name, the first part of its tools' names: A-Z, a-z, 0-9, `-`, `_`, without `__` and without `_` at its end.
    #[schema(max_length = 64, pattern = "^_?[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*$")]
    name: String,
    /// How it is reached.
    transport: NewTransportBody,
}

/// How a server is reached; of `env` and `headers` the names.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TransportBody {
    /// A process.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Names of its environment variables.
        env: Vec<String>,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Where else the same server is.
        other_urls: Vec<String>,
        /// Names of the headers.
        headers: Vec<String>,
        /// How Keiko gets tokens for it, where that was said.
        oauth: Option<OauthBody>,
    },
}

/// How Keiko gets tokens for a server.
#[derive(Serialize, ToSchema)]
struct OauthBody {
    /// Whose account there calls use.
    per: PerBody,
    /// How a token is got.
    grant: GrantBody,
    /// What is asked for, in place of what the server names.
    scopes: Vec<String>,
    /// The client that was given.
    client: Option<ClientBody>,
}

/// A client that somebody registered by hand.
#[derive(Serialize, ToSchema)]
struct ClientBody {
    /// Its id there.
    id: String,
    /// The authorization server that knows it.
    issuer: Option<String>,
    /// How it shows who it is.
    authentication: AuthenticationBody,
}

/// How a client shows who it is.
#[derive(Serialize, ToSchema)]
struct AuthenticationBody {
    /// `none`, `secret`, `private_key`
    #[serde(rename = "type")]
    kind: &'static str,
}

/// What Keiko is to the authorization server of a server.
#[derive(Serialize, ToSchema)]
struct KnownClientBody {
    /// Which authorization server.
    issuer: String,
    /// Keiko's id there.
    client_id: String,
    /// Whether somebody gave it; otherwise Keiko registered itself, or is known by its document.
    is_given: bool,
}

/// What a server calls itself.
#[derive(Serialize, ToSchema)]
struct ServerInfoBody {
    /// Name.
    name: String,
    /// Version.
    version: String,
}

/// What failed so often that it is left alone for a while.
#[derive(Serialize, ToSchema)]
struct OpenCircuitBody {
    /// The tool; `null` for the server, or its address, as a whole.
    tool: Option<String>,
    /// The address, of a server that has several; `null` for all of them.
    address: Option<String>,
    /// The failure that opened it.
    reason: String,
}

/// A server.
#[derive(Serialize, ToSchema)]
struct McpServerAttributes {
    /// Unique name, the first part of its tools' names.
    name: String,
    /// How it is reached.
    transport: TransportBody,
    /// `starting`, `ready` or `failed`
    status: &'static str,
    /// Why it failed.
    reason: Option<String>,
    /// Whether it failed because it lets nobody in: somebody must connect it to an account.
    wants_account: bool,
    /// Tools that it lists.
    tools: u32,
    /// What it calls itself.
    server_info: Option<ServerInfoBody>,
    /// The version of the protocol that was agreed on.
    protocol_version: Option<String>,
    /// Circuits that are open: calls of these are refused for a while.
    circuits: Vec<OpenCircuitBody>,
    /// What Keiko is to its authorization server, once somebody has connected it.
    client: Option<KnownClientBody>,
    /// Where a person connects it to an account, over HTTP at one address.
    connect_url: Option<String>,
    /// When it was registered.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn shown_oauth(oauth: Oauth) -> OauthBody {
    let client = oauth.client.map(|client| {
        let kind = match client.auth {
            ClientAuth::None => "none",
            ClientAuth::Secret => "secret",
            ClientAuth::PrivateKey => "private_key",
        };
        ClientBody { id: client.id, issuer: client.issuer, authentication: AuthenticationBody { kind } }
    });
    let per = match oauth.per {
        Per::Server => PerBody::Server,
        Per::User => PerBody::User,
    };
    let grant = match oauth.grant {
        Grant::AuthorizationCode => GrantBody::AuthorizationCode,
        Grant::ClientCredentials => GrantBody::ClientCredentials,
    };
    OauthBody { per, grant, scopes: oauth.scopes, client }
}

fn said_oauth(body: NewOauthBody) -> NewOauth {
    let client = body.client.map(|client| {
        let (auth, secret) = match client.authentication {
            NewAuthenticationBody::None {} => (ClientAuth::None, None),
            NewAuthenticationBody::Secret { secret } => (ClientAuth::Secret, secret),
            NewAuthenticationBody::PrivateKey { private_key } => (ClientAuth::PrivateKey, private_key),
        };
        NewClient { given: GivenClient { id: client.id, auth, issuer: client.issuer }, secret }
    });
    let per = match body.per {
        PerBody::Server => Per::Server,
        PerBody::User => Per::User,
    };
    let grant = match body.grant {
        GrantBody::AuthorizationCode => Grant::AuthorizationCode,
        GrantBody::ClientCredentials => Grant::ClientCredentials,
    };
    NewOauth { per, grant, scopes: body.scopes, client }
}

fn open_circuit(circuit: &CircuitOpened) -> OpenCircuitBody {
    let Part { tool, address } = circuit.part.clone();
    OpenCircuitBody { tool, address, reason: circuit.reason.clone() }
}

fn attributes(app: &App, server: &Handled<McpServer>) -> McpServerAttributes {
    let state = &server.state;
    // A token is for one address.
    let has_one_address = state.profile.transport.urls().len() == 1;
    let connect_url = has_one_address.then(|| app.connect_url(&state.profile.name));
    let transport = match state.profile.transport.clone() {
        Transport::Stdio { command, args, env } => TransportBody::Stdio { command, args, env },
        Transport::Http { url, other_urls, headers, oauth } => {
            TransportBody::Http { url, other_urls, headers, oauth: oauth.map(shown_oauth) }
        }
    };
    let client = state.client.clone();
    let client =
        client.map(|known| KnownClientBody { issuer: known.issuer, client_id: known.client_id, is_given: known.is_given });
    let introduced = state.introduced.as_ref();
    McpServerAttributes {
        name: state.profile.name.clone(),
        transport,
        status: state.status.as_str(),
        reason: state.reason.clone(),
        wants_account: state.status == ServerStatus::Failed && state.is_locked,
        tools: introduced.map_or(0, |i| i.tools),
        server_info: introduced.map(|i| ServerInfoBody { name: i.name.clone(), version: i.version.clone() }),
        protocol_version: introduced.map(|i| i.protocol_version.clone()),
        circuits: state.circuits.iter().map(open_circuit).collect(),
        client,
        connect_url,
        created_at: server.created_at.to_string(),
        updated_at: server.updated_at.to_string(),
        deleted_at: state.is_deleted.then(|| server.updated_at.to_string()),
        version: server.version,
    }
}

fn described(body: McpServerBody) -> NewServer {
    let transport = match body.transport {
        NewTransportBody::Stdio { command, args, env } => NewTransport::Stdio { command, args, env },
        NewTransportBody::Http { url, other_urls, headers, oauth } => {
            NewTransport::Http { url, other_urls, headers, oauth: oauth.map(said_oauth) }
        }
    };
    NewServer { name: body.name, transport }
}

fn entity(app: &App, status: StatusCode, server: &Handled<McpServer>) -> Outcome {
    Reply::entity(status, "mcp_server", server, attributes(app, server))
}

/// List MCP servers
#[utoipa::path(get, path = "/api/v1/mcp-servers", tag = "tools", extensions(("x-permission" = json!("mcp-servers.read"))),
    params(ListParams), responses((status = 200, body = Many<McpServerAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.mcp_servers(&caller, &params.order()?).await?;
    let items = page.items.iter();
    let items: Vec<_> =
        items.map(|s| Resource { id: s.stream.clone(), kind: "mcp_server", attributes: attributes(&state.app, s) }).collect();
    Reply::list(&items, page.next, page.position)
}

/// Register an MCP server and start it
///
/// The answer shows it as `starting`; it becomes `ready` or `failed`, with the reason. Its first list of tools counts as
/// approved. Over `stdio` a process is started, which needs the permission `mcp-servers.spawn`.
#[utoipa::path(post, path = "/api/v1/mcp-servers", tag = "tools", extensions(("x-permission" = json!("mcp-servers.create"))),
    request_body = McpServerBody, responses((status = 201, body = One<McpServerAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<McpServerBody>) -> Outcome {
    let server = state.app.register_mcp_server(&input.by, described(input.body)).await?;
    entity(&state.app, StatusCode::CREATED, &server)
}

/// Read an MCP server
#[utoipa::path(get, path = "/api/v1/mcp-servers/{id}", tag = "tools", extensions(("x-permission" = json!("mcp-servers.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<McpServerAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    entity(&state.app, StatusCode::OK, &state.app.mcp_server(&caller, &id).await?)
}

/// Change how an MCP server is reached, and start it anew
///
/// Tools that change thereby need approval. The name cannot change.
#[utoipa::path(put, path = "/api/v1/mcp-servers/{id}", tag = "tools", extensions(("x-permission" = json!("mcp-servers.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = McpServerBody,
    responses((status = 200, body = One<McpServerAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<McpServerBody>) -> Outcome {
    let server = state.app.update_mcp_server(&input.by, &id, described(input.body)).await?;
    entity(&state.app, StatusCode::OK, &server)
}

/// Remove an MCP server with its tools, and end its process
#[utoipa::path(delete, path = "/api/v1/mcp-servers/{id}", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.delete"))), params(("id" = String, Path, description = "Id or name")),
    responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_mcp_server(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Start an MCP server again
#[utoipa::path(post, path = "/api/v1/mcp-servers/{id}/actions/restart", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.restart"))), params(("id" = String, Path, description = "Id or name")),
    request_body = Empty, responses((status = 200, body = One<McpServerAttributes>)))]
async fn restart(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    entity(&state.app, StatusCode::OK, &state.app.restart_mcp_server(&input.by, &id).await?)
}
