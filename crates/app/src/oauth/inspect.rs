//! What a token says, for resource servers (RFC 7662); calling one back (RFC 7009); who the person is (OpenID Connect).

use super::clients::KnownClient;
use super::{Granted, OauthError};
use crate::Answer;
use crate::app::App;
use crate::auth::{REFRESH, parse_handle};
use crate::crypto::sha256_hex;
use crate::recognise::ACCESS_TOKEN;
use domain::identity::client::AuthMethod;
use domain::identity::session::{Session, SessionCommand};
use domain::identity::token::{Revoked, Token, TokenCommand};
use domain::identity::user::User;
use engine::{Context, Extras, Handled, Step};
use kernel::id::{SessionId, TenantId};
use kernel::{Actor, ActorRef, Claims, Kind, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

/// Who somebody is.
#[derive(Serialize)]
pub struct Userinfo {
    /// The person's id.
    pub sub: String,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_username: Option<String>,
    /// What the person is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address that the person showed to be theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// True, where there is an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_verified: Option<bool>,
}

impl App {
    /// What is known of a token, for a client of the same tenant that can prove who it is.
    pub async fn introspect(&self, client: &KnownClient, token: &str) -> Granted<Value> {
        if client.profile.auth_method == AuthMethod::None {
            return Err(OauthError::new("invalid_client", "Only a client that can prove who it is may ask about tokens."));
        }
        let inactive = json!({ "active": false });
        if let Some((tenant, id, session)) = self.session_of_refresh(token).await? {
            let is_good = session.state.refresh_sha256.as_ref() == Some(&sha256_hex(token))
                && session.state.is_open(self.env().now())
                && client.tenant == Some(tenant)
                && self.check_session_holds(tenant, &session).await.is_ok();
            return Ok(if is_good { self.described(&session, id) } else { inactive });
        }
        let actor = match self.authenticate_bearer(token, crate::Resource::Mcp).await {
            Ok(actor) => actor,
            Err(rejection) if rejection.kind == Kind::Unauthenticated => return Ok(inactive),
            Err(rejection) => return Err(rejection.into()),
        };
        let Some(claims) = actor.token.as_ref().filter(|claims| client.tenant == Some(claims.tid)) else { return Ok(inactive) };
        let mut said = serde_json::to_value(claims.as_ref()).unwrap_or_default();
        said["active"] = json!(true);
        said["token_type"] = json!("Bearer");
        if let Some(name) = self.identity(claims.tid, &claims.sub).await?.map(|who| who.name) {
            said["username"] = json!(name);
        }
        Ok(said)
    }

    fn described(&self, session: &Handled<Session>, id: SessionId) -> Value {
        let state = &session.state;
        let mut said = json!({
            "active": true, "token_type": "refresh_token", "iss": self.issuer(), "sub": state.user.to_string(), "sid": id,
            "exp": state.expires_at.0.div_euclid(1_000), "iat": state.refreshed_at.0.div_euclid(1_000),
        });
        if let Some(client) = &state.client {
            said["client_id"] = json!(client);
        }
        if let Some(scopes) = &state.scopes {
            said["scope"] = json!(scopes.join(" "));
        }
        said
    }

    async fn session_of_refresh(&self, token: &str) -> Answer<Option<(TenantId, SessionId, Handled<Session>)>> {
        let Some((slug, id)) = parse_handle(REFRESH, token) else { return Ok(None) };
        let Some(runtime) = self.tenant(slug) else { return Ok(None) };
        let session = self.entity::<Session>(runtime.id, &id.to_string()).await?;
        Ok(session.map(|session| (runtime.id, id, session)))
    }

    /// Calls a token back that was given to this client. What is no token of the client's is left alone, without a word.
    pub async fn revoke(&self, client: &KnownClient, token: &str, mut context: Context) -> Granted<()> {
        if let Some((tenant, id, session)) = self.session_of_refresh(token).await? {
            let hash = sha256_hex(token);
            let is_own = session.state.client.as_ref() == Some(&client.name)
                && (session.state.refresh_sha256.as_ref() == Some(&hash) || session.state.earlier_sha256.contains(&hash));
            if is_own {
                context.actor = ActorRef { kind: kernel::ActorKind::User, id: session.state.user.to_string() };
                context.user = Some(session.state.user);
                let step = Step::on::<Session>(id, SessionCommand::Close { reason: "revoked".into() });
                let done = self.0.engine.handle::<Session>(tenant, step, &context, Extras::default()).await;
                done.map_err(crate::errors::of_handle)?;
            }
            return Ok(());
        }
        let claims: Option<Claims> = self.verified(token, &[Some(ACCESS_TOKEN)]).await?;
        let Some(claims) = claims.filter(|claims| claims.client_id == client.name && self.slug_of(claims.tid).is_some()) else {
            return Ok(());
        };
        let expires_at = Timestamp(claims.exp.saturating_mul(1_000));
        if self.env().now() < expires_at {
            context.actor = ActorRef::system("revocation");
            let command = TokenCommand::Revoke(Revoked { subject: claims.sub, expires_at });
            let step = Step::on::<Token>(claims.jti, command);
            let done = self.0.engine.handle::<Token>(claims.tid, step, &context, Extras::default()).await;
            done.map_err(crate::errors::of_handle)?;
        }
        Ok(())
    }

    /// Who the person of a token is, as far as the token allows to say it.
    pub async fn userinfo(&self, actor: &Actor) -> Answer<Option<Userinfo>> {
        let scope = actor.token.as_ref().and_then(|claims| claims.scope.as_ref());
        let allows = |word: &str| scope.is_none_or(|scope| scope.split(' ').any(|scope| scope == word));
        let sub = actor.token.as_ref().map_or(&actor.who.id, |claims| &claims.sub).clone();
        let name = allows("profile").then(|| actor.name.clone());
        if !allows("openid") {
            return Ok(None);
        }
        let user = if allows("email") { self.entity::<User>(actor.tenant, &sub).await? } else { None };
        let email = user.and_then(|user| user.state.address().map(str::to_owned));
        let email_verified = email.is_some().then_some(true);
        Ok(Some(Userinfo { sub, preferred_username: name.clone(), name, email, email_verified }))
    }
}
