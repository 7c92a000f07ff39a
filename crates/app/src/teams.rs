//! Teams: roles for many at once. Whoever changes a team could act through it, so it may hold no more than they do.

use crate::app::App;
use crate::errors::{Problems, of_store};
use crate::workers::each;
use crate::{Answer, Caller, ListOrder, Page};
use domain::identity::team::{Created, Team, TeamCommand, name_key};
use engine::{Extras, Handled, Step};
use kernel::id::{TeamId, TenantId};
use kernel::{IndexField, Kind, Rejection};

fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no team '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "TEAM_NOT_FOUND", message, "List teams with GET /api/v1/teams.").with("searched_id", searched)
}

impl App {
    /// Makes a team.
    pub async fn create_team(&self, caller: &Caller, name: String, roles: Vec<String>) -> Answer<Handled<Team>> {
        if let Some(known) = self.earlier::<Team>(caller).await? {
            return Ok(known);
        }
        let mut problems = Problems::default();
        problems.name("/name", &name);
        problems.names("/roles", &roles);
        problems.check()?;
        self.check_roles(caller, &roles).await?;
        let id: TeamId = self.env().id();
        let step = Step::new::<Team>(id, TeamCommand::Create(Created { name, roles }));
        self.execute::<Team>(caller, step, Extras::default()).await
    }

    /// One team, by id or name.
    pub async fn team(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Team>> {
        let stream = match id_or_name.parse::<TeamId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<Team>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// All teams.
    pub async fn teams(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Team>> {
        self.list::<Team>(caller, order, vec![]).await
    }

    async fn change_team(&self, caller: &Caller, team: Handled<Team>, command: TeamCommand) -> Answer<Handled<Team>> {
        self.check_holds_no_more(caller, &team.state.roles).await?;
        self.execute::<Team>(caller, Step::on::<Team>(team.stream, command), Extras::default()).await
    }

    /// Replaces a team's roles.
    pub async fn set_team_roles(&self, caller: &Caller, id_or_name: &str, roles: Vec<String>) -> Answer<Handled<Team>> {
        let team = self.team(caller, id_or_name).await?;
        let mut problems = Problems::default();
        problems.names("/roles", &roles);
        problems.check()?;
        self.check_roles(caller, &roles).await?;
        self.change_team(caller, team, TeamCommand::SetRoles(roles)).await
    }

    /// Somebody joins a team, or leaves it.
    pub async fn change_member(&self, caller: &Caller, id_or_name: &str, member: &str, joins: bool) -> Answer<Handled<Team>> {
        let team = self.team(caller, id_or_name).await?;
        let member = self.user(caller, member).await?.stream;
        let command = if joins { TeamCommand::Add { member } } else { TeamCommand::Remove { member } };
        self.change_team(caller, team, command).await
    }

    /// Removes a team; its members lose what it gave them.
    pub async fn delete_team(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let team = self.team(caller, id_or_name).await?;
        self.change_team(caller, team, TeamCommand::Delete).await.map(|_| ())
    }

    /// The teams of a user or service.
    pub(crate) async fn teams_of(&self, log: TenantId, member: &str) -> Answer<Vec<Handled<Team>>> {
        each::<Team>(&self.0.engine, log, &[IndexField::new("member", member)]).await.map_err(of_store)
    }
}
