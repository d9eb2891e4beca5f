//! Exact sequences of the recorded flows, and random lives of a run that many readers watch.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::rule::Request as _;
use crate::api::run::{ErrorCode, FinishReason, LastError, RunIncompleteReason};
use crate::api::tool::ToolResources;
use crate::api::usage::Usage;
use crate::api::{CreateAssistant, CreateRun, Ids};
use crate::runs::machine::{self, Input, MadeCall};

const NOW: Timestamp = Timestamp(1_000);
const ALL: usize = usize::MAX;

/// A run and what its model is writing, as the driver and the registry hold them.
struct Sim {
    ids: Ids,
    now: Snapshot,
}

impl Sim {
    fn new() -> Self {
        let ids = Ids::counting();
        let assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(ids.make(), NOW);
        let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
        let (run, _) = request.into_run(&ids, &ids.make(), &assistant, ToolResources::default(), NOW, 600);
        let now = Snapshot {
            thread: None,
            progress: Progress::new(run),
            calls: Vec::new(),
            lease: 0,
            text_pieces: Vec::new(),
            refusal_pieces: Vec::new(),
            error: None,
        };
        Self { ids, now }
    }

    /// Applies an input where the run accepts it; a claim is a new lease.
    fn step(&mut self, input: Input) -> bool {
        let is_claim = input == Input::Claimed;
        let Ok(transition) = machine::step(&self.now.progress, input, NOW, &self.ids) else { return false };
        if is_claim {
            self.now.lease += 1;
            self.now.text_pieces.clear();
            self.now.refusal_pieces.clear();
            self.now.calls.clear();
        }
        self.now.progress = transition.progress;
        true
    }

    fn write(&mut self, text: &str) {
        self.step(Input::TextBegan);
        if self.can_write() {
            self.now.progress.append(text);
            self.now.text_pieces.push(self.now.progress.text().len());
        }
    }

    fn refuse(&mut self, words: &str) {
        self.step(Input::TextBegan);
        if self.can_write() {
            self.now.progress.append_refusal(words);
            self.now.refusal_pieces.push(self.now.progress.refusal().len());
        }
    }

    fn can_write(&self) -> bool {
        matches!(self.now.progress.run.state, RunState::InProgress { .. }) && self.now.progress.message.is_some()
    }

    fn call(&mut self, name: &str, arguments: &[&str]) {
        if self.step(Input::CallsBegan) {
            self.now.calls.clear();
        }
        if self.now.progress.open_calls().is_none() || !self.is_writing() {
            return;
        }
        let pieces = arguments.iter().scan(0, |end, piece| {
            *end += piece.len();
            Some(*end)
        });
        self.now.calls.push(LiveCall {
            id: self.ids.make(),
            name: name.to_owned(),
            arguments: arguments.concat(),
            pieces: pieces.collect(),
        });
    }

    fn is_writing(&self) -> bool {
        matches!(self.now.progress.run.state, RunState::InProgress { .. })
    }

    /// Ends the turn, with the calls that were written.
    fn reply(&mut self) {
        let is_calling = self.now.progress.open_calls().is_some();
        let made = self.now.calls.iter().filter(|_| is_calling).map(|call| MadeCall {
            call: FunctionCall { id: call.id.clone(), name: call.name.clone(), arguments: call.arguments.clone() },
            upstream_id: "up".to_owned(),
        });
        let calls = made.collect();
        self.step(Input::ModelReplied { usage: usage(), finish: FinishReason::Stop, calls, replay: None });
    }

    /// Submits the outputs; returns the run as it was before.
    fn submit(&mut self) -> Option<Progress> {
        let RunState::RequiresAction { calls, .. } = &self.now.progress.run.state else { return None };
        let outputs = vec!["sunny".to_owned(); calls.len()];
        let before = self.now.progress.clone();
        self.step(Input::OutputsSubmitted(outputs)).then_some(before)
    }
}

fn usage() -> Usage {
    Usage { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6, ..Usage::default() }
}

fn failed() -> Input {
    let error = LastError { code: ErrorCode::ServerError, message: "broke".to_owned() };
    Input::Failed { error, usage: usage() }
}

/// The names without their common beginning, such as `run.created`.
fn names(events: &[StreamEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.name().trim_start_matches("thread.")).collect()
}

/// What a reader is sent that sees each moment.
fn watch(moments: &[Snapshot], mut transcript: Transcript) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    for moment in moments {
        events.extend(transcript.advance(moment, ALL));
    }
    events
}

const BEGUN: [&str; 3] = ["run.created", "run.queued", "run.in_progress"];
const WRITING: [&str; 4] = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"];
const CALLING: [&str; 2] = ["run.step.created", "run.step.in_progress"];

#[test]
fn plain_text_is_sent_in_the_recorded_order_by_pieces_and_to_a_late_reader_alike() {
    let mut sim = Sim::new();
    let mut moments = vec![sim.now.clone()];
    sim.step(Input::Claimed);
    sim.write("Hel");
    sim.write("lo");
    moments.push(sim.now.clone());
    sim.reply();
    moments.push(sim.now.clone());

    let end = ["message.completed", "run.step.completed", "run.completed"];
    let expected = [&BEGUN[..], &WRITING, &["message.delta", "message.delta"], &end].concat();
    assert_eq!(names(&watch(&moments, Transcript::of_new_run())), expected);
    assert_eq!(names(&watch(&moments[2..], Transcript::of_new_run())), expected, "late");
}

#[test]
fn calls_end_the_stream_with_requires_action_also_when_the_run_has_moved_on() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.call("f", &["{\"a\"", ":1}"]);
    sim.call("g", &["{}"]);
    sim.reply();
    let asked = sim.now.clone();
    let before = sim.submit().unwrap();
    sim.step(Input::Claimed);
    sim.write("Sunny");
    sim.reply();
    let ended = sim.now.clone();

    let deltas = ["run.step.delta"; 5];
    let expected = [&BEGUN[..], &CALLING, &deltas, &["run.requires_action"]].concat();
    assert_eq!(names(&watch(&[asked], Transcript::of_new_run())), expected);
    let late = watch(std::slice::from_ref(&ended), Transcript::of_new_run());
    assert_eq!(names(&late).last(), Some(&"run.requires_action"));
    let Some(StreamEvent::Run(_, Run { state: RunState::RequiresAction { calls, .. }, .. })) = late.last() else {
        panic!("the client is asked: {late:?}");
    };
    assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["f", "g"]);
    let resumed = ["run.step.completed", "run.queued", "run.in_progress"];
    let end = ["message.delta", "message.completed", "run.step.completed", "run.completed"];
    let after = watch(&[ended], Transcript::of_resumed_run(&before));
    assert_eq!(names(&after), [&resumed[..], &WRITING, &end].concat());
}

#[test]
fn a_message_that_is_open_while_the_client_is_asked_is_introduced_again_when_it_grows() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.write("Wait. ");
    sim.call("f", &["{}"]);
    sim.reply();
    let first = watch(std::slice::from_ref(&sim.now), Transcript::of_new_run());
    let before = sim.submit().unwrap();
    sim.step(Input::Claimed);
    let mut reader = Transcript::of_resumed_run(&before);
    let resumed = reader.advance(&sim.now, ALL);
    sim.write("Sunny");
    let grown = reader.advance(&sim.now, ALL);

    let calls_are_not_shown = [&BEGUN[..], &WRITING, &["message.delta", "run.requires_action"]].concat();
    assert_eq!(names(&first), calls_are_not_shown, "one open step at a time");
    assert_eq!(names(&resumed), ["run.step.completed", "run.queued", "run.in_progress"]);
    assert_eq!(names(&grown), [&WRITING[..], &["message.delta"]].concat());
    let StreamEvent::Message(_, introduced) = &grown[2] else { panic!("{grown:?}") };
    assert_eq!(introduced.content, [Content::text("Wait. ")]);
}

#[test]
fn each_end_closes_what_is_open_message_before_step_before_run() {
    let ends = [
        (vec![failed()], vec!["message.incomplete", "run.step.failed", "run.failed"]),
        (
            vec![Input::CancelRequested, Input::Stopped { usage: usage() }],
            vec!["run.cancelling", "message.incomplete", "run.step.cancelled", "run.cancelled"],
        ),
        (vec![Input::DeadlinePassed { usage: usage() }], vec!["message.incomplete", "run.step.expired", "run.expired"]),
        (
            vec![Input::LimitReached(RunIncompleteReason::MaxCompletionTokens)],
            vec!["message.incomplete", "run.step.completed", "run.incomplete"],
        ),
    ];
    for (inputs, end) in ends {
        let mut sim = Sim::new();
        sim.step(Input::Claimed);
        sim.write("Hm");
        let mut moments = vec![sim.now.clone()];
        for input in inputs {
            assert!(sim.step(input));
            moments.push(sim.now.clone());
        }

        let expected = [&BEGUN[..], &WRITING, &["message.delta"], &end].concat();
        assert_eq!(names(&watch(&moments, Transcript::of_new_run())), expected);
        assert_eq!(names(&watch(&moments[moments.len() - 1..], Transcript::of_new_run())), expected, "late");
    }
}

#[test]
fn a_run_that_ends_in_the_queue_was_never_in_progress() {
    let mut sim = Sim::new();
    sim.step(Input::CancelRequested);
    sim.step(Input::Stopped { usage: Usage::default() });

    let events = watch(&[sim.now], Transcript::of_new_run());
    assert_eq!(names(&events), ["run.created", "run.queued", "run.cancelling", "run.cancelled"]);
}

#[test]
fn a_failure_before_any_text_is_sent_of_the_run_alone() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.step(failed());

    assert_eq!(names(&watch(&[sim.now], Transcript::of_new_run())), [&BEGUN[..], &["run.failed"]].concat());
}

#[test]
fn text_or_calls_of_a_turn_that_is_asked_again_end_the_stream_with_an_error() {
    for is_call in [false, true] {
        let mut sim = Sim::new();
        sim.step(Input::Claimed);
        let mut unaware = Transcript::of_new_run();
        unaware.advance(&sim.now, ALL);
        if is_call {
            sim.call("f", &["{\"a\""]);
        } else {
            sim.write("Half an ans");
        }
        let mut reader = Transcript::of_new_run();
        reader.advance(&sim.now, ALL);
        sim.step(Input::Claimed);
        sim.write("Hello");
        sim.reply();

        assert_eq!(names(&reader.advance(&sim.now, ALL)), ["error"]);
        assert!(reader.is_closed());
        let rest = names(&unaware.advance(&sim.now, ALL));
        assert_eq!(rest.last(), Some(&"run.completed"), "a reader that was sent none of it goes on");
    }
}

#[test]
fn a_long_text_comes_in_parts_and_a_short_take_is_continued() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.write(&"ü".repeat(50_000));
    sim.now.text_pieces.clear();
    sim.reply();
    let mut reader = Transcript::of_new_run();

    let mut text = String::new();
    let mut takes = 0;
    while !reader.is_closed() {
        takes += 1;
        for event in reader.advance(&sim.now, 10_000) {
            if let StreamEvent::MessageDelta(delta) = event {
                assert_eq!(delta.first, text.is_empty());
                text.push_str(&delta.value);
            }
        }
    }

    assert_eq!(text, sim.now.progress.text());
    assert!(takes > 5, "{takes}");
}

/// Checks a stream as openai-node does: one open step and one open message, in their order, no id twice; and that what
/// was sent of the text is the text.
fn check(events: &[StreamEvent]) -> Result<(), TestCaseError> {
    let (mut created, mut open_step, mut open_message) = (Vec::new(), None::<RunStepId>, None::<Message>);
    let (mut text, mut refusal) = (String::new(), String::new());
    for (index, event) in events.iter().enumerate() {
        let is_last = index + 1 == events.len();
        prop_assert!(is_last || !event.is_last(), "{} at {index} of {:?}", event.name(), names(events));
        match event {
            StreamEvent::Step(StepEvent::Created, step) => {
                prop_assert!(open_step.is_none(), "two open steps: {:?}", names(events));
                prop_assert!(!created.contains(&step.id.to_string()), "created twice: {:?}", names(events));
                created.push(step.id.to_string());
                open_step = Some(step.id.clone());
            }
            StreamEvent::Step(StepEvent::InProgress, step) => prop_assert_eq!(Some(&step.id), open_step.as_ref()),
            // The calls that a client has answered end at the head of the stream that follows.
            StreamEvent::Step(_, step) if open_step.is_none() => {
                prop_assert!(!created.contains(&step.id.to_string()), "ended twice: {:?}", names(events));
            }
            StreamEvent::Step(_, step) => {
                prop_assert_eq!(Some(&step.id), open_step.as_ref());
                prop_assert!(open_message.is_none() || !step.makes_message(), "{:?}", names(events));
                open_step = None;
            }
            StreamEvent::StepDelta(delta) => prop_assert_eq!(Some(&delta.step_id), open_step.as_ref()),
            StreamEvent::Message(MessageEvent::Created, message) => {
                prop_assert!(open_message.is_none() && !created.contains(&message.id.to_string()));
                created.push(message.id.to_string());
                text = message.content.iter().find_map(Content::words).unwrap_or_default().to_owned();
                refusal = message.content.iter().find_map(Content::refusal).unwrap_or_default().to_owned();
                open_message = Some(message.clone());
            }
            StreamEvent::Message(MessageEvent::InProgress, message) => {
                prop_assert_eq!(Some(&message.id), open_message.as_ref().map(|open| &open.id));
            }
            StreamEvent::Message(_, message) => {
                prop_assert_eq!(Some(&message.id), open_message.as_ref().map(|open| &open.id));
                prop_assert_eq!(message.content.iter().find_map(Content::words).unwrap_or_default(), &text);
                prop_assert_eq!(message.content.iter().find_map(Content::refusal).unwrap_or_default(), &refusal);
                open_message = None;
            }
            StreamEvent::MessageDelta(delta) => {
                prop_assert!(open_message.is_some() && !delta.value.is_empty());
                prop_assert_eq!(delta.first, text.is_empty());
                text.push_str(&delta.value);
            }
            StreamEvent::RefusalDelta(delta) => {
                prop_assert!(open_message.is_some() && !delta.value.is_empty());
                refusal.push_str(&delta.value);
            }
            StreamEvent::ThreadCreated(_) | StreamEvent::Run(..) | StreamEvent::Error(_) => {}
        }
    }
    let runs = events.iter().filter_map(|event| match event {
        StreamEvent::Run(kind, _) => Some(kind),
        _ => None,
    });
    let mut kinds: Vec<String> = runs.map(|kind| format!("{kind:?}")).collect();
    let sent = kinds.len();
    kinds.sort();
    kinds.dedup();
    prop_assert_eq!(kinds.len(), sent, "a state of the run was sent twice: {:?}", names(events));
    Ok(())
}

/// Something that happens to a run.
fn act(sim: &mut Sim, action: u8) -> Option<Progress> {
    match action {
        0..=3 => drop(sim.step(Input::Claimed)),
        4..=8 => sim.write("text ü "),
        9 => sim.refuse("no ü "),
        10..=13 => sim.call("f", &["{\"a\":", "1}"]),
        14..=19 => sim.reply(),
        20..=24 => return sim.submit(),
        25 => drop(sim.step(Input::CancelRequested)),
        26 => drop(sim.step(Input::Stopped { usage: usage() })),
        27 => drop(sim.step(failed())),
        28 => drop(sim.step(Input::DeadlinePassed { usage: usage() })),
        29 => {
            if !sim.now.progress.run.state.is_over()
                && matches!(sim.now.progress.run.state, RunState::RequiresAction { .. })
            {
                sim.now.progress.message = None;
                sim.now.text_pieces.clear();
                sim.now.refusal_pieces.clear();
            }
        }
        _ => drop(sim.step(Input::LimitReached(RunIncompleteReason::MaxPromptTokens))),
    }
    None
}

/// A reader that looks at some moments.
struct Reader {
    transcript: Transcript,
    events: Vec<StreamEvent>,
    looks: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens to the run, and whichever moments a reader looks at: what it is sent is a stream that strict
    /// clients accept, without anything twice, and it ends when the run does.
    #[test]
    fn every_reader_gets_a_stream_that_strict_clients_accept(
        actions in prop::collection::vec(0_u8..31, 0..40),
        looks in prop::collection::vec(any::<u64>(), 4),
        max_bytes in 1_usize..40,
    ) {
        let mut sim = Sim::new();
        let reader = |transcript, looks: u64| Reader { transcript, events: Vec::new(), looks };
        let mut readers: Vec<Reader> = looks.iter().map(|looks| reader(Transcript::of_new_run(), *looks)).collect();
        for (moment, action) in actions.into_iter().enumerate() {
            if let Some(before) = act(&mut sim, action) {
                readers.extend(looks.iter().map(|looks| reader(Transcript::of_resumed_run(&before), *looks)));
            }
            for reader in readers.iter_mut().filter(|reader| reader.looks >> (moment % 64) & 1 == 1) {
                let events = reader.transcript.advance(&sim.now, max_bytes);
                reader.events.extend(events);
            }
        }
        if !sim.now.progress.run.state.is_over() {
            sim.step(Input::CancelRequested);
            sim.step(Input::Stopped { usage: usage() });
        }

        for mut reader in readers {
            for _ in 0..10_000 {
                if reader.transcript.is_closed() {
                    break;
                }
                let events = reader.transcript.advance(&sim.now, max_bytes);
                prop_assert!(!events.is_empty(), "the run is over, and the stream goes on: {:?}", names(&reader.events));
                reader.events.extend(events);
            }
            prop_assert!(reader.transcript.is_closed());
            prop_assert!(reader.transcript.advance(&sim.now, ALL).is_empty());
            prop_assert!(reader.events.last().is_some_and(StreamEvent::is_last));
            check(&reader.events)?;
        }
    }
}
