//! What Keiko shows to an MCP server to be let in: for everybody, or for one identity. The secrets themselves lie beside the log.

use crate::agent::Nothing;
use crate::mcp_server::Grant;
use kernel::id::{CredentialId, McpServerId};
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};

/// After a renewal nobody tries again for this long; after each failure twice as long, up to the longest.
const PAUSE_MS: u64 = 10_000;
const PAUSE_MAX_MS: u64 = 60_000;
/// The least of it, where tokens are very short-lived.
const PAUSE_MIN_MS: u64 = 3_000;
/// Scopes that are asked for in all: a server may want new ones without end.
const WANTED_MAX: usize = 50;

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// Somebody put a token in.
    Token,
    /// An authorization server gave it.
    Oauth {
        /// Which.
        issuer: String,
        /// Keiko's id there.
        client_id: String,
        /// How it was got.
        grant: Grant,
        /// What was asked for.
        asked: Vec<String>,
        /// Whether another one can be got without anybody's help.
        is_renewable: bool,
    },
}

/// What may be asked of a credential.
#[derive(Clone, Debug)]
pub enum CredentialCommand {
    /// Keep what was given, in place of what was there.
    Keep(Granted),
    /// Get another one before this one ends, unless somebody does that already.
    BeginRenewal {
        /// Who does it, as nobody else says it.
        by: String,
        /// Until when nobody else tries.
        until: Timestamp,
        /// Who began it before and is known to be gone.
        gone: Option<String>,
    },
    /// Another one was got.
    Renew {
        /// Who began it.
        by: String,
        /// What came.
        renewed: Renewed,
    },
    /// It is no good any more.
    Refuse {
        /// Who noticed: whoever began a renewal, or somebody who saw it at a version.
        by: Witness,
        /// Why, for people.
        reason: String,
    },
    /// Getting another one did not work this time.
    EndRenewal {
        /// Who began it.
        by: String,
    },
    /// Its server wants more than it allows.
    Want(Vec<String>),
    /// Forget it.
    Remove,
}

/// Who says that a credential is no good any more.
#[derive(Clone, Debug)]
pub enum Witness {
    /// Whoever began a renewal.
    Renewer(String),
    /// Somebody whose token was refused, with the version of the credential that it was read of.
    Shown(u64),
}

/// `registry.credential.granted`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// For which server.
    pub server_id: McpServerId,
    /// For which identity; for everybody when nothing is said.
    pub owner: Option<String>,
    /// Where it comes from.
    pub source: Source,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it ends, if that is known.
    pub expires_at: Option<Timestamp>,
}

/// `registry.credential.renewal_begun`: a refresh token may have been used from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalBegun {
    /// Who does it.
    pub by: String,
    /// Until when nobody else tries.
    pub until: Timestamp,
}

/// `registry.credential.renewed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it ends, if that is known.
    pub expires_at: Option<Timestamp>,
    /// Whether another one can be got without anybody's help.
    pub is_renewable: bool,
}

/// `registry.credential.refused`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: String,
}

/// `registry.credential.scopes_wanted`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopesWanted {
    /// All that are wanted and were not asked for yet.
    pub scopes: Vec<String>,
}

kernel::events! {
    /// What happened to a credential.
    CredentialEvent {
        Granted(Granted) = "registry.credential.granted" @ 1,
        RenewalBegun(RenewalBegun) = "registry.credential.renewal_begun" @ 1,
        Renewed(Renewed) = "registry.credential.renewed" @ 1,
        RenewalEnded(Nothing) = "registry.credential.renewal_ended" @ 1,
        Refused(Refused) = "registry.credential.refused" @ 1,
        ScopesWanted(ScopesWanted) = "registry.credential.scopes_wanted" @ 1,
        Removed(Nothing) = "registry.credential.removed" @ 1,
    }
}

/// How a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialStatus {
    /// It is shown.
    Active,
    /// It is no good any more; somebody must connect again.
    Refused,
    /// It was forgotten.
    Removed,
}

impl CredentialStatus {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            CredentialStatus::Active => "active",
            CredentialStatus::Refused => "refused",
            CredentialStatus::Removed => "removed",
        }
    }
}

/// A credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// What was given, as it is now.
    pub granted: Granted,
    /// How it is.
    pub status: CredentialStatus,
    /// Why it is no good any more.
    pub reason: Option<String>,
    /// What its server wants beside that.
    pub wanted: Vec<String>,
    /// Who gets another one.
    pub renewing: Option<RenewalBegun>,
    /// How often one was given.
    #[serde(default)]
    pub grants: u32,
    /// How often that did not work, one time after the other.
    pub failures: u32,
    /// Before this nobody tries to get another one.
    pub rests_until: Option<Timestamp>,
}

impl Credential {
    /// Everything to ask for when somebody connects again: what was asked for before, and what was wanted since.
    pub fn scopes_to_ask(&self) -> Vec<String> {
        let asked = match &self.granted.source {
            Source::Oauth { asked, .. } => asked.as_slice(),
            Source::Token => &[],
        };
        asked.iter().chain(&self.wanted).cloned().collect()
    }

    /// Whether another one can be got without anybody's help.
    pub fn is_renewable(&self) -> bool {
        let is_renewable = match self.granted.source {
            Source::Oauth { grant, is_renewable, .. } => is_renewable || grant == Grant::ClientCredentials,
            Source::Token => false,
        };
        is_renewable && self.status == CredentialStatus::Active
    }

    /// Whether another one was got, or could not be got, a moment ago.
    pub fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn is_renewed_by(&self, by: &str) -> bool {
        self.renewing.as_ref().is_some_and(|renewing| renewing.by == by)
    }

    /// What is wanted and was neither asked for nor wanted before.
    fn news(&self, scopes: &[String]) -> Vec<String> {
        let known = self.scopes_to_ask();
        let news = scopes.iter().filter(|scope| !known.contains(scope) && !self.granted.scopes.contains(scope));
        news.take(WANTED_MAX.saturating_sub(known.len())).cloned().collect()
    }
}

impl Decider for Credential {
    const KIND: &'static str = "cred";
    type State = Credential;
    type Command = CredentialCommand;
    type Event = CredentialEvent;

    fn decide(state: Option<&Credential>, command: &CredentialCommand, facts: &Facts) -> Result<Vec<CredentialEvent>, Rejection> {
        let known = state.filter(|known| known.status != CredentialStatus::Removed);
        let known = match (command, known) {
            (CredentialCommand::Keep(granted), _) => return Ok(vec![CredentialEvent::Granted(granted.clone())]),
            (CredentialCommand::Remove, None) => return Ok(vec![]),
            (_, Some(known)) => known,
            (_, None) => return Err(not_found("")),
        };
        Ok(match command {
            CredentialCommand::Keep(_) => vec![],
            CredentialCommand::BeginRenewal { .. } if !known.is_renewable() => vec![],
            CredentialCommand::BeginRenewal { .. } if known.rests(facts.now) => vec![],
            CredentialCommand::BeginRenewal { gone, .. }
                if known.renewing.as_ref().is_some_and(|r| r.until > facts.now && gone.as_ref() != Some(&r.by)) =>
            {
                vec![]
            }
            CredentialCommand::BeginRenewal { by, until, .. } => {
                vec![CredentialEvent::RenewalBegun(RenewalBegun { by: by.clone(), until: *until })]
            }
            CredentialCommand::Renew { by, renewed } if known.is_renewed_by(by) => {
                vec![CredentialEvent::Renewed(renewed.clone())]
            }
            CredentialCommand::Renew { .. } => return Err(stale()),
            CredentialCommand::EndRenewal { by } if known.is_renewed_by(by) => vec![CredentialEvent::RenewalEnded(Nothing {})],
            CredentialCommand::EndRenewal { .. } => vec![],
            CredentialCommand::Refuse { by: Witness::Renewer(by), .. } if !known.is_renewed_by(by) => vec![],
            // There is another one since.
            CredentialCommand::Refuse { by: Witness::Shown(version), .. } if *version != facts.version => vec![],
            CredentialCommand::Refuse { .. } if known.status == CredentialStatus::Refused => vec![],
            CredentialCommand::Refuse { reason, .. } => {
                vec![CredentialEvent::Refused(Refused { reason: reason.clone() })]
            }
            CredentialCommand::Want(scopes) => match known.news(scopes) {
                news if news.is_empty() => vec![],
                news => {
                    let scopes = known.wanted.iter().cloned().chain(news).collect();
                    vec![CredentialEvent::ScopesWanted(ScopesWanted { scopes })]
                }
            },
            CredentialCommand::Remove => vec![CredentialEvent::Removed(Nothing {})],
        })
    }

    fn evolve(state: Option<Credential>, event: &CredentialEvent, meta: &Meta) -> Option<Credential> {
        if let CredentialEvent::Granted(granted) = event {
            let (granted, status) = (granted.clone(), CredentialStatus::Active);
            return Some(Credential {
                granted,
                status,
                reason: None,
                wanted: vec![],
                renewing: None,
                grants: state.map_or(0, |known| known.grants).saturating_add(1),
                failures: 0,
                rests_until: None,
            });
        }
        let mut known = state?;
        match event {
            CredentialEvent::Granted(_) => {}
            CredentialEvent::RenewalBegun(begun) => known.renewing = Some(begun.clone()),
            CredentialEvent::RenewalEnded(_) => {
                let pause_ms = PAUSE_MS.saturating_mul(1 << known.failures.min(8)).min(PAUSE_MAX_MS);
                known.renewing = None;
                known.failures = known.failures.saturating_add(1);
                known.rests_until = Some(meta.at.plus_ms(pause_ms));
            }
            CredentialEvent::Renewed(renewed) => {
                known.renewing = None;
                known.failures = 0;
                let half_ms = renewed.expires_at.map_or(PAUSE_MS, |end| end.since_ms(meta.at) / 2);
                known.rests_until = Some(meta.at.plus_ms(half_ms.clamp(PAUSE_MIN_MS, PAUSE_MS)));
                known.granted.scopes.clone_from(&renewed.scopes);
                known.granted.expires_at = renewed.expires_at;
                if let Source::Oauth { is_renewable, .. } = &mut known.granted.source {
                    *is_renewable = renewed.is_renewable;
                }
            }
            CredentialEvent::Refused(refused) => {
                known.status = CredentialStatus::Refused;
                known.reason = Some(refused.reason.clone());
                known.renewing = None;
            }
            CredentialEvent::ScopesWanted(wanted) => known.wanted.clone_from(&wanted.scopes),
            CredentialEvent::Removed(_) => {
                known.status = CredentialStatus::Removed;
                known.renewing = None;
            }
        }
        Some(known)
    }

    fn is_terminal(_: &Credential) -> bool {
        false
    }

    fn is_deleted(state: &Credential) -> bool {
        state.status == CredentialStatus::Removed
    }

    fn index(state: &Credential) -> Vec<IndexField> {
        let server = IndexField::new("server", state.granted.server_id.to_string());
        let owner = state.granted.owner.as_ref().map(|owner| IndexField::new("owner", owner.clone()));
        std::iter::once(server).chain(owner).collect()
    }
}

/// The credential of one identity, or of everybody, for a server.
pub fn credential_id(server: McpServerId, owner: Option<&str>) -> CredentialId {
    CredentialId::derived(&[&server.bytes(), owner.unwrap_or_default().as_bytes()])
}

/// The answer when there is none.
pub fn not_found(owner: &str) -> Rejection {
    let message = format!("There is no credential of '{owner}' for this server.");
    let hint = "List them with GET /api/v1/mcp-servers/{id}/credentials.";
    Rejection::new(Kind::NotFound, "CREDENTIAL_NOT_FOUND", message, hint).with("searched_id", owner)
}

/// The answer for whoever was so slow to get another one that somebody else did.
fn stale() -> Rejection {
    let message = "Somebody else got another token meanwhile.";
    Rejection::new(Kind::Conflict, "CREDENTIAL_CHANGED", message, "Use the one that is there now.")
}

#[cfg(test)]
mod tests {
    use super::CredentialCommand::*;
    use super::*;
    use kernel::ActorRef;

    fn granted(is_renewable: bool, scopes: &[&str]) -> CredentialCommand {
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let (issuer, client_id) = ("https://login.example".to_owned(), "keiko".to_owned());
        let source = Source::Oauth { issuer, client_id, grant: Grant::AuthorizationCode, asked: scopes.clone(), is_renewable };
        Keep(Granted { server_id: McpServerId::from_bytes([1; 16]), owner: None, source, scopes, expires_at: None })
    }

    fn decide(state: Option<&Credential>, command: &CredentialCommand, now: i64) -> Result<Vec<CredentialEvent>, Rejection> {
        let facts = Facts { now: Timestamp(now), actor: ActorRef::system("test"), random: 0, version: 0 };
        Credential::decide(state, command, &facts)
    }

    fn given(commands: &[CredentialCommand]) -> Option<Credential> {
        commands.iter().fold(None, |state, command| {
            let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
            decide(state.as_ref(), command, 0).unwrap().iter().fold(state, |s, e| Credential::evolve(s, e, &meta))
        })
    }

    fn begin(by: &str) -> CredentialCommand {
        BeginRenewal { by: by.into(), until: Timestamp(1_000), gone: None }
    }

    fn renew(by: &str) -> CredentialCommand {
        Renew { by: by.into(), renewed: Renewed { scopes: vec![], expires_at: Some(Timestamp(9)), is_renewable: true } }
    }

    #[test]
    fn given_a_renewal_under_way_then_nobody_else_begins_one_until_its_time_is_over() {
        let known = given(&[granted(true, &[]), begin("1")]);
        assert_eq!(decide(known.as_ref(), &begin("2"), 999), Ok(vec![]));
        assert_eq!(decide(known.as_ref(), &begin("2"), 1_000).unwrap().len(), 1);
        let over = |gone: &str| BeginRenewal { by: "2".into(), until: Timestamp(1_000), gone: Some(gone.into()) };
        assert_eq!(decide(known.as_ref(), &over("0"), 999), Ok(vec![]));
        assert_eq!(decide(known.as_ref(), &over("1"), 999).unwrap().len(), 1, "whoever began it is gone");
    }

    #[test]
    fn given_a_renewal_that_somebody_took_over_then_the_first_one_keeps_nothing() {
        let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
        let taken = RenewalBegun { by: "2".into(), until: Timestamp(2_000) };
        let known = Credential::evolve(given(&[granted(true, &[]), begin("1")]), &CredentialEvent::RenewalBegun(taken), &meta);
        assert_eq!(decide(known.as_ref(), &renew("1"), 1_500).unwrap_err().code, "CREDENTIAL_CHANGED");
        assert_eq!(decide(known.as_ref(), &Refuse { by: Witness::Renewer("1".into()), reason: "no".into() }, 1_500), Ok(vec![]));
        assert_eq!(decide(known.as_ref(), &renew("2"), 1_500).unwrap().len(), 1);
    }

    #[test]
    fn given_renewals_that_do_not_work_then_the_pauses_grow() {
        let end = |known, by: &str, at| {
            let meta = Meta { version: 0, at: Timestamp(at), actor: ActorRef::system("test") };
            let events = [BeginRenewal { by: by.into(), until: Timestamp(at + 1), gone: None }, EndRenewal { by: by.into() }];
            events.iter().fold(known, |known: Option<Credential>, command| {
                decide(known.as_ref(), command, at).unwrap().iter().fold(known, |s, e| Credential::evolve(s, e, &meta))
            })
        };
        let once = end(given(&[granted(true, &[])]), "1", 0);
        assert_eq!(decide(once.as_ref(), &begin("2"), 9_999), Ok(vec![]));
        let twice = end(once, "2", 10_000);
        assert_eq!(twice.as_ref().unwrap().rests_until, Some(Timestamp(30_000)));
        let often = (3..20).fold(twice, |known, n| end(known, "n", n * 100_000));
        assert_eq!(often.unwrap().rests_until, Some(Timestamp(1_960_000)));
    }

    #[test]
    fn given_what_cannot_be_renewed_then_nobody_tries() {
        for commands in
            [vec![granted(false, &[])], vec![granted(true, &[]), Refuse { by: Witness::Shown(0), reason: "revoked".into() }]]
        {
            assert_eq!(decide(given(&commands).as_ref(), &begin("1"), 0), Ok(vec![]));
        }
    }

    #[test]
    fn given_another_token_since_then_the_refusal_of_the_old_one_changes_nothing() {
        let known = given(&[granted(false, &[])]);
        let refused = |version| Refuse { by: Witness::Shown(version), reason: "no".into() };
        assert_eq!(decide(known.as_ref(), &refused(7), 0), Ok(vec![]), "it is at version 0");
        assert_eq!(decide(known.as_ref(), &refused(0), 0).unwrap().len(), 1);
    }

    #[test]
    fn given_scopes_that_are_wanted_then_they_are_asked_for_beside_the_earlier_ones() {
        let want = |scopes: &[&str]| Want(scopes.iter().map(|scope| (*scope).to_owned()).collect());
        let known = given(&[granted(true, &["read"]), want(&["write"]), want(&["write", "read"])]).unwrap();
        assert_eq!(known.scopes_to_ask(), ["read", "write"]);
        let refused_again = given(&[granted(true, &["read", "write"])]);
        assert_eq!(decide(refused_again.as_ref(), &want(&["write"]), 0), Ok(vec![]), "it was asked for and given");
        let many: Vec<String> = (0..90).map(|n| format!("scope-{n}")).collect();
        assert_eq!(given(&[granted(true, &[]), Want(many)]).unwrap().wanted.len(), WANTED_MAX);
    }

    #[test]
    fn given_a_removed_credential_then_only_another_one_brings_it_back() {
        let commands = [granted(true, &[]), Remove];
        let known = given(&commands);
        assert_eq!(decide(known.as_ref(), &Remove, 0), Ok(vec![]));
        assert_eq!(decide(known.as_ref(), &begin("1"), 0).unwrap_err().code, "CREDENTIAL_NOT_FOUND");
        assert_eq!(decide(known.as_ref(), &granted(true, &[]), 0).unwrap().len(), 1);
    }
}
