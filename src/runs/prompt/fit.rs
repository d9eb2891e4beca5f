//! Fits a thread into the budget of a prompt, from its newest message. Pure.
//!
//! A [`PromptBuilder`] takes the messages of a thread one by one, newest first, and reports when it needs no more. Its time
//! and memory depend on the budget, not on the length of the thread.
//!
//! A prompt that is too long omits messages from the middle of the thread: the first message and the newest ones stay. If
//! that is not enough, only the newest message stays. The instructions, the tools and the run's own turns always stay.

use super::{chat_message, content_bytes, empty_request, has_content, last_messages, rounds, system_message};
use crate::api::{Message, RunId};
use crate::llm::tokens::{self, Counted};
use crate::llm::{ChatMessage, ChatRequest};
use crate::runs::machine::Progress;

/// Maximum number of tokens of the context window that are reserved for the answer if the run sets no limit. At most a
/// quarter of the window is reserved.
const ANSWER_TOKENS: usize = 4_096;

/// The limits of a run's next prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tokens that are left of the run's `max_prompt_tokens`.
    pub of_run: Option<usize>,
    /// Tokens of the model's context window that are not reserved for the answer.
    pub of_model: Option<usize>,
    /// Maximum size of the content, in bytes: a limit on memory.
    pub bytes: usize,
}

impl Budget {
    /// Returns the budget of a run's next prompt for a model with this context window.
    #[must_use]
    pub fn new(progress: &Progress, window: Option<u32>, bytes: usize) -> Self {
        let (spec, usage) = (&progress.run.spec, &progress.run.usage);
        let of_model = window.map(|window| {
            let window = window as usize;
            let answer = spec.max_completion_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as usize).min(window / 4);
            window - answer
        });
        let of_run = spec.max_prompt_tokens.map(|max| max.saturating_sub(usage.prompt_tokens) as usize);
        Self { of_run, of_model, bytes }
    }

    /// Returns the budget in tokens of our own count, for a model that counts `ratio` times as many.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an estimate of a count of tokens"
    )]
    pub fn counted(self, ratio: f64) -> Self {
        let scaled = |tokens: Option<usize>| tokens.map(|tokens| (tokens as f64 / ratio) as usize);
        Self { of_run: scaled(self.of_run), of_model: scaled(self.of_model), bytes: self.bytes }
    }

    /// Returns the maximum number of tokens of a prompt that can still omit messages.
    fn tokens(&self) -> Option<usize> {
        self.of_run.into_iter().chain(self.of_model).min()
    }

    /// Returns the maximum number of tokens of a prompt that cannot omit any more messages. Only the run's own budget is
    /// enforced: our count may be higher than the model's, so the model server decides about its context window.
    fn tokens_max(&self) -> Option<usize> {
        self.of_run.or(self.of_model)
    }
}

/// A prompt that fits its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The request for the model.
    pub request: ChatRequest,
    /// Its tokens by our count; `None` if they were not counted, such as those of a short prompt.
    pub counted: Option<usize>,
}

/// Even the newest message alone exceeds the run's `max_prompt_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the prompt has more tokens than the run's max_prompt_tokens leaves")]
pub struct TooLong;

/// What a [`PromptBuilder`] needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next older message, if there is one.
    More,
    /// No further message, except the first one if [`PromptBuilder::needs_first`].
    Full,
    /// Nothing: the caller was cancelled. The builder must be dropped.
    Cancelled,
}

/// Builds a prompt from the messages of a thread, newest first.
#[derive(Debug)]
pub struct PromptBuilder {
    run_id: RunId,
    budget: Budget,
    /// The request without messages.
    request: ChatRequest,
    system: Option<ChatMessage>,
    rounds: Vec<ChatMessage>,
    /// Messages of the thread, newest first.
    kept: Vec<Kept>,
    /// Tokens of the whole prompt: counted, or an upper bound. Not valid if `has_exceeded`.
    tokens: usize,
    /// Tokens of the parts that are always in the prompt: counted, or an upper bound.
    fixed_tokens: usize,
    is_counted: bool,
    /// Whether the prompt has more tokens than [`Budget::tokens_max`] even with the newest message alone.
    has_exceeded: bool,
    bytes: usize,
    fixed_bytes: usize,
    /// How many further messages `last_messages` allows.
    remaining: Option<usize>,
    state: State,
    /// The oldest message so far, if messages were left out. With `last_messages`, it becomes the first message.
    oldest: Option<Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All messages so far fit.
    Fits,
    /// A message did not fit: it and all older ones are left out, except the first.
    Overflowed,
    /// The newest message does not fit, and is the only one.
    NewestOnly,
}

#[derive(Debug)]
struct Kept {
    message: ChatMessage,
    tokens: usize,
    bytes: usize,
}

enum Fit {
    /// The message fits and has this many tokens.
    Fits(usize),
    /// It does not fit. It has this many tokens if they were counted.
    Exceeds(Option<usize>),
}

struct Cancelled;

impl PromptBuilder {
    /// Creates the prompt for the next turn of a run by `model` with its fixed parts: the instructions, the tools, and the
    /// run's own turns.
    #[must_use]
    pub fn new(progress: &Progress, model: &str, budget: Budget) -> Self {
        let spec = &progress.run.spec;
        let (request, system, rounds) = (empty_request(progress), system_message(spec), rounds(progress, model));
        let fixed = || system.iter().chain(&rounds);
        let tools = tokens::tools_at_most(&request.tools);
        let fixed_tokens = fixed().map(tokens::at_most).sum::<usize>() + tools;
        let fixed_bytes = fixed().map(chat_bytes).sum::<usize>() + tools;
        Self {
            run_id: spec.id.clone(),
            budget,
            request,
            system,
            rounds,
            kept: Vec::new(),
            tokens: fixed_tokens,
            fixed_tokens,
            is_counted: false,
            has_exceeded: false,
            bytes: fixed_bytes,
            fixed_bytes,
            remaining: last_messages(spec),
            state: State::Fits,
            oldest: None,
        }
    }

    /// Returns the maximum number of further messages that can be added; `None` means any number. Messages that the builder does
    /// not [accept](Self::accepts) do not count.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        if self.is_full() { Some(0) } else { self.remaining }
    }

    /// Returns whether a message can be in the prompt: it has content, and is not the run's own message.
    ///
    /// The run's own text is included with its calls; the text after the last call is about to be written again.
    #[must_use]
    pub fn accepts(&self, message: &Message) -> bool {
        message.author.as_ref().is_none_or(|author| author.run_id != self.run_id) && has_content(message)
    }

    /// Adds the next older message of the thread. Ignores one that it does not [accept](Self::accepts).
    ///
    /// Calls `is_cancelled` regularly while it counts tokens.
    pub fn push(&mut self, message: &Message, is_cancelled: &dyn Fn() -> bool) -> Next {
        if self.is_full() {
            return Next::Full;
        }
        if !self.accepts(message) {
            return Next::More;
        }
        let bytes = content_bytes(message);
        let has_room = self.kept.is_empty() || self.bytes.saturating_add(bytes) <= self.budget.bytes;
        if self.state == State::Overflowed || !has_room {
            self.leave_out(message, bytes);
        } else if let Some(chat) = chat_message(message) {
            match self.fit(&chat, is_cancelled) {
                Err(Cancelled) => return Next::Cancelled,
                Ok(Fit::Fits(tokens)) => self.keep(chat, tokens, bytes),
                Ok(Fit::Exceeds(tokens)) if self.kept.is_empty() => {
                    self.has_exceeded = tokens.is_none();
                    self.state = State::NewestOnly;
                    self.keep(chat, tokens.unwrap_or_default(), bytes);
                }
                Ok(Fit::Exceeds(_)) => self.leave_out(message, bytes),
            }
        }
        self.remaining = self.remaining.map(|remaining| remaining - 1);
        if self.is_full() { Next::Full } else { Next::More }
    }

    fn is_full(&self) -> bool {
        self.remaining == Some(0)
            || match self.state {
                State::Fits => false,
                State::Overflowed => self.remaining.is_none(),
                State::NewestOnly => true,
            }
    }

    fn keep(&mut self, message: ChatMessage, tokens: usize, bytes: usize) {
        self.tokens = self.tokens.saturating_add(tokens);
        self.bytes = self.bytes.saturating_add(bytes);
        self.kept.push(Kept { message, tokens, bytes });
        if self.bytes > self.budget.bytes {
            self.state = State::NewestOnly;
        }
    }

    fn leave_out(&mut self, message: &Message, bytes: usize) {
        self.state = State::Overflowed;
        if self.remaining.is_some() {
            self.oldest = chat_message(message).map(|message| Kept { message, tokens: 0, bytes });
        }
    }

    /// Returns whether a message fits in addition to the present ones. Counts tokens only if the upper bound does not
    /// suffice.
    fn fit(&mut self, message: &ChatMessage, is_cancelled: &dyn Fn() -> bool) -> Result<Fit, Cancelled> {
        let (Some(max), Some(newest_max)) = (self.budget.tokens(), self.budget.tokens_max()) else {
            return Ok(Fit::Fits(0));
        };
        if !self.is_counted {
            let at_most = tokens::at_most(message);
            if self.tokens.saturating_add(at_most) <= max {
                return Ok(Fit::Fits(at_most));
            }
            self.count(newest_max, is_cancelled)?;
        }
        if self.has_exceeded {
            return Ok(Fit::Exceeds(None));
        }
        let count_max = if self.kept.is_empty() { newest_max } else { max };
        match tokens::count_message_up_to(message, count_max.saturating_sub(self.tokens), is_cancelled) {
            Counted::Tokens(tokens) if self.tokens + tokens <= max => Ok(Fit::Fits(tokens)),
            Counted::Tokens(tokens) => Ok(Fit::Exceeds(Some(tokens))),
            Counted::MoreThan(_) => Ok(Fit::Exceeds(None)),
            Counted::Cancelled => Err(Cancelled),
        }
    }

    /// Replaces the upper bounds with counts. Stops at `max` tokens; then the prompt `has_exceeded` it.
    fn count(&mut self, max: usize, is_cancelled: &dyn Fn() -> bool) -> Result<(), Cancelled> {
        self.is_counted = true;
        self.tokens = 0;
        let mut add = |counted: Counted| match counted {
            Counted::Tokens(tokens) => {
                self.tokens += tokens;
                Ok(Some(tokens))
            }
            Counted::MoreThan(_) => {
                self.has_exceeded = true;
                Ok(None)
            }
            Counted::Cancelled => Err(Cancelled),
        };
        let mut rest = max;
        let Some(tools) = add(tokens::count_tools_up_to(&self.request.tools, rest, is_cancelled))? else {
            return Ok(());
        };
        rest -= tools;
        for message in self.system.iter().chain(&self.rounds) {
            let Some(tokens) = add(tokens::count_message_up_to(message, rest, is_cancelled))? else { return Ok(()) };
            rest -= tokens;
        }
        self.fixed_tokens = max - rest;
        for kept in &mut self.kept {
            let Some(tokens) = add(tokens::count_message_up_to(&kept.message, rest, is_cancelled))? else {
                return Ok(());
            };
            kept.tokens = tokens;
            rest -= tokens;
        }
        Ok(())
    }

    /// Whether the first message of the thread must be passed to [`PromptBuilder::finish`]: the first one that the
    /// builder [accepts](Self::accepts).
    #[must_use]
    pub fn needs_first(&self) -> bool {
        self.state == State::Overflowed && self.remaining.is_none()
    }

    /// Returns the prompt.
    ///
    /// # Errors
    /// [`TooLong`] if even the newest message alone exceeds the run's own budget. A prompt that exceeds the model's
    /// context window or the limit on bytes is returned with the newest message alone.
    pub fn finish(mut self, first: Option<&Message>) -> Result<Prompt, TooLong> {
        if self.state == State::Overflowed {
            let first = first
                .filter(|first| self.accepts(first))
                .and_then(|first| Some(Kept { message: chat_message(first)?, tokens: 0, bytes: content_bytes(first) }));
            if let Some(first) = self.oldest.take().or(first) {
                self.add_first(first);
            }
        }
        if let (Some(max), Some(newest_max)) = (self.budget.tokens(), self.budget.tokens_max())
            && !self.is_counted
            && self.tokens > max
        {
            let _ = self.count(newest_max, &|| false);
        }
        if self.has_exceeded && self.budget.of_run.is_some() {
            return Err(TooLong);
        }
        let counted = (self.is_counted && !self.has_exceeded).then_some(self.tokens);
        let thread = self.kept.into_iter().rev().map(|kept| kept.message);
        let mut request = self.request;
        request.messages = self.system.into_iter().chain(thread).chain(self.rounds).collect();
        Ok(Prompt { request, counted })
    }

    /// Adds the first message of the thread, and removes the oldest others until it fits. If it does not fit together with
    /// the newest one, only the newest stays.
    fn add_first(&mut self, mut first: Kept) {
        let Some(newest) = self.kept.first() else { return };
        let newest_bytes = self.fixed_bytes + newest.bytes;
        let tokens = match self.budget.tokens() {
            _ if newest_bytes.saturating_add(first.bytes) > self.budget.bytes => None,
            None => Some(0),
            Some(max) => self.first_tokens(&first.message, max),
        };
        while self.kept.len() > 1 && (tokens.is_none_or(|tokens| !self.has_room(tokens, first.bytes))) {
            if let Some(dropped) = self.kept.pop() {
                self.tokens -= dropped.tokens;
                self.bytes -= dropped.bytes;
            }
        }
        if let Some(tokens) = tokens {
            first.tokens = tokens;
            self.tokens += tokens;
            self.bytes += first.bytes;
            self.kept.push(first);
        }
    }

    fn has_room(&self, tokens: usize, bytes: usize) -> bool {
        self.budget.tokens().is_none_or(|max| self.tokens.saturating_add(tokens) <= max)
            && self.bytes.saturating_add(bytes) <= self.budget.bytes
    }

    /// Returns the tokens of the first message if it fits together with the newest one.
    fn first_tokens(&mut self, first: &ChatMessage, max: usize) -> Option<usize> {
        if !self.is_counted {
            let at_most = tokens::at_most(first);
            if self.tokens.saturating_add(at_most) <= max {
                return Some(at_most);
            }
            // The present messages fit by their upper bounds, so they fit by their counts.
            self.count(max, &|| false).ok()?;
        }
        let newest = self.fixed_tokens + self.kept.first().map_or(0, |kept| kept.tokens);
        match tokens::count_message_up_to(first, max.checked_sub(newest)?, &|| false) {
            Counted::Tokens(tokens) => Some(tokens),
            Counted::MoreThan(_) | Counted::Cancelled => None,
        }
    }
}

/// Returns the size of the instructions or of a message of the run's own turns, in bytes.
fn chat_bytes(message: &ChatMessage) -> usize {
    let content = message.content.as_str().map_or(0, str::len);
    content + message.tool_calls.iter().chain(message.members.values()).map(tokens::json_bytes).sum::<usize>()
}
