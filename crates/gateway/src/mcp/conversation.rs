//! Work at a server of an older version that asks its client in the middle: it is kept waiting, and the client is told what is
//! asked as the newest version tells it. The answers come with another request.

use super::rpc::{ASIDE_MAX, Aside, METHOD_NOT_FOUND, Question, WireError};
use super::{Answers, Ask, CallError, Client, Note, Outcome, QUESTIONS, Resume};
use crate::lanes::Lane;
use kernel::Json;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// How long work waits for answers.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Works of one server that wait, and of one owner.
const WAITING_MAX: usize = 256;
/// A further one ends the oldest: whoever asked may have forgotten it.
const WAITING_OF_OWNER_MAX: usize = 6;
/// Questions of one work that are open.
const QUESTIONS_MAX: usize = 64;
/// What is asked within this time is asked together.
const TOGETHER: Duration = Duration::from_millis(20);
const TOGETHER_MAX: Duration = Duration::from_millis(200);
const REFUSED: &str = "The client refused to answer.";

/// Work that waits for answers, by what it is resumed with.
#[derive(Default)]
pub(crate) struct Conversations(Mutex<HashMap<u128, Waiting>>);

struct Waiting {
    talk: Talk,
    party: [u8; 32],
}

/// A request under way, and the way to whoever carries it out.
struct Talk {
    rounds: mpsc::Receiver<Round>,
    answers: mpsc::UnboundedSender<(Box<RawValue>, Option<Value>)>,
    notes: NoteSlot,
    owner: [u8; 32],
    since: Instant,
    /// How much was asked so far.
    asked: u64,
    /// What is asked and not answered yet.
    open: BTreeMap<String, Question>,
    /// Ends the work when nobody can resume it any more.
    work: AbortOnDropHandle<()>,
}

/// Where notes go now; nowhere while nobody waits.
type NoteSlot = Arc<Mutex<Option<mpsc::Sender<Note>>>>;

enum Round {
    Asked(Question),
    Done(Result<Box<RawValue>, WireError>),
}

/// Hands a request on over a connection that belongs to the client alone.
pub(crate) async fn converse(
    lane: Lane,
    ask: Ask,
    approved: Option<String>,
    client: Client,
    notes: Option<mpsc::Sender<Note>>,
    timeout: Duration,
    conversations: &Conversations,
) -> Result<Outcome, CallError> {
    let Client { party, owner, .. } = client;
    let (to_rounds, rounds) = mpsc::channel(16);
    // There are no more than the questions that are open.
    let (answers, answered) = mpsc::unbounded_channel();
    let notes: NoteSlot = Arc::new(Mutex::new(notes));
    let work = tokio::spawn(work(lane, ask, approved, client, notes.clone(), to_rounds, answered));
    let talk = Talk {
        rounds,
        answers,
        notes,
        owner,
        since: Instant::now(),
        asked: 0,
        open: BTreeMap::new(),
        work: AbortOnDropHandle::new(work),
    };
    talk.next(timeout, party, conversations).await
}

async fn work(
    lane: Lane,
    ask: Ask,
    approved: Option<String>,
    client: Client,
    notes: NoteSlot,
    rounds: mpsc::Sender<Round>,
    mut answers: mpsc::UnboundedReceiver<(Box<RawValue>, Option<Value>)>,
) {
    let (aside, mut came) = mpsc::channel(ASIDE_MAX);
    let mut request = std::pin::pin!(lane.hand_on(&ask, approved.as_deref(), &[], &client, Some(&aside)));
    let round = loop {
        tokio::select! {
            biased;
            Some(aside) = came.recv() => match aside {
                Aside::Note(note) => tell(&notes, note),
                Aside::Question(question) if can_be_asked(&client, &question.method) => {
                    if rounds.send(Round::Asked(question)).await.is_err() {
                        return;
                    }
                }
                Aside::Question(question) => {
                    lane.respond(&question.id, Err((METHOD_NOT_FOUND, "The client cannot be asked that."))).await;
                }
            },
            Some((id, answer)) = answers.recv() => {
                lane.respond(&id, answer.as_ref().ok_or((-1, REFUSED))).await;
            }
            done = &mut request => break Round::Done(done),
        }
    };
    // What came before the answer may have come in the same moment.
    while let Ok(Aside::Note(note)) = came.try_recv() {
        tell(&notes, note);
    }
    // Whoever asked may have gone away.
    let _ = rounds.send(round).await;
}

fn tell(notes: &NoteSlot, note: Note) {
    if let Some(notes) = &*notes.lock().unwrap_or_else(PoisonError::into_inner) {
        // A client that reads slowly misses some of it.
        let _ = notes.try_send(note);
    }
}

/// Whether a client said that it can be asked this.
pub(crate) fn can_be_asked(client: &Client, method: &str) -> bool {
    QUESTIONS.iter().any(|(question, capability)| *question == method && client.capabilities.contains_key(*capability))
}

impl Talk {
    async fn next(mut self, timeout: Duration, party: [u8; 32], conversations: &Conversations) -> Result<Outcome, CallError> {
        let mut patience = timeout;
        let mut first = None;
        loop {
            match tokio::time::timeout(patience, self.rounds.recv()).await {
                Ok(Some(Round::Asked(question))) if self.open.len() >= QUESTIONS_MAX => self.answer(question, None),
                Ok(Some(Round::Asked(question))) => {
                    self.asked += 1;
                    self.open.insert(format!("q{}", self.asked), question);
                    let first = *first.get_or_insert_with(Instant::now);
                    patience = TOGETHER.min(TOGETHER_MAX.saturating_sub(first.elapsed()));
                }
                Ok(Some(Round::Done(done))) => return Ok(Outcome::Complete(complete(&done?)?)),
                Ok(None) => return Err(CallError::Lost("what handed it on ended".into())),
                Err(_) if self.open.is_empty() => return Err(CallError::Timeout(timeout.as_millis())),
                Err(_) => return conversations.keep(self, party),
            }
        }
    }

    /// Hands an answer to the work; nothing is a refusal. If the work has ended, its outcome says so.
    fn answer(&self, question: Question, answer: Option<Value>) {
        let _ = self.answers.send((question.id, answer));
    }
}

/// A result of an older version: an object that asks for nothing.
pub(crate) fn complete(result: &RawValue) -> Result<Json, CallError> {
    #[derive(serde::Deserialize)]
    struct Peek<'a> {
        #[serde(rename = "resultType", borrow)]
        result_type: Option<std::borrow::Cow<'a, str>>,
    }
    let unusable = |problem: &str| CallError::Unusable(problem.to_owned());
    if !result.get().starts_with('{') {
        return Err(unusable("its result is no object"));
    }
    let peek: Peek<'_> = serde_json::from_str(result.get()).map_err(|e| CallError::Unusable(e.to_string()))?;
    if peek.result_type.is_some_and(|kind| kind != "complete") {
        return Err(unusable("its result is of a type that its version does not have"));
    }
    Json::parse(result.get().to_owned()).map_err(|e| CallError::Unusable(e.to_string()))
}

impl Conversations {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<u128, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, talk: Talk, party: [u8; 32]) -> Result<Outcome, CallError> {
        self.sweep();
        let requests = talk.open.iter().map(|(key, question)| {
            let mut request = Map::from_iter([("method".to_owned(), json!(question.method))]);
            request.extend((!question.params.is_null()).then(|| ("params".to_owned(), question.params.clone())));
            (key.clone(), Value::Object(request))
        });
        let requests = requests.collect();
        *talk.notes.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let id: u128 = rand::random();
        let mut map = self.map();
        if map.len() >= WAITING_MAX {
            return Err(CallError::Interrupted("too many calls wait for answers of their clients".into()));
        }
        map.insert(id, Waiting { talk, party });
        Ok(Outcome::InputRequired { requests, resume: Resume::Waiting(id) })
    }

    /// Whether this work waits here.
    pub fn keeps(&self, id: u128) -> bool {
        self.map().contains_key(&id)
    }

    /// Goes on with work that waits.
    pub async fn resume(
        &self,
        id: u128,
        party: [u8; 32],
        answers: Answers,
        notes: Option<mpsc::Sender<Note>>,
        timeout: Duration,
    ) -> Result<Outcome, CallError> {
        let found = {
            let mut map = self.map();
            map.retain(|_, waiting| waiting.talk.since.elapsed() < WAIT_MAX);
            let is_own = map.get(&id).is_some_and(|waiting| waiting.party == party);
            if is_own { map.remove(&id) } else { None }
        };
        let Some(Waiting { mut talk, .. }) = found else { return Err(CallError::Gone) };
        *talk.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
        let refused = answers.refused.into_iter().map(|key| (key, None));
        for (key, answer) in answers.responses.into_iter().map(|(key, answer)| (key, Some(answer))).chain(refused) {
            if let Some(question) = talk.open.remove(&key) {
                talk.answer(question, answer);
            }
        }
        if talk.open.is_empty() { talk.next(timeout, party, self).await } else { self.keep(talk, party) }
    }

    /// Makes room for one more of an owner, and waits until what held it is gone.
    pub async fn make_room(&self, owner: [u8; 32]) {
        if let Some(Waiting { talk, .. }) = self.surplus(owner) {
            talk.work.abort();
            // It was called off, or ended by itself.
            let _ = talk.work.await;
        }
    }

    fn surplus(&self, owner: [u8; 32]) -> Option<Waiting> {
        let mut map = self.map();
        let own = map.iter().filter(|(_, waiting)| waiting.talk.owner == owner);
        let mut own: Vec<(Instant, u128)> = own.map(|(id, waiting)| (waiting.talk.since, *id)).collect();
        own.sort_unstable();
        if own.len() >= WAITING_OF_OWNER_MAX { map.remove(&own[0].1) } else { None }
    }

    /// Ends everything that waits: the server is another one from now on.
    pub fn clear(&self) {
        self.map().clear();
    }

    /// Ends what waited for too long.
    pub fn sweep(&self) {
        self.map().retain(|_, waiting| waiting.talk.since.elapsed() < WAIT_MAX);
    }
}
