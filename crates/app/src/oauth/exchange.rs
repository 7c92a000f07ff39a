//! A narrower token for another one, with who acts for whom (RFC 8693).

use super::clients::KnownClient;
use super::token::{TokenAnswer, TokenRequest};
use super::{Granted, OauthError, invalid_request, invalid_scope};
use crate::app::App;
use crate::auth::NewToken;
use domain::identity::client::GrantType;
use domain::identity::oauth::{ACTORS_MAX, scopes, within};
use kernel::{Act, Actor, Claims, Timestamp};
use std::sync::Arc;

const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

impl App {
    /// A token for somebody who acts for the subject of another token: never wider, never for longer.
    pub(super) async fn exchange(&self, client: &KnownClient, request: TokenRequest) -> Granted<TokenAnswer> {
        client.check_grant(GrantType::TokenExchange)?;
        let shown = request.subject_token.ok_or_else(|| invalid_request("subject_token and subject_token_type are needed."))?;
        if request.requested_token_type.as_deref().is_some_and(|kind| kind != ACCESS_TOKEN && kind != JWT) {
            return Err(invalid_request("The only requested_token_type is an access token."));
        }
        let (subject, claims) = self.told_by(client, shown, "subject_token").await?;
        let actor = client.profile.subject.as_ref().map_or_else(|| client.name.clone(), |own| own.id.clone());
        if let Some(shown) = request.actor_token
            && self.told_by(client, shown, "actor_token").await?.1.sub != actor
        {
            // With a token of somebody else it would do in their name what they never did.
            return Err(invalid_request("The actor_token must be of the client's own identity."));
        }
        if claims.actors().count() >= ACTORS_MAX {
            return Err(OauthError::new("invalid_request", format!("At most {ACTORS_MAX} may act for one another.")));
        }
        let resource = self.narrower_resource(&claims, &request.resources)?;
        let granted = narrower_scopes(&subject, &claims, request.scope.as_deref())?;
        let session = match claims.sid {
            Some(sid) => {
                let session = self.entity::<domain::identity::session::Session>(claims.tid, &sid.to_string()).await?;
                session.map(|session| (sid, session.state))
            }
            None => None,
        };
        let access_token = self.access_token(NewToken {
            tenant: claims.tid,
            subject: claims.sub.clone(),
            client: client.name.clone(),
            resource,
            scopes: granted.clone(),
            session,
            act: Some(Box::new(Act { sub: actor, act: claims.act.clone() })),
            made_of: claims.made_of.iter().copied().chain([claims.jti]).collect(),
            until: Some(Timestamp(claims.exp.saturating_mul(1_000))),
        })?;
        let left_s = claims.exp.saturating_sub(self.env().now().0.div_euclid(1_000)).max(0);
        let answer = self.answer(access_token, granted);
        let expires_in = answer.expires_in.min(u64::try_from(left_s).unwrap_or(0));
        let whose = Some((claims.tid, subject.who.clone()));
        Ok(TokenAnswer { issued_token_type: Some(ACCESS_TOKEN), expires_in, whose, ..answer })
    }

    /// Whom a token is about that a client shows: of the client's own tenant.
    async fn told_by(&self, client: &KnownClient, shown: (String, String), name: &str) -> Granted<(Actor, Arc<Claims>)> {
        let (token, kind) = shown;
        if kind != ACCESS_TOKEN && kind != JWT {
            return Err(invalid_request(format!("{name}_type must be that of an access token.")));
        }
        // For whichever resource: the exchange makes sure that the new one is for the same or less.
        let refused = || invalid_request(format!("The {name} is not good."));
        let actor = match self.authenticate_bearer(&token, crate::Resource::Mcp).await {
            Ok(actor) => actor,
            Err(rejection) if rejection.kind == kernel::Kind::Unauthenticated => return Err(refused()),
            Err(rejection) => return Err(rejection.into()),
        };
        let claims = actor.token.clone().filter(|claims| client.serves(claims.tid)).ok_or_else(refused)?;
        Ok((actor, claims))
    }

    fn narrower_resource(&self, claims: &Claims, asked: &[String]) -> Granted<Option<String>> {
        let known = (claims.aud != claims.iss).then(|| claims.aud.clone());
        if asked.is_empty() {
            return Ok(known);
        }
        let wanted = self.resource(asked)?;
        match known {
            Some(known) if wanted.as_ref() != Some(&known) => {
                Err(OauthError::new("invalid_target", "The subject_token is for another resource."))
            }
            _ => Ok(wanted),
        }
    }
}

/// What is asked for, if the token shown allows it; else all that it allows.
fn narrower_scopes(subject: &Actor, claims: &Claims, asked: Option<&str>) -> Granted<Option<Vec<String>>> {
    let held = claims.scope.as_ref().map(|scope| scope.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let asked = scopes(asked.unwrap_or_default()).ok_or_else(invalid_scope)?;
    if asked.is_empty() {
        return Ok(held);
    }
    let wider = |scope: &&String| held.as_ref().is_some_and(|held| !held.contains(scope));
    match asked.iter().find(wider) {
        Some(wider) => Err(OauthError::new("invalid_scope", format!("The subject_token does not allow '{wider}'."))),
        None => Ok(Some(within(&subject.permissions, &asked))),
    }
}
