//! What callers are told of the store's troubles, and checks that many use cases share.

use engine::HandleError;
use kernel::{Kind, Problem, Rejection, limits, text};
use store::StoreError;

/// The one mapping of the store's errors.
pub(crate) fn of_store(error: StoreError) -> Rejection {
    let unavailable = |code, message: String, hint: &str| Rejection::new(Kind::Unavailable, code, message, hint);
    match error {
        StoreError::Busy | StoreError::Conflict { .. } | StoreError::ViewMoved(_) => {
            unavailable("BUSY", "Too many writes wait.".into(), "Try again after the time in Retry-After.")
        }
        StoreError::DiskLow => unavailable(
            "DISK_LOW",
            "The server's disk is nearly full; nothing is written until there is room.".into(),
            "Free disk space, or lower store.disk_free_min; reading still works.",
        ),
        StoreError::ReadOnly(reason) => {
            tracing::error!(%reason, "a write was refused: the store is read-only");
            unavailable(
                "STORE_READ_ONLY",
                "A write to disk failed; the server is read-only so that nothing is lost.".into(),
                "Look at the server's log, check the disk, run 'keiko doctor', then start the server again.",
            )
        }
        StoreError::Unknown(reason) => {
            tracing::warn!(%reason, "the outcome of a write is not known");
            unavailable(
                "OUTCOME_UNKNOWN",
                "It is not known whether the change was made.".into(),
                "Read the resource, or repeat the request with the same Idempotency-Key.",
            )
        }
        StoreError::Unavailable(reason) => {
            tracing::warn!(%reason, "the database cannot be reached");
            unavailable(
                "DATABASE_UNAVAILABLE",
                "The database cannot be reached; nothing was changed.".into(),
                "Try again after the time in Retry-After; /ready says when it is back.",
            )
        }
        StoreError::Fenced => unavailable(
            "NOT_LEADING",
            "Another replica has taken this work over; nothing was changed.".into(),
            "Try again after the time in Retry-After.",
        ),
        StoreError::Closed => {
            unavailable("SHUTTING_DOWN", "The server is shutting down.".into(), "Try again after the time in Retry-After.")
        }
        StoreError::Taken { key, .. } => name_taken(&key),
        StoreError::Repeated(_) | StoreError::Corrupt(_) | StoreError::Io(_) => {
            tracing::error!(%error, "the store failed");
            Rejection::new(
                Kind::Internal,
                "INTERNAL",
                "Something went wrong inside the server.",
                "Try again; if it stays, report it with the request id.",
            )
        }
    }
}

/// The one mapping of a command's errors. A repeated request is handled where the entity's type is known.
pub(crate) fn of_handle(error: HandleError) -> Rejection {
    match error {
        HandleError::Rejected(rejection) => rejection,
        HandleError::Store(error) => of_store(error),
        HandleError::Repeated(known) => of_store(StoreError::Repeated(known)),
    }
}

fn name_taken(key: &str) -> Rejection {
    // The key may hold a blind index, so only its kind is shown.
    let what = key.split(':').next().unwrap_or_default().replace('.', " ");
    Rejection::new(
        Kind::Conflict,
        "NAME_TAKEN",
        format!("This {what} is in use already."),
        "Choose another one, or read the existing resource.",
    )
}

/// Collects everything that is wrong with a request before it is refused.
#[derive(Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// Something is wrong at `pointer`.
    pub fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { pointer: pointer.into(), message: message.into() });
    }

    /// A name that people type.
    pub fn name(&mut self, pointer: &str, value: &str) {
        if !text::is_name(value, limits::NAME_CHARS_MAX) {
            self.add(
                pointer,
                format!("must have 1 to {} characters, no control characters, and no blanks at its ends", limits::NAME_CHARS_MAX),
            );
        }
    }

    /// A text that may be empty.
    pub fn text(&mut self, pointer: &str, value: &str) {
        if value.chars().count() > limits::DESCRIPTION_CHARS_MAX {
            self.add(pointer, format!("must have at most {} characters", limits::DESCRIPTION_CHARS_MAX));
        }
    }

    /// A list of names.
    pub fn names(&mut self, pointer: &str, values: &[String]) {
        if values.len() > limits::ENTRIES_MAX {
            self.add(pointer, format!("must have at most {} entries", limits::ENTRIES_MAX));
        }
        for (i, value) in values.iter().enumerate() {
            self.name(&format!("{pointer}/{i}"), value);
        }
    }

    /// Refuses by a rule, for input that is well-formed.
    pub fn refuse(self) -> Result<(), Rejection> {
        let Some(first) = self.0.first() else { return Ok(()) };
        let message = format!("The request is well-formed, but {}: {}", first.pointer, first.message);
        let hint = "Change what details.errors names.";
        Err(Rejection::new(Kind::Refused, "RULE_VIOLATED", message, hint).with("errors", &self.0))
    }

    /// Refuses if anything is wrong.
    pub fn check(self) -> Result<(), Rejection> {
        if self.0.is_empty() { Ok(()) } else { Err(Rejection::invalid(&self.0)) }
    }
}
