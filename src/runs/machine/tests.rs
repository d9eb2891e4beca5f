//! Every state × every input, whole sequences, and random walks.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::rule::Request as _;
use crate::api::run::ErrorCode;
use crate::api::tool::ToolResources;
use crate::api::{Assistant, CreateAssistant, CreateRun};

const NOW: Timestamp = Timestamp(1_000);

fn run(ids: &Ids) -> Run {
    let assistant: Assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(ids.make(), NOW);
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    request.into_run(ids, &ids.make(), &assistant, ToolResources::default(), NOW, 600).0
}

fn usage(tokens: u32) -> Usage {
    Usage { prompt_tokens: tokens, completion_tokens: 1, total_tokens: tokens + 1, ..Usage::default() }
}

fn failure() -> LastError {
    LastError { code: ErrorCode::ServerError, message: "broke".to_owned() }
}

fn replied(finish: FinishReason) -> Input {
    Input::ModelReplied { usage: usage(5), finish, calls: Vec::new() }
}

fn call(ids: &Ids) -> FunctionCall {
    FunctionCall { id: ids.make(), name: "f".to_owned(), arguments: "{}".to_owned() }
}

fn called() -> Input {
    let call = call(&Ids::counting());
    let calls = vec![MadeCall { call, upstream_id: "call_up".to_owned() }];
    Input::ModelReplied { usage: usage(3), finish: FinishReason::Stop, calls }
}

fn answered() -> Input {
    Input::OutputsSubmitted(vec!["sunny".to_owned()])
}

fn inputs() -> Vec<Input> {
    vec![
        Input::Claimed,
        Input::TextBegan,
        Input::CallsBegan,
        replied(FinishReason::Stop),
        answered(),
        Input::LimitReached(RunIncompleteReason::MaxPromptTokens),
        Input::CancelRequested,
        Input::Stopped,
        Input::Failed(failure()),
        Input::DeadlinePassed,
    ]
}

fn states() -> Vec<RunState> {
    let (started_at, at) = (NOW, NOW);
    let calls = vec![call(&Ids::counting())];
    vec![
        RunState::Queued { started_at: None },
        RunState::InProgress { started_at },
        RunState::RequiresAction { started_at, calls },
        RunState::Cancelling { started_at: Some(started_at) },
        RunState::Cancelled { started_at: None, at },
        RunState::Failed { started_at: None, at, error: failure() },
        RunState::Completed { started_at, at },
        RunState::Incomplete { started_at, at, reason: RunIncompleteReason::MaxCompletionTokens },
        RunState::Expired { started_at: None },
    ]
}

#[test]
fn the_table_at_the_head_of_the_file_is_true() {
    // Claimed, TextBegan, CallsBegan, ModelReplied, OutputsSubmitted, LimitReached, CancelRequested, Stopped, Failed,
    // DeadlinePassed; a dash is refused.
    let over = "- - - - - - - - - -";
    let table = [
        ("queued", "in_progress - - - - - cancelling - failed expired"),
        ("in_progress", "in_progress in_progress in_progress completed - incomplete cancelling - failed expired"),
        ("requires_action", "- - - - queued - cancelling - - expired"),
        ("cancelling", "- - - - - - - cancelled - cancelled"),
        ("cancelled", over),
        ("failed", over),
        ("completed", over),
        ("incomplete", over),
        ("expired", over),
    ];

    for (state, (status, row)) in states().into_iter().zip(table) {
        assert_eq!(state.status(), status);
        assert_eq!(row.split(' ').count(), inputs().len());
        for (input, expected) in inputs().into_iter().zip(row.split(' ')) {
            let ids = Ids::counting();
            let progress = Progress::new(Run { state: state.clone(), ..run(&ids) });
            let name = input.name();
            let became = step(&progress, input, NOW, &ids).map(|transition| transition.progress.run.state.status());
            assert_eq!(became.unwrap_or("-"), expected, "{status} × {name}");
        }
    }
}

fn walk(inputs: Vec<Input>) -> (Progress, Vec<String>) {
    let ids = Ids::counting();
    let run = run(&ids);
    let mut told: Vec<String> = created(&run).iter().map(|event| event.name().to_owned()).collect();
    let mut progress = Progress::new(run);
    for input in inputs {
        let began = input == Input::TextBegan;
        let transition = step(&progress, input, NOW, &ids).unwrap();
        told.extend(transition.events.iter().map(|event| event.name().to_owned()));
        progress = transition.progress;
        if began {
            progress.append("Hi");
        }
    }
    (progress, told)
}

const BEGUN: [&str; 3] = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"];
const WRITING: [&str; 4] =
    ["thread.run.step.created", "thread.run.step.in_progress", "thread.message.created", "thread.message.in_progress"];

#[test]
fn an_answer_is_told_in_the_recorded_order() {
    let (progress, told) = walk(vec![Input::Claimed, Input::TextBegan, replied(FinishReason::Stop)]);

    let end = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"];
    assert_eq!(told, [&BEGUN[..], &WRITING, &end].concat());
    assert_eq!(progress.run.usage, usage(5));
    assert_eq!(progress.steps[0].usage, Some(usage(5)));
    assert_eq!(progress.message.unwrap().content, [Content::text("Hi")]);
}

#[test]
fn each_cut_is_told_with_its_reason_message_before_step_before_run() {
    let cuts = [
        (vec![replied(FinishReason::Length)], IncompleteReason::MaxTokens, "completed", vec!["incomplete"]),
        (vec![replied(FinishReason::ContentFilter)], IncompleteReason::ContentFilter, "completed", vec!["incomplete"]),
        (vec![Input::Failed(failure())], IncompleteReason::RunFailed, "failed", vec!["failed"]),
        (vec![Input::DeadlinePassed], IncompleteReason::RunExpired, "expired", vec!["expired"]),
        (vec![Input::CancelRequested, Input::Stopped], IncompleteReason::RunCancelled, "cancelled", vec!["cancelled"]),
    ];
    for (inputs, reason, step_end, run_end) in cuts {
        let cancelling = inputs.contains(&Input::CancelRequested).then(|| "thread.run.cancelling".to_owned());
        let (progress, told) = walk([vec![Input::Claimed, Input::TextBegan], inputs].concat());

        let end = [
            "thread.message.incomplete".to_owned(),
            format!("thread.run.step.{step_end}"),
            format!("thread.run.{}", run_end[0]),
        ];
        let expected: Vec<String> =
            [&BEGUN[..], &WRITING].concat().into_iter().map(str::to_owned).chain(cancelling).chain(end).collect();
        assert_eq!(told, expected);
        let message = progress.message.unwrap();
        assert_eq!(message.state, MessageState::Incomplete { at: NOW, reason });
        assert_eq!(message.content, [Content::text("Hi")], "the text so far is kept");
    }
}

#[test]
fn a_failure_before_any_text_ends_the_one_step_and_makes_no_message() {
    let ids = Ids::counting();
    let progress = Progress::new(Run { state: RunState::InProgress { started_at: NOW }, ..run(&ids) });

    let transition = step(&progress, Input::Failed(failure()), NOW, &ids).unwrap();

    let told: Vec<&str> = transition.events.iter().map(StreamEvent::name).collect();
    assert_eq!(told, ["thread.run.failed"]);
    assert_eq!(transition.message, None);
    assert_eq!(transition.steps.len(), 1);
    assert_eq!(transition.steps[0].state, StepState::Failed { at: NOW, error: failure() });
}

#[test]
fn a_cancel_or_a_deadline_before_any_text_makes_no_step() {
    for inputs in [vec![Input::CancelRequested, Input::Stopped], vec![Input::Claimed, Input::DeadlinePassed]] {
        let (progress, _) = walk(inputs);

        assert_eq!((progress.steps, progress.message), (Vec::new(), None));
    }
}

#[test]
fn an_answer_without_text_has_its_message_with_an_empty_text() {
    let (progress, told) = walk(vec![Input::Claimed, replied(FinishReason::Stop)]);

    let end = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"];
    assert_eq!(told, [&BEGUN[..], &WRITING, &end].concat());
    assert_eq!(progress.message.unwrap().content, [Content::text("")]);
}

#[test]
fn a_run_that_is_taken_up_again_writes_into_the_same_message_from_its_beginning() {
    let (before, _) = walk(vec![Input::Claimed, Input::TextBegan]);
    let ids = Ids::counting();

    let mut after = step(&before, Input::Claimed, Timestamp(2_000), &ids).unwrap().progress;
    after.append("Hello");

    assert_eq!(after.run.state, RunState::InProgress { started_at: Timestamp(2_000) });
    let (before, after) = (before.message.unwrap(), after.message.unwrap());
    assert_eq!(before.id, after.id);
    assert_eq!(after.content, [Content::text("Hello")]);
}

const CALLING: [&str; 2] = ["thread.run.step.created", "thread.run.step.in_progress"];

#[test]
fn calls_are_told_in_the_recorded_order_and_the_run_goes_on_with_their_outputs() {
    let (progress, told) = walk(vec![
        Input::Claimed,
        Input::CallsBegan,
        called(),
        answered(),
        Input::Claimed,
        Input::TextBegan,
        replied(FinishReason::Stop),
    ]);

    let asked = ["thread.run.requires_action"];
    let resumed = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"];
    let end = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"];
    assert_eq!(told, [&BEGUN[..], &CALLING, &asked, &resumed, &WRITING, &end].concat());
    let mut sum = usage(3);
    sum += usage(5);
    assert_eq!(progress.run.usage, sum);
    assert_eq!(progress.steps.iter().map(|step| step.usage.unwrap()).collect::<Vec<_>>(), [usage(3), usage(5)]);
    let StepDetails::ToolCalls { tool_calls } = &progress.steps[0].details else { panic!("calls came first") };
    assert_eq!(tool_calls[0].function.output.as_deref(), Some("sunny"));
}

#[test]
fn a_message_that_was_begun_before_the_calls_stays_open_and_is_the_only_one() {
    let (progress, told) = walk(vec![
        Input::Claimed,
        Input::TextBegan,
        Input::CallsBegan,
        called(),
        answered(),
        Input::Claimed,
        replied(FinishReason::Stop),
    ]);

    let asked = ["thread.run.requires_action"];
    let resumed = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"];
    let end = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"];
    assert_eq!(told, [&BEGUN[..], &WRITING, &CALLING, &asked, &resumed, &end].concat());
    assert_eq!(progress.steps.iter().filter(|step| step.makes_message()).count(), 1);
    assert_eq!(progress.text(), "Hi");
}

#[test]
fn an_end_while_the_client_is_asked_closes_the_calls() {
    for (inputs, state) in [
        (vec![Input::CancelRequested, Input::Stopped], StepState::Cancelled { at: NOW }),
        (vec![Input::DeadlinePassed], StepState::Expired { at: NOW }),
    ] {
        let (progress, _) = walk([vec![Input::Claimed, Input::CallsBegan, called()], inputs].concat());

        assert_eq!(progress.steps.iter().map(|step| &step.state).collect::<Vec<_>>(), [&state]);
    }
}

#[test]
fn text_that_was_written_since_the_last_calls_is_written_anew_after_a_crash() {
    let (mut before, _) =
        walk(vec![Input::Claimed, Input::TextBegan, Input::CallsBegan, called(), answered(), Input::Claimed]);
    before.append(" and half an ans");
    let ids = Ids::counting();

    let after = step(&before, Input::Claimed, NOW, &ids).unwrap().progress;

    assert_eq!(after.text(), "Hi");
}

#[test]
fn outputs_that_are_not_one_for_each_call_are_refused() {
    let ids = Ids::counting();
    let (progress, _) = walk(vec![Input::Claimed, Input::CallsBegan, called()]);

    assert!(step(&progress, Input::OutputsSubmitted(Vec::new()), NOW, &ids).is_err());
}

fn any_input() -> impl Strategy<Value = Input> {
    prop::sample::select(
        [
            inputs(),
            // What makes a run go on, more often than what ends it.
            vec![called(), called(), answered(), answered(), Input::Claimed, Input::CallsBegan, Input::TextBegan],
            vec![replied(FinishReason::Length), replied(FinishReason::ContentFilter)],
        ]
        .concat(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_an_end_is_final_told_once_and_has_one_message_step_at_most(
        inputs in prop::collection::vec(any_input(), 0..40),
    ) {
        let ids = Ids::counting();
        let mut progress = Progress::new(run(&ids));
        let mut messages = std::collections::BTreeSet::new();
        let mut ends = 0;
        for input in inputs {
            let was_over = progress.run.state.is_over();
            let Ok(transition) = step(&progress, input, NOW, &ids) else { continue };
            prop_assert!(!was_over, "an end was left");
            prop_assert!(transition.steps.iter().all(|step| transition.progress.steps.contains(step)));
            prop_assert_eq!(transition.message_is_new, progress.message.is_none() && transition.message.is_some());
            messages.extend(transition.message.iter().map(|message| message.id.clone()));
            ends += usize::from(transition.progress.run.state.is_over());
            let last = transition.events.last().is_some_and(StreamEvent::is_last);
            prop_assert_eq!(transition.effect == Effect::Release, last);
            progress = transition.progress;
        }
        let message_steps = progress.steps.iter().filter(|step| step.makes_message()).count();
        prop_assert!(message_steps <= 1 && messages.len() <= 1);
        prop_assert_eq!(ends, usize::from(progress.run.state.is_over()));
        if progress.run.state.is_over() {
            let mut sum = Usage::default();
            progress.steps.iter().for_each(|step| sum += step.usage.unwrap_or_default());
            prop_assert_eq!(progress.run.usage, sum);
            prop_assert!(progress.steps.iter().all(|step| !step.is_open()));
            prop_assert!(progress.message.is_none_or(|message| message.state != MessageState::InProgress));
        }
    }
}
