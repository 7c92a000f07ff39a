//! A team: people and services that hold roles together.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What may be asked of a team.
#[derive(Clone, Debug)]
pub enum TeamCommand {
    /// Make it.
    Create(Created),
    /// Replace its roles.
    SetRoles(Vec<String>),
    /// Somebody joins.
    Add {
        /// Id of a user or service.
        member: String,
    },
    /// Somebody leaves.
    Remove {
        /// Id of a user or service.
        member: String,
    },
    /// Remove it.
    Delete,
}

/// `identity.team.created`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// Unique name.
    pub name: String,
    /// Roles by name.
    pub roles: Vec<String>,
}

/// `identity.team.roles_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolesChanged {
    /// All roles from now on.
    pub roles: Vec<String>,
}

/// `identity.team.member_added`, `identity.team.member_removed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Id of a user or service.
    pub member: String,
}

/// `identity.team.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deleted {}

kernel::events! {
    /// What happened to a team.
    TeamEvent {
        Created(Created) = "identity.team.created" @ 1,
        RolesChanged(RolesChanged) = "identity.team.roles_changed" @ 1,
        MemberAdded(Member) = "identity.team.member_added" @ 1,
        MemberRemoved(Member) = "identity.team.member_removed" @ 1,
        Deleted(Deleted) = "identity.team.deleted" @ 1,
    }
}

/// Members of one team.
pub const MEMBERS_MAX: usize = 1_000;

/// A team.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Team {
    /// Unique name.
    pub name: String,
    /// Roles by name.
    pub roles: Vec<String>,
    /// Ids of users and services.
    pub members: BTreeSet<String>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Decider for Team {
    const KIND: &'static str = "team";
    type State = Team;
    type Command = TeamCommand;
    type Event = TeamEvent;

    fn decide(state: Option<&Team>, command: &TeamCommand, _: &Facts) -> Result<Vec<TeamEvent>, Rejection> {
        let team = match (command, state) {
            (TeamCommand::Create(created), None) => return Ok(vec![TeamEvent::Created(created.clone())]),
            (TeamCommand::Create(_), Some(_)) => return Err(super::already("team")),
            (_, Some(team)) if !team.is_deleted => team,
            (TeamCommand::Delete, Some(_)) => return Ok(vec![]),
            _ => {
                let hint = "List teams with GET /api/v1/teams.";
                return Err(Rejection::new(Kind::NotFound, "TEAM_NOT_FOUND", "This team does not exist.", hint));
            }
        };
        Ok(match command {
            TeamCommand::SetRoles(roles) if *roles == team.roles => vec![],
            TeamCommand::SetRoles(roles) => vec![TeamEvent::RolesChanged(RolesChanged { roles: roles.clone() })],
            TeamCommand::Add { member } if team.members.contains(member) => vec![],
            TeamCommand::Add { .. } if team.members.len() >= MEMBERS_MAX => {
                let message = format!("A team has at most {MEMBERS_MAX} members.");
                return Err(Rejection::new(Kind::Refused, "RULE_VIOLATED", message, "Make another team."));
            }
            TeamCommand::Add { member } => vec![TeamEvent::MemberAdded(Member { member: member.clone() })],
            TeamCommand::Remove { member } if !team.members.contains(member) => vec![],
            TeamCommand::Remove { member } => vec![TeamEvent::MemberRemoved(Member { member: member.clone() })],
            TeamCommand::Delete => vec![TeamEvent::Deleted(Deleted {})],
            TeamCommand::Create(_) => vec![],
        })
    }

    fn evolve(state: Option<Team>, event: &TeamEvent, _: &Meta) -> Option<Team> {
        if let TeamEvent::Created(c) = event {
            return Some(Team { name: c.name.clone(), roles: c.roles.clone(), members: BTreeSet::new(), is_deleted: false });
        }
        let mut team = state?;
        match event {
            TeamEvent::Created(_) => {}
            TeamEvent::RolesChanged(c) => team.roles.clone_from(&c.roles),
            TeamEvent::MemberAdded(m) => drop(team.members.insert(m.member.clone())),
            TeamEvent::MemberRemoved(m) => drop(team.members.remove(&m.member)),
            TeamEvent::Deleted(_) => team.is_deleted = true,
        }
        Some(team)
    }

    fn is_terminal(state: &Team) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Team) -> bool {
        state.is_deleted
    }

    fn index(state: &Team) -> Vec<IndexField> {
        state.members.iter().map(|member| IndexField::new("member", member)).collect()
    }

    fn unique(state: Option<&Team>, event: &TeamEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (TeamEvent::Created(c), _) => vec![UniqueChange::Take(name_key(&c.name))],
            (TeamEvent::Deleted(_), Some(team)) => vec![UniqueChange::Free(name_key(&team.name))],
            _ => vec![],
        }
    }
}

/// The unique key of a team's name.
pub fn name_key(name: &str) -> String {
    format!("team.name:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn given(commands: &[TeamCommand]) -> Option<Team> {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 };
        let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
        commands.iter().fold(None, |state: Option<Team>, command| {
            let events = Team::decide(state.as_ref(), command, &facts).unwrap();
            events.iter().fold(state, |s, e| Team::evolve(s, e, &meta))
        })
    }

    #[test]
    fn members_come_and_go_and_saying_it_twice_changes_nothing() {
        let create = TeamCommand::Create(Created { name: "ops".into(), roles: vec!["developer".into()] });
        let (add, remove) = (TeamCommand::Add { member: "user_1".into() }, TeamCommand::Remove { member: "user_1".into() });
        let joined = given(&[create.clone(), add.clone(), add.clone()]).unwrap();
        assert_eq!(joined.members.len(), 1);
        assert_eq!(Team::index(&joined), [IndexField::new("member", "user_1")]);
        assert!(given(&[create, add, remove.clone(), remove]).unwrap().members.is_empty());
    }
}
