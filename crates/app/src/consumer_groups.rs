//! Consumer groups: making, changing, removing them, and what they show. How they hand out events is in `group_progress`.

use crate::app::App;
use crate::errors::{Problems, of_store};
use crate::group_progress::Loaded;
use crate::{Answer, Caller, Filter, ListOrder, Page};
use domain::consumer_group::{ConsumerGroup, Created, GroupCommand, GroupSettings, Mode, name_key, not_found};
use domain::progress::Parked;
use engine::{Extras, Handled, Step};
use kernel::id::{GroupId, TenantId};
use kernel::{Kind, Problem, Rejection, Timestamp, limits};
use store::EntityQuery;

/// Events of a filtered group that are counted one by one for its lag; what lies beyond is counted by position.
const COUNT_PAGES: usize = 2;
const COUNT_PAGE_EVENTS: usize = 500;
/// Of a group that gets everything only the oldest event matters; the others are counted by position.
const FIRST_EVENTS: usize = 16;

/// A group as somebody asks for it.
pub struct NewGroup {
    /// Unique name.
    pub name: String,
    /// How events are handed out.
    pub mode: Mode,
    /// What may be changed later.
    pub settings: GroupSettings,
    /// Where it begins: `beginning`, `now`, a position such as `4711`, or an instant in RFC 3339.
    pub start: String,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first event.
    Beginning,
    /// Behind the last event.
    Now,
    /// Behind this position.
    Position(u64),
    /// Behind everything that was written up to an instant.
    Time(Timestamp),
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "beginning" => Some(Place::Beginning),
            "now" => Some(Place::Now),
            _ => text.parse().map(Place::Position).or_else(|_| text.parse().map(Place::Time)).ok(),
        }
    }
}

/// How far a group is.
#[derive(Clone, Debug)]
pub struct GroupState {
    /// Everything up to here is acknowledged, parked or not the group's.
    pub position: u64,
    /// Events that are neither acknowledged nor parked.
    pub lag_events: u64,
    /// Whether they were counted one by one; otherwise the number may be too high, never too low.
    pub is_lag_exact: bool,
    /// Age of the oldest of them.
    pub lag_ms: u64,
    /// Events that were taken in: in delivery, put off, or held back by an earlier one of their stream.
    pub open: usize,
    /// Events put aside.
    pub parked: usize,
    /// When something was delivered last.
    pub last_delivery_at: Option<Timestamp>,
    /// Since when nothing has moved although something waits.
    pub idle_since: Option<Timestamp>,
}

/// A group with how far it is; a deleted one is nowhere.
pub struct GroupView {
    /// The group.
    pub group: Handled<ConsumerGroup>,
    /// How far it is.
    pub state: Option<GroupState>,
}

impl App {
    /// Makes a group.
    pub async fn create_group(&self, caller: &Caller, new: NewGroup) -> Answer<GroupView> {
        if let Some(known) = self.earlier::<ConsumerGroup>(caller).await? {
            return self.viewed(caller.actor.tenant, known).await;
        }
        check(&new.settings, Some(&new.name))?;
        self.check_number_of_groups(caller.actor.tenant).await?;
        let start = Place::parse(&new.start).ok_or_else(|| {
            let message = "is none of beginning, now, a position such as 4711, an instant such as 2026-01-01T00:00:00Z";
            refused("/start", message)
        })?;
        let start = self.place(caller.actor.tenant, start).await?;
        let id: GroupId = self.env().id();
        let created = Created { name: new.name, mode: new.mode, settings: new.settings, start };
        let step = Step::new::<ConsumerGroup>(id, GroupCommand::Create(created));
        let group = self.execute::<ConsumerGroup>(caller, step, Extras::default()).await?;
        self.viewed(caller.actor.tenant, group).await
    }

    /// One group, by id or name.
    pub async fn group(&self, caller: &Caller, handle: &str) -> Answer<GroupView> {
        let group = self.group_entity(caller.actor.tenant, handle).await?;
        self.viewed(caller.actor.tenant, group).await
    }

    /// All groups.
    pub async fn groups(&self, caller: &Caller, order: &ListOrder) -> Answer<(Vec<GroupView>, Option<String>, u64)> {
        let Page { items, next, position } = self.list::<ConsumerGroup>(caller, order, vec![]).await?;
        let mut views = Vec::with_capacity(items.len());
        for group in items {
            views.push(self.viewed(caller.actor.tenant, group).await?);
        }
        Ok((views, next, position))
    }

    /// Replaces a group's settings. A changed filter holds for what the group has not looked at yet.
    pub async fn change_group(&self, caller: &Caller, handle: &str, settings: GroupSettings) -> Answer<GroupView> {
        check(&settings, None)?;
        self.command_group(caller, handle, GroupCommand::Change(settings)).await
    }

    /// Goes on after a position, or after what was written up to an instant; refused when the log has not come that far.
    pub async fn seek_group(
        &self,
        caller: &Caller,
        handle: &str,
        position: Option<u64>,
        time: Option<Timestamp>,
    ) -> Answer<GroupView> {
        let place = match (position, time) {
            (Some(position), None) => Place::Position(position),
            (None, Some(time)) => Place::Time(time),
            _ => return Err(refused("", "needs either position or time")),
        };
        let position = self.place(caller.actor.tenant, place).await?;
        self.command_group(caller, handle, GroupCommand::Seek { position }).await
    }

    /// Delivers parked events again: those at some positions, or all of them.
    pub async fn replay_parked(
        &self,
        caller: &Caller,
        handle: &str,
        positions: Option<Vec<u64>>,
        is_all: bool,
    ) -> Answer<GroupView> {
        if positions.is_some() == is_all {
            return Err(refused("", "needs either positions or \"all\": true"));
        }
        self.command_group(caller, handle, GroupCommand::Replay { positions }).await
    }

    /// Removes a group with its progress.
    pub async fn delete_group(&self, caller: &Caller, handle: &str) -> Answer<()> {
        let tenant = caller.actor.tenant;
        let group = self.group_entity(tenant, handle).await?;
        let step = Step::on::<ConsumerGroup>(&group.stream, GroupCommand::Delete);
        self.execute::<ConsumerGroup>(caller, step, Extras::default()).await?;
        // What is left behind when this fails is read by nobody.
        if let Err(rejection) = self.forget_progress(tenant, &group.stream).await {
            tracing::warn!(group = %group.stream, %rejection, "the progress of a deleted consumer group could not be removed");
        }
        Ok(())
    }

    /// Parked events of a group by position, after one of them.
    pub async fn parked(&self, caller: &Caller, handle: &str, after: u64, limit: usize) -> Answer<(Vec<(u64, Parked)>, bool)> {
        let group = self.group_entity(caller.actor.tenant, handle).await?;
        self.with_group(caller.actor.tenant, &group.stream, |loaded, _| {
            let behind = loaded.progress().parked().range(after.saturating_add(1)..);
            let mut page: Vec<_> = behind.take(limit + 1).map(|(position, parked)| (*position, parked.clone())).collect();
            let is_more = page.len() > limit;
            page.truncate(limit);
            (page, is_more)
        })
        .await
    }

    async fn command_group(&self, caller: &Caller, handle: &str, command: GroupCommand) -> Answer<GroupView> {
        let tenant = caller.actor.tenant;
        let known = self.group_entity(tenant, handle).await?;
        let step = Step::on::<ConsumerGroup>(&known.stream, command);
        let group = self.execute::<ConsumerGroup>(caller, step, Extras::default()).await?;
        let view = self.viewed(tenant, group).await?;
        self.wake_group(tenant, &known.stream);
        Ok(view)
    }

    /// A group that is not deleted, by id or name.
    pub(crate) async fn group_entity(&self, tenant: TenantId, handle: &str) -> Answer<Handled<ConsumerGroup>> {
        let stream = match handle.parse::<GroupId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(tenant, &name_key(handle)).await?,
        };
        let found = match stream {
            Some(stream) => self.entity::<ConsumerGroup>(tenant, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(handle))
    }

    async fn viewed(&self, tenant: TenantId, group: Handled<ConsumerGroup>) -> Answer<GroupView> {
        if group.state.is_deleted {
            return Ok(GroupView { group, state: None });
        }
        let (_, state) = self.group_state(tenant, &group.stream).await?;
        Ok(GroupView { group, state: Some(state) })
    }

    /// How far a group is, as far as a bounded look shows.
    pub(crate) async fn measure(&self, tenant: TenantId, loaded: &mut Loaded, now: Timestamp) -> Answer<GroupState> {
        let (mut counted, mut oldest, mut after) = (0, None, loaded.looked());
        let mut is_end = false;
        let (pages, page_events) = if loaded.is_filtered() { (COUNT_PAGES, COUNT_PAGE_EVENTS) } else { (1, FIRST_EVENTS) };
        for _ in 0..pages {
            let scanned = self.select(tenant, after, &loaded.wanted(), page_events).await?;
            let found: Vec<_> = scanned.events.iter().filter(|event| !loaded.is_own(event)).collect();
            if counted == 0 && found.is_empty() {
                loaded.look_past(scanned.position);
            }
            oldest = oldest.or(found.first().map(|event| event.header.recorded_at));
            counted += found.len() as u64;
            is_end = scanned.position <= after;
            after = scanned.position.max(after);
            if is_end {
                break;
            }
        }
        // At the end of the log nothing lies beyond, whatever position a look by an index comes to.
        let beyond = if is_end { 0 } else { self.position(tenant).saturating_sub(after) };
        let progress = loaded.progress();
        let first = progress.open().values().map(|open| open.recorded_at).chain(oldest).min();
        Ok(GroupState {
            position: progress.settled().max(if progress.open().is_empty() { loaded.looked() } else { 0 }),
            lag_events: progress.open().len() as u64 + counted + beyond,
            is_lag_exact: beyond == 0 || !loaded.is_filtered(),
            lag_ms: first.map_or(0, |first| now.since_ms(first)),
            open: progress.open().len(),
            parked: progress.parked().len(),
            last_delivery_at: progress.head().last_delivery_at,
            idle_since: progress.idle_since(oldest),
        })
    }

    async fn check_number_of_groups(&self, tenant: TenantId) -> Answer<()> {
        let query = EntityQuery { limit: limits::GROUPS_MAX, ..EntityQuery::all(<ConsumerGroup as kernel::Decider>::KIND) };
        let page = self.engine().store().entities(tenant, query).await.map_err(of_store)?;
        if page.rows.len() < limits::GROUPS_MAX {
            return Ok(());
        }
        let message = format!("This tenant has {} consumer groups, which is the most.", limits::GROUPS_MAX);
        Err(Rejection::new(Kind::Refused, "TOO_MANY_GROUPS", message, "Delete groups that nobody reads any more."))
    }

    async fn place(&self, tenant: TenantId, place: Place) -> Answer<u64> {
        let store = self.engine().store();
        match place {
            Place::Beginning => Ok(0),
            Place::Now => store.head(tenant).await.map_err(of_store),
            Place::Position(position) => self.not_ahead(tenant, position).await,
            Place::Time(instant) => store.position_at(tenant, instant).await.map_err(of_store),
        }
    }
}

/// What a schema cannot say.
fn refused(pointer: &str, message: &str) -> Rejection {
    let problem = Problem { pointer: pointer.into(), message: message.into() };
    let what = if pointer.is_empty() { "it" } else { pointer };
    let message = format!("The request is well-formed, but {what} {message}.");
    Rejection::new(Kind::Refused, "RULE_VIOLATED", message, "Change what details.errors names.").with("errors", [problem])
}

fn check(settings: &GroupSettings, name: Option<&str>) -> Answer<()> {
    let mut problems = Problems::default();
    if let Some(name) = name {
        problems.name("/name", name);
        if name.parse::<GroupId>().is_ok() {
            problems.add("/name", "must not have the form of an id");
        }
    }
    let filter = &settings.filter;
    for (pointer, text) in [("/filter/type", &filter.kind), ("/filter/stream", &filter.stream)] {
        if let Some(text) = text {
            problems.name(pointer, text);
        }
    }
    let mut between = |pointer: &str, value: u64, least: u64, most: u64| {
        if !(least..=most).contains(&value) {
            problems.add(pointer, format!("must be {least} to {most}"));
        }
    };
    between("/ack_timeout_ms", settings.ack_timeout_ms, limits::ACK_TIMEOUT_MS_MIN, limits::ACK_TIMEOUT_MS_MAX);
    between("/max_attempts", settings.max_attempts.into(), 1, limits::ATTEMPTS_MAX.into());
    between("/window", settings.window.into(), 1, limits::GROUP_WINDOW_MAX.into());
    between("/stalled_after_ms", settings.stalled_after_ms, limits::STALLED_AFTER_MS_MIN, limits::STALLED_AFTER_MS_MAX);
    problems.check()?;
    filter.expression.as_deref().map_or(Ok(()), |text| Filter::compile(text).map(drop))
}
