//! The life of a run: where it stands and what happened in, what changes out. Pure.
//!
//! What each input does in each state; a dash is refused with [`InvalidTransition`]:
//!
//! | input \ state      | queued      | in progress | requires action | cancelling | over |
//! |--------------------|-------------|-------------|-----------------|------------|------|
//! | `Claimed`          | in progress | in progress | –               | –          | –    |
//! | `TextBegan`        | –           | in progress | –               | –          | –    |
//! | `CallsBegan`       | –           | in progress | –               | –          | –    |
//! | `ModelReplied`     | –           | completed, incomplete, requires action | – | – | –    |
//! | `OutputsSubmitted` | –           | –           | queued          | –          | –    |
//! | `CancelRequested`  | cancelling  | cancelling  | cancelling      | –          | –    |
//! | `Stopped`          | –           | –           | –               | cancelled  | –    |
//! | `Failed`           | failed      | failed      | –               | –          | –    |
//! | `LimitReached`     | –           | incomplete  | –               | –          | –    |
//! | `DeadlinePassed`   | expired     | expired     | expired         | cancelled  | –    |
//!
//! `Claimed` in progress is a second executor after a crash of the first: it asks the model again, and its text takes
//! the place of what the first had written since the last tool calls. An end closes what is open in the recorded
//! order: the message, the steps, the run.
//!
//! A run has at most one message and one `message_creation` step, however many turns it takes; they begin with the
//! model's first text. Each turn that calls tools has a `tool_calls` step beside it. Where a turn has both, the message
//! and its step stay open while the tools run, and a later turn's text goes on in it; how a stream tells of that is the
//! business of `events`. A run that fails before any text
//! ends with its step failed and no message; the step's message id is only reserved, and the stream tells of the run
//! alone.

use crate::api::message::{Author, Content, IncompleteReason, MessageState, Role};
use crate::api::run::{FunctionCall, LastError, RunIncompleteReason, RunState, Usage};
use crate::api::run_step::{MessageCreation, StepDetails, StepState, ToolCall, TurnRecord};
use crate::api::stream::{MessageEvent, RunEvent, StepEvent};
use crate::api::{Ids, Message, Metadata, Run, RunStep, StreamEvent, Timestamp};
use crate::llm::FinishReason;
use crate::store::{Commit, Committed};

use super::turn::MadeCall;

/// A run and what it has done.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The run.
    pub run: Run,
    /// Its steps, in the order of their beginning.
    pub steps: Vec<RunStep>,
    /// Its message, once begun.
    pub message: Option<Message>,
}

impl Progress {
    /// A run of which nothing has been done.
    #[must_use]
    pub fn new(run: Run) -> Self {
        Self { run, steps: Vec::new(), message: None }
    }

    /// Adds text to the message; its first part grows.
    ///
    /// # Panics
    /// When no message has begun: text comes only after [`Input::TextBegan`].
    pub fn append(&mut self, text: &str) {
        let message = self.message.as_mut().expect("text comes after TextBegan");
        match message.content.first_mut() {
            Some(Content::Text { text: part }) => part.value.push_str(text),
            _ => message.content.push(Content::text(text)),
        }
    }

    /// Adds words for not answering to the message; gives the index of their part.
    ///
    /// # Panics
    /// When no message has begun, as [`Progress::append`].
    pub fn append_refusal(&mut self, words: &str) -> u32 {
        let message = self.message.as_mut().expect("words come after TextBegan");
        match message.content.last_mut() {
            Some(Content::Refusal { refusal }) => refusal.push_str(words),
            _ => message.content.push(Content::Refusal { refusal: words.to_owned() }),
        }
        u32::try_from(message.content.len() - 1).expect("a message has few parts")
    }

    /// The text written so far.
    #[must_use]
    pub fn text(&self) -> &str {
        match self.message.as_ref().and_then(|message| message.content.first()) {
            Some(Content::Text { text }) => &text.value,
            _ => "",
        }
    }

    /// The step whose calls the model is writing, or the client is answering.
    #[must_use]
    pub fn open_calls(&self) -> Option<&RunStep> {
        self.steps.iter().find(|step| !step.makes_message() && step.is_open())
    }

    /// How many turns have called tools.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.steps.iter().filter(|step| !step.makes_message()).count()
    }

    /// How much of the text was written before the last turn that called tools had ended.
    #[must_use]
    pub fn settled_bytes(&self) -> usize {
        self.steps.iter().filter_map(|step| step.turn.as_ref()).map(|turn| turn.text_bytes).max().unwrap_or(0)
    }
}

/// What has happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// An executor has taken it.
    Claimed,
    /// The model has begun to write.
    TextBegan,
    /// The model has begun to call tools.
    CallsBegan,
    /// The model has ended its answer; the text is in the message already.
    ModelReplied {
        /// What the answer cost.
        usage: Usage,
        /// Why it ended.
        finish: FinishReason,
        /// The calls that it made, after [`Input::CallsBegan`].
        calls: Vec<MadeCall>,
    },
    /// The client has answered all calls, in their order.
    OutputsSubmitted(Vec<String>),
    /// The run has used up what it may read or write.
    LimitReached(RunIncompleteReason),
    /// A client wants it stopped.
    CancelRequested,
    /// It was stopped as wanted.
    Stopped,
    /// The model could not answer.
    Failed(LastError),
    /// Its time is up.
    DeadlinePassed,
}

/// What an input changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run now.
    pub progress: Progress,
    /// Steps to write.
    pub steps: Vec<RunStep>,
    /// The message to write, when it has changed.
    pub message: Option<Message>,
    /// Whether that message is begun by this.
    pub message_is_new: bool,
    /// What to tell, after it is written.
    pub events: Vec<StreamEvent>,
    /// What to do next.
    pub effect: Effect,
}

/// What to do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the model.
    CallModel,
    /// Go on with what is being done.
    Continue,
    /// Have the executor stop its model call.
    AbortModel,
    /// Let go of the run: it is over.
    Release,
}

impl Transition {
    /// What to write: the run at `version` becomes what it is now.
    #[must_use]
    pub fn commit(&self, version: i64, due_at: Option<Timestamp>) -> Commit<'_> {
        let message = self.message.as_ref();
        Commit {
            run: &self.progress.run,
            version,
            due_at,
            steps: &self.steps,
            new_message: message.filter(|_| self.message_is_new),
            changed_message: message.filter(|_| !self.message_is_new),
        }
    }

    /// This as it was written: a client may have changed the message's metadata meanwhile.
    #[must_use]
    pub fn written(mut self, committed: &Committed) -> Self {
        let Some(metadata) = &committed.metadata else { return self };
        let told = self.events.iter_mut().filter_map(|event| match event {
            StreamEvent::Message(_, message) => Some(message),
            _ => None,
        });
        for message in told.chain(&mut self.progress.message).filter(|message| message.metadata != *metadata) {
            message.metadata.clone_from(metadata);
        }
        self
    }

    /// This, and then what `next` has changed as well: one commit for both.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        let mut steps = self.steps;
        steps.retain(|step| !next.steps.iter().any(|later| later.id == step.id));
        steps.extend(next.steps);
        Self {
            steps,
            message: next.message.or(self.message),
            message_is_new: self.message_is_new || next.message_is_new,
            events: self.events.into_iter().chain(next.events).collect(),
            ..next
        }
    }
}

/// An input that means nothing in the run's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {status} takes no {input}")]
pub struct InvalidTransition {
    /// The run's status.
    pub status: &'static str,
    /// The input's name.
    pub input: &'static str,
}

/// The events that tell of a new run.
#[must_use]
pub fn created(run: &Run) -> Vec<StreamEvent> {
    vec![StreamEvent::Run(RunEvent::Created, run.clone()), StreamEvent::Run(RunEvent::Queued, run.clone())]
}

/// What becomes of a run when something happens to it. The table at the head of this file says it all.
///
/// # Errors
/// [`InvalidTransition`] where the table has a dash.
pub fn step(progress: &Progress, input: Input, now: Timestamp, ids: &Ids) -> Result<Transition, InvalidTransition> {
    use RunState::{Cancelling, InProgress, Queued, RequiresAction};

    let change = Change::new(progress.clone(), now);
    let started_at = progress.run.state.started_at();
    match (&progress.run.state, input) {
        (Queued { .. } | InProgress { .. }, Input::Claimed) => Ok(change.claim()),
        (InProgress { .. }, Input::TextBegan) if progress.message.is_none() => {
            Ok(change.begin_message(ids).done(Effect::Continue))
        }
        (InProgress { .. }, Input::CallsBegan) if progress.open_calls().is_none() => {
            Ok(change.begin_calls(ids).done(Effect::Continue))
        }
        (InProgress { started_at }, Input::ModelReplied { usage, finish, calls }) => match progress.open_calls() {
            Some(_) if !calls.is_empty() => Ok(change.ask_client(*started_at, usage, calls)),
            None if calls.is_empty() => Ok(change.reply(*started_at, usage, finish, ids)),
            _ => Err(InvalidTransition { status: "in_progress", input: "ModelReplied" }),
        },
        (RequiresAction { started_at, calls }, Input::OutputsSubmitted(outputs)) if calls.len() == outputs.len() => {
            Ok(change.resume(*started_at, &outputs))
        }
        (InProgress { started_at }, Input::LimitReached(reason)) => Ok(change
            .end_message(IncompleteReason::MaxTokens)
            .end_steps(&StepState::Completed { at: now }, StepEvent::Completed)
            .run(RunState::Incomplete { started_at: *started_at, at: now, reason }, RunEvent::Incomplete)
            .done(Effect::Release)),
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::CancelRequested) => {
            Ok(change.run(RunState::Cancelling { started_at }, RunEvent::Cancelling).done(Effect::AbortModel))
        }
        (Cancelling { .. }, Input::Stopped | Input::DeadlinePassed) => Ok(change
            .end_message(IncompleteReason::RunCancelled)
            .end_steps(&StepState::Cancelled { at: now }, StepEvent::Cancelled)
            .run(RunState::Cancelled { started_at, at: now }, RunEvent::Cancelled)
            .done(Effect::Release)),
        (Queued { .. } | InProgress { .. }, Input::Failed(error)) => Ok(change.fail(started_at, error, ids)),
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::DeadlinePassed) => Ok(change
            .end_message(IncompleteReason::RunExpired)
            .end_steps(&StepState::Expired { at: now }, StepEvent::Expired)
            .run(RunState::Expired { started_at }, RunEvent::Expired)
            .done(Effect::Release)),
        (state, input) => Err(InvalidTransition { status: state.status(), input: input.name() }),
    }
}

impl Input {
    /// The input's name, for logs and refusals.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Claimed => "Claimed",
            Self::TextBegan => "TextBegan",
            Self::CallsBegan => "CallsBegan",
            Self::OutputsSubmitted(_) => "OutputsSubmitted",
            Self::LimitReached(_) => "LimitReached",
            Self::ModelReplied { .. } => "ModelReplied",
            Self::CancelRequested => "CancelRequested",
            Self::Stopped => "Stopped",
            Self::Failed(_) => "Failed",
            Self::DeadlinePassed => "DeadlinePassed",
        }
    }
}

/// A transition in the making.
struct Change {
    progress: Progress,
    steps: Vec<RunStep>,
    message: Option<Message>,
    message_is_new: bool,
    events: Vec<StreamEvent>,
    now: Timestamp,
}

impl Change {
    fn new(progress: Progress, now: Timestamp) -> Self {
        Self { message_is_new: false, progress, steps: Vec::new(), message: None, events: Vec::new(), now }
    }

    fn done(self, effect: Effect) -> Transition {
        Transition {
            progress: self.progress,
            steps: self.steps,
            message: self.message,
            message_is_new: self.message_is_new,
            events: self.events,
            effect,
        }
    }

    /// What a turn had begun when its executor died is begun anew.
    fn claim(mut self) -> Transition {
        let settled = self.progress.settled_bytes();
        if let Some(message) = &mut self.progress.message {
            match message.content.first_mut() {
                Some(Content::Text { text }) if settled > 0 => text.value.truncate(settled),
                _ => message.content.clear(),
            }
        }
        let started_at = self.now;
        self.run(RunState::InProgress { started_at }, RunEvent::InProgress).done(Effect::CallModel)
    }

    /// An answer without text is still an answer: it gets its message, with an empty text.
    fn reply(mut self, started_at: Timestamp, usage: Usage, finish: FinishReason, ids: &Ids) -> Transition {
        if self.progress.message.is_none() {
            self = self.begin_message(ids);
        }
        if let Some(message) = self.progress.message.as_mut().filter(|message| message.content.is_empty()) {
            message.content.push(Content::text(""));
        }
        self.progress.run.usage += usage;
        if let Some(step) = self.progress.steps.iter_mut().find(|step| step.makes_message()) {
            step.usage = Some(usage);
        }
        let at = self.now;
        // Servers may not keep to a bound; the run's end tells that it was passed.
        let limit = self.progress.run.limit_passed();
        let cut = match finish {
            FinishReason::Stop if limit == Some(RunIncompleteReason::MaxCompletionTokens) => {
                Some(IncompleteReason::MaxTokens)
            }
            FinishReason::Stop => None,
            FinishReason::Length => Some(IncompleteReason::MaxTokens),
            FinishReason::ContentFilter => Some(IncompleteReason::ContentFilter),
        };
        let ended = match cut {
            None => self.message(MessageState::Completed { at }, MessageEvent::Completed),
            Some(reason) => self.end_message(reason),
        }
        .end_steps(&StepState::Completed { at }, StepEvent::Completed);
        let reason = match (cut, limit) {
            (Some(_), _) => Some(RunIncompleteReason::MaxCompletionTokens),
            (None, limit) => limit,
        };
        match reason {
            None => ended.run(RunState::Completed { started_at, at }, RunEvent::Completed),
            Some(reason) => ended.run(RunState::Incomplete { started_at, at, reason }, RunEvent::Incomplete),
        }
        .done(Effect::Release)
    }

    fn fail(mut self, started_at: Option<Timestamp>, error: LastError, ids: &Ids) -> Transition {
        let at = self.now;
        let state = StepState::Failed { at, error: error.clone() };
        self = self.end_message(IncompleteReason::RunFailed).end_steps(&state, StepEvent::Failed);
        if !self.progress.steps.iter().any(RunStep::makes_message) {
            let details = StepDetails::MessageCreation { message_creation: MessageCreation { message_id: ids.make() } };
            let mut step = RunStep::begin(ids.make(), &self.progress.run, details, at);
            step.state = state;
            self.steps.push(step.clone());
            self.progress.steps.push(step);
        }
        self.run(RunState::Failed { started_at, at, error }, RunEvent::Failed).done(Effect::Release)
    }

    fn begin_calls(mut self, ids: &Ids) -> Self {
        let details = StepDetails::ToolCalls { tool_calls: Vec::new() };
        let step = RunStep::begin(ids.make(), &self.progress.run, details, self.now);
        self.events.push(StreamEvent::Step(StepEvent::Created, step.clone()));
        self.events.push(StreamEvent::Step(StepEvent::InProgress, step.clone()));
        self.steps.push(step.clone());
        self.progress.steps.push(step);
        self
    }

    fn ask_client(mut self, started_at: Timestamp, usage: Usage, made: Vec<MadeCall>) -> Transition {
        self.progress.run.usage += usage;
        let text_bytes = self.progress.text().len();
        let (calls, call_ids): (Vec<FunctionCall>, Vec<String>) =
            made.into_iter().map(|made| (made.call, made.upstream_id)).unzip();
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.makes_message() && step.is_open()) {
            let tool_calls = calls.iter().map(ToolCall::unanswered).collect();
            step.details = StepDetails::ToolCalls { tool_calls };
            step.usage = Some(usage);
            step.turn = Some(TurnRecord { text_bytes, call_ids });
            self.steps.push(step.clone());
        }
        // What was written before the calls is kept with them, so that it outlives this server.
        self.message.clone_from(&self.progress.message);
        self.run(RunState::RequiresAction { started_at, calls }, RunEvent::RequiresAction).done(Effect::Release)
    }

    fn resume(mut self, started_at: Timestamp, outputs: &[String]) -> Transition {
        let at = self.now;
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.makes_message() && step.is_open()) {
            if let StepDetails::ToolCalls { tool_calls } = &mut step.details {
                for (call, output) in tool_calls.iter_mut().zip(outputs) {
                    call.function.output = Some(output.clone());
                }
            }
            step.state = StepState::Completed { at };
            self.steps.push(step.clone());
            self.events.push(StreamEvent::Step(StepEvent::Completed, step.clone()));
        }
        self.run(RunState::Queued { started_at: Some(started_at) }, RunEvent::Queued).done(Effect::CallModel)
    }

    /// Begins the message and its step. A step that has lost its message (a client deleted it) makes it anew.
    fn begin_message(mut self, ids: &Ids) -> Self {
        let begun = self.progress.steps.iter().find_map(|step| match &step.details {
            StepDetails::MessageCreation { message_creation } => Some(message_creation.message_id.clone()),
            StepDetails::ToolCalls { .. } => None,
        });
        let spec = &self.progress.run.spec;
        let message = Message {
            id: begun.clone().unwrap_or_else(|| ids.make()),
            created_at: self.now,
            thread_id: spec.thread_id.clone(),
            author: Some(Author { assistant_id: spec.assistant_id.clone(), run_id: spec.id.clone() }),
            role: Role::Assistant,
            content: Vec::new(),
            attachments: Vec::new(),
            metadata: Metadata::default(),
            state: MessageState::InProgress,
        };
        if begun.is_none() {
            let message_creation = MessageCreation { message_id: message.id.clone() };
            let details = StepDetails::MessageCreation { message_creation };
            let step = RunStep::begin(ids.make(), &self.progress.run, details, self.now);
            self.events.push(StreamEvent::Step(StepEvent::Created, step.clone()));
            self.events.push(StreamEvent::Step(StepEvent::InProgress, step.clone()));
            self.steps.push(step.clone());
            self.progress.steps.push(step);
        }
        self.events.push(StreamEvent::Message(MessageEvent::Created, message.clone()));
        self.events.push(StreamEvent::Message(MessageEvent::InProgress, message.clone()));
        self.message = Some(message.clone());
        self.message_is_new = true;
        self.progress.message = Some(message);
        self
    }

    fn message(mut self, state: MessageState, event: MessageEvent) -> Self {
        if let Some(message) =
            self.progress.message.as_mut().filter(|message| message.state == MessageState::InProgress)
        {
            message.state = state;
            self.message = Some(message.clone());
            self.events.push(StreamEvent::Message(event, message.clone()));
        }
        self
    }

    fn end_message(self, reason: IncompleteReason) -> Self {
        let at = self.now;
        self.message(MessageState::Incomplete { at, reason }, MessageEvent::Incomplete)
    }

    /// Ends the open steps, that of the message first.
    fn end_steps(mut self, state: &StepState, event: StepEvent) -> Self {
        let mut ended: Vec<RunStep> = Vec::new();
        for step in self.progress.steps.iter_mut().filter(|step| step.is_open()) {
            step.state = state.clone();
            step.usage.get_or_insert_default();
            ended.push(step.clone());
        }
        ended.sort_by_key(|step| !step.makes_message());
        for step in ended {
            self.steps.retain(|written| written.id != step.id);
            self.steps.push(step.clone());
            self.events.push(StreamEvent::Step(event, step));
        }
        self
    }

    fn run(mut self, state: RunState, event: RunEvent) -> Self {
        self.progress.run.state = state;
        self.events.push(StreamEvent::Run(event, self.progress.run.clone()));
        self
    }
}

#[cfg(test)]
mod tests;
