//! How things are that need each other: what follows from what, who is hit, and what is damped. Pure.

use kernel::Timestamp;
use kernel::id::ComponentId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How something is, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It works.
    Up,
    /// Nobody has looked yet.
    Unknown,
    /// It works, less well.
    Degraded,
    /// It does not work.
    Down,
}

impl Status {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Up => "up",
            Status::Unknown => "unknown",
            Status::Degraded => "degraded",
            Status::Down => "down",
        }
    }
}

/// What makes something be so: the component where it began, perhaps itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Where it began.
    pub component_id: ComponentId,
    /// What is wrong there.
    pub reason: String,
}

/// A component as far as health goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// How it is itself, whatever it needs.
    pub own: Status,
    /// Why.
    pub reason: String,
    /// What it needs, and whether nothing goes without it.
    pub needs: Vec<(ComponentId, bool)>,
}

/// How each component is when what it needs is taken into account.
///
/// What is required takes its component down or degrades it as it is itself; what is not only degrades. The worst spreads first and
/// along the shortest way, so that each has one cause: a component that is in trouble of its own, never a circle of others.
pub fn effective(nodes: &BTreeMap<ComponentId, Node>) -> BTreeMap<ComponentId, (Status, Option<Cause>)> {
    let needed_by = reversed(nodes);
    let mut found: BTreeMap<ComponentId, (Status, ComponentId)> = BTreeMap::new();
    for level in [Status::Down, Status::Degraded] {
        let own = nodes.iter().filter(|(_, node)| node.own == level).map(|(id, _)| (*id, *id));
        // What is down degrades those who can do without it.
        let softly = match level {
            Status::Degraded => hit_softly(&found, &needed_by),
            _ => vec![],
        };
        let mut queue: VecDeque<(ComponentId, ComponentId)> = own.chain(softly).collect();
        while let Some((id, root)) = queue.pop_front() {
            if found.contains_key(&id) {
                continue;
            }
            found.insert(id, (level, root));
            let next = needed_by.get(&id).into_iter().flatten();
            let next =
                next.filter(|(other, is_required)| (*is_required || level == Status::Degraded) && !found.contains_key(other));
            queue.extend(next.map(|(other, _)| (*other, root)));
        }
    }
    let cause = |root: &ComponentId| {
        let reason = nodes.get(root).map(|node| node.reason.clone()).unwrap_or_default();
        Cause { component_id: *root, reason }
    };
    let shown = |(id, node): (&ComponentId, &Node)| match found.get(id) {
        Some((status, root)) => (*id, (*status, Some(cause(root)))),
        None => (*id, (node.own, None)),
    };
    nodes.iter().map(shown).collect()
}

fn hit_softly(
    found: &BTreeMap<ComponentId, (Status, ComponentId)>,
    needed_by: &BTreeMap<ComponentId, Vec<(ComponentId, bool)>>,
) -> Vec<(ComponentId, ComponentId)> {
    let mut hit = vec![];
    for (id, (_, root)) in found {
        let softly =
            needed_by.get(id).into_iter().flatten().filter(|(other, is_required)| !is_required && !found.contains_key(other));
        hit.extend(softly.map(|(other, _)| (*other, *root)));
    }
    hit
}

fn reversed(nodes: &BTreeMap<ComponentId, Node>) -> BTreeMap<ComponentId, Vec<(ComponentId, bool)>> {
    let mut needed_by: BTreeMap<ComponentId, Vec<(ComponentId, bool)>> = BTreeMap::new();
    for (id, node) in nodes {
        for (need, is_required) in &node.needs {
            needed_by.entry(*need).or_default().push((*id, *is_required));
        }
    }
    needed_by
}

/// Everything that needs a component, directly or through others, each with whether it goes down with it.
pub fn impact(nodes: &BTreeMap<ComponentId, Node>, of: ComponentId) -> BTreeMap<ComponentId, bool> {
    let needed_by = reversed(nodes);
    let reach = |from: ComponentId, is_followed: &dyn Fn(bool) -> bool| {
        let (mut seen, mut queue) = (BTreeSet::new(), VecDeque::from([from]));
        while let Some(id) = queue.pop_front() {
            for (other, is_required) in needed_by.get(&id).into_iter().flatten() {
                if is_followed(*is_required) && *other != of && seen.insert(*other) {
                    queue.push_back(*other);
                }
            }
        }
        seen
    };
    let goes_down = reach(of, &|is_required| is_required);
    reach(of, &|_| true).into_iter().map(|id| (id, goes_down.contains(&id))).collect()
}

/// Answers and failures of a probe, in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    good: u32,
    bad: u32,
    /// Looks since something could be said.
    open: u32,
    is_known: bool,
}

impl Row {
    /// Goes on from what is known already.
    pub fn known() -> Self {
        Row { is_known: true, ..Row::default() }
    }

    /// What follows of one more look; `None` when it is too early to say. The first look of all decides at once; answers and
    /// failures by turns are half of an answer.
    pub fn put(&mut self, is_good: bool, failures: u32, successes: u32) -> Option<Status> {
        (self.good, self.bad) = if is_good { (self.good.saturating_add(1), 0) } else { (0, self.bad.saturating_add(1)) };
        let least = |number: u32| if self.is_known { number.max(1) } else { 1 };
        let verdict = match (self.good >= least(successes), self.bad >= least(failures)) {
            (true, _) => Some(Status::Up),
            (_, true) => Some(Status::Down),
            _ => None,
        };
        self.is_known = true;
        self.open = if verdict.is_some() { 0 } else { self.open.saturating_add(1) };
        let patience = failures.saturating_add(successes).saturating_mul(2);
        verdict.or_else(|| (self.open >= patience).then_some(Status::Degraded))
    }
}

/// Changes within this time, and as many as make a component count as flapping.
const FLAP_WINDOW_MS: u64 = 300_000;
const FLAPS_MAX: usize = 6;
/// How long it must stay as it is before it counts as steady again; twice as long each time that it begins anew.
const STEADY_MS: u64 = 60_000;
const STEADY_MAX_MS: u64 = 3_600_000;

/// Keeps a status that changes all the time from being told all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damper {
    last: Option<Status>,
    changes: VecDeque<Timestamp>,
    is_flapping: bool,
    steady_ms: u64,
}

impl Damper {
    /// Goes on from what was said before.
    pub fn new(was_flapping: bool, now: Timestamp) -> Self {
        let changes = if was_flapping { VecDeque::from([now]) } else { VecDeque::new() };
        Damper { last: None, changes, is_flapping: was_flapping, steady_ms: STEADY_MS }
    }

    /// Whether a component that is so now counts as flapping.
    pub fn put(&mut self, status: Status, now: Timestamp) -> bool {
        // That somebody looks for the first time is no change.
        if self.last.is_some_and(|last| last != status && last != Status::Unknown) {
            self.changes.push_back(now);
        }
        self.last = Some(status);
        let quiet_ms = self.changes.back().map_or(u64::MAX, |at| now.since_ms(*at));
        self.changes.retain(|at| now.since_ms(*at) <= FLAP_WINDOW_MS.max(self.steady_ms));
        let recent = self.changes.iter().filter(|at| now.since_ms(**at) <= FLAP_WINDOW_MS).count();
        if self.is_flapping && quiet_ms >= self.steady_ms {
            self.is_flapping = false;
            self.changes.clear();
            self.steady_ms = (self.steady_ms * 2).min(STEADY_MAX_MS);
        } else if !self.is_flapping && recent >= FLAPS_MAX {
            self.is_flapping = true;
        }
        if quiet_ms >= STEADY_MAX_MS {
            self.steady_ms = STEADY_MS;
        }
        self.is_flapping
    }
}

#[cfg(test)]
mod tests {
    use super::Status::*;
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> ComponentId {
        ComponentId::from_bytes([n; 16])
    }

    /// A component, how it is itself, and what it needs.
    type Given<'a> = (u8, Status, &'a [(u8, bool)]);

    fn graph(nodes: &[Given<'_>]) -> BTreeMap<ComponentId, Node> {
        let node = |(n, own, needs): &Given<'_>| {
            let needs = needs.iter().map(|(need, is_required)| (id(*need), *is_required)).collect();
            (id(*n), Node { own: *own, reason: format!("trouble of {n}"), needs })
        };
        nodes.iter().map(node).collect()
    }

    fn seen(nodes: &BTreeMap<ComponentId, Node>) -> Vec<(Status, Option<ComponentId>)> {
        effective(nodes).into_values().map(|(status, cause)| (status, cause.map(|cause| cause.component_id))).collect()
    }

    #[test]
    fn what_is_required_takes_its_component_with_it_and_the_root_is_the_cause() {
        let nodes = graph(&[(1, Down, &[]), (2, Up, &[(1, true)]), (3, Up, &[(2, true)]), (4, Up, &[])]);
        assert_eq!(seen(&nodes), [(Down, Some(id(1))), (Down, Some(id(1))), (Down, Some(id(1))), (Up, None)]);
    }

    #[test]
    fn what_is_not_required_only_degrades_however_far() {
        let nodes = graph(&[(1, Down, &[]), (2, Up, &[(1, false)]), (3, Up, &[(2, true)])]);
        assert_eq!(seen(&nodes), [(Down, Some(id(1))), (Degraded, Some(id(1))), (Degraded, Some(id(1)))]);
    }

    #[test]
    fn in_a_circle_nobody_is_the_cause_of_its_own_trouble() {
        let circle: [Given<'_>; 3] = [(1, Up, &[(2, true)]), (2, Up, &[(3, true)]), (3, Up, &[(1, true)])];
        assert_eq!(seen(&graph(&circle)), [(Up, None); 3]);
        let mut nodes = graph(&circle);
        nodes.get_mut(&id(2)).unwrap().own = Down;
        assert_eq!(seen(&nodes), [(Down, Some(id(2))); 3]);
    }

    #[test]
    fn trouble_of_its_own_is_named_before_that_of_others() {
        let nodes = graph(&[(1, Down, &[]), (2, Down, &[(1, true)]), (3, Degraded, &[(1, false)])]);
        assert_eq!(seen(&nodes), [(Down, Some(id(1))), (Down, Some(id(2))), (Degraded, Some(id(3)))]);
    }

    #[test]
    fn what_is_not_known_and_what_is_gone_takes_nobody_with_it() {
        let nodes = graph(&[(1, Unknown, &[]), (2, Up, &[(1, true), (9, true)])]);
        assert_eq!(seen(&nodes), [(Unknown, None), (Up, None)]);
    }

    #[test]
    fn whoever_is_hit_is_listed_with_how_hard() {
        let nodes = graph(&[(1, Up, &[(3, true)]), (2, Up, &[(1, true)]), (3, Up, &[(2, false)]), (4, Up, &[(1, false)])]);
        let hit = impact(&nodes, id(1));
        assert_eq!(hit, BTreeMap::from([(id(2), true), (id(3), false), (id(4), false)]));
    }

    #[test]
    fn one_bad_answer_means_nothing_and_neither_does_one_good_one() {
        let mut row = Row::known();
        let seen = [true, false, true, false, false, true, true].map(|is_good| row.put(is_good, 2, 2));
        assert_eq!(seen, [None, None, None, None, Some(Down), None, Some(Up)]);
    }

    #[test]
    fn the_first_look_of_all_decides_at_once_and_what_answers_by_turns_is_degraded() {
        assert_eq!(Row::default().put(true, 9, 9), Some(Up));
        assert_eq!(Row::default().put(false, 9, 9), Some(Down));
        let mut row = Row::known();
        let seen = (0..9).map(|n| row.put(n % 2 == 0, 2, 2)).collect::<Vec<_>>();
        assert_eq!(seen.iter().position(|verdict| *verdict == Some(Degraded)), Some(7));
    }

    #[test]
    fn a_status_that_changes_all_the_time_is_flapping_until_it_is_steady() {
        let at = |s: i64| Timestamp(s * 1_000);
        let mut damper = Damper::new(false, at(0));
        let turns = (0..7).map(|n| damper.put(if n % 2 == 0 { Up } else { Down }, at(n)));
        assert_eq!(turns.collect::<Vec<_>>(), [false, false, false, false, false, false, true]);
        assert!(damper.put(Up, at(30)) && damper.put(Up, at(65)));
        assert!(!damper.put(Up, at(66)), "steady for a minute");
        assert!(!damper.put(Down, at(67)), "what was before is forgotten");
        for s in 68..80 {
            damper.put(if s % 2 == 0 { Up } else { Down }, at(s));
        }
        assert!(damper.put(Down, at(80 + 100)), "the second time it must be steady for longer");
        assert!(!damper.put(Down, at(80 + 120)));
        assert!(Damper::new(true, at(0)).put(Up, at(59)), "a new leader goes on");
    }

    proptest! {
        #[test]
        fn whatever_needs_what_each_has_one_cause_that_is_in_trouble_itself(
            own in proptest::collection::vec(0_u8..4, 1..12),
            edges in proptest::collection::vec((0_u8..12, 0_u8..12, any::<bool>()), 0..40),
        ) {
            let status = |n: &u8| [Up, Unknown, Degraded, Down][usize::from(*n)];
            let mut nodes: BTreeMap<_, _> = own.iter().enumerate().map(|(n, own)| {
                (id(n as u8), Node { own: status(own), reason: String::new(), needs: vec![] })
            }).collect();
            for (from, to, is_required) in edges {
                if let Some(node) = nodes.get_mut(&id(from)) {
                    node.needs.push((id(to), is_required));
                }
            }
            let found = effective(&nodes);
            prop_assert_eq!(found.len(), nodes.len());
            for (id, (status, cause)) in &found {
                prop_assert!(*status >= nodes[id].own, "nothing gets better by what it needs");
                prop_assert_eq!(cause.is_some(), matches!(status, Degraded | Down));
                if let Some(cause) = cause {
                    let root = &nodes[&cause.component_id];
                    prop_assert!(root.own >= *status, "the cause is as bad itself");
                    prop_assert!(cause.component_id == *id || impact(&nodes, cause.component_id).contains_key(id));
                }
                for (need, is_required) in &nodes[id].needs {
                    if let Some((Down, _)) = found.get(need) {
                        let least = if *is_required { Down } else { Degraded };
                        prop_assert!(*status >= least);
                    }
                }
            }
        }
    }
}
