//! The checks at the end: compares the state of the servers with the acknowledged requests and the answers of the model.

use std::cmp::Ordering;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Conversation, has_ended};
use crate::upstream::{Answer, BuiltIn, Script, Turn};
use crate::world::{COMMON_FILE, LedgerRow, World};

/// The setting `max_attempts`.
pub const ATTEMPTS_MAX: usize = 5;
/// The separator between the texts of two turns in a run's message.
const TURN_SEPARATOR: &str = "\n\n";

/// Checks all conversations. The servers must be running, without further faults.
pub async fn check_all(world: &World, conversations: &[Conversation]) {
    for conversation in conversations.iter().filter(|conversation| !conversation.thread.is_empty()) {
        if conversation.is_deleted {
            check_deleted(world, conversation).await;
        } else {
            check(world, conversation).await;
        }
    }
}

async fn check_deleted(world: &World, conversation: &Conversation) {
    let path = format!("/v1/threads/{}", conversation.thread);
    match world.call(Method::GET, &path, None).await {
        Some((404, _)) | None => {}
        Some((status, _)) => world.violation(format!("{path}: status {status} for a deleted thread")),
    }
}

async fn check(world: &World, conversation: &Conversation) {
    let path = format!("/v1/threads/{}", conversation.thread);
    let runs = settled_runs(world, &path).await;
    for (id, script) in &conversation.runs {
        if !runs.iter().any(|run| run["id"] == id.as_str()) {
            world.violation(format!("{}: the acknowledged run {id} is missing", script.tag));
        }
    }
    let messages = list(world, &format!("{path}/messages?order=asc")).await;
    let mut position = 0;
    for (id, text) in &conversation.messages {
        let found = messages.iter().position(|message| message["id"] == id.as_str());
        match found {
            Some(index) if messages[index]["content"][0]["text"]["value"] != text.as_str() => {
                world.violation(format!("{path}: the message {id} has a different text"));
            }
            Some(index) if index < position => world.violation(format!("{path}: the message {id} is out of order")),
            Some(index) => position = index,
            None => world.violation(format!("{path}: the acknowledged message {id} is missing")),
        }
    }
    let mut steps = Vec::new();
    for run in &runs {
        let of_run = format!("{path}/runs/{}/steps?order=asc", run["id"].as_str().unwrap_or_default());
        steps.extend(list(world, &of_run).await);
    }
    check_counts(world, &path, &steps);
    for run in &runs {
        let tag = run["metadata"]["tag"].as_str().unwrap_or_default();
        let Some(script) = conversation.scripts.iter().find(|script| script.tag == tag) else {
            world.violation(format!("{path}: a run that no client created: {}", run["id"]));
            continue;
        };
        if let Err(problem) = check_run(world, conversation, run, script, &messages).await {
            world.violation(format!("{tag} ({path}/runs/{}): {problem}", run["id"].as_str().unwrap_or_default()));
        }
    }
    check_unlocked(world, &path).await;
}

/// Waits until all runs of a thread have ended, and returns them. A run that does not end is a violation.
async fn settled_runs(world: &World, path: &str) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let runs = list(world, &format!("{path}/runs?order=asc")).await;
        let open: Vec<&Value> = runs.iter().filter(|run| !has_ended(run)).collect();
        if open.is_empty() {
            return runs;
        }
        // A client that gave up leaves a run that requires action.
        for run in open.iter().filter(|run| run["status"] == "requires_action") {
            let cancel = format!("{path}/runs/{}/cancel", run["id"].as_str().unwrap_or_default());
            world.call(Method::POST, &cancel, Some(&json!({}))).await;
        }
        if began.elapsed() > Duration::from_mins(1) {
            for run in open {
                world.violation(format!("{path}: the run {} remains {}", run["id"], run["status"]));
            }
            return runs.iter().filter(|run| has_ended(run)).cloned().collect();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns all objects of a list, from all pages.
async fn list(world: &World, path: &str) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after = all.last().map(|last| format!("&after={}", last["id"].as_str().unwrap_or_default()));
        let page = format!("{path}&limit=100{}", after.unwrap_or_default());
        let Some((200, page)) = world.call(Method::GET, &page, None).await else { return all };
        all.extend(page["data"].as_array().cloned().unwrap_or_default());
        if page["has_more"] != true {
            return all;
        }
    }
}

async fn check_run(
    world: &World,
    conversation: &Conversation,
    run: &Value,
    script: &Script,
    messages: &[Value],
) -> Result<(), String> {
    let id = run["id"].as_str().unwrap_or_default();
    let status = run["status"].as_str().unwrap_or_default();
    world.count(format!("runs {status}"));
    for turn in 0..script.turns.len() {
        let calls = world.upstream.answers(&script.tag, turn).len();
        // An attempt that ends because its server stops is not counted.
        if calls > ATTEMPTS_MAX + world.counts().get("stops").copied().unwrap_or(0) {
            return Err(format!("the model was called {calls} times in turn {turn}"));
        }
    }
    let (claims, recorded) = world.ledger(id).await;
    check_recorded_calls(world, script, claims, &recorded)?;
    let steps = list(world, &format!("/v1/threads/{}/runs/{id}/steps?order=asc", conversation.thread)).await;
    let of_message = steps.iter().filter(|step| step["type"] == "message_creation").count();
    let own: Vec<&Value> =
        messages.iter().filter(|message| message["run_id"] == id && message["role"] == "assistant").collect();
    if of_message > 1 || own.len() > 1 {
        return Err(format!("{of_message} message_creation steps and {} messages", own.len()));
    }
    if conversation.has_deleted_messages {
        return Ok(());
    }
    // A run that failed before the model wrote anything has only the step.
    if of_message != own.len() && !(status == "failed" && own.is_empty()) {
        return Err(format!("{of_message} message_creation steps and {} messages", own.len()));
    }
    let text = own.first().map_or("", |message| message["content"][0]["text"]["value"].as_str().unwrap_or_default());
    let calls: Vec<&Value> = steps.iter().filter(|step| step["type"] == "tool_calls").collect();
    if steps.iter().any(|step| step["status"] == "in_progress") {
        return Err("a step of an ended run is in progress".to_owned());
    }
    match status {
        "completed" => {
            let kept = check_completed(world, run, script, text, &calls, &steps)?;
            check_recorded_tokens(&kept, &recorded)
        }
        "failed" => {
            let message = run["last_error"]["message"].as_str().unwrap_or_default();
            let is_given_up = message.starts_with(&format!("The run was attempted {ATTEMPTS_MAX} times"));
            if is_given_up { Ok(()) } else { Err(format!("failed: {message}")) }
        }
        "cancelled" if conversation.cancelled.contains(&script.tag) => check_unfinished(world, script, text),
        // Cancelled in `settled_runs`, because its client had given up, which is already reported as a violation.
        "cancelled" => Ok(()),
        _ => Err(format!("ended as {status}")),
    }
}

fn check_completed(
    world: &World,
    run: &Value,
    script: &Script,
    text: &str,
    calls: &[&Value],
    steps: &[Value],
) -> Result<Vec<Answer>, String> {
    let (mut rest, mut calls, mut tokens) = (text, calls.iter(), 0);
    let mut kept = Vec::new();
    for (index, turn) in script.turns.iter().enumerate() {
        let answers = world.upstream.answers(&script.tag, index);
        rest = rest.strip_prefix(TURN_SEPARATOR).unwrap_or(rest);
        let step = if turn.calls > 0 || turn.tool.is_some() {
            Some(calls.next().ok_or("a step of tool calls is missing")?)
        } else {
            None
        };
        let answer = matching_answer(&answers, turn, rest, step.copied())
            .ok_or_else(|| format!("turn {index} is not a complete answer of {answers:?}: {rest:?}, {step:?}"))?;
        rest = &rest[answer_text(answer, turn.words).len()..];
        tokens += answer.total_tokens();
        kept.push(answer.clone());
    }
    if !rest.is_empty() {
        return Err(format!("text after the last answer: {rest:?}"));
    }
    if calls.next().is_some() {
        return Err("a step of tool calls that the model did not make".to_owned());
    }
    let of_steps: u64 = steps.iter().filter_map(|step| step["usage"]["total_tokens"].as_u64()).sum();
    if run["usage"]["total_tokens"] != tokens || of_steps != tokens {
        return Err(format!("usage {}, sum of the steps {of_steps}, but the model reported {tokens}", run["usage"]));
    }
    Ok(kept)
}

/// Checks the number of recorded calls of a run against those that the model server has seen.
///
/// Each claim leads to at most one call and at most one row, and so does each call of a built-in tool, after which the same server
/// calls the model again. So there are at most as many rows as claims and such calls: a row without a call is from a server that was lost
/// between its claim and its call. A call without a row is the last one of a run that ended
/// before an answer began, or that a server other than the driver ended; there is at most one.
fn check_recorded_calls(world: &World, script: &Script, claims: i64, recorded: &[LedgerRow]) -> Result<(), String> {
    let seen: usize = (0..script.turns.len()).map(|turn| world.upstream.answers(&script.tag, turn).len()).sum();
    let rows = recorded.len();
    let rounds = script.turns.iter().filter(|turn| turn.tool.is_some()).count();
    match rows.cmp(&seen) {
        Ordering::Less => world.count("calls without a row in the ledger"),
        Ordering::Equal => world.count("runs with a row for each call"),
        Ordering::Greater => world.count("runs with rows of calls that were not made"),
    }
    if rows + 1 < seen || i64::try_from(rows.saturating_sub(rounds)).is_ok_and(|rows| rows > claims) {
        return Err(format!("{rows} calls are recorded, but the model server saw {seen} in {claims} attempts"));
    }
    Ok(())
}

/// Checks that the recorded calls that stood are the answers that the run has kept, to the token.
fn check_recorded_tokens(kept: &[Answer], recorded: &[LedgerRow]) -> Result<(), String> {
    let mut expected: Vec<(u64, u64)> =
        kept.iter().map(|answer| (answer.prompt_tokens, answer.total_tokens() - answer.prompt_tokens)).collect();
    let mut stood: Vec<(u64, u64)> =
        recorded.iter().filter(|row| row.stood).map(|row| (row.input, row.output)).collect();
    expected.sort_unstable();
    stood.sort_unstable();
    if stood == expected { Ok(()) } else { Err(format!("recorded {stood:?}, but the model reported {expected:?}")) }
}

fn answer_text(answer: &Answer, words: usize) -> String {
    (0..words).flat_map(|index| [answer.word(index), " ".to_owned()]).collect()
}

/// Returns the complete answer that matches the start of the text and the calls of the step.
fn matching_answer<'a>(answers: &'a [Answer], turn: &Turn, text: &str, step: Option<&Value>) -> Option<&'a Answer> {
    answers.iter().filter(|answer| answer.is_complete).find(|answer| {
        let has_text = turn.words == 0 || text.starts_with(&answer_text(answer, turn.words));
        let has_calls = step.is_none_or(|step| {
            let calls = step["step_details"]["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
            match turn.tool {
                Some(BuiltIn::FileSearch) => {
                    let found = &calls[0]["file_search"]["results"];
                    return calls.len() == 1 && found[0]["file_name"] == COMMON_FILE;
                }
                Some(BuiltIn::Code) => {
                    let call = &calls[0]["code_interpreter"];
                    // Code that was interrupted has no outputs.
                    let is_of_answer = printed(call).is_none_or(|(name, _)| name == answer.name);
                    return calls.len() == 1 && call["input"] == answer.code() && is_of_answer;
                }
                None => {}
            }
            calls.len() == turn.calls
                && calls.iter().enumerate().all(|(index, call)| {
                    let arguments = json!({"answer": answer.name, "call": index}).to_string();
                    let output = format!("output of {}", call["id"].as_str().unwrap_or_default());
                    call["function"]["arguments"] == arguments.as_str() && call["function"]["output"] == output.as_str()
                })
        });
        has_text && has_calls
    })
}

/// Returns what the code of a call has printed: the name of its answer, and the number of calls of the thread before and with it.
fn printed(call: &Value) -> Option<(String, usize)> {
    let logs = call["outputs"][0]["logs"].as_str()?;
    let (name, count) = logs.trim_end().split_once(' ')?;
    Some((name.to_owned(), count.parse().ok()?))
}

/// Checks that code has the file that the calls before it have written, also on another server: that the counts grow.
fn check_counts(world: &World, path: &str, steps: &[Value]) {
    let calls = steps.iter().flat_map(|step| step["step_details"]["tool_calls"].as_array().into_iter().flatten());
    let calls = calls.filter(|call| call["type"] == "code_interpreter");
    let mut before = 0;
    for call in calls {
        match printed(&call["code_interpreter"]) {
            Some((_, count)) if count <= before => {
                world.violation(format!("{path}: code has counted {before} calls, and then {count}"));
            }
            Some((_, count)) => {
                world.count("calls of code");
                before = count;
            }
            None => world.count("calls of code that were interrupted"),
        }
    }
}

/// Checks the text of a run that did not complete: complete answers, and the start of one more.
fn check_unfinished(world: &World, script: &Script, text: &str) -> Result<(), String> {
    let mut rest = text;
    for (index, turn) in script.turns.iter().enumerate() {
        if rest.is_empty() {
            break;
        }
        let answers = world.upstream.answers(&script.tag, index);
        if turn.words == 0 {
            continue;
        }
        rest = rest.strip_prefix(TURN_SEPARATOR).unwrap_or(rest);
        if let Some(answer) = answers.iter().find(|answer| rest.starts_with(&answer_text(answer, turn.words))) {
            rest = &rest[answer_text(answer, turn.words).len()..];
        } else if answers.iter().any(|answer| answer_text(answer, turn.words).starts_with(rest)) {
            rest = "";
        } else {
            return Err(format!("{text:?} is not from the answers {answers:?}"));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(format!("{rest:?} is not from the model")) }
}

/// Checks that a thread without active runs accepts a message.
async fn check_unlocked(world: &World, path: &str) {
    let body = json!({"role": "user", "content": "the last one"});
    match world.call(Method::POST, &format!("{path}/messages"), Some(&body)).await {
        Some((200, _)) | None => {}
        Some((status, error)) => world.violation(format!("{path}: locked: {status} {error}")),
    }
}
