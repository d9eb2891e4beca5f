//! Whole prompts, the limits of a budget, and the builder compared with a plain algorithm on whole threads.

use proptest::prelude::*;

use super::fit::{Budget, Next, Prompt, PromptBuilder, TooLong};
use super::*;
use crate::api::message::{Author, MessageState};
use crate::api::rule::Request as _;
use crate::api::run::RunOrigin;
use crate::api::run_step::{StepDetails, StepState};
use crate::api::tool::{CalledTool, FunctionCall, ToolCall};
use crate::api::{Assistant, CreateAssistant, CreateRun, Ids, Metadata, Timestamp};
use crate::llm::tokens::{self, Counted};

const NOW: Timestamp = Timestamp(1_000);
const ALL: Budget = Budget { of_run: None, of_model: None, bytes: usize::MAX };

fn of_run(tokens: usize) -> Budget {
    Budget { of_run: Some(tokens), ..ALL }
}

fn of_model(tokens: usize) -> Budget {
    Budget { of_model: Some(tokens), ..ALL }
}

/// A run with the instructions "be kind" and these further members.
fn progress(ids: &Ids, members: &Value) -> Progress {
    let assistant = json!({"model": "m", "instructions": "be kind"});
    let assistant: Assistant = CreateAssistant::parse(assistant).unwrap().into_assistant(ids, NOW).0;
    let mut request = json!({"assistant_id": assistant.id});
    request.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let request = CreateRun::parse(request).unwrap();
    Progress::new(request.into_run(ids, RunOrigin::of(&ids.generate(), &assistant, NOW)).0)
}

fn message(ids: &Ids, content: Vec<Content>) -> Message {
    Message {
        id: ids.generate(),
        created_at: NOW,
        thread_id: ids.generate(),
        author: None,
        role: Role::User,
        content,
        attachments: Vec::new(),
        metadata: Metadata::default(),
        state: MessageState::Completed { at: NOW },
    }
}

fn thread(ids: &Ids, texts: &[&str]) -> Vec<Message> {
    texts.iter().map(|text| message(ids, vec![Content::text(*text)])).collect()
}

/// Builds a prompt as the driver does; returns it with the number of messages that were read.
fn read(progress: &Progress, thread: &[Message], budget: Budget) -> (Result<Prompt, TooLong>, usize) {
    let mut builder = PromptBuilder::new(progress, "m", budget);
    let mut read = 0;
    for message in thread.iter().rev() {
        if builder.wanted() == Some(0) {
            break;
        }
        read += 1;
        match builder.push(message, &|| false) {
            Next::More => {}
            Next::Full => break,
            Next::Cancelled => panic!("nothing cancels it"),
        }
    }
    let first = thread.iter().find(|message| builder.accepts(message)).filter(|_| builder.needs_first());
    (builder.finish(first), read)
}

fn build(progress: &Progress, thread: &[Message], budget: Budget) -> Result<Prompt, TooLong> {
    read(progress, thread, budget).0
}

fn texts(request: &ChatRequest) -> Vec<&str> {
    request.messages.iter().filter_map(|message| message.content.as_str()).collect()
}

/// The texts of the thread in a prompt.
fn kept(prompt: &Result<Prompt, TooLong>) -> Vec<&str> {
    texts(&prompt.as_ref().unwrap().request).split_off(1)
}

fn count(message: &ChatMessage) -> usize {
    match tokens::count_message_up_to(message, usize::MAX, &|| false) {
        Counted::Tokens(tokens) => tokens,
        other => panic!("{other:?}"),
    }
}

fn count_text(role: ChatRole, text: &str) -> usize {
    count(&ChatMessage::new(role, json!(text)))
}

const WORDS: [&str; 4] = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"];

/// The tokens of the instructions and all of `WORDS`.
fn all_tokens() -> usize {
    count_text(ChatRole::System, "be kind") + WORDS.iter().map(|text| count_text(ChatRole::User, text)).sum::<usize>()
}

#[test]
fn a_prompt_that_is_too_long_omits_the_oldest_messages_after_the_first() {
    let ids = Ids::counting();
    let (run, thread) = (progress(&ids, &json!({})), thread(&ids, &WORDS));
    let newest = count_text(ChatRole::User, WORDS[3]);

    assert_eq!(kept(&build(&run, &thread, of_run(all_tokens()))), WORDS);
    assert_eq!(kept(&build(&run, &thread, of_run(all_tokens() - 1))), [WORDS[0], WORDS[2], WORDS[3]]);
    assert_eq!(kept(&build(&run, &thread, of_run(all_tokens() / 2))), [WORDS[3]]);
    assert_eq!(build(&run, &thread, of_run(newest)), Err(TooLong), "it does not fit together with the instructions");
}

#[test]
fn a_newest_message_that_exceeds_the_context_window_is_sent_anyway() {
    let ids = Ids::counting();
    let (run, thread) = (progress(&ids, &json!({})), thread(&ids, &WORDS));

    assert_eq!(kept(&build(&run, &thread, of_model(1))), [WORDS[3]]);
    assert_eq!(kept(&build(&run, &thread, Budget { of_run: Some(1_000), ..of_model(1) })), [WORDS[3]]);
}

#[test]
fn a_limit_on_bytes_omits_messages_like_a_limit_on_tokens() {
    let ids = Ids::counting();
    let (run, thread) = (progress(&ids, &json!({})), thread(&ids, &WORDS));
    let bytes = |messages: usize| Budget { bytes: "be kind".len() + messages, ..ALL };
    let three = WORDS[0].len() + WORDS[2].len() + WORDS[3].len();

    assert_eq!(kept(&build(&run, &thread, bytes(three))), [WORDS[0], WORDS[2], WORDS[3]]);
    assert_eq!(kept(&build(&run, &thread, bytes(three - 1))), [WORDS[0], WORDS[3]]);
    assert_eq!(kept(&build(&run, &thread, bytes(1))), [WORDS[3]]);
}

#[test]
fn without_a_limit_nothing_is_omitted_or_counted() {
    let ids = Ids::counting();
    let (run, thread) = (progress(&ids, &json!({})), thread(&ids, &WORDS));

    let prompt = build(&run, &thread, ALL);

    assert_eq!(kept(&prompt), WORDS);
    assert_eq!(prompt.unwrap().counted, None);
}

#[test]
fn a_thread_is_read_only_until_the_budget_is_full() {
    let ids = Ids::counting();
    let texts: Vec<String> = (0..1_000).map(|number| format!("message {number}")).collect();
    let thread = thread(&ids, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let last_two = json!({"truncation_strategy": {"type": "last_messages", "last_messages": 2}});

    let (prompt, by_tokens) = read(&progress(&ids, &json!({})), &thread, of_run(100));
    assert_eq!(kept(&prompt)[0], "message 0");
    assert_eq!(*kept(&prompt).last().unwrap(), "message 999");
    assert!(by_tokens < 20, "{by_tokens}");

    let (prompt, by_number) = read(&progress(&ids, &last_two), &thread, ALL);
    assert_eq!((kept(&prompt), by_number), (vec!["message 998", "message 999"], 2));
}

#[test]
fn the_last_messages_are_fitted_into_the_budget_too() {
    let ids = Ids::counting();
    let last_three = json!({"truncation_strategy": {"type": "last_messages", "last_messages": 3}});
    let (run, thread) = (progress(&ids, &last_three), thread(&ids, &WORDS));
    let two = count_text(ChatRole::System, "be kind")
        + count_text(ChatRole::User, WORDS[1])
        + count_text(ChatRole::User, WORDS[3]);

    assert_eq!(kept(&build(&run, &thread, ALL)), WORDS[1..]);
    assert_eq!(kept(&build(&run, &thread, of_run(two))), [WORDS[1], WORDS[3]]);
    assert_eq!(kept(&build(&run, &thread, of_run(two - 1))), [WORDS[3]]);
}

#[test]
fn a_cancelled_builder_stops_counting() {
    let ids = Ids::counting();
    let (run, thread) = (progress(&ids, &json!({})), thread(&ids, &WORDS));
    let mut builder = PromptBuilder::new(&run, "m", of_run(10));

    assert_eq!(builder.push(&thread[3], &|| true), Next::Cancelled);
}

#[test]
fn the_budget_is_reduced_for_a_model_that_counts_more_tokens_than_we_do() {
    assert_eq!(of_run(100).counted(2.0), of_run(50));
}

#[test]
fn a_part_of_the_context_window_is_reserved_for_the_answer() {
    let ids = Ids::counting();
    let of_model = |members: Value, window: u32| Budget::new(&progress(&ids, &members), Some(window), 0).of_model;

    assert_eq!(of_model(json!({}), 100_000), Some(100_000 - 4_096));
    assert_eq!(of_model(json!({}), 1_000), Some(750));
    assert_eq!(of_model(json!({"max_completion_tokens": 256}), 100_000), Some(100_000 - 256));
}

#[test]
fn the_runs_own_message_and_messages_without_content_are_left_out() {
    let ids = Ids::counting();
    let run = progress(&ids, &json!({}));
    let mut own = thread(&ids, &["own"]).remove(0);
    own.author = Some(Author { assistant_id: run.run.spec.assistant_id.clone(), run_id: run.run.spec.id.clone() });
    let messages = [thread(&ids, &["hello", ""]), vec![own, message(&ids, Vec::new())]].concat();

    assert_eq!(kept(&build(&run, &messages, ALL)), ["hello"]);
}

#[test]
fn images_are_sent_for_users_only() {
    let ids = Ids::counting();
    let url = |url: &str| {
        let picture = json!({"type": "image_url", "image_url": {"url": url, "detail": "auto"}});
        serde_json::from_value::<Content>(picture).unwrap()
    };
    let user = message(&ids, vec![Content::text("look"), url("https://example.com/a.png")]);
    let assistant = Message { role: Role::Assistant, ..user.clone() };

    let content = |message: &Message| chat_message(message).unwrap().content;
    assert_eq!(
        content(&user),
        json!([
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "auto"}},
        ])
    );
    assert_eq!(content(&assistant), "look");
    assert_eq!(content_bytes(&user), "look".len() + "https://example.com/a.png".len());
    assert_eq!(content_bytes(&assistant), "look".len());
}

/// Adds a completed turn that called the function `f` when the run's text had this many bytes.
fn add_round(ids: &Ids, progress: &mut Progress, text_bytes: usize, output: &str) {
    let call = FunctionCall { id: ids.generate(), name: "f".to_owned(), arguments: "{}".to_owned() };
    let mut call = ToolCall::unanswered(&call);
    if let CalledTool::Function { function } = &mut call.tool {
        function.output = Some(output.to_owned());
    }
    let mut step =
        RunStep::start(ids.generate(), &progress.run, StepDetails::ToolCalls { tool_calls: vec![call] }, NOW);
    step.state = StepState::Completed { at: NOW };
    step.turn = Some(TurnRecord { text_bytes, call_ids: vec![format!("upstream_{output}")], ..TurnRecord::default() });
    progress.steps.push(step);
}

fn set_text(ids: &Ids, progress: &mut Progress, text: &str) {
    progress.message = Some(message(ids, vec![Content::text(text)]));
}

#[test]
fn each_round_has_its_text_its_calls_and_its_outputs() {
    let ids = Ids::counting();
    let mut run = progress(&ids, &json!({}));
    set_text(&ids, &mut run, "first\n\nsecond");
    add_round(&ids, &mut run, 5, "a");
    add_round(&ids, &mut run, 13, "b");

    let rounds = rounds(&run, "m");

    assert_eq!(
        rounds.iter().map(|message| message.role).collect::<Vec<_>>(),
        [ChatRole::Assistant, ChatRole::Tool, ChatRole::Assistant, ChatRole::Tool]
    );
    assert_eq!(rounds.iter().map(|message| &message.content).collect::<Vec<_>>(), ["first", "a", "second", "b"]);
    assert_eq!(rounds[2].tool_calls[0]["id"], "upstream_b");
    assert_eq!(rounds[3].tool_call_id.as_deref(), Some("upstream_b"));
}

#[test]
fn rounds_whose_message_was_deleted_have_no_text() {
    let ids = Ids::counting();
    let mut run = progress(&ids, &json!({}));
    add_round(&ids, &mut run, 8, "a");
    assert_eq!(rounds(&run, "m")[0].content, Value::Null);

    // A later turn has created the message again.
    set_text(&ids, &mut run, "text");
    add_round(&ids, &mut run, 4, "b");
    assert_eq!((&rounds(&run, "m")[0].content, &rounds(&run, "m")[2].content), (&Value::Null, &json!("text")));

    set_text(&ids, &mut run, "text and more");
    add_round(&ids, &mut run, 13, "c");
    let texts: Vec<Value> = rounds(&run, "m").into_iter().step_by(2).map(|message| message.content).collect();
    assert_eq!(texts, [Value::Null, json!("text"), json!("and more")]);
}

/// The prompt by the plain algorithm, which reads and counts the whole thread.
fn reference(progress: &Progress, thread: &[Message], budget: Budget) -> Result<Prompt, TooLong> {
    let is_own =
        |message: &&Message| message.author.as_ref().is_some_and(|author| author.run_id == progress.run.spec.id);
    let mut messages: Vec<ChatMessage> =
        thread.iter().filter(|message| !is_own(message)).filter_map(chat_message).collect();
    if let Some(last) = last_messages(&progress.run.spec) {
        messages.drain(..messages.len().saturating_sub(last));
    }
    let (system, rounds, mut request) =
        (system_message(&progress.run.spec), rounds(progress, "m"), empty_request(progress));
    let fixed = || system.iter().chain(&rounds);
    let max = budget.of_run.into_iter().chain(budget.of_model).min();
    let at_most = fixed().chain(&messages).map(tokens::at_most).sum::<usize>() + tokens::tools_at_most(&request.tools);
    let mut counted = None;
    if let Some(max) = max.filter(|max| at_most > *max) {
        let tools = tokens::count_tools_up_to(&request.tools, usize::MAX, &|| false);
        let Counted::Tokens(tools) = tools else { panic!("{tools:?}") };
        let mut total = tools + fixed().chain(&messages).map(count).sum::<usize>();
        while total > max && messages.len() > 1 {
            let dropped = messages.remove(usize::from(messages.len() > 2));
            total -= count(&dropped);
        }
        if budget.of_run.is_some_and(|max| total > max) {
            return Err(TooLong);
        }
        counted = Some(total);
    }
    request.messages = system.into_iter().chain(messages).chain(rounds).collect();
    Ok(Prompt { request, counted })
}

fn random_message() -> impl Strategy<Value = (String, bool, bool)> {
    let text = prop_oneof![3 => "[a-z é]{0,12}", 2 => "([a-z]{1,8} ){1,12}", 1 => Just(String::new())];
    (text, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
}

proptest! {
    #[test]
    fn the_builder_agrees_with_the_plain_algorithm(
        messages in prop::collection::vec(random_message(), 0..12),
        last in prop::option::weighted(0.4, 1..14_u32),
        rounds in 0..3_usize,
        of_run in prop::option::weighted(0.6, 0..160_usize),
        of_model in prop::option::weighted(0.6, 0..160_usize),
    ) {
        let ids = Ids::counting();
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        let mut members = json!({"tools": [tool]});
        if let Some(last) = last {
            members["truncation_strategy"] = json!({"type": "last_messages", "last_messages": last});
        }
        let mut run = progress(&ids, &members);
        set_text(&ids, &mut run, "so far");
        for _ in 0..rounds {
            add_round(&ids, &mut run, 6, "output");
        }
        let author = Author { assistant_id: run.run.spec.assistant_id.clone(), run_id: run.run.spec.id.clone() };
        let thread: Vec<Message> = messages
            .into_iter()
            .map(|(text, is_own, is_empty)| {
                let content = if is_empty { Vec::new() } else { vec![Content::text(text)] };
                Message { author: is_own.then(|| author.clone()), ..message(&ids, content) }
            })
            .collect();
        let budget = Budget { of_run, of_model, bytes: usize::MAX };

        let mut built = build(&run, &thread, budget);

        let mut expected = reference(&run, &thread, budget);
        if let (Ok(built), Ok(expected)) = (&mut built, &mut expected) {
            let exceeds_window = expected.counted.zip(of_model).is_some_and(|(tokens, max)| tokens > max);
            if of_run.is_none() && exceeds_window {
                // The builder does not count more than the window.
                (built.counted, expected.counted) = (None, None);
            }
        }
        prop_assert_eq!(built, expected);
    }

    #[test]
    fn a_limit_on_bytes_holds_for_every_prompt_with_more_than_the_newest_message(
        lengths in prop::collection::vec(0..40_usize, 1..12),
        last in prop::option::of(1..14_u32),
        of_run in prop::option::of(20..160_usize),
        bytes in 0..300_usize,
    ) {
        let ids = Ids::counting();
        let mut members = json!({});
        if let Some(last) = last {
            members["truncation_strategy"] = json!({"type": "last_messages", "last_messages": last});
        }
        let run = progress(&ids, &members);
        let texts: Vec<String> = lengths.into_iter().map(|length| "x".repeat(length + 1)).collect();
        let thread = thread(&ids, &texts.iter().map(String::as_str).collect::<Vec<_>>());

        let prompt = build(&run, &thread, Budget { of_run, bytes, ..ALL });

        if let Ok(prompt) = &prompt {
            let messages = &prompt.request.messages;
            prop_assert_eq!(messages.last().unwrap().content.as_str(), texts.last().map(String::as_str));
            let size: usize = messages.iter().map(|message| message.content.as_str().unwrap().len()).sum();
            prop_assert!(size <= bytes || messages.len() == 2, "{} bytes in {} messages", size, messages.len());
        } else {
            prop_assert_eq!(build(&run, &thread, Budget { of_run, ..ALL }), Err(TooLong));
        }
    }
}
