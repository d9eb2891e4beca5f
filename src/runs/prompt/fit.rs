//! How much of a thread a prompt holds.
//!
//! Messages are added newest first, counted as they come, and no more are read once the prompt is full. Truncation drops
//! from the middle: the newest messages and the first one stay longest; when those two do not fit, the newest alone stays.
//! The system message, the tools and what the run itself has called always stay.

use super::{chat_message, frame, last_messages, message_bytes};
use crate::api::Message;
use crate::llm::tokens::{self, Counted};
use crate::llm::{ChatMessage, ChatRequest};
use crate::runs::machine::Progress;

/// Tokens of the window that are reserved for an answer when the run does not bound it: a quarter, at most this many.
const ANSWER_TOKENS: usize = 4_096;

/// What a run's next prompt may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What is left of `max_prompt_tokens`, in tokens.
    pub of_run: Option<usize>,
    /// What the model's window leaves beside an answer, in tokens.
    pub of_model: Option<usize>,
    /// Maximum size of the thread's messages, in bytes.
    pub bytes: usize,
}

/// Returns what bounds a run's next prompt, with a model of this window.
#[must_use]
pub fn budget(progress: &Progress, window: Option<u32>, bytes: usize) -> Budget {
    let (spec, used) = (&progress.run.spec, &progress.run.usage);
    let of_model = window.map(|window| {
        let window = window as usize;
        let answer = spec.max_completion_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as usize).min(window / 4);
        window - answer
    });
    let of_run = spec.max_prompt_tokens.map(|max| max.saturating_sub(used.prompt_tokens) as usize);
    Budget { of_run, of_model, bytes }
}

impl Budget {
    /// The budget by our own count, for a model that counts `ratio` times as many tokens.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an estimate of a count of tokens"
    )]
    pub fn counted(self, ratio: f64) -> Self {
        let scaled = |tokens: Option<usize>| tokens.map(|tokens| (tokens as f64 / ratio) as usize);
        Self { of_run: scaled(self.of_run), of_model: scaled(self.of_model), ..self }
    }

    fn tokens(&self) -> Option<usize> {
        self.of_run.into_iter().chain(self.of_model).min()
    }
}

/// Whether a prompt takes more messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Older messages may fit.
    More,
    /// It has all that it may hold.
    Full,
    /// The work was cancelled.
    Cancelled,
}

/// A prompt that fits its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// What to ask.
    pub request: ChatRequest,
    /// Its tokens by our count; none when its size alone showed that it fits.
    pub counted: Option<usize>,
}

/// What must be in the prompt exceeds what is left of the run's `max_prompt_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the prompt exceeds max_prompt_tokens")]
pub struct TooLong;

/// A message in the prompt.
#[derive(Debug)]
struct Held {
    message: ChatMessage,
    /// The size of its content.
    bytes: usize,
    /// Its count, or an upper bound of it.
    tokens: usize,
}

/// A prompt that is being built, from the newest message backwards.
#[derive(Debug)]
pub struct PromptBuilder {
    frame: ChatRequest,
    run_id: crate::api::RunId,
    budget: Budget,
    last_messages: Option<usize>,
    /// The thread's messages, newest first.
    newest_first: Vec<Held>,
    /// An upper bound of the tokens so far, or their count.
    tokens: usize,
    is_counted: bool,
    bytes: usize,
    /// Whether older messages were left out because the budget is used up.
    is_truncated: bool,
}

impl PromptBuilder {
    /// A prompt without messages of the thread yet.
    #[must_use]
    pub fn new(progress: &Progress, budget: Budget) -> Self {
        let frame = frame(progress);
        Self {
            tokens: tokens::at_most(&frame),
            frame,
            run_id: progress.run.spec.id.clone(),
            budget,
            last_messages: last_messages(&progress.run.spec),
            newest_first: Vec::new(),
            is_counted: false,
            bytes: 0,
            is_truncated: false,
        }
    }

    /// How many more messages of the thread the prompt holds at most; none for any number.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        self.last_messages.map(|count| count.saturating_sub(self.newest_first.len()))
    }

    /// Adds the next older message. Messages that the run wrote itself are left out: its text before each of its calls
    /// stands with them, and text after the last calls is about to be written again.
    pub fn push(&mut self, message: &Message, is_cancelled: &dyn Fn() -> bool) -> Next {
        if self.is_truncated || self.wanted() == Some(0) {
            return Next::Full;
        }
        if message.author.as_ref().is_some_and(|author| author.run_id == self.run_id) {
            return Next::More;
        }
        let bytes = message_bytes(message);
        let Some(message) = chat_message(message) else { return Next::More };
        let at_most = tokens::message_at_most(&message);
        let is_newest = self.newest_first.is_empty();
        if self.bytes + bytes > self.budget.bytes && !is_newest {
            self.is_truncated = true;
            return Next::Full;
        }
        let Some(max) = self.budget.tokens() else {
            self.add(message, bytes, at_most);
            return self.next();
        };
        if !self.is_counted && self.tokens + at_most <= max {
            self.add(message, bytes, at_most);
            return self.next();
        }
        if !self.is_counted && self.count(is_cancelled).is_none() {
            return Next::Cancelled;
        }
        let left = max.saturating_sub(self.tokens);
        match tokens::count_message_up_to(&message, left, is_cancelled) {
            Counted::Tokens(tokens) => {
                self.add(message, bytes, tokens);
                self.next()
            }
            Counted::Cancelled => Next::Cancelled,
            // The newest message stays whatever its length; it must be known by how much it exceeds.
            Counted::MoreThanMax if is_newest => {
                let tokens = tokens::estimate_message(&message);
                self.add(message, bytes, tokens);
                self.next()
            }
            Counted::MoreThanMax => {
                self.is_truncated = true;
                Next::Full
            }
        }
    }

    fn add(&mut self, message: ChatMessage, bytes: usize, tokens: usize) {
        self.bytes += bytes;
        self.tokens = self.tokens.saturating_add(tokens);
        self.newest_first.push(Held { message, bytes, tokens });
    }

    fn next(&self) -> Next {
        if self.wanted() == Some(0) { Next::Full } else { Next::More }
    }

    /// Replaces the upper bounds so far by counts. Returns none when cancelled.
    fn count(&mut self, is_cancelled: &dyn Fn() -> bool) -> Option<()> {
        self.is_counted = true;
        self.tokens = tokens::count_request(&self.frame);
        for Held { message, tokens, .. } in &mut self.newest_first {
            *tokens = match tokens::count_message_up_to(message, usize::MAX, is_cancelled) {
                Counted::Tokens(tokens) => tokens,
                Counted::Cancelled | Counted::MoreThanMax => return None,
            };
            self.tokens += *tokens;
        }
        Some(())
    }

    /// Whether the thread's first message is needed to finish: the thread was truncated, and its first message stays
    /// longer than those in the middle.
    #[must_use]
    pub fn needs_first(&self) -> bool {
        self.is_truncated && self.last_messages.is_none()
    }

    /// The prompt. `first` is the thread's first message, when [`PromptBuilder::needs_first`].
    ///
    /// A model's window that is too small even so is left to the model server to report: our count may be wrong.
    ///
    /// # Errors
    /// [`TooLong`] when the run's own budget is too small for what must be in the prompt.
    pub fn finish(mut self, first: Option<&Message>) -> Result<Prompt, TooLong> {
        if let Some(first) = first.filter(|_| self.needs_first()) {
            let bytes = message_bytes(first);
            if let Some(message) = chat_message(first) {
                self.make_room_for(message, bytes);
            }
        }
        if self.is_counted && self.budget.of_run.is_some_and(|max| self.tokens > max) {
            return Err(TooLong);
        }
        let Self { mut frame, newest_first, tokens, is_counted, .. } = self;
        let system = usize::from(frame.messages.first().is_some_and(|message| message.role == "system"));
        let thread = newest_first.into_iter().rev().map(|held| held.message);
        frame.messages.splice(system..system, thread);
        Ok(Prompt { request: frame, counted: is_counted.then_some(tokens) })
    }

    /// Puts the thread's first message in the place of as many of the oldest others as it needs.
    fn make_room_for(&mut self, first: ChatMessage, bytes: usize) {
        let max = self.budget.tokens();
        let tokens = if self.is_counted { tokens::estimate_message(&first) } else { tokens::message_at_most(&first) };
        let fits = |builder: &Self| {
            builder.bytes + bytes <= builder.budget.bytes && max.is_none_or(|max| builder.tokens + tokens <= max)
        };
        while self.newest_first.len() > 1 && !fits(self) {
            if let Some(held) = self.newest_first.pop() {
                self.bytes -= held.bytes;
                self.tokens -= held.tokens;
            }
        }
        if fits(self) {
            self.add(first, bytes, tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::api::rule::Request as _;
    use crate::api::tool::ToolResources;
    use crate::api::{CreateAssistant, CreateMessage, CreateRun, Ids, Timestamp};

    const NEVER: &dyn Fn() -> bool = &|| false;

    fn progress(request: &serde_json::Value) -> Progress {
        let (ids, now) = (Ids::counting(), Timestamp(1));
        let assistant = CreateAssistant::parse(json!({"model": "m", "instructions": "be kind"})).unwrap();
        let assistant = assistant.into_assistant(ids.make(), now);
        let mut body = json!({"assistant_id": assistant.id});
        body.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
        let request = CreateRun::parse(body).unwrap();
        let (run, _) = request.into_run(&ids, &ids.make(), &assistant, ToolResources::default(), now, 600);
        Progress::new(run)
    }

    fn thread(texts: &[&str]) -> Vec<Message> {
        let ids = Ids::counting();
        let message = |text: &&str| {
            let request = CreateMessage::parse(json!({"role": "user", "content": text})).unwrap();
            request.into_message(&ids, &ids.make(), Timestamp(1))
        };
        texts.iter().map(message).collect()
    }

    fn of_run(tokens: usize) -> Budget {
        Budget { of_run: Some(tokens), of_model: None, bytes: usize::MAX }
    }

    /// The texts of the thread in the prompt, oldest first.
    fn kept(texts: &[&str], budget: Budget) -> Result<Vec<String>, TooLong> {
        let thread = thread(texts);
        let mut builder = PromptBuilder::new(&progress(&json!({})), budget);
        for message in thread.iter().rev() {
            if builder.push(message, NEVER) == Next::Full {
                break;
            }
        }
        let first = builder.needs_first().then(|| thread.first()).flatten();
        let text = |message: ChatMessage| message.content.as_str().unwrap().to_owned();
        Ok(builder.finish(first)?.request.messages.into_iter().skip(1).map(text).collect())
    }

    fn user(text: &str) -> ChatMessage {
        ChatMessage::new("user", json!(text))
    }

    fn system_tokens() -> usize {
        tokens::count_message(&ChatMessage::new("system", json!("be kind")))
    }

    #[test]
    fn a_thread_that_is_too_long_is_truncated_in_the_middle_oldest_first() {
        let words = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"];
        let whole = system_tokens() + words.iter().map(|text| tokens::count_message(&user(text))).sum::<usize>();
        let last = tokens::count_message(&user(words[3]));

        assert_eq!(kept(&words, of_run(whole)).unwrap().len(), 4);
        assert_eq!(kept(&words, of_run(whole - 1)).unwrap(), [words[0], words[2], words[3]]);
        assert_eq!(kept(&words, of_run(whole / 2)).unwrap().last().unwrap(), words[3]);
        assert_eq!(kept(&words, of_run(last)), Err(TooLong), "the newest does not fit beside the instructions");
    }

    #[test]
    fn a_window_that_is_too_small_is_left_to_the_model_server_to_report() {
        let budget = Budget { of_run: None, of_model: Some(1), bytes: usize::MAX };

        assert_eq!(kept(&["one", "two", "three"], budget).unwrap(), ["three"]);
    }

    #[test]
    fn without_a_budget_nothing_is_truncated_or_counted() {
        let budget = Budget { of_run: None, of_model: None, bytes: usize::MAX };

        assert_eq!(kept(&["one", "two"], budget).unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_prompt_holds_no_more_bytes_than_it_may_and_always_the_newest_message() {
        let long = "x".repeat(1_000);
        let texts = ["first", long.as_str(), "third", "newest"];
        let bytes = |bytes| Budget { of_run: None, of_model: None, bytes };

        assert_eq!(kept(&texts, bytes(200)).unwrap(), ["first", "third", "newest"]);
        assert_eq!(kept(&[&long], bytes(200)).unwrap(), [long.as_str()]);
    }

    #[test]
    fn the_last_messages_alone_are_held_when_the_run_says_so() {
        let strategy = json!({"truncation_strategy": {"type": "last_messages", "last_messages": 2}});
        let budget = Budget { of_run: None, of_model: None, bytes: usize::MAX };
        let mut builder = PromptBuilder::new(&progress(&strategy), budget);
        let thread = thread(&["one", "two", "three"]);

        assert_eq!(builder.wanted(), Some(2));
        assert_eq!(builder.push(&thread[2], NEVER), Next::More);
        assert_eq!(builder.push(&thread[1], NEVER), Next::Full);
        assert!(!builder.needs_first());
        assert_eq!(builder.finish(None).unwrap().request.messages.len(), 3);
    }

    #[test]
    fn counting_ends_when_it_is_cancelled() {
        let mut builder = PromptBuilder::new(&progress(&json!({})), of_run(50));
        let long = "one two three ".repeat(15_000);

        let next = builder.push(&thread(&[&long])[0], &|| true);

        assert_eq!(next, Next::Cancelled);
    }

    #[test]
    fn a_model_that_counts_more_tokens_gets_shorter_prompts() {
        assert_eq!(of_run(100).counted(2.0), of_run(50));
    }

    /// The rule in its plain form, over a whole thread.
    fn reference(texts: &[&str], max: usize) -> Result<Vec<String>, TooLong> {
        let sizes: Vec<usize> = texts.iter().map(|text| tokens::count_message(&user(text))).collect();
        let mut total = system_tokens() + sizes.iter().sum::<usize>();
        let mut held: Vec<usize> = (0..texts.len()).collect();
        let middle = 1..texts.len().saturating_sub(1);
        for index in middle.chain((texts.len() > 1).then_some(0)) {
            if total > max {
                total -= sizes[index];
                held.retain(|kept| *kept != index);
            }
        }
        if total > max { Err(TooLong) } else { Ok(held.into_iter().map(|index| texts[index].to_owned()).collect()) }
    }

    proptest! {
        #[test]
        fn building_backwards_holds_what_the_plain_rule_holds(
            lengths in prop::collection::vec(1_usize..12, 1..12),
            max in 1_usize..200,
        ) {
            let texts: Vec<String> = lengths.iter().map(|length| "word ".repeat(*length)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();

            prop_assert_eq!(kept(&texts, of_run(max)), reference(&texts, max));
        }
    }
}
