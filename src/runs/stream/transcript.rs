//! Computes the events to send to a reader of a stream. Pure.
//!
//! The snapshot of a run determines the sequence of events: the start, the steps in order with the text of the message,
//! and the end. Each call returns the events that the reader was not sent yet. Special cases:
//!
//! - Strict clients allow only one open step at a time. A step of functions that starts while another one is open is not
//!   sent; the client receives its calls with `thread.run.requires_action`. A step of built-in tools is sent when the other
//!   one has ended.
//! - Calls that require outputs end the stream with `thread.run.requires_action`, even if the run has continued since.
//! - A stream of `submit_tool_outputs` starts with the completed calls. A message that was already open is sent as
//!   created again, with its text so far, when it grows or ends.
//! - If a run restarts after a failed attempt, the model writes the unfinished turn again. If part of that turn was
//!   already sent, the stream ends with an `error` event.
//!
//! Source: `contract/events.md`, "Sequences" and "What strict clients enforce".

use crate::api::error::{Error, Kind};
use crate::api::message::{Annotation, Content, MessageState, Text};
use crate::api::run::RunState;
use crate::api::run_step::{StepDetails, StepState};
use crate::api::stream::{
    CallGrowth, ImageDelta, MessageDelta, MessageEvent, RefusalDelta, RunEvent, StepDelta, StepEvent,
};
use crate::api::tool::{CalledCodeInterpreter, CalledTool, ToolCall};
use crate::api::{Message, Run, RunStep, RunStepId, StreamEvent, Thread, Timestamp, ToolCallId};
use crate::runs::machine::Progress;

/// Maximum size of a delta, in bytes, if the pieces of the text are not known.
const DELTA_BYTES_MAX: usize = 16 * 1024;

/// The state of a run: what is stored, and what the model is writing.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The thread, if the request created it.
    pub thread: Option<Thread>,
    /// The run, its steps and its message with the newest text.
    pub progress: Progress,
    /// The calls that the model is writing. They belong to the open `tool_calls` step, which has no stored calls yet.
    pub calls: Vec<LiveCall>,
    /// The number of the lease under which this was written. It increases when the run is claimed again.
    pub lease: i64,
    /// The ends of the text's pieces, in bytes, ascending. May cover only a part of the text.
    pub text_pieces: Vec<usize>,
    /// The ends of the refusal's pieces, in the same form.
    pub refusal_pieces: Vec<usize>,
    /// The error that ends the stream.
    pub error: Option<Error>,
}

/// A call that the model is writing.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveCall {
    /// Our ID of the call.
    pub id: ToolCallId,
    /// What is called.
    pub tool: LiveTool,
    /// The arguments of the function, or the code, so far.
    pub arguments: String,
    /// The ends of the arguments' pieces, in bytes, ascending. May cover only a part of the arguments.
    pub pieces: Vec<usize>,
}

/// What the model calls.
#[derive(Debug, Clone, PartialEq)]
pub enum LiveTool {
    /// A function of the client, with this name.
    Function(String),
    /// A built-in tool, without results.
    BuiltIn(CalledTool),
}

impl LiveCall {
    /// Creates a call without arguments.
    #[must_use]
    pub fn new(id: ToolCallId, tool: LiveTool) -> Self {
        Self { id, tool, arguments: String::new(), pieces: Vec::new() }
    }

    /// Returns the change with which the call starts in a stream.
    fn start(&self) -> CallGrowth {
        match &self.tool {
            LiveTool::Function(name) => CallGrowth::Started { id: self.id.clone(), name: name.clone() },
            LiveTool::BuiltIn(tool) => {
                CallGrowth::BuiltIn(ToolCall { id: self.id.clone(), tool: tool.clone() }.at_start())
            }
        }
    }

    /// Returns the change that adds text.
    fn growth(&self, more: String) -> CallGrowth {
        match &self.tool {
            LiveTool::Function(_) => CallGrowth::Arguments(more),
            LiveTool::BuiltIn(_) => CallGrowth::Code(more),
        }
    }
}

/// What was sent to a reader.
#[derive(Debug)]
pub struct Transcript {
    start: Start,
    sent: SentRun,
    is_closed: bool,
    /// The lease of the last snapshot.
    lease: Option<i64>,
    steps: Vec<SentStep>,
    message: SentMessage,
    /// Checksum of the text that was sent. After a restart, another text may be as long.
    text_checksum: Checksum,
    refusal_checksum: Checksum,
}

/// The FNV-1a hash of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checksum(u64);

impl Checksum {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn with(self, text: &str) -> Self {
        Self(text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// Whether this is the checksum of the first `bytes` bytes of a text.
    fn is_of(self, text: &str, bytes: usize) -> bool {
        text.get(..bytes).is_some_and(|text| Self::EMPTY.with(text) == self)
    }
}

/// The sent events of the run itself, except for its end.
#[derive(Debug, Default)]
struct SentRun {
    is_started: bool,
    is_in_progress: bool,
    is_cancelling: bool,
}

/// Where the stream starts.
#[derive(Debug)]
enum Start {
    /// At the creation of the run.
    Created,
    /// At the submission of tool outputs.
    Resumed {
        /// When processing last started before the submission.
        started_at: Option<Timestamp>,
        /// The earlier steps, which are not sent, except that the answered calls are sent as completed.
        before: Vec<(RunStepId, Before)>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Ended,
    Answered,
    /// The step of the open message, which is sent as created again.
    Message,
}

#[derive(Debug)]
struct SentStep {
    id: RunStepId,
    is_shown: bool,
    is_open: bool,
    calls: Vec<SentCall>,
}

#[derive(Debug)]
struct SentCall {
    id: ToolCallId,
    argument_bytes: usize,
    /// Number of outputs of code.
    outputs: usize,
}

/// How much of the message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Written {
    /// Bytes of the text part.
    text: usize,
    /// Bytes of the refusal part.
    refusal: usize,
    /// Number of images.
    images: usize,
}

impl Written {
    fn of(progress: &Progress) -> Self {
        let is_image = |part: &&Content| matches!(part, Content::ImageFile { .. });
        let images = progress.message.iter().flat_map(|message| &message.content).filter(is_image).count();
        Self { text: progress.text().len(), refusal: progress.refusal().len(), images }
    }

    /// Returns what was written before the calls of a step.
    fn before(progress: &Progress, step: &RunStep) -> Self {
        let earlier = progress.steps.iter().take_while(|earlier| earlier.id != step.id);
        let images =
            earlier.flat_map(RunStep::tool_calls).filter_map(ToolCall::code).flat_map(CalledCodeInterpreter::images);
        let of_message = Self::of(progress);
        let turn = step.turn.as_ref();
        let end = |text: &str, bytes: Option<usize>| bytes.map_or(text.len(), |bytes| text.floor_char_boundary(bytes));
        Self {
            text: end(progress.text(), turn.map(|turn| turn.text_bytes)),
            refusal: end(progress.refusal(), turn.map(|turn| turn.refusal_bytes)),
            images: images.count().min(of_message.images),
        }
    }

    fn min(self, other: Self) -> Self {
        Self {
            text: self.text.min(other.text),
            refusal: self.refusal.min(other.refusal),
            images: self.images.min(other.images),
        }
    }

    /// Returns whether there is more of any part than in `other`.
    fn exceeds(self, other: Self) -> bool {
        self.text > other.text || self.refusal > other.refusal || self.images > other.images
    }
}

/// How much of the message was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SentMessage {
    /// Nothing. `before` is the part that was written before the stream started.
    Nothing { before: Written },
    /// Nothing, because its step is not sent on this stream.
    Hidden,
    /// A part of it.
    Open(Written),
    /// All of it.
    Ended,
}

/// The size limit of one call is reached.
struct Full;

/// The events of one call of [`Transcript::advance`].
struct Events {
    list: Vec<StreamEvent>,
    bytes_left: usize,
}

impl Events {
    fn push(&mut self, event: StreamEvent) {
        self.list.push(event);
    }

    fn push_text(&mut self, event: StreamEvent, bytes: usize) -> Result<(), Full> {
        self.list.push(event);
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        if self.bytes_left == 0 { Err(Full) } else { Ok(()) }
    }
}

impl Transcript {
    fn new(start: Start, before: Written) -> Self {
        Self {
            start,
            sent: SentRun::default(),
            is_closed: false,
            lease: None,
            steps: Vec::new(),
            message: SentMessage::Nothing { before },
            text_checksum: Checksum::EMPTY,
            refusal_checksum: Checksum::EMPTY,
        }
    }

    /// Creates the transcript of a stream that starts at the creation of the run.
    #[must_use]
    pub fn of_new_run() -> Self {
        Self::new(Start::Created, Written::default())
    }

    /// Creates the transcript of a stream that starts at the submission of tool outputs. `before` is the run before it.
    #[must_use]
    pub fn of_resumed_run(before: &Progress) -> Self {
        let kind = |step: &RunStep| match (step.is_open(), step.creates_message()) {
            (false, _) => Before::Ended,
            (true, true) => Before::Message,
            (true, false) => Before::Answered,
        };
        let steps = before.steps.iter().map(|step| (step.id.clone(), kind(step))).collect();
        Self::new(Start::Resumed { started_at: before.run.state.started_at(), before: steps }, Written::of(before))
    }

    /// Returns whether the stream has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns the next events, with about `max_bytes` of text at most.
    pub fn advance(&mut self, now: &Snapshot, max_bytes: usize) -> Vec<StreamEvent> {
        let mut events = Events { list: Vec::new(), bytes_left: max_bytes.max(1) };
        if self.is_closed {
            return events.list;
        }
        if self.was_restarted(now) {
            self.is_closed = true;
            events.push(StreamEvent::Error(restarted(&now.progress.run)));
            return events.list;
        }
        self.lease = Some(now.lease);
        if self.send(now, &mut events).is_ok()
            && let Some(error) = now.error.clone().filter(|_| !self.is_closed)
        {
            self.is_closed = true;
            events.push(StreamEvent::Error(error));
        }
        events.list
    }

    /// Returns whether the run was claimed again and a part of the unfinished turn was already sent.
    fn was_restarted(&self, now: &Snapshot) -> bool {
        let progress = &now.progress;
        let stored = |id: &RunStepId| progress.steps.iter().find(|step| step.id == *id);
        let is_claimed_again = self.lease.is_some_and(|lease| now.lease > lease);
        let is_step_lost = self.steps.iter().filter(|step| step.is_shown).any(|sent| match stored(&sent.id) {
            None => true,
            Some(RunStep { details: StepDetails::ToolCalls { tool_calls }, .. }) if tool_calls.is_empty() => {
                is_claimed_again && !sent.calls.is_empty()
            }
            Some(RunStep { details: StepDetails::ToolCalls { tool_calls }, .. }) => {
                // Arguments may be shorter than those that were sent: they are repaired at the end of the turn.
                let is_other =
                    |(index, call): (usize, &SentCall)| tool_calls.get(index).is_none_or(|stored| stored.id != call.id);
                sent.calls.iter().enumerate().any(is_other)
            }
            Some(_) => false,
        });
        let SentMessage::Open(sent) = self.message else { return is_step_lost };
        let mut current = Written::of(progress);
        if is_claimed_again {
            let settled = progress.settled();
            (current.text, current.refusal) = (settled.text, settled.refusal);
        }
        let is_other_text = is_claimed_again
            && !(self.text_checksum.is_of(progress.text(), sent.text)
                && self.refusal_checksum.is_of(progress.refusal(), sent.refusal));
        let is_content_lost = sent.exceeds(current) || is_other_text;
        is_step_lost || progress.message.is_some() && is_content_lost
    }

    fn send(&mut self, now: &Snapshot, events: &mut Events) -> Result<(), Full> {
        self.send_start(now, events);
        let steps = &now.progress.steps;
        let position =
            |step: &&RunStep| self.before(&step.id).is_none() && step.turn.is_some() && step.calls_functions();
        // The stream ends at the first calls that require outputs.
        let pending = steps.iter().find(position).cloned();
        let until = match &pending {
            Some(step) => Written::before(&now.progress, step),
            None => Written::of(&now.progress),
        };
        for step in steps {
            match self.before(&step.id) {
                Some(Before::Ended | Before::Answered) => continue,
                Some(Before::Message) | None if step.creates_message() => {
                    self.send_message(now, step, until, pending.is_some(), events)?;
                }
                Some(Before::Message) | None => self.send_calls(now, step, events),
            }
            if pending.as_ref().is_some_and(|pending| pending.id == step.id) {
                break;
            }
        }
        match pending {
            Some(step) => self.send_requires_action(now, &step, events),
            None => self.send_end(now, events),
        }
        Ok(())
    }

    fn before(&self, id: &RunStepId) -> Option<Before> {
        match &self.start {
            Start::Created => None,
            Start::Resumed { before, .. } => before.iter().find(|(known, _)| known == id).map(|(_, kind)| *kind),
        }
    }

    fn send_start(&mut self, now: &Snapshot, events: &mut Events) {
        let run = &now.progress.run;
        let with = |state| Run { state, ..run.clone() };
        let mut queued_at = None;
        if let Start::Resumed { started_at, .. } = &self.start {
            queued_at = *started_at;
        }
        if !self.sent.is_started {
            self.sent.is_started = true;
            match &self.start {
                Start::Created => {
                    if let Some(thread) = &now.thread {
                        events.push(StreamEvent::ThreadCreated(thread.clone()));
                    }
                    let queued = with(RunState::Queued { started_at: None });
                    events.push(StreamEvent::Run(RunEvent::Created, queued));
                }
                Start::Resumed { before, .. } => {
                    let answered = |step: &&RunStep| {
                        before.iter().any(|(id, kind)| step.id == *id && *kind == Before::Answered) && !step.is_open()
                    };
                    for step in now.progress.steps.iter().filter(answered) {
                        if let Some(event) = step_end(step) {
                            events.push(StreamEvent::Step(event, step.clone()));
                        }
                    }
                }
            }
            events.push(StreamEvent::Run(RunEvent::Queued, with(RunState::Queued { started_at: queued_at })));
        }
        if !self.sent.is_in_progress
            && self.has_started(now, queued_at)
            && let Some(started_at) = run.state.started_at()
        {
            self.sent.is_in_progress = true;
            events.push(StreamEvent::Run(RunEvent::InProgress, with(RunState::InProgress { started_at })));
        }
    }

    /// Returns whether the run was claimed since it was queued. A resumed run has the time of its earlier claim until then.
    fn has_started(&self, now: &Snapshot, queued_at: Option<Timestamp>) -> bool {
        let progress = &now.progress;
        match &progress.run.state {
            RunState::Queued { .. } => false,
            RunState::InProgress { .. }
            | RunState::RequiresAction { .. }
            | RunState::Completed { .. }
            | RunState::Incomplete { .. } => true,
            RunState::Cancelling { .. }
            | RunState::Cancelled { .. }
            | RunState::Failed { .. }
            | RunState::Expired { .. } => {
                progress.run.state.started_at() != queued_at
                    || progress.steps.iter().any(|step| step.is_open() && self.before(&step.id).is_none())
                    || matches!(progress.run.state, RunState::Failed { started_at: Some(_), .. })
            }
        }
    }

    fn has_open_step(&self) -> bool {
        self.steps.iter().any(|sent| sent.is_shown && sent.is_open)
    }

    /// Sends the start of a step, unless another step is open. Returns whether the step is sent on this stream.
    fn send_step_start(&mut self, step: &RunStep, events: &mut Events) -> bool {
        if let Some(sent) = self.steps.iter().find(|sent| sent.id == step.id) {
            return sent.is_shown;
        }
        let is_shown = !self.has_open_step();
        self.steps.push(SentStep { id: step.id.clone(), is_shown, is_open: true, calls: Vec::new() });
        if is_shown {
            let details = match &step.details {
                StepDetails::ToolCalls { .. } => StepDetails::ToolCalls { tool_calls: Vec::new() },
                details @ StepDetails::MessageCreation { .. } => details.clone(),
            };
            let started = RunStep { state: StepState::InProgress, details, ..step.clone() };
            events.push(StreamEvent::Step(StepEvent::Created, started.clone()));
            events.push(StreamEvent::Step(StepEvent::InProgress, started));
        }
        is_shown
    }

    /// Sends the new part of the message, up to the end of the last turn of this stream.
    fn send_message(
        &mut self,
        now: &Snapshot,
        step: &RunStep,
        until: Written,
        is_cut: bool,
        events: &mut Events,
    ) -> Result<(), Full> {
        let Some(message) = &now.progress.message else { return Ok(()) };
        if let SentMessage::Nothing { before } = self.message {
            let before = before.min(until);
            let is_new = self.before(&step.id).is_none();
            let has_grown = until.exceeds(before);
            let has_ended = message.state != MessageState::InProgress && !is_cut;
            if !is_new && !has_grown && !has_ended {
                return Ok(());
            }
            if !self.send_step_start(step, events) {
                self.message = SentMessage::Hidden;
                return Ok(());
            }
            let started = Message {
                state: MessageState::InProgress,
                content: beginning(&message.content, before),
                ..message.clone()
            };
            let (text, refusal) = (now.progress.text(), now.progress.refusal());
            self.text_checksum = Checksum::EMPTY.with(text.get(..before.text).unwrap_or_default());
            self.refusal_checksum = Checksum::EMPTY.with(refusal.get(..before.refusal).unwrap_or_default());
            events.push(StreamEvent::Message(MessageEvent::Created, started.clone()));
            events.push(StreamEvent::Message(MessageEvent::InProgress, started));
            self.message = SentMessage::Open(before);
        }
        // In the order in which the parts started.
        let mut images = 0;
        for (part, index) in message.content.iter().zip(0_u32..) {
            match part {
                Content::Text { text } => self.send_text(now, message, index, text, until.text, events)?,
                Content::Refusal { refusal } => {
                    self.send_refusal(now, message, index, refusal, until.refusal, events)?;
                }
                Content::ImageFile { image_file } => {
                    images += 1;
                    if let SentMessage::Open(sent) = &mut self.message
                        && (sent.images + 1..=until.images).contains(&images)
                    {
                        sent.images = images;
                        let image_file = image_file.clone();
                        let delta = ImageDelta { message_id: message.id.clone(), index, image_file };
                        events.push(StreamEvent::ImageDelta(delta));
                    }
                }
                Content::ImageUrl { .. } => {}
            }
        }
        Ok(())
    }

    fn send_text(
        &mut self,
        now: &Snapshot,
        message: &Message,
        index: u32,
        text: &Text,
        until: usize,
        events: &mut Events,
    ) -> Result<(), Full> {
        while let SentMessage::Open(sent) = &mut self.message
            && sent.text < until
        {
            let from = sent.text;
            let mut end = next_piece(&text.value, &now.text_pieces, from, until);
            // A mark has a delta of its own.
            let position = text.annotations.partition_point(|annotation| annotation.start_byte < from);
            let next = text.annotations.get(position).filter(|annotation| annotation.start_byte < end);
            let annotation = match next {
                Some(annotation) if annotation.start_byte == from => {
                    end = annotation.end_byte();
                    Some((u32::try_from(position).unwrap_or(u32::MAX), annotation.clone()))
                }
                Some(annotation) => {
                    end = annotation.start_byte;
                    None
                }
                None => None,
            };
            sent.text = end;
            let value = text.value[from..end].to_owned();
            self.text_checksum = self.text_checksum.with(&value);
            let bytes = value.len();
            let delta = MessageDelta { message_id: message.id.clone(), index, value, first: from == 0, annotation };
            events.push_text(StreamEvent::MessageDelta(delta), bytes)?;
        }
        Ok(())
    }

    fn send_refusal(
        &mut self,
        now: &Snapshot,
        message: &Message,
        index: u32,
        refusal: &str,
        until: usize,
        events: &mut Events,
    ) -> Result<(), Full> {
        while let SentMessage::Open(sent) = &mut self.message
            && sent.refusal < until
        {
            let from = sent.refusal;
            let end = next_piece(refusal, &now.refusal_pieces, from, until);
            sent.refusal = end;
            self.refusal_checksum = self.refusal_checksum.with(&refusal[from..end]);
            let delta = RefusalDelta { message_id: message.id.clone(), index, value: refusal[from..end].to_owned() };
            events.push_text(StreamEvent::RefusalDelta(delta), end - from)?;
        }
        Ok(())
    }

    /// Sends the end of a step that has ended and is open in the stream.
    fn send_step_end(&mut self, step: &RunStep, events: &mut Events) {
        let sent = self.steps.iter_mut().find(|sent| sent.id == step.id && sent.is_shown && sent.is_open);
        if let (Some(sent), Some(event)) = (sent, step_end(step)) {
            sent.is_open = false;
            events.push(StreamEvent::Step(event, step.clone()));
        }
    }

    /// Sends a step of built-in tools that has waited for the end of another step.
    fn send_waiting_step(&mut self, now: &Snapshot, step: &RunStep, events: &mut Events) {
        if self.before(&step.id).is_some() || self.steps.iter().any(|sent| sent.id == step.id) {
            return;
        }
        self.send_calls(now, step, events);
        self.send_step_end(step, events);
    }

    /// Sends the new parts of a step's calls.
    fn send_calls(&mut self, now: &Snapshot, step: &RunStep, events: &mut Events) {
        let StepDetails::ToolCalls { tool_calls } = &step.details else { return };
        let is_new = !self.steps.iter().any(|sent| sent.id == step.id);
        if is_new && !step.calls_functions() && self.has_open_step() {
            // Sent when the open step has ended, if it is one of built-in tools.
            return;
        }
        if !self.send_step_start(step, events) {
            return;
        }
        let stored;
        let calls: &[LiveCall] = if tool_calls.is_empty() {
            &now.calls
        } else {
            let whole = |(index, call)| whole_call(call, now.calls.get(index));
            stored = tool_calls.iter().enumerate().map(whole).collect::<Vec<_>>();
            &stored
        };
        let Some(sent) = self.steps.iter_mut().find(|sent| sent.id == step.id) else { return };
        for (call, index) in calls.iter().zip(0_u32..) {
            let position = index as usize;
            if position >= sent.calls.len() {
                sent.calls.push(SentCall { id: call.id.clone(), argument_bytes: 0, outputs: 0 });
                let growth = call.start();
                events.push(StreamEvent::StepDelta(StepDelta { step_id: step.id.clone(), index, growth }));
            }
            let sent = &mut sent.calls[position];
            while sent.argument_bytes < call.arguments.len() {
                let end = next_piece(&call.arguments, &call.pieces, sent.argument_bytes, call.arguments.len());
                let start = call.arguments.floor_char_boundary(sent.argument_bytes);
                let growth = call.growth(call.arguments[start..end].to_owned());
                events.push(StreamEvent::StepDelta(StepDelta { step_id: step.id.clone(), index, growth }));
                sent.argument_bytes = end;
            }
            let outputs = tool_calls.get(position).and_then(ToolCall::code).map_or(&[][..], |code| &code.outputs);
            for (output, number) in outputs.iter().zip(0_u32..).skip(sent.outputs) {
                let growth = CallGrowth::Output(number, output.clone());
                events.push(StreamEvent::StepDelta(StepDelta { step_id: step.id.clone(), index, growth }));
                sent.outputs += 1;
            }
        }
        // The built-in tools have ended; or the calls are incomplete at the token limit, and the message of the run follows.
        let has_ended = matches!(step.state, StepState::Completed { .. });
        if has_ended && (step.turn.is_none() || step.calls_built_in_tools()) {
            self.send_step_end(step, events);
        }
    }

    /// Ends the stream with the calls of `step`, which require outputs.
    fn send_requires_action(&mut self, now: &Snapshot, step: &RunStep, events: &mut Events) {
        let calls = step.tool_calls().iter().filter_map(ToolCall::required).collect();
        let run = &now.progress.run;
        let started_at = run.state.started_at().unwrap_or(step.created_at);
        let asking = Run { state: RunState::RequiresAction { started_at, calls }, ..run.clone() };
        events.push(StreamEvent::Run(RunEvent::RequiresAction, asking));
        self.is_closed = true;
    }

    fn send_end(&mut self, now: &Snapshot, events: &mut Events) {
        let run = &now.progress.run;
        if !self.sent.is_cancelling && matches!(run.state, RunState::Cancelling { .. } | RunState::Cancelled { .. }) {
            self.sent.is_cancelling = true;
            let started_at = run.state.started_at();
            let cancelling = Run { state: RunState::Cancelling { started_at }, ..run.clone() };
            events.push(StreamEvent::Run(RunEvent::Cancelling, cancelling));
        }
        if let (SentMessage::Open(_), Some(message)) = (self.message, &now.progress.message)
            && let Some(event) = message_end(message)
        {
            self.message = SentMessage::Ended;
            events.push(StreamEvent::Message(event, message.clone()));
        }
        // The step of the message is first, as recorded.
        let steps = &now.progress.steps;
        let by_kind = steps.iter().filter(|step| step.creates_message());
        for step in by_kind.chain(steps.iter().filter(|step| !step.creates_message())) {
            self.send_step_end(step, events);
        }
        if let Some(event) = run_end(&run.state) {
            for step in steps.iter().filter(|step| step.calls_built_in_tools()) {
                self.send_waiting_step(now, step, events);
            }
            self.is_closed = true;
            events.push(StreamEvent::Run(event, run.clone()));
        }
    }
}

/// Returns the content of a message that was written first.
fn beginning(content: &[Content], written: Written) -> Vec<Content> {
    let mut images = 0;
    let part = |part: &Content| match part {
        Content::Text { text } => {
            let value = text.value[..text.value.floor_char_boundary(written.text)].to_owned();
            let is_written = |annotation: &&Annotation| annotation.end_byte() <= value.len();
            let annotations = text.annotations.iter().filter(is_written).cloned().collect();
            (!value.is_empty()).then_some(Content::Text { text: Text { value, annotations } })
        }
        Content::Refusal { refusal } => {
            let refusal = refusal[..refusal.floor_char_boundary(written.refusal)].to_owned();
            (!refusal.is_empty()).then_some(Content::Refusal { refusal })
        }
        image @ Content::ImageFile { .. } => {
            images += 1;
            (images <= written.images).then(|| image.clone())
        }
        other @ Content::ImageUrl { .. } => Some(other.clone()),
    };
    content.iter().filter_map(part).collect()
}

/// Returns the end of the next piece of a text. If the pieces are not known, the length is limited.
fn next_piece(text: &str, pieces: &[usize], from: usize, until: usize) -> usize {
    let piece = pieces.get(pieces.partition_point(|end| *end <= from)).copied();
    if let Some(end) = piece.filter(|end| *end <= until && text.is_char_boundary(*end)) {
        return end;
    }
    let end = text.floor_char_boundary(until.min(from + DELTA_BYTES_MAX));
    if end > from { end } else { until }
}

/// Returns a stored call, with its pieces if they are known.
///
/// If the arguments were repaired after they were streamed, the streamed ones stay as they are; `requires_action` has the
/// repaired ones, and the completed step the whole code.
fn whole_call(call: &ToolCall, live: Option<&LiveCall>) -> LiveCall {
    let (tool, arguments) = match &call.tool {
        CalledTool::Function { function } => (LiveTool::Function(function.name.clone()), function.arguments.as_str()),
        CalledTool::FileSearch { .. } => (LiveTool::BuiltIn(call.tool.clone()), ""),
        CalledTool::CodeInterpreter { code_interpreter } => {
            (LiveTool::BuiltIn(call.tool.clone()), code_interpreter.input.as_str())
        }
    };
    let live = live.filter(|live| live.id == call.id);
    if let Some(live) = live.filter(|live| !arguments.starts_with(&live.arguments)) {
        return live.clone();
    }
    let live = live.filter(|live| live.arguments == arguments);
    let pieces = live.map(|live| live.pieces.clone()).unwrap_or_default();
    LiveCall { id: call.id.clone(), tool, arguments: arguments.to_owned(), pieces }
}

fn message_end(message: &Message) -> Option<MessageEvent> {
    match message.state {
        MessageState::InProgress => None,
        MessageState::Completed { .. } => Some(MessageEvent::Completed),
        MessageState::Incomplete { .. } => Some(MessageEvent::Incomplete),
    }
}

fn step_end(step: &RunStep) -> Option<StepEvent> {
    match step.state {
        StepState::InProgress => None,
        StepState::Completed { .. } => Some(StepEvent::Completed),
        StepState::Cancelled { .. } => Some(StepEvent::Cancelled),
        StepState::Failed { .. } => Some(StepEvent::Failed),
        StepState::Expired { .. } => Some(StepEvent::Expired),
    }
}

fn run_end(state: &RunState) -> Option<RunEvent> {
    match state {
        RunState::Queued { .. }
        | RunState::InProgress { .. }
        | RunState::RequiresAction { .. }
        | RunState::Cancelling { .. } => None,
        RunState::Cancelled { .. } => Some(RunEvent::Cancelled),
        RunState::Failed { .. } => Some(RunEvent::Failed),
        RunState::Completed { .. } => Some(RunEvent::Completed),
        RunState::Incomplete { .. } => Some(RunEvent::Incomplete),
        RunState::Expired { .. } => Some(RunEvent::Expired),
    }
}

fn restarted(run: &Run) -> Error {
    Error::new(
        Kind::Server,
        format!(
            "The server processing this run was lost and the run restarted; this stream cannot continue. Retrieve run \
             {} for its result.",
            run.spec.id
        ),
    )
}

#[cfg(test)]
mod tests;
