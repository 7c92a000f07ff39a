//! The outbox: hands over what is queued, and forgets the addresses of what is over.

use crate::Answer;
use crate::app::{App, DEFAULT_TENANT, Inner};
use crate::errors::{of_handle, of_store};
use crate::workers::each;
use async_trait::async_trait;
use domain::identity::mail::{Mail, MailCommand, PurposeKind, Status, address_secret};
use domain::process::outstanding::{Effect, Outstanding, SendMail};
use engine::{Context, Engine, Executor, Extras, Step};
use gateway::{Letter, PostError, Postbox};
use kernel::id::{MailId, TenantId};
use kernel::{IndexField, Kind, Rejection};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, Weak};

/// Hands mails over, until somebody says that they went out, or never will.
pub(crate) struct MailWorker {
    pub app: Weak<Inner>,
    pub engine: Engine,
    pub tenant: TenantId,
    /// Those that are being handed over: asked for again meanwhile, they are left alone.
    pub under_way: Mutex<BTreeSet<MailId>>,
    /// Those that were handed over, until that is written down.
    pub handed_over: Mutex<BTreeSet<MailId>>,
}

#[async_trait]
impl Executor<Outstanding<SendMail>> for MailWorker {
    async fn execute(&self, id: MailId) -> Option<()> {
        let app = App(Weak::upgrade(&self.app)?);
        let is_first = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if is_first {
            let handed = self.hand_over(&app, id).await;
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Err(error) = handed {
                tracing::warn!(mail = %id, %error, "a mail could not be handed over; trying again");
            }
        }
        None
    }
}

impl MailWorker {
    async fn hand_over(&self, app: &App, id: MailId) -> Answer<()> {
        let Some(mail) = self.engine.entity::<Mail>(self.tenant, &id.to_string()).await.map_err(of_store)? else { return Ok(()) };
        let now = app.env().now();
        let command = match (mail.state.status, mail.state.is_good(now)) {
            (Status::Queued, true) => match self.once(app, id, &mail.state).await {
                Ok(()) => MailCommand::MarkSent,
                Err(PostError::Permanent(reason)) => MailCommand::Fail { reason },
                Err(PostError::Transient(reason)) => {
                    return Err(Rejection::new(Kind::Unavailable, "BUSY", reason, "Look at the mail server."));
                }
            },
            (Status::Queued, false) => MailCommand::Fail { reason: "it could not be handed over in time".into() },
            _ => return Ok(()),
        };
        // The address is needed as long as following the link shows that it is somebody's.
        let is_needed = matches!(command, MailCommand::MarkSent);
        let secrets = if is_needed { vec![] } else { vec![(address_secret(&id), None)] };
        let extras = Extras { secrets, ..Extras::default() };
        let step = Step::on::<Mail>(id, command);
        self.engine.handle::<Mail>(self.tenant, step, &Context::system(SendMail::NAME), extras).await.map_err(of_handle)?;
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok(())
    }

    /// Hands a mail over, if that was not done before and could only not be written down.
    async fn once(&self, app: &App, id: MailId, mail: &Mail) -> Result<(), PostError> {
        let is_handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        if !is_handed_over {
            self.try_once(app, id, mail).await?;
            self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        Ok(())
    }

    async fn try_once(&self, app: &App, id: MailId, mail: &Mail) -> Result<(), PostError> {
        let transient = |rejection: Rejection| PostError::Transient(rejection.message);
        let postbox: &Postbox = app.0.postbox.as_ref().ok_or_else(|| PostError::Transient("no mail is configured".into()))?;
        let slug = app.slug_of(self.tenant).ok_or_else(|| PostError::Transient("the tenant is not running".into()))?;
        let address = app.address_of(self.tenant, &id).await.map_err(transient)?;
        let to = address.ok_or_else(|| PostError::Permanent("its address is gone".into()))?;
        let (subject, text) = words(mail.requested.purpose.kind(), &app.link(&slug, self.tenant, id, mail), &slug, app.issuer());
        postbox.hand_over(&Letter { to, subject, text, id: id.to_string() }).await
    }
}

/// Ends mails whose link has grown too old, and forgets their addresses, now and then until the end.
pub(crate) async fn end_old(engine: Engine, tenant: TenantId) {
    const LOOK_EVERY_MS: u64 = 10 * 60_000;
    loop {
        if let Err(error) = end_old_once(&engine, tenant).await {
            tracing::warn!(%tenant, %error, "mails that are too old could not be ended; trying again");
        }
        tokio::select! {
            biased;
            () = engine.env().stop().cancelled() => return,
            () = engine.env().sleep_ms(LOOK_EVERY_MS) => {}
        }
    }
}

async fn end_old_once(engine: &Engine, tenant: TenantId) -> Answer<()> {
    let sent = each::<Mail>(engine, tenant, &[IndexField::new("status", Status::Sent.as_str())]).await.map_err(of_store)?;
    let now = engine.env().now();
    for mail in sent.iter().filter(|mail| !mail.state.is_good(now)) {
        let Ok(id) = mail.stream.parse::<MailId>() else { continue };
        let extras = Extras { secrets: vec![(address_secret(&id), None)], ..Extras::default() };
        let step = Step::on::<Mail>(id, MailCommand::Revoke);
        engine.handle::<Mail>(tenant, step, &Context::system(SendMail::NAME), extras).await.map_err(of_handle)?;
    }
    Ok(())
}

/// What a mail says. Nothing that a stranger may choose stands in it.
fn words(purpose: PurposeKind, link: &str, slug: &str, issuer: &str) -> (String, String) {
    let place = if slug == DEFAULT_TENANT { issuer.to_owned() } else { format!("{issuer}, tenant {slug}") };
    let (subject, begins, ends) = match purpose {
        PurposeKind::Invitation => (
            "Your account at Keiko",
            format!("You may make an account at {place}. Choose a name and a password here, within 7 days:"),
            "If you do not know what this is about, do nothing: no account is made.",
        ),
        PurposeKind::Verification => (
            "Is this your address?",
            format!("Somebody wants to use this address for an account at {place}. If it was you, say so here, within a day:"),
            "If it was not you, do nothing.",
        ),
        PurposeKind::Reset => (
            "Another password for Keiko",
            format!(
                "Somebody wants to set another password for your account at {place}. If it was you, do it here, within half an hour:"
            ),
            "If it was not you, do nothing: your password stays as it is.",
        ),
        PurposeKind::Known => (
            "You have an account at Keiko",
            format!(
                "Somebody wants to make an account at {place} with this address, and you have one already. If it was you and you do not know your password any more, set another one here:"
            ),
            "If it was not you, do nothing.",
        ),
    };
    (subject.to_owned(), format!("{begins}\n\n{link}\n\n{ends}\n"))
}
