//! Every state × every input, whole sequences, and random walks.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::organization::usage::{CallKind, CallOrigin};
use crate::api::rule::Request as _;
use crate::api::run::{ErrorCode, RunOrigin};
use crate::api::tool::{CodeOutput, FileSearch, OutputImage};
use crate::api::usage::PromptTokenDetails;
use crate::api::{Assistant, CreateAssistant, CreateRun};
use crate::runs::file_search;

const NOW: Timestamp = Timestamp(1_000);

fn run(ids: &Ids) -> Run {
    let assistant: Assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(ids, NOW).0;
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    request.into_run(ids, RunOrigin::of(&ids.generate(), &assistant, NOW)).0
}

fn usage(tokens: u32) -> Usage {
    Usage { prompt_tokens: tokens, completion_tokens: 1, total_tokens: tokens + 1, ..Usage::default() }
}

fn failed() -> Input {
    Input::Failed { error: failure(), usage: usage(7) }
}

fn stopped() -> Input {
    Input::Stopped { usage: usage(11) }
}

fn deadline() -> Input {
    Input::DeadlinePassed { usage: usage(13) }
}

fn failure() -> LastError {
    LastError { code: ErrorCode::ServerError, message: "broke".to_owned() }
}

fn replied(finish: FinishReason) -> Input {
    Input::ModelReplied { usage: usage(5), finish, calls: Vec::new(), replay: None }
}

fn call(ids: &Ids) -> FunctionCall {
    FunctionCall { id: ids.generate(), name: "f".to_owned(), arguments: "{}".to_owned() }
}

fn called() -> Input {
    let call = call(&Ids::counting());
    let calls = vec![CompletedCall { call, built_in: None, upstream_id: "call_up".to_owned() }];
    Input::ModelReplied { usage: usage(3), finish: FinishReason::Stop, calls, replay: None }
}

fn search() -> CalledTool {
    file_search::unanswered(&FileSearch::default())
}

/// An answer that calls the function `f`, if `with_function` is set, and then searches files.
fn searched(with_function: bool) -> Input {
    let ids = Ids::counting();
    let function =
        with_function.then(|| CompletedCall { call: call(&ids), built_in: None, upstream_id: "call_f".to_owned() });
    let search = CompletedCall { call: call(&ids), built_in: Some(search()), upstream_id: "call_s".to_owned() };
    let calls = function.into_iter().chain([search]).collect();
    Input::ModelReplied { usage: usage(3), finish: FinishReason::Stop, calls, replay: None }
}

fn found() -> Input {
    let mut search = search();
    if let CalledTool::FileSearch { file_search } = &mut search {
        file_search.ranking_options.ranker = "found".to_owned();
    }
    Input::ToolsEnded(vec![search])
}

/// An answer that calls the code interpreter twice.
fn coded() -> Input {
    let ids = Ids::counting();
    let made = |code: &str| CompletedCall {
        call: call(&ids),
        built_in: Some(CalledTool::CodeInterpreter { code_interpreter: coding(code) }),
        upstream_id: format!("call_{code}"),
    };
    let calls = vec![made("a"), made("b")];
    Input::ModelReplied { usage: usage(3), finish: FinishReason::Stop, calls, replay: None }
}

fn coding(code: &str) -> CalledCodeInterpreter {
    CalledCodeInterpreter { input: code.to_owned(), ..CalledCodeInterpreter::default() }
}

fn code_result(index: usize, code: &str) -> Input {
    let image = CodeOutput::Image { image: OutputImage { file_id: Ids::counting().generate() } };
    let call = CalledCodeInterpreter { outputs: vec![image], result: Some(code.to_owned()), ..coding(code) };
    Input::CodeEnded { index, call }
}

fn code_ended() -> Input {
    code_result(0, "a")
}

fn answered() -> Input {
    Input::OutputsSubmitted(vec!["sunny".to_owned()])
}

fn inputs() -> Vec<Input> {
    vec![
        Input::Claimed,
        Input::TextStarted,
        Input::CallsStarted,
        replied(FinishReason::Stop),
        code_ended(),
        found(),
        answered(),
        Input::LimitReached(RunIncompleteReason::MaxPromptTokens),
        Input::CancelRequested,
        stopped(),
        failed(),
        deadline(),
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
fn the_state_machine_matches_the_table_in_its_documentation() {
    // Claimed, TextStarted, CallsStarted, ModelReplied, CodeEnded, ToolsEnded, OutputsSubmitted, LimitReached,
    // CancelRequested, Stopped, Failed, DeadlinePassed; a dash is rejected. No built-in tools are running.
    let over = "- - - - - - - - - - - -";
    let table = [
        ("queued", "in_progress - - - - - - - cancelling - failed expired"),
        ("in_progress", "in_progress in_progress in_progress completed - - - incomplete cancelling - failed expired"),
        ("requires_action", "- - - - - - queued - cancelling - - expired"),
        ("cancelling", "- - - - - - - - - cancelled - cancelled"),
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

/// Returns the run after these inputs. `Hi` is written when text starts.
fn walk(inputs: Vec<Input>) -> Progress {
    let ids = Ids::counting();
    let mut progress = Progress::new(run(&ids));
    for input in inputs {
        let began = input == Input::TextStarted;
        progress = step(&progress, input, NOW, &ids).unwrap().progress;
        if began {
            progress.append("Hi");
        }
    }
    progress
}

#[test]
fn an_answer_completes_its_message_its_step_and_the_run() {
    let progress = walk(vec![Input::Claimed, Input::TextStarted, replied(FinishReason::Stop)]);

    assert_eq!(progress.run.state, RunState::Completed { started_at: NOW, at: NOW });
    assert_eq!(progress.run.usage, usage(5));
    assert_eq!(progress.steps.len(), 1);
    assert_eq!(progress.steps[0].usage, Some(usage(5)));
    assert_eq!(progress.steps[0].state, StepState::Completed { at: NOW });
    assert_eq!(progress.message.unwrap().content, [Content::text("Hi")]);
}

#[test]
fn each_early_end_keeps_the_text_and_records_its_reason_and_the_usage_of_the_turn() {
    let cuts = [
        (vec![replied(FinishReason::Length)], IncompleteReason::MaxTokens, "incomplete", usage(5)),
        (vec![replied(FinishReason::ContentFilter)], IncompleteReason::ContentFilter, "incomplete", usage(5)),
        (vec![failed()], IncompleteReason::RunFailed, "failed", usage(7)),
        (vec![deadline()], IncompleteReason::RunExpired, "expired", usage(13)),
        (vec![Input::CancelRequested, stopped()], IncompleteReason::RunCancelled, "cancelled", usage(11)),
    ];
    for (inputs, reason, status, spent) in cuts {
        let progress = walk([vec![Input::Claimed, Input::TextStarted], inputs].concat());

        assert_eq!((progress.run.state.status(), progress.run.usage), (status, spent));
        assert_eq!(progress.steps[0].usage, Some(spent));
        let message = progress.message.unwrap();
        assert_eq!(message.state, MessageState::Incomplete { at: NOW, reason });
        assert_eq!(message.content, [Content::text("Hi")], "the text so far is stored");
    }
}

#[test]
fn a_failure_before_any_text_ends_the_one_step_and_creates_no_message() {
    let progress = walk(vec![Input::Claimed, failed()]);

    assert_eq!(progress.message, None);
    assert_eq!(progress.steps.len(), 1);
    assert_eq!(progress.steps[0].state, StepState::Failed { at: NOW, error: failure() });
    assert_eq!((progress.steps[0].usage, progress.run.usage), (Some(usage(7)), usage(7)));
}

#[test]
fn a_cancellation_or_a_deadline_before_any_text_creates_no_step() {
    for (inputs, spent) in
        [(vec![Input::CancelRequested, stopped()], usage(11)), (vec![Input::Claimed, deadline()], usage(13))]
    {
        let progress = walk(inputs);

        assert_eq!((progress.steps, progress.message), (Vec::new(), None));
        assert_eq!(progress.run.usage, spent);
    }
}

#[test]
fn an_answer_without_text_has_a_message_with_an_empty_text() {
    let progress = walk(vec![Input::Claimed, replied(FinishReason::Stop)]);

    assert_eq!(progress.message.unwrap().content, [Content::text("")]);
}

#[test]
fn a_run_that_is_claimed_again_writes_into_the_same_message_from_its_beginning() {
    let before = walk(vec![Input::Claimed, Input::TextStarted]);
    let ids = Ids::counting();

    let mut after = step(&before, Input::Claimed, Timestamp(2_000), &ids).unwrap().progress;
    after.append("Hello");

    assert_eq!(after.run.state, RunState::InProgress { started_at: Timestamp(2_000) });
    let (before, after) = (before.message.unwrap(), after.message.unwrap());
    assert_eq!(before.id, after.id);
    assert_eq!(after.content, [Content::text("Hello")]);
}

#[test]
fn a_refusal_is_written_once_although_the_run_is_claimed_again() {
    let mut before =
        walk(vec![Input::Claimed, Input::TextStarted, Input::CallsStarted, called(), answered(), Input::Claimed]);
    before.append_refusal("I cannot");
    let ids = Ids::counting();

    let mut after = step(&before, Input::Claimed, NOW, &ids).unwrap().progress;
    after.append_refusal("I cannot do that");

    assert_eq!((after.text(), after.refusal()), ("Hi", "I cannot do that"));
}

#[test]
fn calls_that_were_not_complete_are_removed_when_the_run_is_claimed_again() {
    let before = walk(vec![Input::Claimed, Input::CallsStarted]);
    let ids = Ids::counting();

    let claimed = step(&before, Input::Claimed, NOW, &ids).unwrap();

    assert_eq!(claimed.removed_steps, [before.steps[0].id.clone()]);
    assert_eq!(claimed.progress.steps, Vec::new());
    let began = step(&claimed.progress, Input::TextStarted, NOW, &ids).unwrap().progress;
    let ended = step(&began, replied(FinishReason::Stop), NOW, &ids).unwrap().progress;
    assert_eq!(ended.run.state.status(), "completed", "the model may answer with text now");
}

#[test]
fn an_answer_that_ends_before_its_calls_are_complete_ends_their_step_without_calls() {
    let before = walk(vec![Input::Claimed, Input::CallsStarted]);

    let ended = step(&before, replied(FinishReason::Length), NOW, &Ids::counting()).unwrap();

    assert_eq!(ended.removed_steps, Vec::new(), "streams have shown the step");
    assert_eq!(ended.progress.run.state.status(), "incomplete");
    assert_eq!(ended.progress.steps[0].state, StepState::Completed { at: NOW });
}

#[test]
fn a_run_continues_with_the_outputs_of_its_calls() {
    let progress = walk(vec![
        Input::Claimed,
        Input::CallsStarted,
        called(),
        answered(),
        Input::Claimed,
        Input::TextStarted,
        replied(FinishReason::Stop),
    ]);

    let mut sum = usage(3);
    sum += usage(5);
    assert_eq!(progress.run.usage, sum);
    assert_eq!(progress.steps.iter().map(|step| step.usage.unwrap()).collect::<Vec<_>>(), [usage(3), usage(5)]);
    let function = progress.steps[0].tool_calls()[0].function().unwrap();
    assert_eq!(function.output.as_deref(), Some("sunny"));
}

#[test]
fn a_run_continues_with_the_results_of_its_built_in_tools() {
    let searching = walk(vec![Input::Claimed, Input::CallsStarted, searched(false)]);
    assert_eq!(searching.run.state, RunState::InProgress { started_at: NOW });
    assert_eq!(searching.running_tools(), Some(&searching.steps[0]));

    let ended = step(&searching, found(), NOW, &Ids::counting()).unwrap();

    assert_eq!(ended.effect, Effect::CallModel);
    assert!(ended.made_progress);
    let search = &ended.progress.steps[0];
    assert_eq!((&search.state, search.usage), (&StepState::Completed { at: NOW }, Some(usage(3))));
    assert!(matches!(&search.tool_calls()[0].tool,
        CalledTool::FileSearch { file_search } if file_search.ranking_options.ranker == "found"));
}

#[test]
fn built_in_tools_run_again_after_a_crash_and_no_call_was_lost() {
    let searching = walk(vec![Input::Claimed, Input::TextStarted, Input::CallsStarted, searched(false)]);

    let claimed = step(&searching, Input::Claimed, NOW, &Ids::counting()).unwrap();

    assert_eq!(claimed.effect, Effect::RunTools);
    assert_eq!((claimed.progress.text(), claimed.progress.run.lost_calls), ("Hi", 0));
    assert_eq!(claimed.progress.steps, searching.steps);
}

#[test]
fn functions_beside_built_in_tools_have_the_next_step_and_wait_for_the_client() {
    let searching = walk(vec![Input::Claimed, Input::CallsStarted, searched(true)]);
    assert_eq!(searching.steps.len(), 1);

    let ended = step(&searching, found(), NOW, &Ids::counting()).unwrap();

    assert_eq!(ended.effect, Effect::AwaitClient);
    let RunState::RequiresAction { calls, .. } = &ended.progress.run.state else { panic!("the client is asked") };
    assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["f"]);
    let [search, function] = &ended.progress.steps[..] else { panic!("one step for each kind") };
    assert_eq!((search.is_open(), function.is_open()), (false, true));
    let turn = function.turn.as_ref().unwrap();
    assert_eq!(
        (turn.continues_turn, &turn.positions[..], &turn.call_ids[..]),
        (true, &[0][..], &["call_f".to_owned()][..])
    );
    assert_eq!(ended.progress.rounds(), 1);
    assert_eq!(search.turn.as_ref().unwrap().functions, []);
}

#[test]
fn a_message_that_began_before_the_calls_stays_open_and_is_the_only_one() {
    let progress = walk(vec![
        Input::Claimed,
        Input::TextStarted,
        Input::CallsStarted,
        called(),
        answered(),
        Input::Claimed,
        replied(FinishReason::Stop),
    ]);

    assert_eq!(progress.steps.iter().filter(|step| step.creates_message()).count(), 1);
    assert_eq!(progress.text(), "Hi");
}

#[test]
fn a_deleted_message_is_created_again_with_only_the_text_of_later_turns() {
    let mut progress =
        walk(vec![Input::Claimed, Input::TextStarted, Input::CallsStarted, called(), answered(), Input::Claimed]);
    let deleted = progress.message.take().unwrap();
    let ids = Ids::counting();
    assert_eq!(progress.settled(), Settled::default());

    let began = step(&progress, Input::TextStarted, NOW, &ids).unwrap();

    assert!(began.message_is_new);
    assert_eq!(began.message.as_ref().map(|message| &message.id), Some(&deleted.id));
    let turns: Vec<_> = began.progress.steps.iter().filter_map(|step| step.turn.as_ref()).collect();
    assert_eq!(turns.iter().map(|turn| turn.text_bytes).collect::<Vec<_>>(), [0]);
    assert!(began.steps.iter().any(|step| step.turn.is_some()), "the change is stored");
}

#[test]
fn an_end_while_the_run_awaits_its_client_closes_the_calls() {
    let none = Usage::default();
    for (inputs, state) in [
        (vec![Input::CancelRequested, Input::Stopped { usage: none }], StepState::Cancelled { at: NOW }),
        (vec![Input::DeadlinePassed { usage: none }], StepState::Expired { at: NOW }),
    ] {
        let progress = walk([vec![Input::Claimed, Input::CallsStarted, called()], inputs].concat());

        assert_eq!(progress.steps.iter().map(|step| &step.state).collect::<Vec<_>>(), [&state]);
        assert_eq!(progress.run.usage, usage(3), "the usage of the turn with calls is recorded");
    }
}

#[test]
fn text_that_was_written_since_the_last_calls_is_removed_when_the_run_is_claimed_again() {
    let mut before =
        walk(vec![Input::Claimed, Input::TextStarted, Input::CallsStarted, called(), answered(), Input::Claimed]);
    before.append(" and half an ans");
    let ids = Ids::counting();

    let after = step(&before, Input::Claimed, NOW, &ids).unwrap().progress;

    assert_eq!(after.text(), "Hi");
}

#[test]
fn outputs_are_rejected_unless_there_is_one_for_each_call() {
    let ids = Ids::counting();
    let progress = walk(vec![Input::Claimed, Input::CallsStarted, called()]);

    assert!(step(&progress, Input::OutputsSubmitted(Vec::new()), NOW, &ids).is_err());
}

/// Returns the calls that a sequence of inputs records: prompt tokens, completion tokens, and whether they stood.
fn recorded(inputs: Vec<Input>) -> Vec<(u32, u32, bool)> {
    let ids = Ids::counting();
    let mut progress = Progress::new(run(&ids));
    let mut calls = Vec::new();
    for input in inputs {
        let transition = step(&progress, input, NOW, &ids).unwrap();
        calls.extend(transition.calls.iter().map(|call| (call.input_tokens, call.output_tokens, call.stood)));
        progress = transition.progress;
    }
    assert!(!progress.run.state.has_ended() || progress.run.lost_calls == 0, "an ended run has recorded its calls");
    calls
}

#[test]
fn each_call_is_recorded_with_its_tokens_and_whether_it_stood() {
    let claimed = || Input::Claimed;

    assert_eq!(
        recorded(vec![claimed(), Input::CallsStarted, called(), answered(), claimed(), replied(FinishReason::Stop)]),
        [(3, 1, true), (5, 1, true)]
    );
    assert_eq!(recorded(vec![claimed(), failed()]), [(7, 1, false)]);
    assert_eq!(recorded(vec![claimed(), Input::CancelRequested, stopped()]), [(11, 1, false)]);
    assert_eq!(recorded(vec![claimed(), deadline()]), [(13, 1, false)]);
    let unanswered = Input::Failed { error: failure(), usage: Usage::default() };
    assert_eq!(recorded(vec![claimed(), unanswered]), [], "no answer began");
}

#[test]
fn lost_calls_are_recorded_with_the_next_call_of_the_turn_or_at_the_end_of_the_run() {
    let claimed = || Input::Claimed;
    let unanswered = Input::Failed { error: failure(), usage: Usage::default() };

    assert_eq!(
        recorded(vec![claimed(), claimed(), claimed(), Input::CallsStarted, called(), answered(), claimed()]),
        [(3, 0, false), (3, 0, false), (3, 1, true)],
        "the claim after the outputs has lost no call"
    );
    assert_eq!(recorded(vec![claimed(), claimed(), failed()]), [(7, 0, false), (7, 1, false)]);
    assert_eq!(recorded(vec![claimed(), claimed(), unanswered]), [(0, 0, false)]);
    let limit = Input::LimitReached(RunIncompleteReason::MaxPromptTokens);
    assert_eq!(recorded(vec![claimed(), claimed(), limit]), [(0, 0, false)]);
}

#[test]
fn a_recorded_call_names_its_run_and_its_caller() {
    let ids = Ids::counting();
    let progress = Progress::new(run(&ids));
    let claimed = step(&progress, Input::Claimed, NOW, &ids).unwrap().progress;
    let usage = Usage { prompt_token_details: PromptTokenDetails { cached_tokens: 2 }, ..usage(3) };
    let reply = Input::ModelReplied { usage, finish: FinishReason::Stop, calls: Vec::new(), replay: None };

    let calls = step(&claimed, reply, NOW, &ids).unwrap().calls;

    let spec = &progress.run.spec;
    let (assistant_id, thread_id) = (spec.assistant_id.clone(), spec.thread_id.clone());
    let expected = ModelCall {
        kind: CallKind::Completions,
        scope: spec.scope.clone(),
        api_key_id: None,
        origin: Some(CallOrigin { assistant_id, thread_id, run_id: spec.id.clone() }),
        model: "m".to_owned(),
        input_tokens: 3,
        cached_tokens: 2,
        output_tokens: 1,
        stood: true,
    };
    assert_eq!(calls, [expected]);
}

fn any_input() -> impl Strategy<Value = Input> {
    prop::sample::select(
        [
            inputs(),
            // Inputs that continue a run are more frequent than inputs that end it.
            vec![
                called(),
                called(),
                answered(),
                answered(),
                searched(false),
                searched(true),
                found(),
                found(),
                Input::Claimed,
                Input::CallsStarted,
                Input::TextStarted,
            ],
            vec![replied(FinishReason::Length), replied(FinishReason::ContentFilter)],
        ]
        .concat(),
    )
}

/// Returns a run in the state after these inputs, which include text and deleted messages.
fn reach(inputs: &[(Input, u8)], ids: &Ids) -> Progress {
    let mut progress = Progress::new(run(ids));
    for (input, chance) in inputs {
        let Ok(transition) = step(&progress, input.clone(), NOW, ids) else { continue };
        progress = transition.progress;
        if progress.message.is_some() && !progress.run.state.has_ended() {
            match chance % 5 {
                0 => progress.append("text ü"),
                1 => progress.append_refusal("refusal ü"),
                2 if chance % 3 == 0 => progress.message = None,
                _ => {}
            }
        }
    }
    progress
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn an_end_is_final_and_no_usage_is_lost_and_there_is_one_message_at_most(
        inputs in prop::collection::vec((any_input(), 0_u8..30), 0..40),
    ) {
        let ids = Ids::counting();
        let mut progress = Progress::new(run(&ids));
        let mut messages = std::collections::BTreeSet::new();
        let mut spent = Usage::default();
        let (mut calls, mut answered, mut interrupted, mut lost) = (Vec::new(), 0, 0, 0);
        for (input, _) in inputs {
            let was_over = progress.run.state.has_ended();
            let usage = input.usage();
            let (is_answer, has_tokens) = (matches!(input, Input::ModelReplied { .. }), usage != Usage::default());
            let is_retry = input == Input::Claimed
                && matches!(progress.run.state, RunState::InProgress { .. })
                && progress.running_tools().is_none();
            let Ok(transition) = step(&progress, input, NOW, &ids) else { continue };
            spent += usage;
            answered += usize::from(is_answer);
            interrupted += usize::from(!is_answer && has_tokens);
            lost += usize::from(is_retry);
            calls.extend(transition.calls.clone());
            prop_assert!(!was_over, "an ended run changed its state");
            prop_assert!(transition.steps.iter().all(|step| transition.progress.steps.contains(step)));
            let is_removed = |step: &RunStep| transition.removed_steps.contains(&step.id);
            prop_assert!(!transition.progress.steps.iter().any(is_removed));
            prop_assert_eq!(transition.message_is_new, progress.message.is_none() && transition.message.is_some());
            messages.extend(transition.message.iter().map(|message| message.id.clone()));
            let is_over = transition.progress.run.state.has_ended();
            prop_assert_eq!(transition.effect == Effect::Finish, is_over);
            progress = transition.progress;
        }
        let message_steps = progress.steps.iter().filter(|step| step.creates_message()).count();
        prop_assert!(message_steps <= 1 && messages.len() <= 1);
        prop_assert_eq!(progress.run.usage, spent);
        // Each call is recorded once. The tokens are those of the run, and those of the prompts of lost calls.
        let (stood, others): (Vec<ModelCall>, Vec<ModelCall>) = calls.into_iter().partition(|call| call.stood);
        let (lost_calls, failed): (Vec<&ModelCall>, Vec<&ModelCall>) =
            others.iter().partition(|call| call.output_tokens == 0);
        prop_assert_eq!((stood.len(), failed.len()), (answered, interrupted));
        prop_assert_eq!(lost_calls.len() + progress.run.lost_calls as usize, lost);
        prop_assert!(!progress.run.state.has_ended() || progress.run.lost_calls == 0);
        let tokens = |call: &ModelCall| call.input_tokens + call.output_tokens;
        let recorded = stood.iter().map(tokens).sum::<u32>() + failed.iter().map(|call| tokens(call)).sum::<u32>();
        prop_assert_eq!(recorded, spent.total_tokens);
        let prompts: Vec<u32> = stood.iter().chain(failed).map(|call| call.input_tokens).collect();
        prop_assert!(lost_calls.iter().all(|call| call.input_tokens == 0 || prompts.contains(&call.input_tokens)));
        if progress.run.state.has_ended() {
            let mut sum = Usage::default();
            progress.steps.iter().for_each(|step| sum += step.usage.unwrap_or_default());
            prop_assert!(sum.total_tokens <= spent.total_tokens);
            prop_assert!(progress.steps.iter().all(|step| !step.is_open()));
            prop_assert!(progress.message.is_none_or(|message| message.state != MessageState::InProgress));
        }
    }

    /// In every reachable state, also in the middle of a turn, the run ends if a worker claims it and its model answers
    /// with text, if it is cancelled, or if its deadline passes.
    #[test]
    fn from_every_state_that_can_be_reached_a_run_can_be_ended(
        inputs in prop::collection::vec((any_input(), 0_u8..30), 0..30),
    ) {
        let ids = Ids::counting();
        let reached = reach(&inputs, &ids);
        if reached.run.state.has_ended() {
            return Ok(());
        }
        let end = |inputs: Vec<Input>| {
            let mut progress = reached.clone();
            for input in inputs {
                if let Ok(transition) = step(&progress, input, NOW, &ids) {
                    progress = transition.progress;
                }
            }
            progress.run.state.status()
        };

        let inputs = vec![found(), answered(), Input::Claimed, Input::TextStarted, replied(FinishReason::Stop), stopped()];
        let answered = end(inputs);
        prop_assert!(["completed", "cancelled"].contains(&answered), "{answered}");
        let called = end(vec![found(), Input::Claimed, Input::CallsStarted, called()]);
        prop_assert!(["requires_action", "cancelling"].contains(&called), "{called}");
        prop_assert_eq!(end(vec![Input::CancelRequested, stopped()]), "cancelled");
        let expired = end(vec![deadline()]);
        prop_assert!(["expired", "cancelled"].contains(&expired), "{expired}");
        let failed = end(vec![failed()]);
        prop_assert!(["failed", "requires_action", "cancelling"].contains(&failed), "{failed}");
    }
}

#[test]
fn steps_are_in_order_whatever_the_clocks_of_the_servers() {
    let ids = Ids::counting();
    let later = Timestamp(NOW.0 + 10);
    let called_at = step(&walk(vec![Input::Claimed]), Input::CallsStarted, later, &ids).unwrap().progress;
    let waiting = step(&called_at, called(), later, &ids).unwrap().progress;
    let answered = step(&waiting, answered(), NOW, &ids).unwrap().progress;
    let claimed = step(&answered, Input::Claimed, NOW, &ids).unwrap().progress;

    let next = step(&claimed, Input::CallsStarted, NOW, &ids).unwrap().progress;

    assert_eq!(next.steps[1].created_at, later, "a server with a slower clock drives the next turn");
}

/// Returns the results of the code in the open step.
fn code_results(progress: &Progress) -> Vec<Option<String>> {
    let step = progress.open_calls().unwrap();
    step.tool_calls().iter().map(|call| call.code().unwrap().result.clone()).collect()
}

#[test]
fn each_code_ends_once_and_in_order() {
    let ids = Ids::counting();
    let run = Progress::new(run(&ids));
    let apply = |progress: &Progress, input| step(progress, input, NOW, &ids);
    let claimed = apply(&run, Input::Claimed).unwrap().progress;
    let called = apply(&claimed, coded()).unwrap();

    assert_eq!(called.effect, Effect::RunTools);
    assert!(apply(&called.progress, code_result(1, "b")).is_err(), "the first has not ended");
    assert!(apply(&called.progress, Input::ToolsEnded(vec![search(), search()])).is_err(), "no code has ended");
    let first = apply(&called.progress, code_result(0, "a")).unwrap();
    assert_eq!((first.effect, first.made_progress, first.steps.len()), (Effect::RunTools, true, 1));
    assert!(apply(&first.progress, code_result(0, "a")).is_err(), "it has ended");
    let second = apply(&first.progress, code_result(1, "b")).unwrap();
    assert_eq!(code_results(&second.progress), [Some("a".to_owned()), Some("b".to_owned())]);
    let results = second.progress.open_calls().unwrap().tool_calls().iter().map(|call| call.tool.clone()).collect();
    let ended = apply(&second.progress, Input::ToolsEnded(results)).unwrap();
    assert_eq!(ended.effect, Effect::CallModel);

    // The images are before the text.
    let written = apply(&ended.progress, Input::TextStarted).unwrap().progress;
    assert_eq!(written.message.as_ref().unwrap().content.len(), 2);
}

#[test]
fn code_that_was_interrupted_does_not_run_again() {
    let ids = Ids::counting();
    let run = Progress::new(run(&ids));
    let apply = |progress: &Progress, input| step(progress, input, NOW, &ids).unwrap();
    let claimed = apply(&run, Input::Claimed).progress;
    let called = apply(&claimed, coded()).progress;

    let again = apply(&called, Input::Claimed);

    assert_eq!(again.effect, Effect::RunTools);
    assert_eq!(again.steps.len(), 1, "stored");
    assert_eq!(code_results(&again.progress), [Some(CODE_INTERRUPTED.to_owned()), None]);
    assert_eq!(again.progress.running_code().map(|(index, _)| index), Some(1), "it has not started");
    let once_more = apply(&again.progress, Input::Claimed).progress;
    assert_eq!(once_more.running_code(), None);
}
