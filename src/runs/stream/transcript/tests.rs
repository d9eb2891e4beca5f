//! The exact event sequences of the recorded flows, and random histories of a run with many readers.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::message::AnnotationKind;
use crate::api::rule::Request as _;
use crate::api::run::{ErrorCode, FinishReason, LastError, RunIncompleteReason, RunOrigin};
use crate::api::tool::{CalledCodeInterpreter, CalledTool, CodeOutput, FileSearch, FunctionCall, OutputImage};
use crate::api::usage::Usage;
use crate::api::{CreateAssistant, CreateRun, FileId, Ids};
use crate::runs::machine::{self, CompletedCall, Input, Mark};
use crate::runs::{code, file_search};

const NOW: Timestamp = Timestamp(1_000);
const ALL: usize = usize::MAX;

/// A simulated run, with the output of its model.
struct Sim {
    ids: Ids,
    now: Snapshot,
}

impl Sim {
    fn new() -> Self {
        let ids = Ids::counting();
        let assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(&ids, NOW).0;
        let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
        let (run, _) = request.into_run(&ids, RunOrigin::of(&ids.generate(), &assistant, NOW));
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

    /// Applies an input if the run accepts it. A claim creates a new lease.
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
        self.step(Input::TextStarted);
        if self.can_write() {
            self.now.progress.append(text);
            self.now.text_pieces.push(self.now.progress.text().len());
        }
    }

    fn refuse(&mut self, text: &str) {
        self.step(Input::TextStarted);
        if self.can_write() {
            self.now.progress.append_refusal(text);
            self.now.refusal_pieces.push(self.now.progress.refusal().len());
        }
    }

    fn can_write(&self) -> bool {
        matches!(self.now.progress.run.state, RunState::InProgress { .. }) && self.now.progress.message.is_some()
    }

    fn call(&mut self, name: &str, arguments: &[&str]) {
        if self.step(Input::CallsStarted) {
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
            id: self.ids.generate(),
            tool: LiveTool::Function(name.to_owned()),
            arguments: arguments.concat(),
            pieces: pieces.collect(),
        });
    }

    fn is_writing(&self) -> bool {
        matches!(self.now.progress.run.state, RunState::InProgress { .. })
    }

    /// Ends the turn with the calls that were written.
    fn reply(&mut self) {
        let is_calling = self.now.progress.open_calls().is_some();
        let name = |call: &LiveCall| match &call.tool {
            LiveTool::Function(name) => name.clone(),
            LiveTool::BuiltIn(tool) => tool.kind().to_owned(),
        };
        let made = self.now.calls.iter().filter(|_| is_calling).map(|call| CompletedCall {
            call: FunctionCall { id: call.id.clone(), name: name(call), arguments: call.arguments.clone() },
            built_in: None,
            upstream_id: "up".to_owned(),
        });
        let calls = made.collect();
        self.step(Input::ModelReplied { usage: usage(), finish: FinishReason::Stop, calls, replay: None });
    }

    /// Ends the turn with a file search and, if `with_function` is set, the call of a function.
    fn search(&mut self, with_function: bool) {
        self.step(Input::CallsStarted);
        if !self.now.calls.is_empty() || !self.is_writing() || self.now.progress.running_tools().is_some() {
            return;
        }
        let made = |built_in: Option<CalledTool>| CompletedCall {
            call: FunctionCall { id: self.ids.generate(), name: "f".to_owned(), arguments: "{}".to_owned() },
            built_in,
            upstream_id: "up".to_owned(),
        };
        let search = made(Some(file_search::unanswered(&FileSearch::default())));
        let calls = with_function.then(|| made(None)).into_iter().chain([search]).collect();
        self.step(Input::ModelReplied { usage: usage(), finish: FinishReason::Stop, calls, replay: None });
    }

    /// Streams a call of the code interpreter, and ends the turn with it.
    fn code(&mut self) {
        self.step(Input::CallsStarted);
        if !self.now.calls.is_empty() || !self.is_writing() || self.now.progress.running_tools().is_some() {
            return;
        }
        let id: ToolCallId = self.ids.generate();
        let tool = LiveTool::BuiltIn(code::unanswered());
        let (arguments, pieces) = ("print(1)".to_owned(), vec![5, 8]);
        self.now.calls.push(LiveCall { id: id.clone(), tool, arguments, pieces });
        let (arguments, built_in) = code::call("{\"code\": \"print(1)\"}");
        let call = FunctionCall { id, name: "python".to_owned(), arguments };
        let calls = vec![CompletedCall { call, built_in: Some(built_in), upstream_id: "up".to_owned() }];
        self.step(Input::ModelReplied { usage: usage(), finish: FinishReason::Stop, calls, replay: None });
    }

    fn end_code(&mut self) {
        let Some((index, call)) = self.now.progress.running_code() else { return };
        let image = CodeOutput::Image { image: OutputImage { file_id: self.ids.generate() } };
        let outputs = vec![CodeOutput::Logs { logs: "1\n".to_owned() }, image];
        let call = CalledCodeInterpreter { outputs, result: Some("1".to_owned()), ..call.clone() };
        self.step(Input::CodeEnded { index, call });
    }

    fn end_search(&mut self) {
        let Some(step) = self.now.progress.running_tools() else { return };
        let results = step.tool_calls().iter().map(|call| call.tool.clone()).collect();
        self.step(Input::ToolsEnded(results));
    }

    fn cite(&mut self) {
        self.step(Input::TextStarted);
        if self.can_write() {
            let mark = Mark {
                text: "【ü】".to_owned(),
                file_id: self.ids.generate(),
                quote: None,
                kind: AnnotationKind::default(),
            };
            self.now.progress.append_mark(&mark);
            self.now.text_pieces.push(self.now.progress.text().len());
        }
    }

    /// Submits the outputs. Returns the run as it was before.
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

/// Returns the names without their common prefix, such as `run.created`.
fn names(events: &[StreamEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.name().trim_start_matches("thread.")).collect()
}

/// Returns the events of a reader that reads each snapshot.
fn read_all(snapshots: &[Snapshot], mut transcript: Transcript) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    for snapshot in snapshots {
        events.extend(transcript.advance(snapshot, ALL));
    }
    events
}

const STARTED: [&str; 3] = ["run.created", "run.queued", "run.in_progress"];
const WRITING: [&str; 4] = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"];
const CALLING: [&str; 2] = ["run.step.created", "run.step.in_progress"];

#[test]
fn text_is_sent_in_pieces_in_the_recorded_order_even_to_a_late_reader() {
    let mut sim = Sim::new();
    let mut snapshots = vec![sim.now.clone()];
    sim.step(Input::Claimed);
    sim.write("Hel");
    sim.write("lo");
    snapshots.push(sim.now.clone());
    sim.reply();
    snapshots.push(sim.now.clone());

    let end = ["message.completed", "run.step.completed", "run.completed"];
    let expected = [&STARTED[..], &WRITING, &["message.delta", "message.delta"], &end].concat();
    assert_eq!(names(&read_all(&snapshots, Transcript::of_new_run())), expected);
    assert_eq!(names(&read_all(&snapshots[2..], Transcript::of_new_run())), expected, "late");
}

#[test]
fn calls_end_the_stream_with_requires_action_even_if_the_run_has_continued() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.call("f", &["{\"a\"", ":1}"]);
    sim.call("g", &["{}"]);
    sim.reply();
    let waiting = sim.now.clone();
    let before = sim.submit().unwrap();
    sim.step(Input::Claimed);
    sim.write("Sunny");
    sim.reply();
    let ended = sim.now.clone();

    let deltas = ["run.step.delta"; 5];
    let expected = [&STARTED[..], &CALLING, &deltas, &["run.requires_action"]].concat();
    assert_eq!(names(&read_all(&[waiting], Transcript::of_new_run())), expected);
    let late = read_all(std::slice::from_ref(&ended), Transcript::of_new_run());
    assert_eq!(names(&late).last(), Some(&"run.requires_action"));
    let Some(StreamEvent::Run(_, Run { state: RunState::RequiresAction { calls, .. }, .. })) = late.last() else {
        panic!("the stream does not end with requires_action: {late:?}");
    };
    assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["f", "g"]);
    let resumed = ["run.step.completed", "run.queued", "run.in_progress"];
    let end = ["message.delta", "message.completed", "run.step.completed", "run.completed"];
    let after = read_all(&[ended], Transcript::of_resumed_run(&before));
    assert_eq!(names(&after), [&resumed[..], &WRITING, &end].concat());
}

#[test]
fn a_search_has_one_delta_and_its_results_are_in_the_completed_step() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.step(Input::CallsStarted);
    let mut snapshots = vec![sim.now.clone()];
    sim.search(false);
    snapshots.push(sim.now.clone());
    sim.end_search();
    sim.write("Cake ");
    sim.cite();
    snapshots.push(sim.now.clone());
    sim.reply();
    snapshots.push(sim.now.clone());

    let search = ["run.step.created", "run.step.in_progress", "run.step.delta", "run.step.completed"];
    let end = ["message.delta", "message.delta", "message.completed", "run.step.completed", "run.completed"];
    let expected = [&STARTED[..], &search, &WRITING, &end].concat();
    assert_eq!(names(&read_all(&snapshots, Transcript::of_new_run())), expected);
    assert_eq!(names(&read_all(&snapshots[3..], Transcript::of_new_run())), expected, "late");
}

#[test]
fn a_search_beside_an_open_message_is_sent_when_the_message_has_ended() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.write("Wait. ");
    sim.search(false);
    let mut snapshots = vec![sim.now.clone()];
    sim.end_search();
    sim.write("Cake");
    sim.reply();
    snapshots.push(sim.now.clone());

    let message = ["message.delta", "message.delta", "message.completed", "run.step.completed"];
    let search = ["run.step.created", "run.step.in_progress", "run.step.delta", "run.step.completed"];
    let expected = [&STARTED[..], &WRITING, &message, &search, &["run.completed"]].concat();
    assert_eq!(names(&read_all(&snapshots, Transcript::of_new_run())), expected);
}

#[test]
fn a_message_that_is_open_while_outputs_are_required_is_created_again_when_it_grows() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.write("Wait. ");
    sim.call("f", &["{}"]);
    sim.reply();
    let first = read_all(std::slice::from_ref(&sim.now), Transcript::of_new_run());
    let before = sim.submit().unwrap();
    sim.step(Input::Claimed);
    let mut reader = Transcript::of_resumed_run(&before);
    let resumed = reader.advance(&sim.now, ALL);
    sim.write("Sunny");
    let grown = reader.advance(&sim.now, ALL);

    let without_calls = [&STARTED[..], &WRITING, &["message.delta", "run.requires_action"]].concat();
    assert_eq!(names(&first), without_calls, "one open step at a time");
    assert_eq!(names(&resumed), ["run.step.completed", "run.queued", "run.in_progress"]);
    assert_eq!(names(&grown), [&WRITING[..], &["message.delta"]].concat());
    let StreamEvent::Message(_, created) = &grown[2] else { panic!("{grown:?}") };
    assert_eq!(created.content, [Content::text("Wait. ")]);
}

#[test]
fn a_run_ends_its_open_message_then_its_step_then_itself() {
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
        let mut snapshots = vec![sim.now.clone()];
        for input in inputs {
            assert!(sim.step(input));
            snapshots.push(sim.now.clone());
        }

        let expected = [&STARTED[..], &WRITING, &["message.delta"], &end].concat();
        assert_eq!(names(&read_all(&snapshots, Transcript::of_new_run())), expected);
        assert_eq!(names(&read_all(&snapshots[snapshots.len() - 1..], Transcript::of_new_run())), expected, "late");
    }
}

#[test]
fn a_run_that_ends_in_the_queue_was_never_in_progress() {
    let mut sim = Sim::new();
    sim.step(Input::CancelRequested);
    sim.step(Input::Stopped { usage: Usage::default() });

    let events = read_all(&[sim.now], Transcript::of_new_run());
    assert_eq!(names(&events), ["run.created", "run.queued", "run.cancelling", "run.cancelled"]);
}

#[test]
fn a_failure_before_any_text_sends_only_the_event_of_the_run() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.step(failed());

    assert_eq!(names(&read_all(&[sim.now], Transcript::of_new_run())), [&STARTED[..], &["run.failed"]].concat());
}

#[test]
fn text_or_calls_of_a_repeated_turn_end_the_stream_with_an_error() {
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
        assert_eq!(rest.last(), Some(&"run.completed"), "a reader that was sent none of it continues");
    }
}

#[test]
fn a_long_text_is_sent_in_parts_and_a_limited_read_can_be_continued() {
    let mut sim = Sim::new();
    sim.step(Input::Claimed);
    sim.write(&"ü".repeat(50_000));
    sim.now.text_pieces.clear();
    sim.reply();
    let mut reader = Transcript::of_new_run();

    let mut text = String::new();
    let mut reads = 0;
    while !reader.is_closed() {
        reads += 1;
        for event in reader.advance(&sim.now, 10_000) {
            if let StreamEvent::MessageDelta(delta) = event {
                assert_eq!(delta.first, text.is_empty());
                text.push_str(&delta.value);
            }
        }
    }

    assert_eq!(text, sim.now.progress.text());
    assert!(reads > 5, "{reads}");
}

/// Checks a stream as openai-node does: at most one open step and one open message, in order, without duplicate IDs. Also
/// checks that the deltas add up to the text.
fn check(events: &[StreamEvent]) -> Result<(), TestCaseError> {
    let (mut created, mut open_step, mut open_message) = (Vec::new(), None::<RunStepId>, None::<Message>);
    let (mut text, mut refusal, mut shown) = (String::new(), String::new(), Vec::new());
    let images = |message: &Message| -> Vec<FileId> {
        let image = |part: &Content| match part {
            Content::ImageFile { image_file } => Some(image_file.file_id.clone()),
            _ => None,
        };
        message.content.iter().filter_map(image).collect()
    };
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
            // Calls whose outputs were submitted end at the start of the next stream.
            StreamEvent::Step(_, step) if open_step.is_none() => {
                prop_assert!(!created.contains(&step.id.to_string()), "ended twice: {:?}", names(events));
            }
            StreamEvent::Step(_, step) => {
                prop_assert_eq!(Some(&step.id), open_step.as_ref());
                prop_assert!(open_message.is_none() || !step.creates_message(), "{:?}", names(events));
                open_step = None;
            }
            StreamEvent::StepDelta(delta) => prop_assert_eq!(Some(&delta.step_id), open_step.as_ref()),
            StreamEvent::Message(MessageEvent::Created, message) => {
                prop_assert!(open_message.is_none() && !created.contains(&message.id.to_string()));
                created.push(message.id.to_string());
                text = message.content.iter().find_map(Content::as_text).unwrap_or_default().to_owned();
                refusal = message.content.iter().find_map(Content::as_refusal).unwrap_or_default().to_owned();
                shown = images(message);
                open_message = Some(message.clone());
            }
            StreamEvent::Message(MessageEvent::InProgress, message) => {
                prop_assert_eq!(Some(&message.id), open_message.as_ref().map(|open| &open.id));
            }
            StreamEvent::Message(_, message) => {
                prop_assert_eq!(Some(&message.id), open_message.as_ref().map(|open| &open.id));
                prop_assert_eq!(message.content.iter().find_map(Content::as_text).unwrap_or_default(), &text);
                prop_assert_eq!(message.content.iter().find_map(Content::as_refusal).unwrap_or_default(), &refusal);
                prop_assert_eq!(images(message), shown.as_slice());
                open_message = None;
            }
            StreamEvent::MessageDelta(delta) => {
                prop_assert!(open_message.is_some() && !delta.value.is_empty());
                prop_assert_eq!(delta.first, text.is_empty());
                text.push_str(&delta.value);
                if let Some((_, mark)) = &delta.annotation {
                    let marked: String = text.chars().take(mark.end_index).skip(mark.start_index).collect();
                    prop_assert_eq!((&marked, &delta.value), (&mark.text, &mark.text), "a mark is a delta");
                } else {
                    prop_assert!(!delta.value.contains('【'));
                }
            }
            StreamEvent::ImageDelta(delta) => {
                prop_assert!(open_message.is_some());
                shown.push(delta.image_file.file_id.clone());
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
    prop_assert_eq!(kinds.len(), sent, "a run event was sent twice: {:?}", names(events));
    Ok(())
}

/// Performs a random action on a run. Returns the run before it was resumed, if the action submits outputs.
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
            if !sim.now.progress.run.state.has_ended()
                && matches!(sim.now.progress.run.state, RunState::RequiresAction { .. })
            {
                sim.now.progress.message = None;
                sim.now.text_pieces.clear();
                sim.now.refusal_pieces.clear();
            }
        }
        30..=32 => sim.search(action == 32),
        33..=36 => sim.end_search(),
        37..=39 => sim.cite(),
        41..=43 => sim.code(),
        44..=47 => sim.end_code(),
        _ => drop(sim.step(Input::LimitReached(RunIncompleteReason::MaxPromptTokens))),
    }
    None
}

/// A reader that reads some of the snapshots, selected by the bits of `mask`.
struct Reader {
    transcript: Transcript,
    events: Vec<StreamEvent>,
    mask: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// For every history of the run and every selection of snapshots, a reader receives a stream that strict clients
    /// accept, without duplicates, and that ends when the run ends.
    #[test]
    fn every_reader_receives_a_stream_that_strict_clients_accept(
        actions in prop::collection::vec(0_u8..48, 0..50),
        masks in prop::collection::vec(any::<u64>(), 4),
        max_bytes in 1_usize..40,
    ) {
        let mut sim = Sim::new();
        let reader = |transcript, mask: u64| Reader { transcript, events: Vec::new(), mask };
        let mut readers: Vec<Reader> = masks.iter().map(|mask| reader(Transcript::of_new_run(), *mask)).collect();
        for (number, action) in actions.into_iter().enumerate() {
            if let Some(before) = act(&mut sim, action) {
                readers.extend(masks.iter().map(|mask| reader(Transcript::of_resumed_run(&before), *mask)));
            }
            for reader in readers.iter_mut().filter(|reader| reader.mask >> (number % 64) & 1 == 1) {
                let events = reader.transcript.advance(&sim.now, max_bytes);
                reader.events.extend(events);
            }
        }
        if !sim.now.progress.run.state.has_ended() {
            sim.step(Input::CancelRequested);
            sim.step(Input::Stopped { usage: usage() });
        }

        for mut reader in readers {
            for _ in 0..10_000 {
                if reader.transcript.is_closed() {
                    break;
                }
                let events = reader.transcript.advance(&sim.now, max_bytes);
                prop_assert!(!events.is_empty(), "the run has ended, but the stream has not: {:?}", names(&reader.events));
                reader.events.extend(events);
            }
            prop_assert!(reader.transcript.is_closed());
            prop_assert!(reader.transcript.advance(&sim.now, ALL).is_empty());
            prop_assert!(reader.events.last().is_some_and(StreamEvent::is_last));
            check(&reader.events)?;
        }
    }
}
