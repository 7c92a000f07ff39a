//! Who may do what: permissions, the built-in roles, and how both are compared.
//!
//! A permission is `area.thing.verb`; in roles also a prefix ending in `.*`, or `*`. `:own` limits it to what the caller
//! created or is assigned to. Deny by default.

/// How far a permission reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not held.
    None,
    /// Held for what the caller created or is assigned to.
    Own,
    /// Held for everything in the tenant.
    All,
}

/// The built-in roles and their permissions, as in the reference of roles.
pub const ROLES: &[(&str, &[&str])] = &[
    ("admin", &["*"]),
    ("ml-engineer", &["models.*", "inference.*", "training.*", "orchestrator.tasks.*", "memory.write"]),
    (
        "developer",
        &[
            "orchestrator.*",
            "agents.*",
            "memory.*",
            "tasks.create",
            "tasks.read",
            "tasks.update",
            "registry.*",
            "events.read",
            "workflows.*",
            "runs.*",
            "tools.call",
        ],
    ),
    ("analyst", &["tasks.read", "memory.read", "stats.read", "metrics.*", "observability.*"]),
    ("user", &["tasks.create", "tasks.read:own", "agents.query", "memory.read:own"]),
    (
        "security-officer",
        &[
            "audit.read",
            "audit.verify",
            "erasures.*",
            "transparency.feed.*",
            "transparency.users.*",
            "transparency.security.*",
            "incidents.*",
        ],
    ),
    ("agent", AGENT),
];

/// What an agent's own identity holds.
const AGENT: &[&str] = &[
    "tasks.claim",
    "tasks.work:own",
    "tasks.create",
    "tasks.read:own",
    "agents.read:own",
    "agents.heartbeat:own",
    "audit.read:own",
    "tools.call",
    "memory.read:own",
    "memory.write:own",
    "events.publish:own",
];

/// Held by every identity: its own profile, and finding what it may work with.
const EVERYONE: &[&str] = &["discovery.read", "profile.*"];

/// The permissions of a built-in role.
pub fn builtin_role(name: &str) -> Option<Vec<String>> {
    let (_, own) = ROLES.iter().find(|(role, _)| *role == name)?;
    Some(own.iter().chain(EVERYONE).map(|p| (*p).to_owned()).collect())
}

/// Permissions whose routes know what is the caller's own. Elsewhere `:own` allows nothing.
const OWN_AWARE: &[&str] = &["tasks.read", "tasks.update", "tasks.work", "agents.read", "agents.heartbeat", "audit.read"];

/// How far `held` reaches for the permission `wanted` (which has no wildcard and no `:own`).
///
/// `orchestrator.tasks.…` is another name of `tasks.…`: the sources call the task area by both.
pub fn reach(held: &[String], wanted: &str) -> Reach {
    let widest = held.iter().map(|p| reach_of(p, wanted)).max().unwrap_or(Reach::None);
    if widest == Reach::Own && !OWN_AWARE.contains(&wanted) { Reach::None } else { widest }
}

fn reach_of(pattern: &str, wanted: &str) -> Reach {
    let (pattern, reach) = match pattern.strip_suffix(":own") {
        Some(rest) => (rest, Reach::Own),
        None => (pattern, Reach::All),
    };
    let alias = wanted.starts_with("tasks.").then(|| format!("orchestrator.{wanted}"));
    let hit = matches(pattern, wanted) || alias.is_some_and(|a| matches(pattern, &a));
    if hit { reach } else { Reach::None }
}

fn matches(pattern: &str, wanted: &str) -> bool {
    match pattern.strip_suffix(".*") {
        Some(prefix) => wanted.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
        None => pattern == "*" || pattern == wanted,
    }
}

/// Whether somebody who holds `held` may give `pattern` to another: nobody gives more than they have.
pub fn may_grant(held: &[String], pattern: &str) -> bool {
    let (base, own) = match pattern.strip_suffix(":own") {
        Some(rest) => (rest, true),
        None => (pattern, false),
    };
    // A wildcard is covered by a wildcard at least as wide: `a.b.*` asks whether everything below `a.b` is held.
    let probe = match base {
        "*" => return held.iter().any(|h| h == "*"),
        _ => base.strip_suffix(".*").map_or(base.to_owned(), |prefix| format!("{prefix}.*")),
    };
    match held.iter().map(|p| reach_of(p, &probe)).max().unwrap_or(Reach::None) {
        Reach::All => true,
        Reach::Own => own,
        Reach::None => false,
    }
}

/// The permissions that a credential with the list `limit` has when its owner holds `held`.
pub fn limited(held: &[String], limit: &[String]) -> Vec<String> {
    limit.iter().filter(|p| may_grant(held, p)).cloned().collect()
}

/// Whether `text` has the form of a permission.
pub fn is_permission(text: &str) -> bool {
    let base = text.strip_suffix(":own").unwrap_or(text);
    if base == "*" {
        return text == "*";
    }
    let is_wildcard = base.ends_with(".*");
    let base = base.strip_suffix(".*").unwrap_or(base);
    let part =
        |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    text.len() <= 128 && base.split('.').all(part) && (base.contains('.') || is_wildcard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn role(name: &str) -> Vec<String> {
        builtin_role(name).unwrap()
    }

    #[test]
    fn nothing_is_held_by_default() {
        assert_eq!(reach(&[], "tasks.read"), Reach::None);
        assert_eq!(reach(&role("user"), "users.read"), Reach::None);
    }

    #[test]
    fn the_matrix_of_the_built_in_roles_holds() {
        assert_eq!(reach(&role("admin"), "users.delete"), Reach::All);
        assert_eq!(reach(&role("user"), "tasks.read"), Reach::Own);
        assert_eq!(reach(&role("ml-engineer"), "tasks.create"), Reach::All);
        assert_eq!(reach(&role("analyst"), "tasks.create"), Reach::None);
        assert_eq!(reach(&role("agent"), "tasks.work"), Reach::Own);
        assert_eq!(reach(&role("security-officer"), "transparency.agent-tasks.read"), Reach::None);
        for (name, _) in ROLES {
            assert_eq!(reach(&role(name), "discovery.read"), Reach::All, "{name}");
        }
    }

    #[test]
    fn a_wildcard_covers_what_is_below_it_and_not_its_neighbours() {
        let held = ["agents.*".to_owned()];
        assert_eq!(reach(&held, "agents.read"), Reach::All);
        assert_eq!(reach(&held, "agentsx.read"), Reach::None);
        assert_eq!(reach(&held, "agents"), Reach::None);
    }

    #[test]
    fn nobody_gives_more_than_they_hold() {
        let held = ["tasks.read:own".to_owned(), "agents.*".to_owned()];
        assert!(may_grant(&held, "tasks.read:own"));
        assert!(!may_grant(&held, "tasks.read"));
        assert!(may_grant(&held, "agents.keys.*"));
        assert!(may_grant(&held, "agents.*"));
        assert!(!may_grant(&held, "*"));
        assert!(!may_grant(&["agents.read".to_owned()], "agents.*"));
    }

    #[test]
    fn own_allows_nothing_where_a_route_does_not_know_what_is_own() {
        let held = ["events.read:own".to_owned(), "keys.*:own".to_owned(), "tasks.read:own".to_owned()];
        assert_eq!(reach(&held, "events.read"), Reach::None);
        assert_eq!(reach(&held, "keys.delete"), Reach::None);
        assert_eq!(reach(&held, "tasks.read"), Reach::Own);
    }

    #[test]
    fn only_well_formed_permissions_are_accepted() {
        for good in ["*", "tasks.read", "tasks.*", "tasks.read:own", "mcp-servers.spawn", "tasks.queues.read", "tasks.*:own"] {
            assert!(is_permission(good), "{good}");
        }
        for bad in ["", "tasks", "Tasks.read", "tasks..read", "*:own", "tasks.*.read", "a.b:all", ".*"] {
            assert!(!is_permission(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_limited_credential_never_exceeds_its_owner(
            held in prop::collection::vec("(a|b)\\.(x|y|\\*)(:own)?", 0..5),
            limit in prop::collection::vec("(\\*|(a|b)\\.(x|y|\\*)(:own)?)", 0..5),
            wanted in "(a|b)\\.(x|y|z)",
        ) {
            prop_assert!(reach(&limited(&held, &limit), &wanted) <= reach(&held, &wanted));
        }
    }
}
