//! The lifecycle of a run: computes the transition from its state and an input. Pure; imports only `api`.
//!
//! The next state for each input in each state. A dash: rejected with [`InvalidTransition`].
//!
//! | input \ state      | queued      | in progress | requires action | cancelling | ended |
//! |--------------------|-------------|-------------|-----------------|------------|-------|
//! | `Claimed`          | in progress | in progress | –               | –          | –    |
//! | `TextStarted`      | –           | in progress | –               | –          | –    |
//! | `CallsStarted`     | –           | in progress | –               | –          | –    |
//! | `ModelReplied`     | –           | in progress, completed, incomplete, requires action | – | – | –    |
//! | `CodeEnded`        | –           | in progress | –               | –          | –    |
//! | `ToolsEnded`       | –           | in progress, requires action | –      | –          | –    |
//! | `OutputsSubmitted` | –           | –           | queued          | –          | –    |
//! | `CancelRequested`  | cancelling  | cancelling  | cancelling      | –          | –    |
//! | `Stopped`          | –           | –           | –               | cancelled  | –    |
//! | `Failed`           | failed      | failed      | –               | –          | –    |
//! | `LimitReached`     | –           | incomplete  | –               | –          | –    |
//! | `DeadlinePassed`   | expired     | expired     | expired         | cancelled  | –    |
//!
//! `Claimed` in progress is a further attempt, after one that ended without a result. Unfinished work is cleaned up before
//! the model is called again:
//!
//! | unfinished when the run is claimed          | becomes                                                      |
//! |---------------------------------------------|--------------------------------------------------------------|
//! | text and refusal after the last tool calls  | removed from the message; the message and its step stay open |
//! | a `tool_calls` step without calls           | removed                                                      |
//! | a `tool_calls` step with submitted outputs  | unchanged: it is already completed                           |
//! | a `tool_calls` step of built-in tools       | unchanged: the searches run again. The first code that has not ended may have run in part: it ends, and the model is informed |
//!
//! Built-in tools run in the server. Their calls are stored before the tools run (`ModelReplied`, then `ToolsEnded`). If a
//! turn calls both built-in tools and functions, the step of the built-in tools is the first, and the step of the functions
//! is created when the tools have ended; both have the calls of one turn. Code has effects: the end of each call of the code
//! interpreter is stored (`CodeEnded`) before the next one runs, and no code runs twice.
//!
//! An answer that ends before its calls are complete, at the token limit, ends their step without calls.
//!
//! The end of a run ends its open parts in the recorded order: the message, the steps, the run.
//!
//! A run has at most one message and one `message_creation` step, however many turns it takes; they are created with the
//! model's first text. Each turn that calls tools has a `tool_calls` step as well. If a turn has both text and calls, the
//! message and its step stay open while the tools run, and the text of a later turn is appended to the message;
//! `stream::transcript` decides how a stream shows that. A run that fails before any text has a failed `message_creation`
//! step and no message: the message ID of the step is reserved and not used.
//!
//! The usage of a turn is recorded however the turn ends: with its reply, or with the failure, cancellation or
//! expiration that stopped it.
//!
//! Each call of the model is recorded once in the usage ledger:
//!
//! | call                                                  | recorded                                              |
//! |-------------------------------------------------------|-------------------------------------------------------|
//! | answered (`ModelReplied`)                             | with its usage; it stood                              |
//! | ended by `Failed`, `Stopped` or `DeadlinePassed`      | with its usage, unless that is zero: no answer began  |
//! | lost with its server: the run is `Claimed` in progress, and no tools were running | with the next call of the turn, and the same prompt tokens; otherwise at the end of the run, with no tokens |
//!
//! A lost call counts in `Run::lost_calls` until it is recorded. It is not certain that it was made: the server may have
//! been lost before.

use crate::api::message::{
    Annotation, AnnotationKind, Author, Content, Detail, ImageFile, IncompleteReason, MessageState, Role,
};
use crate::api::organization::usage::ModelCall;
use crate::api::run::{FinishReason, LastError, RunIncompleteReason, RunState};
use crate::api::run_step::{MessageCreation, PendingFunction, ReplayedMembers, StepDetails, StepState, TurnRecord};
use crate::api::tool::{CalledCodeInterpreter, CalledTool, FunctionCall, ToolCall};
use crate::api::usage::Usage;
use crate::api::{FileId, Ids, Message, Metadata, Run, RunStep, RunStepId, Timestamp};

/// Maximum number of lost calls of a turn that are counted. `max_attempts` is usually reached before.
const LOST_CALLS_MAX: u32 = 100;

/// What the model reads of code whose server was lost while it ran.
const CODE_INTERRUPTED: &str = "The server was restarted while this code ran. It may have run in part, and its output is lost. The \
                                variables of earlier calls are lost as well. Files that earlier calls have written to /mnt/data \
                                are still there. Run the code again if it can be repeated.";

/// A run with its steps and its message.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The run.
    pub run: Run,
    /// Its steps, in the order of their creation.
    pub steps: Vec<RunStep>,
    /// Its message; `None` before it is created, and after a client has deleted it.
    pub message: Option<Message>,
}

/// A call that the model has finished writing.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletedCall {
    /// The call as the model wrote it. The name is that under which the tool was offered.
    pub call: FunctionCall,
    /// The built-in tool that was called, without results; `None` for a function of the client.
    pub built_in: Option<CalledTool>,
    /// The model's ID of the call.
    pub upstream_id: String,
}

/// A mark in the text that refers to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The mark as clients see it; not empty.
    pub text: String,
    /// The file.
    pub file_id: FileId,
    /// The cited passage, if clients see it.
    pub quote: Option<String>,
    /// What it is.
    pub kind: AnnotationKind,
}

/// The length of the text and refusal that turns before the current one wrote, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Bytes of the text part.
    pub text: usize,
    /// Bytes of the refusal part.
    pub refusal: usize,
}

impl Progress {
    /// Creates the progress of a new run.
    #[must_use]
    pub fn new(run: Run) -> Self {
        Self { run, steps: Vec::new(), message: None }
    }

    /// Appends to the text part of the message, and creates the part if necessary.
    ///
    /// # Panics
    /// If there is no message, which [`Input::TextStarted`] creates.
    pub fn append(&mut self, text: &str) {
        let content = &mut self.message.as_mut().expect("TextStarted has created the message").content;
        match content.iter_mut().find_map(text_part) {
            Some(value) => value.push_str(text),
            None => content.push(Content::text(text)),
        }
    }

    /// Appends a mark that refers to a file to the text part of the message.
    ///
    /// # Panics
    /// Like [`Progress::append`], if the run has no message.
    pub fn append_mark(&mut self, mark: &Mark) {
        self.append(&mark.text);
        let content = &mut self.message.as_mut().expect("TextStarted has created the message").content;
        let text = content.iter_mut().find_map(|part| match part {
            Content::Text { text } => Some(text),
            Content::Refusal { .. } | Content::ImageUrl { .. } | Content::ImageFile { .. } => None,
        });
        let Some(text) = text else { return };
        let end_index = text.value.chars().count();
        text.annotations.push(Annotation {
            text: mark.text.clone(),
            start_index: end_index - mark.text.chars().count(),
            end_index,
            start_byte: text.value.len() - mark.text.len(),
            file_id: mark.file_id.clone(),
            quote: mark.quote.clone(),
            kind: mark.kind,
        });
    }

    /// Appends to the refusal part of the message, and creates the part if necessary.
    ///
    /// # Panics
    /// Like [`Progress::append`], if the run has no message.
    pub fn append_refusal(&mut self, text: &str) {
        let content = &mut self.message.as_mut().expect("TextStarted has created the message").content;
        match content.iter_mut().find_map(refusal_part) {
            Some(refusal) => refusal.push_str(text),
            None => content.push(Content::Refusal { refusal: text.to_owned() }),
        }
    }

    /// Returns the text so far.
    #[must_use]
    pub fn text(&self) -> &str {
        self.parts().find_map(Content::as_text).unwrap_or_default()
    }

    /// Returns a range of the text, in bytes, without the marks in it.
    #[must_use]
    pub fn text_without_marks(&self, range: std::ops::Range<usize>) -> String {
        let text = self.parts().find_map(|part| match part {
            Content::Text { text } => Some(text),
            Content::Refusal { .. } | Content::ImageUrl { .. } | Content::ImageFile { .. } => None,
        });
        text.map(|text| text.without_marks(range)).unwrap_or_default()
    }

    /// Returns the refusal so far.
    #[must_use]
    pub fn refusal(&self) -> &str {
        self.parts().find_map(Content::as_refusal).unwrap_or_default()
    }

    fn parts(&self) -> impl Iterator<Item = &Content> {
        self.message.iter().flat_map(|message| &message.content)
    }

    /// Returns the open `tool_calls` step: the model is writing its calls, or the client is executing them.
    #[must_use]
    pub fn open_calls(&self) -> Option<&RunStep> {
        self.steps.iter().find(|step| !step.creates_message() && step.is_open())
    }

    /// Returns the open step whose built-in tools must run.
    #[must_use]
    pub fn running_tools(&self) -> Option<&RunStep> {
        self.open_calls().filter(|step| step.calls_built_in_tools())
    }

    /// Returns the first call of the code interpreter in the open step that has not ended, with its index.
    #[must_use]
    pub fn running_code(&self) -> Option<(usize, &CalledCodeInterpreter)> {
        let calls = self.running_tools()?.tool_calls().iter().enumerate();
        calls.filter_map(|(index, call)| Some((index, call.code()?))).find(|(_, code)| code.result.is_none())
    }

    /// Returns the number of turns with tool calls.
    #[must_use]
    pub fn rounds(&self) -> usize {
        let continues_turn = |step: &RunStep| step.turn.as_ref().is_some_and(|turn| turn.continues_turn);
        self.steps.iter().filter(|step| !step.creates_message() && !continues_turn(step)).count()
    }

    /// Truncates the text and the refusal of the message to these lengths, and reopens it.
    pub(super) fn truncate(&mut self, text_bytes: usize, refusal_bytes: usize) {
        let settled = Settled {
            text: self.text().floor_char_boundary(text_bytes),
            refusal: self.refusal().floor_char_boundary(refusal_bytes),
        };
        let Some(message) = &mut self.message else { return };
        message.state = MessageState::InProgress;
        for part in &mut message.content {
            if let Content::Text { text } = part {
                text.value.truncate(settled.text);
                text.annotations.retain(|annotation| annotation.end_byte() <= settled.text);
            } else if let Some(refusal) = refusal_part(part) {
                refusal.truncate(settled.refusal);
            }
        }
        message.content.retain(|part| match part {
            Content::Text { text } => !text.value.is_empty(),
            Content::Refusal { refusal } => !refusal.is_empty(),
            Content::ImageUrl { .. } | Content::ImageFile { .. } => true,
        });
    }

    /// Returns the length of the text of earlier turns; at most the current length, because a client may have deleted
    /// the message.
    #[must_use]
    pub fn settled(&self) -> Settled {
        let turns = || self.steps.iter().filter_map(|step| step.turn.as_ref());
        let text = turns().map(|turn| turn.text_bytes).max().unwrap_or(0);
        let refusal = turns().map(|turn| turn.refusal_bytes).max().unwrap_or(0);
        Settled { text: self.text().floor_char_boundary(text), refusal: self.refusal().floor_char_boundary(refusal) }
    }
}

fn image_part(file_id: &FileId) -> Content {
    Content::ImageFile { image_file: ImageFile { file_id: file_id.clone(), detail: Detail::default() } }
}

fn text_part(part: &mut Content) -> Option<&mut String> {
    if let Content::Text { text } = part { Some(&mut text.value) } else { None }
}

fn refusal_part(part: &mut Content) -> Option<&mut String> {
    if let Content::Refusal { refusal } = part { Some(refusal) } else { None }
}

/// What has happened to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A worker has claimed it.
    Claimed,
    /// The model has started to write text.
    TextStarted,
    /// The model has started to call tools.
    CallsStarted,
    /// The model has completed its answer; the text is already in the message.
    ModelReplied {
        /// Tokens of the turn.
        usage: Usage,
        /// Why it ended.
        finish: FinishReason,
        /// The calls that it made, after [`Input::CallsStarted`].
        calls: Vec<CompletedCall>,
        /// Members of a turn with calls that are sent back to the model.
        replay: Option<Box<ReplayedMembers>>,
    },
    /// A call of the code interpreter in the open step has ended.
    CodeEnded {
        /// The index of the call.
        index: usize,
        /// The call with its results.
        call: CalledCodeInterpreter,
    },
    /// The built-in tools of the open step have ended, with these results, in the order of the calls.
    ToolsEnded(Vec<CalledTool>),
    /// The client has submitted the outputs of all calls, in their order.
    OutputsSubmitted(Vec<String>),
    /// The run has reached its limit on prompt or completion tokens.
    LimitReached(RunIncompleteReason),
    /// A client has requested its cancellation.
    CancelRequested,
    /// The model call of a run in status `cancelling` was stopped.
    Stopped {
        /// Tokens of the turn that was stopped.
        usage: Usage,
    },
    /// The run cannot be completed.
    Failed {
        /// Why.
        error: LastError,
        /// Tokens of the turn that failed.
        usage: Usage,
    },
    /// Its deadline has passed.
    DeadlinePassed {
        /// Tokens of the turn that was stopped.
        usage: Usage,
    },
}

/// The result of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The run after the transition.
    pub progress: Progress,
    /// New and changed steps, to be stored.
    pub steps: Vec<RunStep>,
    /// Steps to delete.
    pub removed_steps: Vec<RunStepId>,
    /// The message to be stored, if it has changed.
    pub message: Option<Message>,
    /// Whether the message is new.
    pub message_is_new: bool,
    /// Whether the run has advanced further than in earlier attempts; if so, the count of attempts is reset.
    pub made_progress: bool,
    /// Model calls that have ended, for the usage ledger.
    pub calls: Vec<ModelCall>,
    /// What to do next.
    pub effect: Effect,
}

/// What to do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The worker that drives the run calls the model.
    CallModel,
    /// The worker continues to read the model's answer.
    ReadAnswer,
    /// The worker runs the built-in tools of the open `tool_calls` step.
    RunTools,
    /// The service notifies the worker that drives the run, which stops its model call.
    StopModel,
    /// The service makes the run due, so that a worker claims it.
    Enqueue,
    /// The worker releases the run until the client submits outputs.
    AwaitClient,
    /// The run has ended, and its thread can have another active run.
    Finish,
}

impl Transition {
    /// Replaces the message's metadata with the stored value; a client may have modified it concurrently.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Option<Metadata>) -> Self {
        if let (Some(metadata), Some(message)) = (metadata, &mut self.progress.message) {
            message.metadata = metadata;
        }
        self
    }

    /// Merges this transition and the next one into one commit.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        let mut steps = self.steps;
        steps.retain(|step| {
            !next.steps.iter().any(|later| later.id == step.id) && !next.removed_steps.contains(&step.id)
        });
        steps.extend(next.steps);
        Self {
            steps,
            removed_steps: self.removed_steps.into_iter().chain(next.removed_steps).collect(),
            message: next.message.or(self.message),
            message_is_new: self.message_is_new || next.message_is_new,
            made_progress: self.made_progress || next.made_progress,
            calls: self.calls.into_iter().chain(next.calls).collect(),
            ..next
        }
    }
}

/// An input that is not allowed in the run's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a run in status {status} does not accept the input {input}")]
pub struct InvalidTransition {
    /// The run's status.
    pub status: &'static str,
    /// The input's name.
    pub input: &'static str,
}

/// Returns the transition of a run for an input, according to the table at the top of this file.
///
/// # Errors
/// [`InvalidTransition`] where the table has a dash.
pub fn step(progress: &Progress, input: Input, now: Timestamp, ids: &Ids) -> Result<Transition, InvalidTransition> {
    use RunState::{Cancelling, InProgress, Queued, RequiresAction};

    // The clock of this server may be slow. No time is before the run's creation or that of a step, so that the steps are
    // in order.
    let newest_step = progress.steps.iter().map(|step| step.created_at).max();
    let now = now.max(progress.run.spec.created_at).max(newest_step.unwrap_or(now));
    let change = Change::new(progress.clone(), now);
    let started_at = progress.run.state.started_at();
    match (&progress.run.state, input) {
        (Queued { .. } | InProgress { .. }, Input::Claimed) => Ok(change.claim()),
        (InProgress { .. }, Input::TextStarted) if progress.message.is_none() => {
            Ok(change.begin_message(ids).done(Effect::ReadAnswer))
        }
        (InProgress { .. }, Input::CallsStarted) if progress.open_calls().is_none() => {
            Ok(change.begin_calls(ids).done(Effect::ReadAnswer))
        }
        (InProgress { started_at }, Input::ModelReplied { usage, finish, calls, replay }) => {
            if calls.is_empty() {
                Ok(change.reply(*started_at, usage, finish, ids))
            } else if progress.open_calls().is_some() {
                Ok(change.call_tools(*started_at, usage, calls, replay))
            } else {
                Ok(change.begin_calls(ids).call_tools(*started_at, usage, calls, replay))
            }
        }
        (InProgress { started_at }, Input::CodeEnded { index, call })
            if progress.running_code().is_some_and(|(running, _)| running == index) && call.result.is_some() =>
        {
            let started_at = *started_at;
            Ok(change.end_code(index, call).run(RunState::InProgress { started_at }).done(Effect::RunTools))
        }
        (InProgress { started_at }, Input::ToolsEnded(results))
            if progress.running_tools().is_some_and(|step| step.tool_calls().len() == results.len())
                && progress.running_code().is_none() =>
        {
            Ok(change.end_tools(*started_at, results, ids))
        }
        (RequiresAction { started_at, calls }, Input::OutputsSubmitted(outputs)) if calls.len() == outputs.len() => {
            Ok(change.resume(*started_at, &outputs))
        }
        (InProgress { started_at }, Input::LimitReached(reason)) => Ok(change
            .end_message(IncompleteReason::MaxTokens)
            .end_steps(&StepState::Completed { at: now })
            .run(RunState::Incomplete { started_at: *started_at, at: now, reason })
            .done(Effect::Finish)),
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::CancelRequested) => {
            Ok(change.run(RunState::Cancelling { started_at }).done(Effect::StopModel))
        }
        (Cancelling { .. }, Input::Stopped { usage } | Input::DeadlinePassed { usage }) => Ok(change
            .spend_interrupted(usage)
            .end_message(IncompleteReason::RunCancelled)
            .end_steps(&StepState::Cancelled { at: now })
            .run(RunState::Cancelled { started_at, at: now })
            .done(Effect::Finish)),
        (Queued { .. } | InProgress { .. }, Input::Failed { error, usage }) => {
            Ok(change.fail(started_at, error, usage, ids))
        }
        (Queued { .. } | InProgress { .. } | RequiresAction { .. }, Input::DeadlinePassed { usage }) => Ok(change
            .spend_interrupted(usage)
            .end_message(IncompleteReason::RunExpired)
            .end_steps(&StepState::Expired { at: now })
            .run(RunState::Expired { started_at })
            .done(Effect::Finish)),
        (state, input) => Err(InvalidTransition { status: state.status(), input: input.name() }),
    }
}

impl Input {
    /// Returns the tokens of the turn that this input ends; zero for an input that does not end a turn.
    #[must_use]
    pub fn usage(&self) -> Usage {
        match self {
            Self::ModelReplied { usage, .. }
            | Self::Stopped { usage }
            | Self::Failed { usage, .. }
            | Self::DeadlinePassed { usage } => *usage,
            Self::Claimed
            | Self::TextStarted
            | Self::CallsStarted
            | Self::CodeEnded { .. }
            | Self::ToolsEnded(_)
            | Self::OutputsSubmitted(_)
            | Self::LimitReached(_)
            | Self::CancelRequested => Usage::default(),
        }
    }

    /// Returns the input's name, for logs and errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Claimed => "Claimed",
            Self::TextStarted => "TextStarted",
            Self::CallsStarted => "CallsStarted",
            Self::CodeEnded { .. } => "CodeEnded",
            Self::ToolsEnded(_) => "ToolsEnded",
            Self::OutputsSubmitted(_) => "OutputsSubmitted",
            Self::LimitReached(_) => "LimitReached",
            Self::ModelReplied { .. } => "ModelReplied",
            Self::CancelRequested => "CancelRequested",
            Self::Stopped { .. } => "Stopped",
            Self::Failed { .. } => "Failed",
            Self::DeadlinePassed { .. } => "DeadlinePassed",
        }
    }
}

/// The calls of a turn.
struct Calls {
    /// The calls of the first step: those of built-in tools, or of functions if there are none.
    of_step: (Vec<ToolCall>, TurnRecord),
    /// Calls of functions beside built-in tools.
    pending: Vec<PendingFunction>,
}

impl Calls {
    /// Splits the calls of a turn that was written after this text.
    fn split(made: Vec<CompletedCall>, replay: Option<Box<ReplayedMembers>>, text: Settled) -> Self {
        let has_built_in = made.iter().any(|made| made.built_in.is_some());
        let (mut tool_calls, mut pending) = (Vec::new(), Vec::new());
        let mut turn =
            TurnRecord { text_bytes: text.text, refusal_bytes: text.refusal, replay, ..TurnRecord::default() };
        let mut members = turn.replay.as_mut().map(|replay| std::mem::take(&mut replay.calls)).unwrap_or_default();
        let mut kept = Vec::new();
        for (position, CompletedCall { call, built_in, upstream_id }) in made.into_iter().enumerate() {
            let members = members.get_mut(position).map(std::mem::take).unwrap_or_default();
            match built_in {
                None if has_built_in => pending.push(PendingFunction { call, upstream_id, position, members }),
                None => {
                    tool_calls.push(ToolCall::unanswered(&call));
                    turn.call_ids.push(upstream_id);
                    kept.push(members);
                }
                Some(tool) => {
                    tool_calls.push(ToolCall { id: call.id, tool });
                    turn.arguments.push(call.arguments);
                    turn.call_ids.push(upstream_id);
                    turn.positions.push(position);
                    kept.push(members);
                }
            }
        }
        if pending.is_empty() {
            turn.positions.clear();
        }
        if let Some(replay) = turn.replay.as_mut().filter(|_| kept.iter().any(|members| !members.is_empty())) {
            replay.calls = kept;
        }
        Self { of_step: (tool_calls, turn), pending }
    }
}

impl TurnRecord {
    /// Returns the calls of the functions of a turn of `model` and the record of their step; `None` if there are none.
    /// `first` is the record of the step of the built-in tools.
    fn of_functions(functions: Vec<PendingFunction>, first: &Self, model: String) -> Option<(Vec<FunctionCall>, Self)> {
        if functions.is_empty() {
            return None;
        }
        let mut turn = Self {
            text_bytes: first.text_bytes,
            refusal_bytes: first.refusal_bytes,
            continues_turn: true,
            ..Self::default()
        };
        let (mut calls, mut members) = (Vec::new(), Vec::new());
        for function in functions {
            turn.call_ids.push(function.upstream_id);
            turn.positions.push(function.position);
            calls.push(function.call);
            members.push(function.members);
        }
        if members.iter().any(|members| !members.is_empty()) {
            turn.replay = Some(Box::new(ReplayedMembers { model, calls: members, ..ReplayedMembers::default() }));
        }
        Some((calls, turn))
    }
}

/// A transition under construction.
struct Change {
    progress: Progress,
    steps: Vec<RunStep>,
    removed_steps: Vec<RunStepId>,
    message: Option<Message>,
    message_is_new: bool,
    made_progress: bool,
    calls: Vec<ModelCall>,
    now: Timestamp,
}

impl Change {
    fn new(progress: Progress, now: Timestamp) -> Self {
        Self {
            progress,
            steps: Vec::new(),
            removed_steps: Vec::new(),
            message: None,
            message_is_new: false,
            made_progress: false,
            calls: Vec::new(),
            now,
        }
    }

    fn done(self, effect: Effect) -> Transition {
        Transition {
            progress: self.progress,
            steps: self.steps,
            removed_steps: self.removed_steps,
            message: self.message,
            message_is_new: self.message_is_new,
            made_progress: self.made_progress,
            calls: self.calls,
            effect,
        }
    }

    /// Removes unfinished work of an earlier attempt, so that the model can be called again.
    fn claim(mut self) -> Transition {
        let runs_tools = self.progress.running_tools().is_some();
        let run = &mut self.progress.run;
        if matches!(run.state, RunState::InProgress { .. }) && !runs_tools {
            run.lost_calls = (run.lost_calls + 1).min(LOST_CALLS_MAX);
        }
        self = self.remove_unfinished_calls();
        let Settled { text, refusal } = self.progress.settled();
        self.progress.truncate(text, refusal);
        let running = self.progress.running_code().map(|(index, call)| (index, call.clone()));
        if let Some((index, call)) = running {
            self = self.end_code(index, CalledCodeInterpreter { result: Some(CODE_INTERRUPTED.to_owned()), ..call });
        }
        let started_at = self.now;
        let effect = if runs_tools { Effect::RunTools } else { Effect::CallModel };
        self.run(RunState::InProgress { started_at }).done(effect)
    }

    /// Removes the `tool_calls` step of a turn that ended before its calls were complete.
    fn remove_unfinished_calls(mut self) -> Self {
        let is_unfinished = |step: &RunStep| {
            let has_no_calls = matches!(&step.details, StepDetails::ToolCalls { tool_calls } if tool_calls.is_empty());
            step.is_open() && has_no_calls
        };
        let unfinished = self.progress.steps.iter().filter(|step| is_unfinished(step)).map(|step| step.id.clone());
        self.removed_steps.extend(unfinished);
        self.progress.steps.retain(|step| !is_unfinished(step));
        self
    }

    /// Adds the tokens of a turn that was interrupted to the run, its step and the ledger; nothing if there are none, because
    /// no answer began.
    fn spend_interrupted(mut self, usage: Usage) -> Self {
        if usage == Usage::default() {
            return self;
        }
        self.record_call(usage, false);
        self.spend(usage)
    }

    /// Adds the tokens of a turn that was answered to the run, its step and the ledger.
    fn spend_answered(mut self, usage: Usage) -> Self {
        self.record_call(usage, true);
        if usage == Usage::default() { self } else { self.spend(usage) }
    }

    fn record_call(&mut self, usage: Usage, stood: bool) {
        self.record_lost_calls(usage.prompt_tokens);
        self.calls.push(ModelCall::of_run(&self.progress.run.spec, usage, stood));
    }

    /// Records the calls that were lost, whose prompts had this many tokens. Their answers are unknown.
    fn record_lost_calls(&mut self, prompt_tokens: u32) {
        let run = &mut self.progress.run;
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        for _ in 0..std::mem::take(&mut run.lost_calls) {
            self.calls.push(ModelCall::of_run(&run.spec, usage, false));
        }
    }

    /// Adds the tokens of a turn to the run and to the step of the turn.
    fn spend(mut self, usage: Usage) -> Self {
        self.progress.run.usage += usage;
        let steps = &mut self.progress.steps;
        let index = steps
            .iter()
            .position(|step| !step.creates_message() && step.is_open() && step.usage.is_none())
            .or_else(|| steps.iter().position(|step| step.creates_message() && step.is_open()));
        if let Some(step) = index.map(|index| &mut steps[index]) {
            *step.usage.get_or_insert_default() += usage;
        }
        self
    }

    /// Ends the run with the model's answer. An answer without text has a message with an empty text.
    fn reply(mut self, started_at: Timestamp, usage: Usage, finish: FinishReason, ids: &Ids) -> Transition {
        if self.progress.message.is_none() {
            self = self.begin_message(ids);
        }
        if let Some(message) = self.progress.message.as_mut().filter(|message| message.content.is_empty()) {
            message.content.push(Content::text(""));
        }
        self = self.spend_answered(usage);
        let at = self.now;
        // Model servers may ignore a limit; the run's status shows that it was exceeded.
        let limit = self.progress.run.limit_exceeded();
        let cut = match finish {
            FinishReason::Stop if limit == Some(RunIncompleteReason::MaxCompletionTokens) => {
                Some(IncompleteReason::MaxTokens)
            }
            FinishReason::Stop => None,
            FinishReason::Length => Some(IncompleteReason::MaxTokens),
            FinishReason::ContentFilter => Some(IncompleteReason::ContentFilter),
        };
        let ended = match cut {
            None => self.message(MessageState::Completed { at }),
            Some(reason) => self.end_message(reason),
        }
        .end_steps(&StepState::Completed { at });
        let reason = match (cut, limit) {
            (Some(_), _) => Some(RunIncompleteReason::MaxCompletionTokens),
            (None, limit) => limit,
        };
        match reason {
            None => ended.run(RunState::Completed { started_at, at }),
            Some(reason) => ended.run(RunState::Incomplete { started_at, at, reason }),
        }
        .done(Effect::Finish)
    }

    fn fail(mut self, started_at: Option<Timestamp>, error: LastError, usage: Usage, ids: &Ids) -> Transition {
        let at = self.now;
        if !self.progress.steps.iter().any(RunStep::creates_message) {
            let details =
                StepDetails::MessageCreation { message_creation: MessageCreation { message_id: ids.generate() } };
            self.progress.steps.push(RunStep::start(ids.generate(), &self.progress.run, details, at));
        }
        let state = StepState::Failed { at, error: error.clone() };
        self.spend_interrupted(usage)
            .end_message(IncompleteReason::RunFailed)
            .end_steps(&state)
            .run(RunState::Failed { started_at, at, error })
            .done(Effect::Finish)
    }

    fn begin_calls(mut self, ids: &Ids) -> Self {
        let details = StepDetails::ToolCalls { tool_calls: Vec::new() };
        let step = RunStep::start(ids.generate(), &self.progress.run, details, self.now);
        self.steps.push(step.clone());
        self.progress.steps.push(step);
        self
    }

    /// Stores the calls of a turn, and asks for their outputs: the built-in tools first, then the client.
    fn call_tools(
        mut self,
        started_at: Timestamp,
        usage: Usage,
        made: Vec<CompletedCall>,
        replay: Option<Box<ReplayedMembers>>,
    ) -> Transition {
        self = self.spend_answered(usage);
        let text = Settled { text: self.progress.text().len(), refusal: self.progress.refusal().len() };
        let Calls { of_step, pending } = Calls::split(made, replay, text);
        let (tool_calls, turn) = of_step;
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.creates_message() && step.is_open()) {
            step.details = StepDetails::ToolCalls { tool_calls };
            step.usage = Some(usage);
            step.turn = Some(TurnRecord { functions: pending, ..turn });
            self.steps.retain(|written| written.id != step.id);
            self.steps.push(step.clone());
        }
        // Text before the calls is stored in the same commit, so that it is not lost with this server.
        self.message.clone_from(&self.progress.message);
        self.made_progress = true;
        if self.progress.running_tools().is_some() {
            return self.run(RunState::InProgress { started_at }).done(Effect::RunTools);
        }
        self.ask_client(started_at)
    }

    /// Requires the outputs of the functions in the open step.
    fn ask_client(self, started_at: Timestamp) -> Transition {
        let calls = self.progress.open_calls().map(RunStep::tool_calls).unwrap_or_default();
        let calls = calls.iter().filter_map(ToolCall::required).collect();
        self.run(RunState::RequiresAction { started_at, calls }).done(Effect::AwaitClient)
    }

    /// Adds the results of code. Its images are shown in the message, unless that is created later.
    fn end_code(mut self, index: usize, result: CalledCodeInterpreter) -> Self {
        if let Some(message) =
            self.progress.message.as_mut().filter(|message| message.state == MessageState::InProgress)
        {
            message.content.extend(result.images().map(image_part));
            self.message = Some(message.clone());
        }
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.creates_message() && step.is_open()) {
            if let StepDetails::ToolCalls { tool_calls } = &mut step.details
                && let Some(call) = tool_calls.get_mut(index)
            {
                call.tool = CalledTool::CodeInterpreter { code_interpreter: result };
            }
            self.steps.retain(|written| written.id != step.id);
            self.steps.push(step.clone());
        }
        self.made_progress = true;
        self
    }

    /// Adds the results of the built-in tools. If the turn has called functions as well, these are next.
    fn end_tools(mut self, started_at: Timestamp, results: Vec<CalledTool>, ids: &Ids) -> Transition {
        let at = self.now;
        let mut next = None;
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.creates_message() && step.is_open()) {
            if let StepDetails::ToolCalls { tool_calls } = &mut step.details {
                for (call, result) in tool_calls.iter_mut().zip(results) {
                    call.tool = result;
                }
            }
            step.state = StepState::Completed { at };
            if let Some(turn) = &mut step.turn {
                let model = turn.replay.as_ref().map(|replay| replay.model.clone()).unwrap_or_default();
                next = TurnRecord::of_functions(std::mem::take(&mut turn.functions), turn, model);
            }
            self.steps.push(step.clone());
        }
        self.made_progress = true;
        let Some((calls, turn)) = next else {
            return self.run(RunState::InProgress { started_at }).done(Effect::CallModel);
        };
        let tool_calls = calls.iter().map(ToolCall::unanswered).collect();
        let mut step =
            RunStep::start(ids.generate(), &self.progress.run, StepDetails::ToolCalls { tool_calls }, self.now);
        // The tokens of the turn are those of the step before.
        step.usage = Some(Usage::default());
        step.turn = Some(turn);
        self.steps.push(step.clone());
        self.progress.steps.push(step);
        self.ask_client(started_at)
    }

    fn resume(mut self, started_at: Timestamp, outputs: &[String]) -> Transition {
        let at = self.now;
        if let Some(step) = self.progress.steps.iter_mut().find(|step| !step.creates_message() && step.is_open()) {
            if let StepDetails::ToolCalls { tool_calls } = &mut step.details {
                for (call, output) in tool_calls.iter_mut().zip(outputs) {
                    if let CalledTool::Function { function } = &mut call.tool {
                        function.output = Some(output.clone());
                    }
                }
            }
            step.state = StepState::Completed { at };
            self.steps.push(step.clone());
        }
        self.made_progress = true;
        self.run(RunState::Queued { started_at: Some(started_at) }).done(Effect::Enqueue)
    }

    /// Creates the message and its step. If a client has deleted the message, the existing step gets a new one, which does
    /// not contain the text of earlier turns.
    fn begin_message(mut self, ids: &Ids) -> Self {
        let existing_id = self.progress.steps.iter().find_map(|step| match &step.details {
            StepDetails::MessageCreation { message_creation } => Some(message_creation.message_id.clone()),
            StepDetails::ToolCalls { .. } => None,
        });
        let spec = &self.progress.run.spec;
        let calls = self.progress.steps.iter().flat_map(RunStep::tool_calls);
        let images = calls.filter_map(ToolCall::code).flat_map(CalledCodeInterpreter::images);
        let message = Message {
            id: existing_id.clone().unwrap_or_else(|| ids.generate()),
            created_at: self.now,
            thread_id: spec.thread_id.clone(),
            author: Some(Author { assistant_id: spec.assistant_id.clone(), run_id: spec.id.clone() }),
            role: Role::Assistant,
            content: images.map(image_part).collect(),
            attachments: Vec::new(),
            metadata: Metadata::default(),
            state: MessageState::InProgress,
        };
        if existing_id.is_some() {
            for step in &mut self.progress.steps {
                if let Some(turn) = step.turn.as_mut().filter(|turn| turn.text_bytes + turn.refusal_bytes > 0) {
                    (turn.text_bytes, turn.refusal_bytes) = (0, 0);
                    self.steps.push(step.clone());
                }
            }
        } else {
            let message_creation = MessageCreation { message_id: message.id.clone() };
            let details = StepDetails::MessageCreation { message_creation };
            let step = RunStep::start(ids.generate(), &self.progress.run, details, self.now);
            self.steps.push(step.clone());
            self.progress.steps.push(step);
        }
        self.message = Some(message.clone());
        self.message_is_new = true;
        self.progress.message = Some(message);
        self
    }

    fn message(mut self, state: MessageState) -> Self {
        if let Some(message) =
            self.progress.message.as_mut().filter(|message| message.state == MessageState::InProgress)
        {
            message.state = state;
            self.message = Some(message.clone());
        }
        self
    }

    fn end_message(self, reason: IncompleteReason) -> Self {
        let at = self.now;
        self.message(MessageState::Incomplete { at, reason })
    }

    /// Ends the open steps.
    fn end_steps(mut self, state: &StepState) -> Self {
        for step in self.progress.steps.iter_mut().filter(|step| step.is_open()) {
            step.state = state.clone();
            step.usage.get_or_insert_default();
            self.steps.retain(|written| written.id != step.id);
            self.steps.push(step.clone());
        }
        self
    }

    fn run(mut self, state: RunState) -> Self {
        if state.has_ended() {
            self.record_lost_calls(0);
        }
        self.progress.run.state = state;
        self
    }
}

#[cfg(test)]
mod tests;
