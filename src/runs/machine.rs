//! The life of a run: where it stands and what happened in, what changes out. Pure.
//!
//! What each input does in each state; a dash is refused with [`InvalidTransition`]:
//!
//! | input \ state     | queued      | in progress | requires action | cancelling | over |
//! |-------------------|-------------|-------------|-----------------|------------|------|
//! | `Claimed`         | in progress | in progress | –               | –          | –    |
//! | `TextBegan`       | –           | in progress | –               | –          | –    |
//! | `ModelReplied`    | –           | completed, incomplete | –     | –          | –    |
//! | `CancelRequested` | cancelling  | cancelling  | cancelling      | –          | –    |
//! | `Stopped`         | –           | –           | –               | cancelled  | –    |
//! | `Failed`          | failed      | failed      | –               | –          | –    |
//! | `DeadlinePassed`  | expired     | expired     | expired         | cancelled  | –    |
//!
//! `Claimed` in progress is a second executor after a crash of the first: it asks the model again, into the same
//! message. An end closes what is open in the recorded order: the message, its step, the run.
//!
//! A run has at most one message and one `message_creation` step. They begin with the model's first text. A run that
//! fails before any text ends with its step failed and no message; the step's message id is only reserved, and the
//! stream tells of the run alone.

use crate::api::message::{Author, Content, IncompleteReason, MessageState, Role};
use crate::api::run::{LastError, RunIncompleteReason, RunState, Usage};
use crate::api::run_step::{MessageCreation, StepDetails, StepState};
use crate::api::stream::{MessageEvent, RunEvent, StepEvent};
use crate::api::{Ids, Message, Metadata, Run, RunStep, StreamEvent, Timestamp};
use crate::llm::FinishReason;

/// A run and what is open of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The run.
    pub run: Run,
    /// Its `message_creation` step, once begun.
    pub step: Option<RunStep>,
    /// Its message, once begun.
    pub message: Option<Message>,
}

impl Progress {
    /// A run of which nothing has been done.
    #[must_use]
    pub fn new(run: Run) -> Self {
        Self { run, step: None, message: None }
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
}

/// What has happened to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// An executor has taken it.
    Claimed,
    /// The model has begun to write.
    TextBegan,
    /// The model has ended its answer; the text is in the message already.
    ModelReplied {
        /// What the answer cost.
        usage: Usage,
        /// Why it ended.
        finish: FinishReason,
    },
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
    /// Messages to write.
    pub messages: Vec<Message>,
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
        (InProgress { started_at }, Input::ModelReplied { usage, finish }) => {
            Ok(change.reply(*started_at, usage, finish, ids))
        }
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::CancelRequested) => {
            Ok(change.run(RunState::Cancelling { started_at }, RunEvent::Cancelling).done(Effect::AbortModel))
        }
        (Cancelling { .. }, Input::Stopped | Input::DeadlinePassed) => Ok(change
            .end_message(IncompleteReason::RunCancelled)
            .end_step(StepState::Cancelled { at: now }, StepEvent::Cancelled)
            .run(RunState::Cancelled { started_at, at: now }, RunEvent::Cancelled)
            .done(Effect::Release)),
        (Queued { .. } | InProgress { .. }, Input::Failed(error)) => Ok(change.fail(started_at, error, ids)),
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::DeadlinePassed) => Ok(change
            .end_message(IncompleteReason::RunExpired)
            .end_step(StepState::Expired { at: now }, StepEvent::Expired)
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
    messages: Vec<Message>,
    events: Vec<StreamEvent>,
    now: Timestamp,
}

impl Change {
    fn new(progress: Progress, now: Timestamp) -> Self {
        Self { progress, steps: Vec::new(), messages: Vec::new(), events: Vec::new(), now }
    }

    fn done(self, effect: Effect) -> Transition {
        Transition { progress: self.progress, steps: self.steps, messages: self.messages, events: self.events, effect }
    }

    fn claim(mut self) -> Transition {
        if let Some(message) = &mut self.progress.message {
            message.content.clear();
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
        if let Some(step) = &mut self.progress.step {
            step.usage = Some(usage);
        }
        let at = self.now;
        let cut = match finish {
            FinishReason::Stop => None,
            FinishReason::Length => Some(IncompleteReason::MaxTokens),
            FinishReason::ContentFilter => Some(IncompleteReason::ContentFilter),
        };
        let ended = match cut {
            None => self.message(MessageState::Completed { at }, MessageEvent::Completed),
            Some(reason) => self.end_message(reason),
        }
        .end_step(StepState::Completed { at }, StepEvent::Completed);
        let reason = RunIncompleteReason::MaxCompletionTokens;
        match cut {
            None => ended.run(RunState::Completed { started_at, at }, RunEvent::Completed),
            Some(_) => ended.run(RunState::Incomplete { started_at, at, reason }, RunEvent::Incomplete),
        }
        .done(Effect::Release)
    }

    fn fail(mut self, started_at: Option<Timestamp>, error: LastError, ids: &Ids) -> Transition {
        let at = self.now;
        let state = StepState::Failed { at, error: error.clone() };
        if self.progress.step.is_some() {
            self = self.end_message(IncompleteReason::RunFailed).end_step(state, StepEvent::Failed);
        } else {
            let details = StepDetails::MessageCreation { message_creation: MessageCreation { message_id: ids.make() } };
            let mut step = RunStep::begin(ids.make(), &self.progress.run, details, at);
            step.state = state;
            self.steps.push(step.clone());
            self.progress.step = Some(step);
        }
        self.run(RunState::Failed { started_at, at, error }, RunEvent::Failed).done(Effect::Release)
    }

    fn begin_message(mut self, ids: &Ids) -> Self {
        let spec = &self.progress.run.spec;
        let message = Message {
            id: ids.make(),
            created_at: self.now,
            thread_id: spec.thread_id.clone(),
            author: Some(Author { assistant_id: spec.assistant_id.clone(), run_id: spec.id.clone() }),
            role: Role::Assistant,
            content: Vec::new(),
            attachments: Vec::new(),
            metadata: Metadata::default(),
            state: MessageState::InProgress,
        };
        let details =
            StepDetails::MessageCreation { message_creation: MessageCreation { message_id: message.id.clone() } };
        let step = RunStep::begin(ids.make(), &self.progress.run, details, self.now);
        self.events.extend([
            StreamEvent::Step(StepEvent::Created, step.clone()),
            StreamEvent::Step(StepEvent::InProgress, step.clone()),
            StreamEvent::Message(MessageEvent::Created, message.clone()),
            StreamEvent::Message(MessageEvent::InProgress, message.clone()),
        ]);
        self.steps.push(step.clone());
        self.messages.push(message.clone());
        self.progress.step = Some(step);
        self.progress.message = Some(message);
        self
    }

    fn message(mut self, state: MessageState, event: MessageEvent) -> Self {
        if let Some(message) = &mut self.progress.message {
            message.state = state;
            self.messages.retain(|written| written.id != message.id);
            self.messages.push(message.clone());
            self.events.push(StreamEvent::Message(event, message.clone()));
        }
        self
    }

    fn end_message(self, reason: IncompleteReason) -> Self {
        let at = self.now;
        self.message(MessageState::Incomplete { at, reason }, MessageEvent::Incomplete)
    }

    fn end_step(mut self, state: StepState, event: StepEvent) -> Self {
        if let Some(step) = &mut self.progress.step {
            step.state = state;
            step.usage.get_or_insert_default();
            self.steps.retain(|written| written.id != step.id);
            self.steps.push(step.clone());
            self.events.push(StreamEvent::Step(event, step.clone()));
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
