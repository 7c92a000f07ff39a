//! Limits that are part of the stored shapes or of the interface. What an operator may change is a setting instead.

/// Values larger than this are stored once by content hash.
pub const VALUE_INLINE_BYTES_MAX: usize = 16 * 1024;
/// States larger than this are written every [`STATE_EVERY_EVENTS`] events only.
pub const STATE_INLINE_BYTES_MAX: usize = 16 * 1024;
/// How often a large state is written.
pub const STATE_EVERY_EVENTS: u64 = 50;
/// Items that a list returns at most.
pub const PAGE_ITEMS_MAX: usize = 500;
/// Items that a list returns when nothing is said.
pub const PAGE_ITEMS_DEFAULT: usize = 50;
/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 128;
/// Characters of a description.
pub const DESCRIPTION_CHARS_MAX: usize = 8_000;
/// Characters of a tenant's slug.
pub const SLUG_CHARS_MAX: usize = 40;
/// Capabilities of one agent.
pub const CAPABILITIES_MAX: usize = 64;
/// Entries of a list of labels, tags, domains, permissions or roles.
pub const ENTRIES_MAX: usize = 64;
/// Longest a claim request may wait.
pub const WAIT_MS_MAX: u64 = 60_000;
/// Tasks that one claim request may return.
pub const CLAIM_TASKS_MAX: u32 = 100;
/// Attempts that a task may ask for.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest delay of a task: 366 days.
pub const DELAY_MS_MAX: u64 = 366 * 24 * 3_600_000;
/// Characters of an idempotency key.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Consumer groups of one tenant.
pub const GROUPS_MAX: usize = 100;
/// Events of a consumer group that may be open at a time.
pub const GROUP_WINDOW_MAX: u32 = 10_000;
/// Events or tokens in one request to a consumer group.
pub const DELIVERIES_MAX: usize = 500;
/// Longest a request for deliveries may wait.
pub const DELIVERY_WAIT_MS_MAX: u64 = 30_000;
/// Shortest a delivery may hold.
pub const ACK_TIMEOUT_MS_MIN: u64 = 100;
/// Longest a delivery may hold or be put off: 12 hours.
pub const ACK_TIMEOUT_MS_MAX: u64 = 12 * 3_600_000;
/// Earliest alert that a consumer group does not move.
pub const STALLED_AFTER_MS_MIN: u64 = 1_000;
/// Latest alert that a consumer group does not move: 7 days.
pub const STALLED_AFTER_MS_MAX: u64 = 7 * 24 * 3_600_000;
