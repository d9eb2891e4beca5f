//! One model call: reads the thread, builds the prompt within its limits, and applies the answer to the run.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::citations::{self, CitationStyle, Piece, Source};
use super::code;
use super::drive::{DriveError, Driver, LeasedRun};
use super::file_paths::{self, FilePaths};
use super::file_search::Passages;
use super::machine::{Effect, Input, Mark};
use super::observed_call::ObservedCall;
use super::prompt::fit::{Budget, Next, Prompt, PromptBuilder};
use super::stream::Live;
use super::turn::{Calls, Turn, TurnEvent};
use super::{Settings, prompt};

use crate::access::{self, Reached, Reservation};
use crate::api::Message;
use crate::api::message::AnnotationKind;
use crate::api::run::{ErrorCode, FinishReason, LastError, RunIncompleteReason, RunSpec};
use crate::api::tool::{ToolCall, WrittenFile};
use crate::api::usage::Usage;
use crate::llm::tokens::{self, PromptSample};
use crate::llm::{self, ChatRequest, Route};
use crate::store::{ConversationPage, Versioned};
use crate::work::Attempt;

/// Maximum size of one answer, in bytes, including the arguments of its calls. A longer answer is cancelled.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum number of messages per read of the store.
const PAGE_ROWS: u32 = 100;
/// Maximum size of the messages per read of the store, in bytes: the memory of a run in addition to its prompt.
const PAGE_BYTES: usize = 1024 * 1024;
/// A page up to this size, in bytes, is added to the prompt on the current task, because a blocking task costs more.
const INLINE_BYTES: usize = 32 * 1024;
/// A prompt up to this size, in bytes, does not reserve memory for large prompts.
const SMALL_PROMPT_BYTES: usize = 256 * 1024;

/// What stands between the texts of two turns.
const TURN_SEPARATOR: &str = "\n\n";

/// An event that interrupts a turn.
pub(super) enum Interruption {
    /// The run was changed or deleted concurrently.
    Changed(Option<Box<Versioned>>),
    DeadlinePassed,
    Stopping,
}

/// The tokens of a prompt while the model answers: counted, or estimated from a sample if they are needed.
enum PromptTokens {
    Counted(usize),
    Sampled(Arc<PromptSample>),
}

/// A model call that is about to be made.
struct Call {
    request: ChatRequest,
    prompt_tokens: PromptTokens,
    /// Memory that is reserved for a large prompt.
    memory: Option<OwnedSemaphorePermit>,
}

impl Driver {
    /// Calls the model, and returns the outcome as an input for the machine.
    pub(super) async fn model_turn(&self, run: &mut LeasedRun, attempt: &Attempt) -> Result<Input, DriveError> {
        if let Some(reason) = run.current.progress.run.limit_reached() {
            return Ok(Input::LimitReached(reason));
        }
        let spec = run.current.progress.run.spec.clone();
        let mut interrupted = std::pin::pin!(self.interrupted(&spec, run.live.clone(), attempt.stopping()));

        let route = self.dependencies.models.route(&spec.model).await;
        run.route = Some(route.clone());
        let window = self.dependencies.models.window(&spec.model, &route).await;
        let budget = Budget::new(&run.current.progress, window, self.settings.prompt_bytes_max)
            .counted(self.dependencies.models.ratio(&route));
        let thread = run.thread.take();
        let built = tokio::select! {
            biased;
            interruption = &mut interrupted => return Box::pin(self.resolve(interruption, run, Usage::default())).await,
            built = Box::pin(self.build_prompt(run, thread, &route.model, budget)) => built?,
        };
        let Some((prompt, memory)) = built else {
            return Ok(Input::LimitReached(RunIncompleteReason::MaxPromptTokens));
        };
        let Prompt { request, counted } = prompt;
        let prompt_tokens = match counted {
            Some(tokens) => PromptTokens::Counted(tokens),
            None => PromptTokens::Sampled(Arc::new(PromptSample::new(&request))),
        };
        let reserved = tokio::select! {
            biased;
            interruption = &mut interrupted => return Box::pin(self.resolve(interruption, run, Usage::default())).await,
            reserved = Box::pin(self.reserve_tokens(run, &prompt_tokens)) => reserved?,
        };
        match reserved {
            Ok(reservation) => run.reservation = reservation,
            Err(reached) => {
                // The limit is that of the project, not of the model server.
                run.route = None;
                let error = LastError { code: ErrorCode::RateLimitExceeded, message: reached.message() };
                return Ok(Input::Failed { error, usage: Usage::default() });
            }
        }
        self.read_answer(run, attempt, route, Call { request, prompt_tokens, memory }, interrupted).await
    }

    /// Reserves the tokens of a turn, if the project has limits of tokens. Waits while other calls of the project may reach
    /// a limit. Returns the reservation, or the limit that is reached.
    async fn reserve_tokens(
        &self,
        run: &LeasedRun,
        prompt: &PromptTokens,
    ) -> Result<Result<Option<Reservation>, Reached>, DriveError> {
        let progress = &run.current.progress;
        let spec = &progress.run.spec;
        // An estimate costs a blocking task and the tables of the tokenizer.
        if !self.retry(|| self.dependencies.tokens.are_limited(&spec.scope)).await? {
            return Ok(Ok(None));
        }
        let prompt = match prompt {
            PromptTokens::Counted(tokens) => *tokens,
            PromptTokens::Sampled(sample) => {
                let sample = sample.clone();
                in_background(move || sample.estimate()).await?
            }
        };
        let output_max = spec.max_completion_tokens.map(|max| max.saturating_sub(progress.run.usage.completion_tokens));
        let call = access::Call {
            id: spec.id.as_str(),
            scope: &spec.scope,
            prompt: prompt as u64,
            output_max: output_max.map(u64::from),
        };
        Ok(self.retry(|| self.dependencies.tokens.reserve(&call)).await?)
    }

    async fn read_answer(
        &self,
        run: &mut LeasedRun,
        attempt: &Attempt,
        route: Route,
        call: Call,
        mut interrupted: std::pin::Pin<&mut impl Future<Output = Interruption>>,
    ) -> Result<Input, DriveError> {
        let Call { mut request, prompt_tokens, mut memory } = call;
        request.model.clone_from(&route.model);
        let spec = &run.current.progress.run.spec;
        let mut call = ObservedCall::start(&self.dependencies, spec, &route);
        let mut answer = route.server.chat(request);
        let mut turn = Turn::new(prompt::functions(spec), !spec.parallel_tool_calls);
        let mut citer = self.citer(run).await?;
        let mut is_first_text = true;
        loop {
            let deltas = tokio::select! {
                biased;
                interruption = &mut interrupted => {
                    drop(answer);
                    // A message that does not exist yet is not started with the rest, because the run may have ended.
                    if run.current.progress.message.is_some() {
                        let rest = citer.finish();
                        self.apply_deltas(run, attempt, rest, &mut is_first_text).await?;
                    }
                    let usage = self.spent_if_answered(run, &turn, &prompt_tokens).await?;
                    return Box::pin(self.resolve(interruption, run, usage)).await;
                }
                deltas = answer.next() => deltas,
            };
            // The model server has received the prompt, which is no longer in memory here.
            memory.take();
            match deltas {
                None => {
                    call.completed(&turn);
                    let rest = citer.finish();
                    self.apply_deltas(run, attempt, rest, &mut is_first_text).await?;
                    return self.replied(run, turn, &route, &prompt_tokens).await;
                }
                Some(Err(error)) => {
                    call.failed(&turn, &error);
                    let rest = citer.finish();
                    self.apply_deltas(run, attempt, rest, &mut is_first_text).await?;
                    let usage = self.spent_if_answered(run, &turn, &prompt_tokens).await?;
                    run.cause = Some(error.cause().clone());
                    return Ok(Input::Failed { error: last_error(&error), usage });
                }
                Some(Ok(deltas)) => {
                    call.chunk_received();
                    let ids = &self.dependencies.ids;
                    let events = deltas.into_iter().flat_map(|delta| turn.apply(delta, ids));
                    let events = citer.apply(events);
                    self.apply_deltas(run, attempt, events, &mut is_first_text).await?;
                    let progress = &run.current.progress;
                    let written = progress.text().len() + progress.refusal().len() + turn.other_bytes();
                    if written > ANSWER_BYTES_MAX {
                        drop(answer);
                        call.completed(&turn);
                        let rest = citer.finish();
                        self.apply_deltas(run, attempt, rest, &mut is_first_text).await?;
                        let usage = self.spent(run, &turn, &prompt_tokens).await?;
                        return Ok(too_long(run, usage));
                    }
                }
            }
        }
    }

    /// Waits for a concurrent change, the deadline, or the shutdown of this server.
    pub(super) async fn interrupted(
        &self,
        spec: &RunSpec,
        live: Arc<Live>,
        stopping: &CancellationToken,
    ) -> Interruption {
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Interruption::Stopping,
                () = live.changed.notified() => {}
            }
            if self.dependencies.clock.now() >= spec.expires_at {
                return Interruption::DeadlinePassed;
            }
            match self.dependencies.store.run(&spec.scope, &spec.thread_id, &spec.id).await {
                Ok(found) if found.as_ref().is_some_and(|found| found.version <= live.version()) => {}
                Ok(found) => return Interruption::Changed(found.map(Box::new)),
                // The next comparison with the store finds the change.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to read a changed run");
                }
            }
        }
    }

    pub(super) async fn resolve(
        &self,
        interruption: Interruption,
        run: &mut LeasedRun,
        usage: Usage,
    ) -> Result<Input, DriveError> {
        match interruption {
            Interruption::Changed(found) => self.reload(run, found.map(|found| *found), usage).await,
            Interruption::DeadlinePassed => Ok(Input::DeadlinePassed { usage }),
            Interruption::Stopping => Err(DriveError::Stopping),
        }
    }

    /// Builds the prompt from the newest message backwards, and reads only as much of the thread as it needs. Returns
    /// `None` if its mandatory parts exceed the run's `max_prompt_tokens`.
    async fn build_prompt(
        &self,
        run: &LeasedRun,
        thread: Option<Vec<Message>>,
        model: &str,
        budget: Budget,
    ) -> Result<Option<(Prompt, Option<OwnedSemaphorePermit>)>, DriveError> {
        let spec = run.current.progress.run.spec.clone();
        let store = &self.dependencies.store;
        let mut builder = PromptBuilder::new(&run.current.progress, model, budget);
        let mut memory = None;
        let mut read_bytes = 0;
        // Cancels the blocking task when this future is dropped.
        let cancelled = CancellationToken::new();
        let _cancel = cancelled.clone().drop_guard();
        let mut image_bytes = self.settings.prompt_bytes_max;
        if let Some(thread) = thread {
            let newest_first = thread.into_iter().rev().collect();
            let newest_first = self.load_images(&spec.scope, newest_first, &mut image_bytes).await?;
            builder = self.push(builder, newest_first, &cancelled).await?.0;
        } else {
            let mut before = None;
            loop {
                let rows = builder.wanted().map_or(PAGE_ROWS, |wanted| {
                    // One of the messages may be the run's own.
                    u32::try_from(wanted.saturating_add(1)).unwrap_or(PAGE_ROWS).min(PAGE_ROWS)
                });
                let ConversationPage { messages, next } = self
                    .retry(|| store.conversation_page(&spec.scope, &spec.thread_id, &spec.id, before, rows, PAGE_BYTES))
                    .await?;
                let messages = self.load_images(&spec.scope, messages, &mut image_bytes).await?;
                read_bytes += messages.iter().map(prompt::content_bytes).sum::<usize>();
                if memory.is_none() && read_bytes > SMALL_PROMPT_BYTES {
                    memory = Some(self.large_prompt_memory().await?);
                }
                let (pushed, is_full) = self.push(builder, messages, &cancelled).await?;
                builder = pushed;
                before = next;
                if is_full || before.is_none() {
                    break;
                }
            }
        }
        let first = if builder.needs_first() {
            let first = self.retry(|| store.oldest_message(&spec.scope, &spec.thread_id, &spec.id)).await?;
            self.load_images(&spec.scope, first.into_iter().collect(), &mut image_bytes).await?.pop()
        } else {
            None
        };
        let finished = in_background(move || builder.finish(first.as_ref())).await?;
        Ok(finished.ok().map(|prompt| (prompt, memory)))
    }

    /// Adds messages to a prompt, newest first. Also returns whether the prompt is full.
    async fn push(
        &self,
        builder: PromptBuilder,
        newest_first: Vec<Message>,
        cancelled: &CancellationToken,
    ) -> Result<(PromptBuilder, bool), DriveError> {
        let bytes: usize = newest_first.iter().map(prompt::content_bytes).sum();
        let cancelled = cancelled.clone();
        let push = move || {
            let mut builder = builder;
            for message in newest_first {
                match builder.push(&message, &|| cancelled.is_cancelled()) {
                    Next::More => {}
                    // After a cancellation, the result is not used.
                    Next::Full | Next::Cancelled => return (builder, true),
                }
            }
            (builder, false)
        };
        if bytes <= INLINE_BYTES { Ok(push()) } else { in_background(push).await }
    }

    /// Reserves memory for a large prompt of the maximum size. Waits until other large prompts have released enough.
    async fn large_prompt_memory(&self) -> Result<OwnedSemaphorePermit, DriveError> {
        let wanted = self.settings.prompt_bytes_max.min(self.settings.prompt_memory_max) / 1024;
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let permit = self.prompt_memory.clone().acquire_many_owned(wanted).await;
        permit.map_err(|_| DriveError::Stopping)
    }

    /// Returns the input for an answer that has ended.
    async fn replied(
        &self,
        run: &mut LeasedRun,
        turn: Turn,
        route: &Route,
        prompt_tokens: &PromptTokens,
    ) -> Result<Input, DriveError> {
        if let (PromptTokens::Counted(ours), Some(usage)) = (prompt_tokens, &turn.usage) {
            self.dependencies.models.learn_ratio(route, *ours, usage.prompt_tokens);
        }
        let usage = self.spent(run, &turn, prompt_tokens).await?;
        let finish = turn.finish.unwrap_or(FinishReason::Stop);
        let progress = &run.current.progress;
        let rounds = progress.rounds();
        if rounds > self.settings.tool_rounds_max && progress.open_calls().is_some() {
            return Ok(failed(
                format!("The model called tools in {rounds} turns without completing the run (max_tool_rounds)."),
                usage,
            ));
        }
        let has_incomplete_call = turn.has_incomplete_call();
        let (made, replay) = match turn.into_calls(&route.model) {
            // The calls of an answer that a content filter stopped are dropped, and so is one that the token limit cut off.
            _ if finish == FinishReason::ContentFilter => (Vec::new(), None),
            Ok(_) if finish == FinishReason::Length && has_incomplete_call => (Vec::new(), None),
            Err(_) if finish == FinishReason::Length => (Vec::new(), None),
            Err(cause) => {
                run.cause = Some("The model called a function that the run does not have.".into());
                return Ok(failed(cause, usage));
            }
            Ok(Calls { made, replay }) => (made, replay),
        };
        // After tool calls, an empty answer is valid. Before them, it is an error of the model server.
        let is_empty = made.is_empty() && progress.text().is_empty() && progress.refusal().is_empty();
        if is_empty && finish == FinishReason::Stop && rounds == 0 {
            let error = llm::Error::Unavailable("The model server sent no answer.".into());
            return Ok(Input::Failed { error: last_error(&error), usage });
        }
        Ok(Input::ModelReplied { usage, finish, calls: made, replay })
    }

    /// Returns what turns the references of the next answer into marks.
    async fn citer(&self, run: &LeasedRun) -> Result<Citer, DriveError> {
        let Settings { citations: style, quotes_passages, .. } = self.settings;
        let steps = &run.current.progress.steps;
        let sources = Passages::of(steps).into_sources();
        // The newest file with a path is the one that is meant.
        let code = steps.iter().rev().flat_map(|step| step.tool_calls().iter().rev()).filter_map(ToolCall::code);
        let mut files: Vec<WrittenFile> = code.flat_map(|code| code.files.clone()).collect();
        let spec = &run.current.progress.run.spec;
        if code::is_offered(spec) {
            // Those of earlier runs.
            let store = &self.dependencies.store;
            files.extend(self.retry(|| store.code_files(&spec.scope, &spec.thread_id)).await?);
        }
        let state = citations::State::new(style);
        Ok(Citer { sources, style, quotes_passages, state, files, paths: FilePaths::default() })
    }

    /// Applies the events of one read to the run, and publishes them together.
    async fn apply_deltas(
        &self,
        run: &mut LeasedRun,
        attempt: &Attempt,
        events: Vec<TurnEvent>,
        is_first_text: &mut bool,
    ) -> Result<(), DriveError> {
        let mut written = Vec::with_capacity(events.len());
        for event in events {
            if let Some(input) = begins(&event, run) {
                run.live.push(&written);
                written.clear();
                self.begin(run, attempt, input).await?;
            }
            let progress = &mut run.current.progress;
            let event = match event {
                TurnEvent::Text(text) => {
                    // A later turn continues the text of earlier turns after an empty line.
                    let continues = std::mem::take(is_first_text) && !progress.text().is_empty();
                    let text = if continues { format!("{TURN_SEPARATOR}{text}") } else { text };
                    progress.append(&text);
                    TurnEvent::Text(text)
                }
                TurnEvent::Refusal(words) => {
                    progress.append_refusal(&words);
                    TurnEvent::Refusal(words)
                }
                TurnEvent::Mark(mark) => {
                    if std::mem::take(is_first_text) && !progress.text().is_empty() {
                        progress.append(TURN_SEPARATOR);
                        written.push(TurnEvent::Text(TURN_SEPARATOR.to_owned()));
                    }
                    progress.append_mark(&mark);
                    TurnEvent::Mark(mark)
                }
                call @ (TurnEvent::CallsStarted | TurnEvent::Call(..)) => call,
            };
            written.push(event);
        }
        run.live.push(&written);
        Ok(())
    }

    /// Commits an input during a turn. If a concurrent change has ended the run, the turn ends as well.
    async fn begin(&self, run: &mut LeasedRun, attempt: &Attempt, input: Input) -> Result<(), DriveError> {
        match Box::pin(self.apply(run, attempt, input)).await? {
            Effect::ReadAnswer | Effect::CallModel => Ok(()),
            Effect::RunTools | Effect::StopModel | Effect::Enqueue | Effect::AwaitClient | Effect::Finish => {
                Err(DriveError::EndedElsewhere)
            }
        }
    }

    /// Returns the tokens of an interrupted turn: none if the model server has not started to answer.
    async fn spent_if_answered(
        &self,
        run: &LeasedRun,
        turn: &Turn,
        prompt: &PromptTokens,
    ) -> Result<Usage, DriveError> {
        if is_answered(turn, run) { self.spent(run, turn, prompt).await } else { Ok(Usage::default()) }
    }

    /// Returns the tokens of a turn: those that the model server reported, or our own count.
    async fn spent(&self, run: &LeasedRun, turn: &Turn, prompt: &PromptTokens) -> Result<Usage, DriveError> {
        if let Some(usage) = turn.usage {
            return Ok(usage);
        }
        let progress = &run.current.progress;
        let settled = progress.settled();
        let mut texts = turn.other_texts();
        texts.push(progress.text()[settled.text..].to_owned());
        texts.push(progress.refusal()[settled.refusal..].to_owned());
        let (counted, sample) = match prompt {
            PromptTokens::Counted(tokens) => (*tokens, None),
            PromptTokens::Sampled(sample) => (0, Some(sample.clone())),
        };
        in_background(move || {
            let written = texts.iter().map(|text| tokens::estimate(text)).sum();
            Usage::counted(sample.map_or(counted, |sample| sample.estimate()), written)
        })
        .await
    }
}

/// Turns the references in an answer into marks.
struct Citer {
    sources: Vec<Source>,
    style: CitationStyle,
    quotes_passages: bool,
    state: citations::State,
    /// The files that code has written.
    files: Vec<WrittenFile>,
    paths: FilePaths,
}

impl Citer {
    /// Finds the references in the text of these events. Without sources and files, the events are unchanged.
    fn apply(&mut self, events: impl Iterator<Item = TurnEvent>) -> Vec<TurnEvent> {
        if self.sources.is_empty() && self.files.is_empty() {
            return events.collect();
        }
        let mut applied = Vec::new();
        for event in events {
            if let TurnEvent::Text(text) = event {
                let pieces = self.state.push(&text, &self.sources);
                applied.extend(self.events(pieces));
            } else {
                applied.extend(self.finish());
                applied.push(event);
            }
        }
        applied
    }

    /// Returns the text that was held back.
    fn finish(&mut self) -> Vec<TurnEvent> {
        let pieces = self.state.finish(&self.sources);
        let mut events = self.events(pieces);
        events.extend(self.rest_of_path());
        events
    }

    /// Returns the events of pieces, in which the paths of files are found as well.
    fn events(&mut self, pieces: Vec<Piece>) -> Vec<TurnEvent> {
        let mut events = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let pieces = self.paths.push(&text, &self.files);
                    events.extend(pieces.into_iter().map(|piece| self.path_event(piece)));
                }
                Piece::Reference(index) => {
                    events.extend(self.rest_of_path());
                    events.extend(self.citation(&self.sources[index]));
                }
            }
        }
        events
    }

    /// Returns text that was held back because it could have become a path.
    fn rest_of_path(&mut self) -> Vec<TurnEvent> {
        let pieces = self.paths.finish(&self.files);
        pieces.into_iter().map(|piece| self.path_event(piece)).collect()
    }

    fn path_event(&self, piece: file_paths::Piece) -> TurnEvent {
        match piece {
            file_paths::Piece::Text(text) => TurnEvent::Text(text),
            file_paths::Piece::Path { text, file } => {
                let file_id = self.files[file].file_id.clone();
                TurnEvent::Mark(Mark { text, file_id, quote: None, kind: AnnotationKind::FilePath })
            }
        }
    }

    fn citation(&self, source: &Source) -> Option<TurnEvent> {
        let quote = self.quotes_passages.then(|| source.quote());
        let kind = AnnotationKind::FileCitation;
        let mark = Mark { text: source.mark(self.style), file_id: source.file_id.clone(), quote, kind };
        (!mark.text.is_empty()).then_some(TurnEvent::Mark(mark))
    }
}

/// Returns the input that must be committed before an event can be applied to the run.
fn begins(event: &TurnEvent, run: &LeasedRun) -> Option<Input> {
    let progress = &run.current.progress;
    match event {
        TurnEvent::Text(_) | TurnEvent::Mark(_) | TurnEvent::Refusal(_) => {
            progress.message.is_none().then_some(Input::TextStarted)
        }
        TurnEvent::CallsStarted | TurnEvent::Call(..) => progress.open_calls().is_none().then_some(Input::CallsStarted),
    }
}

/// Whether the model server has started to answer.
fn is_answered(turn: &Turn, run: &LeasedRun) -> bool {
    let progress = &run.current.progress;
    let settled = progress.settled();
    turn.usage.is_some()
        || turn.other_bytes() > 0
        || progress.open_calls().is_some()
        || progress.text().len() > settled.text
        || progress.refusal().len() > settled.refusal
}

/// Runs CPU-bound work on the threads for blocking tasks.
///
/// # Errors
/// [`DriveError::Failed`] if the work panics.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DriveError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| DriveError::Failed(format!("a task that worked on the prompt failed: {error}")))
}

/// Returns the input for an answer that exceeds the maximum size. Incomplete calls cannot be executed.
fn too_long(run: &LeasedRun, usage: Usage) -> Input {
    if run.current.progress.open_calls().is_some() {
        return failed(
            "The model called a function with arguments that exceed the maximum size of an answer.".to_owned(),
            usage,
        );
    }
    Input::ModelReplied { usage, finish: FinishReason::Length, calls: Vec::new(), replay: None }
}

pub(super) fn failed(message: String, usage: Usage) -> Input {
    Input::Failed { error: LastError { code: ErrorCode::ServerError, message }, usage }
}

fn last_error(error: &llm::Error) -> LastError {
    let code = match error {
        llm::Error::RateLimited(_) => ErrorCode::RateLimitExceeded,
        llm::Error::Unavailable(_) | llm::Error::Rejected(_) => ErrorCode::ServerError,
    };
    // Some clients retry when they see this text of OpenAI's service for temporary errors.
    let message = match error {
        llm::Error::Unavailable(cause) => format!("Sorry, something went wrong. {cause}"),
        llm::Error::RateLimited(cause) | llm::Error::Rejected(cause) => cause.text.clone(),
    };
    LastError { code, message }
}
