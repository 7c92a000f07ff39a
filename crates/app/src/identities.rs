//! Users, services and custom roles.

use crate::app::{App, internal};
use crate::errors::{Problems, of_handle};
use crate::mails::{Secret, mails_of};
use crate::workers::each;
use crate::{Answer, Caller, ListOrder, Page};
use domain::identity::key::{Key, KeyCommand};
use domain::identity::role::{Created, Role, RoleCommand, name_key as role_key};
use domain::identity::session::{Session, SessionCommand};
use domain::identity::user::{
    Registered, User, UserCommand, UserKind, name_key, password_secret, pending_totp_secret, totp_secret,
};
use domain::policy::{builtin_role, is_permission, may_grant};
use engine::{Context, Engine, Extras, Handled, Step};
use kernel::id::{MailId, RoleId, SessionId, TenantId, UserId};
use kernel::{IndexField, Kind, Personal, Rejection, limits};

/// Why sessions end whose password is another one now.
pub(crate) const PASSWORD_CHANGED: &str = "password_changed";

/// A user to be made.
pub struct NewUser {
    /// How it signs in.
    pub username: String,
    /// Needed for people, refused for services.
    pub password: Option<String>,
    /// Roles by name.
    pub roles: Vec<String>,
    /// Person or service.
    pub kind: UserKind,
}

fn user_not_found(searched: &str) -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "USER_NOT_FOUND",
        format!("There is no user '{searched}' in this tenant."),
        "List users with GET /api/v1/users.",
    )
    .with("searched_id", searched)
}

fn role_not_found(searched: &str) -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "ROLE_NOT_FOUND",
        format!("There is no custom role '{searched}' in this tenant."),
        "List roles with GET /api/v1/roles.",
    )
    .with("searched_id", searched)
}

impl App {
    /// Makes a user or a service.
    pub async fn create_user(&self, caller: &Caller, new: NewUser) -> Answer<Handled<User>> {
        if let Some(known) = self.earlier::<User>(caller).await? {
            return Ok(known);
        }
        let mut problems = Problems::default();
        problems.name("/username", &new.username);
        problems.names("/roles", &new.roles);
        problems.check()?;
        let mut problems = Problems::default();
        match (new.kind, &new.password) {
            (UserKind::User, None) => problems.add("/password", "is needed for a user"),
            (UserKind::Service, Some(_)) => problems.add("/password", "a service has none; give it an API key"),
            _ => {}
        }
        problems.refuse()?;
        self.check_roles(caller, &new.roles).await?;
        let tenant = caller.actor.tenant;
        let id: UserId = self.env().id();
        let mut extras = Extras::default();
        if let Some(password) = new.password {
            self.check_password(&password, &new.username).await?;
            extras.secrets.push(self.sealed_password(tenant, id, password).await?);
        }
        let _room = self.room::<User>(tenant, "users", |limits| limits.users_max).await?;
        let registered = Registered {
            kind: new.kind,
            username_index: self.0.crypto.sealer.blind(tenant, "username", &new.username),
            username: Personal::new(id, new.username),
            roles: new.roles,
        };
        self.execute::<User>(caller, Step::new::<User>(id, UserCommand::Register(registered)), extras).await
    }

    /// Roles must exist, and nobody gives a role that holds more than they do.
    pub(crate) async fn check_roles(&self, caller: &Caller, roles: &[String]) -> Answer<()> {
        for (i, role) in roles.iter().enumerate() {
            let is_builtin = builtin_role(role).is_some() && role != "agent";
            if !is_builtin && self.holder(caller.actor.tenant, &role_key(role)).await?.is_none() {
                let message = format!("There is no role '{role}'.");
                return Err(Rejection::new(Kind::Refused, "ROLE_UNKNOWN", message, "List roles with GET /api/v1/roles.")
                    .with("pointer", format!("/roles/{i}")));
            }
        }
        self.check_holds_no_more(caller, roles).await
    }

    /// What the roles allow, the caller holds too. A role that is gone allows nothing.
    pub(crate) async fn check_holds_no_more(&self, caller: &Caller, roles: &[String]) -> Answer<()> {
        for role in roles {
            let permissions = self.role_permissions(caller.actor.tenant, role).await?;
            check_grant(caller, permissions.iter())?;
        }
        Ok(())
    }

    /// Whoever acts on a user could act as that user: so the user may hold no more than the caller, by roles and teams.
    pub(crate) async fn check_no_mightier(&self, caller: &Caller, user: &Handled<User>) -> Answer<()> {
        let teams = self.teams_of(caller.actor.tenant, &user.stream).await?;
        let roles: Vec<String> =
            user.state.roles.iter().cloned().chain(teams.into_iter().flat_map(|team| team.state.roles.clone())).collect();
        self.check_holds_no_more(caller, &roles).await
    }

    /// One user, by id or name.
    pub async fn user(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<User>> {
        let tenant = caller.actor.tenant;
        let stream = match id_or_name.parse::<UserId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(tenant, &name_key(&self.0.crypto.sealer.blind(tenant, "username", id_or_name))).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<User>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| user_not_found(id_or_name))
    }

    /// One user, also one that was removed, if it is named by its id.
    pub(crate) async fn known_user(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<User>> {
        let Ok(id) = id_or_name.parse::<UserId>() else { return self.user(caller, id_or_name).await };
        let found = self.0.engine.entity::<User>(caller.actor.tenant, &id.to_string()).await.map_err(crate::errors::of_store)?;
        found.ok_or_else(|| user_not_found(id_or_name))
    }

    /// All users.
    pub async fn users(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<User>> {
        self.list::<User>(caller, order, vec![]).await
    }

    /// Replaces roles and, if one is given, the password. A new password ends the user's sessions.
    pub async fn update_user(
        &self,
        caller: &Caller,
        id_or_name: &str,
        roles: Option<Vec<String>>,
        password: Option<String>,
    ) -> Answer<Handled<User>> {
        let user = self.user(caller, id_or_name).await?;
        let id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        // Whoever changes a user could act as that user: so the user may hold no more than the caller.
        self.check_no_mightier(caller, &user).await?;
        if let Some(password) = password {
            self.check_password(&password, user.state.name()).await?;
            let secret = self.sealed_password(caller.actor.tenant, id, password).await?;
            let ending = Ending::of(id, UserCommand::ChangePassword, PASSWORD_CHANGED);
            let (steps, mut secrets) = ending.plan(&self.0.engine, caller.actor.tenant).await?;
            secrets.push(secret);
            self.transact(caller, &steps, Extras { secrets, ..Extras::default() }).await?;
            self.end_logins_under_way(caller.actor.tenant, id, None, PASSWORD_CHANGED, &caller.context()).await?;
        }
        if let Some(roles) = roles {
            self.check_roles(caller, &roles).await?;
            let caller = Caller { if_match: None, ..caller.clone() };
            self.execute::<User>(&caller, Step::on::<User>(id, UserCommand::SetRoles(roles)), Extras::default()).await?;
        }
        self.user(caller, &user.stream).await
    }

    /// Replaces the caller's own password, who shows the present one. The caller's other sessions end.
    pub async fn change_own_password(&self, caller: &Caller, current: &str, new: String) -> Answer<()> {
        let (id, session) = Self::person(caller)?;
        let user = self.user(caller, &id.to_string()).await?;
        self.prove_password(caller, &user, current).await?;
        self.check_password(&new, user.state.name()).await?;
        let secret = self.sealed_password(caller.actor.tenant, id, new).await?;
        let ending = Ending::of(id, UserCommand::ChangePassword, PASSWORD_CHANGED);
        let ending = Ending { kept_session: Some(session), ..ending };
        let (steps, mut secrets) = ending.plan(&self.0.engine, caller.actor.tenant).await?;
        secrets.push(secret);
        self.transact(caller, &steps, Extras { secrets, ..Extras::default() }).await?;
        self.end_logins_under_way(caller.actor.tenant, id, Some(session), PASSWORD_CHANGED, &caller.context()).await
    }

    /// Ends sessions that were opened as it was enough before, between the look at the sessions and the change.
    pub(crate) async fn end_logins_under_way(
        &self,
        tenant: TenantId,
        user: UserId,
        kept: Option<SessionId>,
        reason: &'static str,
        context: &Context,
    ) -> Answer<()> {
        let late = sessions_of(&self.0.engine, tenant, user, kept, reason).await?;
        if late.is_empty() {
            return Ok(());
        }
        let context = Context { idempotency: None, if_match: None, ..context.clone() };
        self.0.engine.transact(tenant, &late, &context, Extras::default()).await.map(|_| ()).map_err(of_handle)
    }

    /// Nobody ends the own account.
    pub(crate) fn check_may_end(&self, caller: &Caller, user: &Handled<User>) -> Answer<()> {
        match user.stream == caller.actor.who.id {
            true => {
                let hint = "Ask another administrator.";
                Err(Rejection::new(Kind::Refused, "SELF_DELETE", "You cannot delete yourself.", hint))
            }
            false => Ok(()),
        }
    }

    /// Removes a user; its sessions and keys end in the same transaction.
    pub async fn delete_user(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let user = self.user(caller, id_or_name).await?;
        self.check_may_end(caller, &user)?;
        self.check_no_mightier(caller, &user).await?;
        let id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        let ending = Ending::of(id, UserCommand::Delete, "user_deleted");
        let (mut steps, mut secrets) = ending.plan(&self.0.engine, caller.actor.tenant).await?;
        self.end_keys(caller, &user.stream, &mut steps).await?;
        secrets.extend(secrets_of(&id));
        let (tenant, owner) = (caller.actor.tenant, IndexField::new("owner", &user.stream));
        self.end_credentials(tenant, owner, &mut steps, &mut secrets).await?;
        self.transact(caller, &steps, Extras { secrets, ..Extras::default() }).await
    }

    /// Suspends a user: its sessions end, and its keys and tokens are refused from now on.
    pub async fn suspend_user(&self, caller: &Caller, id_or_name: &str, reason: String) -> Answer<Handled<User>> {
        let user = self.user(caller, id_or_name).await?;
        self.check_may_end(caller, &user)?;
        self.check_no_mightier(caller, &user).await?;
        let id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        let ending = Ending::of(id, UserCommand::Suspend { reason }, "user_suspended");
        let (steps, secrets) = ending.plan(&self.0.engine, caller.actor.tenant).await?;
        self.transact(caller, &steps, Extras { secrets, ..Extras::default() }).await?;
        self.user(caller, &user.stream).await
    }

    /// Lets a suspended user work again.
    pub async fn reinstate_user(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<User>> {
        let user = self.user(caller, id_or_name).await?;
        self.check_no_mightier(caller, &user).await?;
        self.execute::<User>(caller, Step::on::<User>(user.stream, UserCommand::Reinstate), Extras::default()).await
    }

    /// Ends every session of a user.
    pub async fn revoke_sessions(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<User>> {
        let user = self.user(caller, id_or_name).await?;
        self.check_no_mightier(caller, &user).await?;
        let id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        let steps = sessions_of(&self.0.engine, caller.actor.tenant, id, None, "revoked").await?;
        if !steps.is_empty() {
            self.transact(&Caller { if_match: None, ..caller.clone() }, &steps, Extras::default()).await?;
            self.end_logins_under_way(caller.actor.tenant, id, None, "revoked", &caller.context()).await?;
        }
        Ok(user)
    }

    async fn transact(&self, caller: &Caller, steps: &[Step], extras: Extras) -> Answer<()> {
        self.0.engine.transact(caller.actor.tenant, steps, &caller.context(), extras).await.map(|_| ()).map_err(of_handle)
    }

    /// Ends the keys of an owner.
    pub(crate) async fn end_keys(&self, caller: &Caller, owner: &str, steps: &mut Vec<Step>) -> Answer<()> {
        let keys = each::<Key>(&self.0.engine, caller.actor.tenant, &[IndexField::new("owner", owner)])
            .await
            .map_err(crate::errors::of_store)?;
        steps.extend(keys.into_iter().map(|k| Step::on::<Key>(k.stream, KeyCommand::Revoke)));
        Ok(())
    }

    /// Makes a custom role.
    pub async fn create_role(&self, caller: &Caller, name: String, permissions: Vec<String>) -> Answer<Handled<Role>> {
        if let Some(known) = self.earlier::<Role>(caller).await? {
            return Ok(known);
        }
        let mut problems = Problems::default();
        problems.name("/name", &name);
        problems.check()?;
        check_permissions(caller, &permissions)?;
        if builtin_role(&name).is_some() {
            let message = format!("'{name}' is a built-in role.");
            return Err(Rejection::new(Kind::Conflict, "NAME_TAKEN", message, "Choose another name."));
        }
        let id: RoleId = self.env().id();
        let step = Step::new::<Role>(id, RoleCommand::Create(Created { name, permissions }));
        self.execute::<Role>(caller, step, Extras::default()).await
    }

    /// One custom role, by id or name.
    pub async fn role(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Role>> {
        let stream = match id_or_name.parse::<RoleId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &role_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<Role>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| role_not_found(id_or_name))
    }

    /// All custom roles.
    pub async fn roles(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Role>> {
        self.list::<Role>(caller, order, vec![]).await
    }

    /// Replaces a role's permissions.
    pub async fn update_role(
        &self,
        caller: &Caller,
        id_or_name: &str,
        name: Option<String>,
        permissions: Vec<String>,
    ) -> Answer<Handled<Role>> {
        let role = self.role(caller, id_or_name).await?;
        if name.is_some_and(|name| name != role.state.name) {
            return Err(Rejection::new(
                Kind::Refused,
                "NAME_FIXED",
                "A role's name cannot change.",
                "Make another role and delete this one.",
            ));
        }
        check_permissions(caller, &permissions)?;
        self.execute::<Role>(caller, Step::on::<Role>(role.stream, RoleCommand::SetPermissions(permissions)), Extras::default())
            .await
    }

    /// Removes a role; whoever has it loses what it allowed.
    pub async fn delete_role(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let role = self.role(caller, id_or_name).await?;
        self.execute::<Role>(caller, Step::on::<Role>(role.stream, RoleCommand::Delete), Extras::default()).await.map(|_| ())
    }
}

/// A change of a user that ends what the user has open: sessions, and mails whose links could still change the account.
pub(crate) struct Ending {
    pub user: UserId,
    /// The change. It comes first, so that a condition on a version is one on the user.
    pub command: UserCommand,
    /// Why sessions end.
    pub reason: &'static str,
    pub kept_session: Option<SessionId>,
    pub kept_mail: Option<MailId>,
}

impl Ending {
    pub fn of(user: UserId, command: UserCommand, reason: &'static str) -> Self {
        Ending { user, command, reason, kept_session: None, kept_mail: None }
    }

    /// The steps, and what is removed beside them.
    pub async fn plan(self, engine: &Engine, log: TenantId) -> Answer<(Vec<Step>, Vec<Secret>)> {
        let (mails, secrets) = mails_of(engine, log, self.user, self.kept_mail).await?;
        let mut steps = vec![Step::on::<User>(self.user, self.command)];
        steps.extend(mails);
        steps.extend(sessions_of(engine, log, self.user, self.kept_session, self.reason).await?);
        Ok((steps, secrets))
    }
}

/// What closes the sessions of a user, but for one that is kept.
pub(crate) async fn sessions_of(
    engine: &Engine,
    log: TenantId,
    user: UserId,
    kept: Option<SessionId>,
    reason: &str,
) -> Answer<Vec<Step>> {
    let is_other = |session: &Handled<Session>| kept.is_none_or(|kept| session.stream != kept.to_string());
    closing(engine, log, &[IndexField::new("user", user.to_string())], reason, is_other).await
}

/// What closes the sessions with these fields that are meant.
pub(crate) async fn closing(
    engine: &Engine,
    log: TenantId,
    fields: &[IndexField],
    reason: &str,
    is_meant: impl Fn(&Handled<Session>) -> bool,
) -> Answer<Vec<Step>> {
    let sessions = each::<Session>(engine, log, fields).await.map_err(crate::errors::of_store)?;
    let close = || SessionCommand::Close { reason: reason.to_owned() };
    Ok(sessions.into_iter().filter(is_meant).map(|session| Step::on::<Session>(session.stream, close())).collect())
}

/// The removal of everything that is sealed for a user.
pub(crate) fn secrets_of(user: &UserId) -> Vec<Secret> {
    [password_secret(user), totp_secret(user), pending_totp_secret(user)].map(|name| (name, None)).into()
}

/// Permissions must be well-formed, and the caller must hold them.
pub(crate) fn check_permissions(caller: &Caller, permissions: &[String]) -> Answer<()> {
    let mut problems = Problems::default();
    if permissions.len() > limits::ENTRIES_MAX {
        problems.add("/permissions", format!("must have at most {} entries", limits::ENTRIES_MAX));
    }
    for (i, permission) in permissions.iter().enumerate().filter(|(_, p)| !is_permission(p)) {
        problems.add(
            format!("/permissions/{i}"),
            format!("'{permission}' is no permission such as tasks.read, tasks.* or tasks.read:own"),
        );
    }
    problems.check()?;
    check_grant(caller, permissions.iter())
}

fn check_grant<'a>(caller: &Caller, mut permissions: impl Iterator<Item = &'a String>) -> Answer<()> {
    match permissions.find(|p| !may_grant(&caller.actor.permissions, p)) {
        None => Ok(()),
        Some(missing) => Err(Rejection::new(
            Kind::Forbidden,
            "PERMISSION_ESCALATION",
            format!("You do not hold '{missing}' and cannot give it to others."),
            "Give less, or ask somebody who holds it.",
        )
        .with("permission", missing)),
    }
}
