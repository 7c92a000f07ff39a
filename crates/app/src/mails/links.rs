//! Whoever follows the link of a mail: makes an account, shows that an address is theirs, sets another password.

use super::{PREFIX, Registration, Secret, closed, mails_of};
use crate::Answer;
use crate::app::{App, internal};
use crate::errors::{Problems, of_handle};
use crate::identities::{Ending, PASSWORD_CHANGED};
use crate::watch::Seen;
use domain::identity::mail::{Mail, MailCommand, Purpose, PurposeKind, address_secret, link_refused};
use domain::identity::user::{EmailSet, Registered, User, UserCommand, UserKind};
use domain::policy::may_grant;
use engine::{Context, Extras, Handled, Step};
use kernel::id::{MailId, TenantId, UserId};
use kernel::{ActorKind, ActorRef, Personal};
use std::collections::BTreeMap;

/// What a link proves.
struct Shown {
    log: TenantId,
    id: MailId,
    mail: Handled<Mail>,
}

impl App {
    /// What a token proves, if its link is good for this. Whoever comes with one that is not is written down.
    async fn followed(&self, token: &str, purpose: PurposeKind, context: &Context) -> Answer<Shown> {
        let shown = self.shown_by(token, purpose).await;
        if shown.as_ref().is_err_and(|refused| refused.code == link_refused().code) {
            let (origin, correlation) = (&context.origin, context.correlation.as_str());
            let facts = BTreeMap::from([("purpose", purpose.as_str().to_owned())]);
            self.saw_refused(Seen { tenant: self.0.root, kind: "identity.link.refused", who: None, origin, correlation, facts });
        }
        shown
    }

    async fn shown_by(&self, token: &str, purpose: PurposeKind) -> Answer<Shown> {
        let (slug, id) = crate::auth::parse_secret::<MailId>(PREFIX, token).ok_or_else(link_refused)?;
        let log = self.tenant(slug).ok_or_else(link_refused)?.id;
        let expected = self.mail_token(slug, log, id);
        let is_ours = aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_bytes(), token.as_bytes()).is_ok();
        let mail = match is_ours && !self.is_suspended(log).await? {
            true => self.entity::<Mail>(log, &id.to_string()).await?,
            false => None,
        };
        // Calling everything back calls back invitations and the like too.
        let revoked_until = self.guard_of(log).await?.revoked_until;
        let is_good = |mail: &Handled<Mail>| {
            mail.state.is_good(self.env().now())
                && mail.state.requested.purpose.kind() == purpose
                && revoked_until.is_none_or(|until| mail.created_at > until)
        };
        let mail = mail.filter(is_good).ok_or_else(link_refused)?;
        Ok(Shown { log, id, mail })
    }

    /// Whether a link is good, to which address it was sent, and how the account is called that it is about. Changes
    /// nothing: programs look at links before people do.
    pub async fn look_at_link(
        &self,
        token: &str,
        purpose: PurposeKind,
        context: &Context,
    ) -> Answer<(Option<String>, Option<String>)> {
        let shown = self.followed(token, purpose, context).await?;
        let user = shown.mail.state.requested.purpose.user();
        let account = self.entity::<User>(shown.log, &user.to_string()).await?.map(|user| user.state.name().to_owned());
        Ok((self.address_of(shown.log, &shown.id).await?, account))
    }

    /// Makes the account that somebody was invited to.
    pub async fn join(&self, token: &str, username: String, password: String, mut context: Context) -> Answer<Handled<User>> {
        if self.registration() == Registration::Closed {
            return Err(closed("Nobody makes an account here by themselves."));
        }
        let shown = self.followed(token, PurposeKind::Invitation, &context).await?;
        let Purpose::Invitation { user, roles, is_own_wish } = shown.mail.state.requested.purpose.clone() else {
            return Err(link_refused());
        };
        let roles = match is_own_wish {
            true if self.registration() == Registration::Open => self.0.settings.registration_roles.clone(),
            true => return Err(closed("Nobody makes an account here without being invited.")),
            false => {
                self.check_inviter(&shown, &roles).await?;
                roles
            }
        };
        let mut problems = Problems::default();
        problems.name("/username", &username);
        problems.check()?;
        self.check_password(&password, &username).await?;
        let password = self.sealed_password(shown.log, user, password).await?;
        let _room = self.room::<User>(shown.log, "users", |limits| limits.users_max).await?;
        let email = self.proven(&shown, user).await?;
        let registered = Registered {
            kind: UserKind::User,
            username_index: self.0.crypto.sealer.blind(shown.log, "username", &username),
            username: Personal::new(user, username),
            roles,
        };
        let steps = vec![Step::new::<User>(user, UserCommand::Join(registered, email))];
        (context.actor, context.user) = (ActorRef { kind: ActorKind::User, id: user.to_string() }, Some(user));
        self.carry_out(&shown, steps, vec![password], &context).await?;
        self.entity::<User>(shown.log, &user.to_string()).await?.ok_or_else(|| internal("a user without a record".into()))
    }

    /// Whoever invited somebody must still hold what they gave.
    async fn check_inviter(&self, shown: &Shown, roles: &[String]) -> Answer<()> {
        let inviter = self.identity(shown.log, &shown.mail.state.by.id).await?.ok_or_else(link_refused)?;
        for role in roles {
            let given = self.role_permissions(shown.log, role).await?;
            if given.iter().any(|permission| !may_grant(&inviter.permissions, permission)) {
                return Err(link_refused());
            }
        }
        Ok(())
    }

    /// The address that following a link shows to be somebody's. A link that was handed over shows nothing.
    async fn proven(&self, shown: &Shown, user: UserId) -> Answer<Option<EmailSet>> {
        if shown.mail.state.requested.is_by_hand {
            return Ok(None);
        }
        let address = self.address_of(shown.log, &shown.id).await?.ok_or_else(link_refused)?;
        Ok(Some(EmailSet { email_index: self.email_index(shown.log, &address), email: Personal::new(user, address) }))
    }

    /// Changes an account because of a link, whose mail is over with that.
    async fn carry_out(&self, shown: &Shown, mut steps: Vec<Step>, mut secrets: Vec<Secret>, context: &Context) -> Answer<()> {
        let purpose = shown.mail.state.requested.purpose.kind();
        steps.push(Step::on::<Mail>(shown.id, MailCommand::Use { purpose }));
        secrets.push((address_secret(&shown.id), None));
        let extras = Extras { secrets, ..Extras::default() };
        self.0.engine.transact(shown.log, &steps, context, extras).await.map_err(of_handle)?;
        let facts = BTreeMap::from([("purpose", purpose.as_str().to_owned()), ("mail", shown.id.to_string())]);
        let (who, origin, correlation) = (Some(&context.actor), &context.origin, context.correlation.as_str());
        self.saw(Seen { tenant: shown.log, kind: "identity.link.followed", who, origin, correlation, facts });
        Ok(())
    }

    /// Sets the password of whoever follows the link. Sessions end; a second factor stays.
    pub async fn reset_password(&self, token: &str, password: String, mut context: Context) -> Answer<()> {
        let shown = self.followed(token, PurposeKind::Reset, &context).await?;
        let user = shown.mail.state.requested.purpose.user();
        let known = self.entity::<User>(shown.log, &user.to_string()).await?;
        // The address may have become somebody else's, or nobody's, since the mail was asked for.
        let is_still_theirs = |known: &Handled<User>| {
            let index = known.state.email.as_ref().map(|email| &email.email_index);
            known.state.suspended.is_none() && index == Some(&shown.mail.state.requested.address_index)
        };
        let known = known.filter(is_still_theirs).ok_or_else(link_refused)?;
        self.check_password(&password, known.state.name()).await?;
        let sealed = self.sealed_password(shown.log, user, password).await?;
        let ending = Ending::of(user, UserCommand::ChangePassword, PASSWORD_CHANGED);
        let ending = Ending { kept_mail: Some(shown.id), ..ending };
        let (steps, mut secrets) = ending.plan(&self.0.engine, shown.log).await?;
        secrets.push(sealed);
        (context.actor, context.user) = (ActorRef { kind: ActorKind::User, id: user.to_string() }, Some(user));
        self.carry_out(&shown, steps, secrets, &context).await?;
        self.end_logins_under_way(shown.log, user, None, PASSWORD_CHANGED, &context).await
    }

    /// The address of whoever follows the link is theirs.
    pub async fn confirm_email(&self, token: &str, mut context: Context) -> Answer<()> {
        let shown = self.followed(token, PurposeKind::Verification, &context).await?;
        let user = shown.mail.state.requested.purpose.user();
        let email = self.proven(&shown, user).await?.ok_or_else(link_refused)?;
        // What was sent to the address before leads nowhere any more.
        let (mut steps, secrets) = mails_of(&self.0.engine, shown.log, user, Some(shown.id)).await?;
        steps.push(Step::on::<User>(user, UserCommand::SetEmail(email)));
        (context.actor, context.user) = (ActorRef { kind: ActorKind::User, id: user.to_string() }, Some(user));
        self.carry_out(&shown, steps, secrets, &context).await
    }
}
