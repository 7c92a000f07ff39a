//! The rebuild of a view: asked for by somebody, done beside the view in use.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Rejection};
use serde::{Deserialize, Serialize};

/// What may be asked of a rebuild.
#[derive(Clone, Debug)]
pub enum RebuildCommand {
    /// Begin it.
    Request(Requested),
    /// The new rows are in use.
    Complete(Completed),
}

/// `views.rebuild.requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    /// Which view.
    pub view: String,
}

/// `views.rebuild.completed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// The position of the log at which the new rows took the place of the old ones.
    pub position: u64,
}

kernel::events! {
    /// What happened to a rebuild.
    RebuildEvent {
        Requested(Requested) = "views.rebuild.requested" @ 1 System,
        Completed(Completed) = "views.rebuild.completed" @ 1 System,
    }
}

/// A rebuild.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebuild {
    /// Which view.
    pub view: String,
    /// Where it was complete; absent while it goes on.
    pub completed: Option<Completed>,
}

impl Decider for Rebuild {
    const KIND: &'static str = "rebuild";
    type State = Rebuild;
    type Command = RebuildCommand;
    type Event = RebuildEvent;

    fn decide(state: Option<&Rebuild>, command: &RebuildCommand, _: &Facts) -> Result<Vec<RebuildEvent>, Rejection> {
        Ok(match (command, state) {
            (RebuildCommand::Request(requested), None) => vec![RebuildEvent::Requested(requested.clone())],
            (RebuildCommand::Request(_), Some(_)) => return Err(crate::identity::already("rebuild")),
            (RebuildCommand::Complete(completed), Some(rebuild)) if rebuild.completed.is_none() => {
                vec![RebuildEvent::Completed(completed.clone())]
            }
            (RebuildCommand::Complete(_), _) => vec![],
        })
    }

    fn evolve(state: Option<Rebuild>, event: &RebuildEvent, _: &Meta) -> Option<Rebuild> {
        match event {
            RebuildEvent::Requested(requested) => Some(Rebuild { view: requested.view.clone(), completed: None }),
            RebuildEvent::Completed(completed) => state.map(|r| Rebuild { completed: Some(completed.clone()), ..r }),
        }
    }

    fn is_terminal(state: &Rebuild) -> bool {
        state.completed.is_some()
    }

    fn index(state: &Rebuild) -> Vec<IndexField> {
        let status = if state.completed.is_some() { "completed" } else { "running" };
        vec![IndexField::new("status", status)]
    }
}
