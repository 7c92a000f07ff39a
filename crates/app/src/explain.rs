//! Why somebody may do something, or may not: the same rules as [`App::authorise`], with their reasons.

use crate::app::App;
use crate::{Answer, Caller};
use domain::agent::Agent;
use domain::identity::key::Key;
use domain::identity::user::User;
use domain::policy::{Reach, builtin_role, is_permission, reach};
use domain::task::Task;
use kernel::id::{AgentId, KeyId, TaskId};
use kernel::{Kind, Problem, Rejection};

/// Where a permission comes from.
pub struct Source {
    /// `role`, `team`, `key` or `everybody`
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The permissions of it that match.
    pub permissions: Vec<String>,
}

/// A decision with its reasons.
pub struct Explained {
    /// Id of whoever it is about.
    pub subject: String,
    /// Whether it is allowed.
    pub is_allowed: bool,
    /// `none`, `own` or `all`
    pub reach: &'static str,
    /// Where it comes from.
    pub sources: Vec<Source>,
    /// In words.
    pub because: String,
}

fn word(reach: Reach) -> &'static str {
    match reach {
        Reach::None => "none",
        Reach::Own => "own",
        Reach::All => "all",
    }
}

fn matching(permissions: &[String], action: &str) -> Vec<String> {
    permissions.iter().filter(|held| reach(std::slice::from_ref(held), action) != Reach::None).cloned().collect()
}

impl App {
    /// Explains whether a user, service, agent or API key may do something, perhaps to one thing.
    pub async fn explain(&self, caller: &Caller, subject: &str, action: &str, resource: Option<&str>) -> Answer<Explained> {
        if !is_permission(action) || action.contains('*') || action.ends_with(":own") {
            let message = "is no permission such as tasks.read".to_owned();
            return Err(Rejection::invalid(&[Problem { pointer: "/action".into(), message }]));
        }
        let (id, held, mut sources, stopped) = self.holdings(caller, subject, action).await?;
        sources.retain(|source| !source.permissions.is_empty());
        let found = reach(&held, action);
        let answer =
            |is_allowed, because: String| Explained { subject: id.clone(), is_allowed, reach: word(found), sources, because };
        if let Some(stopped) = stopped {
            return Ok(answer(false, stopped));
        }
        Ok(match (found, resource) {
            (Reach::None, _) => {
                answer(false, format!("No role, team or key of {id} holds '{action}', and nothing is allowed without."))
            }
            (Reach::All, _) => answer(true, format!("'{action}' is held for everything in the tenant.")),
            (Reach::Own, None) => answer(true, format!("'{action}' is held for what {id} created or is assigned to.")),
            (Reach::Own, Some(resource)) => match self.is_own(caller, &id, resource).await? {
                true => answer(true, format!("'{action}' is held for its own, and {resource} is.")),
                false => answer(false, format!("'{action}' is held for its own only, and {resource} is not, or not there.")),
            },
        })
    }

    /// Everything that somebody holds, with where it comes from, and why none of it counts now.
    async fn holdings(
        &self,
        caller: &Caller,
        subject: &str,
        action: &str,
    ) -> Answer<(String, Vec<String>, Vec<Source>, Option<String>)> {
        let log = caller.actor.tenant;
        if let Ok(key) = subject.parse::<KeyId>() {
            return Box::pin(self.key_holdings(caller, key, action)).await;
        }
        if subject.parse::<AgentId>().is_ok() {
            let agent = self.entity::<Agent>(log, subject).await?.ok_or_else(|| domain::agent::not_found(subject))?;
            let held = builtin_role("agent").unwrap_or_default();
            let stopped = agent.state.suspended.as_ref().map(|why| format!("{subject} is suspended: {why}"));
            let source = Source { kind: "role", name: "agent".into(), permissions: matching(&held, action) };
            return Ok((subject.to_owned(), held, vec![source], stopped));
        }
        let user = self.user(caller, subject).await?;
        let mut held = vec!["discovery.read".to_owned(), "profile.*".to_owned()];
        let mut sources = vec![Source { kind: "everybody", name: "everybody".into(), permissions: matching(&held, action) }];
        let add = |kind, name: String, permissions: Vec<String>, held: &mut Vec<String>, sources: &mut Vec<Source>| {
            sources.push(Source { kind, name, permissions: matching(&permissions, action) });
            held.extend(permissions);
        };
        for role in &user.state.roles {
            add("role", role.clone(), self.role_permissions(log, role).await?, &mut held, &mut sources);
        }
        for team in self.teams_of(log, &user.stream).await? {
            for role in &team.state.roles {
                let name = format!("{} ({role})", team.state.name);
                add("team", name, self.role_permissions(log, role).await?, &mut held, &mut sources);
            }
        }
        let stopped = Self::stopped(&user.state, &user.stream);
        Ok((user.stream, held, sources, stopped))
    }

    fn stopped(user: &User, id: &str) -> Option<String> {
        user.suspended.as_ref().map(|why| format!("{id} is suspended: {why}"))
    }

    async fn key_holdings(
        &self,
        caller: &Caller,
        id: KeyId,
        action: &str,
    ) -> Answer<(String, Vec<String>, Vec<Source>, Option<String>)> {
        let key = self.key(caller, &id.to_string()).await?;
        let Key { issued, .. } = key.state.as_ref();
        let (owner, held, mut sources, stopped) = self.holdings(caller, &issued.owner.id, action).await?;
        let held = match &issued.permissions {
            None => held,
            Some(limit) => {
                sources.push(Source { kind: "key", name: issued.name.clone(), permissions: matching(limit, action) });
                domain::policy::limited(&held, limit)
            }
        };
        let ended = (!key.state.is_valid(self.env().now())).then(|| format!("{id} of {owner} has ended."));
        Ok((id.to_string(), held, sources, stopped.or(ended)))
    }

    /// Whether something is somebody's own: a task that it submitted or holds, or itself.
    async fn is_own(&self, caller: &Caller, id: &str, resource: &str) -> Answer<bool> {
        if resource.parse::<TaskId>().is_err() {
            return Ok(resource == id);
        }
        let Some(task) = self.entity::<Task>(caller.actor.tenant, resource).await? else {
            let message = format!("There is no task '{resource}' in this tenant.");
            return Err(Rejection::new(Kind::NotFound, "TASK_NOT_FOUND", message, "List tasks with GET /api/v1/tasks."));
        };
        Ok(crate::tasks::is_own(&task.state, id))
    }
}
