use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The deltas of a body that arrives in these pieces and then ends.
fn read_pieces(pieces: &[&[u8]]) -> Result<Vec<ChatDelta>, Failure> {
    let mut reader = AnswerReader::new(ThinkTags::Strip);
    let mut deltas = Vec::new();
    for piece in pieces {
        if reader.state() == End::Complete {
            break;
        }
        reader.push(piece, &mut deltas)?;
    }
    reader.end(&mut deltas)?;
    Ok(deltas)
}

fn read(body: &str) -> Result<Vec<ChatDelta>, Failure> {
    read_pieces(&[body.as_bytes()])
}

fn text(deltas: &[ChatDelta]) -> String {
    let text = |delta: &ChatDelta| match delta {
        ChatDelta::Text(text) => Some(text.clone()),
        _ => None,
    };
    deltas.iter().filter_map(text).collect()
}

/// A stream of these chunks.
fn stream(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<Vec<_>>().concat()
}

fn delta(delta: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn hello() -> Value {
    delta(&json!({"content": "Hello"}))
}

#[test]
fn an_answer_is_complete_with_a_finish_reason_or_with_done_after_content() {
    let stop = ChatDelta::Finish(FinishReason::Stop);
    for end in [stream(&[finish("stop")]), "data: [DONE]\n\n".to_owned(), "data: [DONE]".to_owned()] {
        let deltas = read(&(stream(&[hello()]) + &end)).unwrap();
        assert_eq!((text(&deltas).as_str(), deltas.last()), ("Hello", Some(&stop)), "{end}");
    }
    let call = delta(&json!({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}));
    assert!(read(&(stream(&[call]) + "data: [DONE]\n\n")).is_ok());
    assert!(read(&(stream(&[delta(&json!({"refusal": "No."}))]) + "data: [DONE]\n\n")).is_ok());
    assert_eq!(
        read(&stream(&[hello(), finish("model_length")])).unwrap().last(),
        Some(&ChatDelta::Finish(FinishReason::Length))
    );
}

#[test]
fn an_answer_that_does_not_prove_that_it_is_complete_fails() {
    let cut = |text: &str| Err(Failure::Invalid(text.to_owned()));
    assert_eq!(read(&stream(&[hello()])), cut("closed the connection during its answer"));
    for empty in [
        String::new(),
        "data: [DONE]\n\n".to_owned(),
        stream(&[delta(&json!({"role": "assistant"})), delta(&json!({"content": ""}))]) + "data: [DONE]\n\n",
        stream(&[delta(&json!({"content": "\n\n"})), delta(&json!({"reasoning_content": "Hm"}))]) + "data: [DONE]\n\n",
        stream(&[json!({"choices": []})]),
        ": keep-alive\n\n".repeat(3),
        json!({"choices": [{"message": {"content": ""}}]}).to_string(),
        "{}".to_owned(),
        "[]".to_owned(),
    ] {
        let result = read(&empty);
        assert!(matches!(&result, Err(Failure::Invalid(text)) if text.starts_with("sent ")), "{empty}: {result:?}");
    }
    let unknown = read(&stream(&[hello(), finish("galaxy")]));
    assert_eq!(unknown, cut("ended its answer with the unknown finish reason \"galaxy\""));
    assert!(read(&(stream(&[hello(), finish("galaxy")]) + "data: [DONE]\n\n")).is_ok());
}

#[test]
fn an_error_in_any_form_fails_with_its_text() {
    let with_error = [
        "error: {\"code\":500,\"message\":\"boom\"}\n\ndata: [DONE]\n\n".to_owned(),
        "event: error\ndata: {\"message\":\"boom\"}\n\n".to_owned(),
        "event: error\ndata: boom\n\n".to_owned(),
        stream(&[json!({"error": {"message": "boom"}})]),
        stream(&[
            json!({"choices": [{"error": {"message": "boom", "code": 502}, "finish_reason": "error", "delta": {}}]}),
        ]),
        stream(&[json!({"object": "error", "message": "boom"})]),
        json!({"error": {"message": "boom"}}).to_string(),
        json!([{"error": {"message": "boom"}}]).to_string(),
        json!({"detail": "boom"}).to_string(),
    ];
    for body in with_error {
        for body in [body.clone(), if body.starts_with(['{', '[']) { body } else { stream(&[hello()]) + &body }] {
            let Err(Failure::Reported(report)) = read(&body) else { panic!("{body}") };
            assert_eq!(report.message, "boom", "{body}");
        }
    }
    for reason in ["error", "abort", "insufficient_system_resource"] {
        let failure = read(&(stream(&[hello(), finish(reason)]) + "data: [DONE]\n\n")).unwrap_err();
        assert!(matches!(&failure, Failure::Invalid(text) if text.contains(reason)), "{failure:?}");
    }
}

#[test]
fn the_form_is_decided_by_the_first_byte() {
    let whole = json!({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}).to_string();
    let lines = format!("{}\n{}\n", hello(), finish("stop"));
    for body in [
        format!("\u{FEFF}{}data: [DONE]\n\n", stream(&[hello()])),
        format!("\n\n{}", stream(&[hello(), finish("stop")])),
        format!(": comment\nevent: message\n{}", stream(&[hello(), finish("stop")])),
        whole.clone(),
        format!("[{whole}]"),
        lines,
    ] {
        assert_eq!(read(&body).map(|deltas| text(&deltas)), Ok("Hello".to_owned()), "{body}");
    }
    let Err(Failure::NotAnAnswer(_, text)) = read("<html>Bad gateway</html>") else { panic!("HTML is not an answer") };
    assert_eq!(text, "<html>Bad gateway</html>");
}

#[test]
fn blank_events_and_keep_alives_are_ignored() {
    let body = format!(
        "data:\n\ndata: \n\n: ping\n\n{}data: null\n\n{}",
        stream(&[hello(), json!({"type": "ping"})]),
        stream(&[finish("stop")])
    );

    assert_eq!(read(&body).map(|deltas| text(&deltas)), Ok("Hello".to_owned()));
}

#[test]
fn thinking_between_tags_is_hidden_and_a_turn_of_calls_has_no_text() {
    let call = delta(&json!({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}));
    let chunks = [
        delta(&json!({"content": "<think>Hm"})),
        delta(&json!({"content": "</think>\n\n"})),
        call,
        delta(&json!({"content": "\n"})),
        finish("tool_calls"),
    ];

    let deltas = read(&stream(&chunks)).unwrap();

    assert_eq!(text(&deltas), "");
    assert!(deltas.contains(&ChatDelta::Hidden("<think>Hm".to_owned())), "{deltas:?}");
    let cut = read(&stream(&[delta(&json!({"content": "<think>Hm"})), finish("length")])).unwrap();
    assert_eq!(text(&cut), "", "thinking that the limit cut off is not the answer");
}

/// The state after these chunks.
fn state(chunks: &[Value]) -> End {
    let mut reader = AnswerReader::new(ThinkTags::Strip);
    reader.push(stream(chunks).as_bytes(), &mut Vec::new()).unwrap();
    reader.state()
}

#[test]
fn an_answer_is_complete_with_its_finish_reason_and_its_usage() {
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
    let with_content = json!({"choices": [{"delta": {"content": "Hello"}, "finish_reason": "stop"}]});

    assert_eq!(state(&[hello()]), End::Open);
    assert_eq!(state(&[hello(), finish("stop")]), End::Finished);
    assert_eq!(state(&[hello(), finish("stop"), usage.clone()]), End::Complete);
    assert_eq!(
        state(&[usage.clone(), hello(), finish("stop")]),
        End::Finished,
        "the usage of the whole answer follows"
    );
    assert_eq!(state(&[with_content.clone(), usage.clone()]), End::Doubtful, "more content may follow");
    assert_eq!(state(&[with_content.clone(), with_content, usage]), End::Open, "each piece has the finish reason");
}

#[test]
fn content_after_a_finish_reason_belongs_to_the_answer() {
    let piece = |text: &str| json!({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}});

    let deltas = read(&(stream(&[piece("Hel"), piece("lo"), piece(" world")]) + "data: [DONE]\n\n")).unwrap();

    assert_eq!(text(&deltas), "Hello world");
}

#[test]
fn text_before_an_error_is_read() {
    let mut reader = AnswerReader::new(ThinkTags::Strip);
    let mut deltas = Vec::new();
    let failed = reader.push(stream(&[hello(), json!({"error": {"message": "boom"}})]).as_bytes(), &mut deltas);

    assert_eq!((failed.is_err(), text(&deltas).as_str()), (true, "Hello"));
}

#[test]
fn keep_alives_of_every_form_are_ignored() {
    for keep_alive in ["event: ping\r\ndata: 2024-01-01 12:00:00.1\r\n\r\n", "data: ping\n\n", "data: : keep-alive\n\n"]
    {
        let body = format!("{keep_alive}{}{keep_alive}{}", stream(&[hello()]), stream(&[finish("stop")]));
        assert_eq!(read(&body).map(|deltas| text(&deltas)), Ok("Hello".to_owned()), "{keep_alive}");
    }
}

#[test]
fn a_status_before_the_answer_is_ignored_and_is_the_cause_if_nothing_follows() {
    for status in [
        "{\"status\":\"loading\",\"message\":\"boom\"}",
        "{\"type\":\"progress\",\"detail\":\"boom\"}",
        "{\"code\":0,\"message\":\"Success\"}",
        "OK",
        "OPENROUTER PROCESSING",
    ] {
        let event = format!("data: {status}\n\n");
        let good = read(&format!("{event}{}{event}{}", stream(&[hello()]), stream(&[finish("stop")])));
        assert_eq!(good.map(|deltas| text(&deltas)), Ok("Hello".to_owned()), "{status}");
        let last = read(&format!("{}{event}data: [DONE]\n\n", stream(&[hello(), finish("stop")])));
        assert!(last.is_ok(), "{status} after the finish reason: {last:?}");
        assert!(
            read(&format!("{}{event}data: [DONE]\n\n", stream(&[hello()]))).is_err() || status.contains("Success"),
            "{status}"
        );
    }
}

#[test]
fn unusual_framings_are_read() {
    for body in [
        format!("data: data: {}\n\ndata: [done]\n\n", hello()),
        format!("data: {}\ndata: {}\n", hello(), finish("stop")),
        format!("{}\n\n{}\n\n", format_args!("data: {}", hello()), finish("stop")),
    ] {
        assert_eq!(read(&body).map(|deltas| text(&deltas)), Ok("Hello".to_owned()), "{body}");
    }
    let whole = format!("\u{FEFF}{}", stream(&[hello(), finish("stop")])).into_bytes();
    let deltas = read_pieces(&[&whole[..1], &whole[1..]]).unwrap();
    assert_eq!(text(&deltas), "Hello");
    let json = json!({"choices": [{"message": {"content": "Hello"}}]}).to_string();
    let mut reader = AnswerReader::new(ThinkTags::Strip);
    reader.push(json.as_bytes(), &mut Vec::new()).unwrap();
    assert_eq!(reader.state(), End::Finished, "a whole JSON body needs no end");
}

/// Chunks of an answer: text, a call in fragments, reasoning, usage; the last one has the finish reason.
fn answer() -> Vec<Value> {
    vec![
        delta(&json!({"role": "assistant", "content": ""})),
        delta(&json!({"reasoning_content": "Hm", "content": null})),
        delta(&json!({"content": "Hel\u{1F600}"})),
        delta(&json!({"content": "lo", "refusal": null})),
        delta(
            &json!({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"a\""}}]}),
        ),
        delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})),
        finish("tool_calls"),
        json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}),
    ]
}

fn odd() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0.5),
        json!("text"),
        json!(""),
        json!([]),
        json!([null]),
        json!({}),
        json!({"message": 3}),
        json!([[{"text": "x"}]]),
    ])
}

/// Replaces a value somewhere in a chunk.
fn replace(value: &mut Value, path: &[prop::sample::Index], odd: &Value) {
    let next = path.split_first();
    match (value, next) {
        (Value::Object(members), Some((first, rest))) if !members.is_empty() => {
            let index = first.index(members.len());
            let name = members.keys().nth(index).cloned().unwrap();
            replace(&mut members[&name], rest, odd);
        }
        (Value::Array(elements), Some((first, rest))) if !elements.is_empty() => {
            let index = first.index(elements.len());
            replace(&mut elements[index], rest, odd);
        }
        (value, _) => *value = odd.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// If chunks are cut, duplicated, reordered or of another type, nothing panics, and no answer is complete without
    /// proof.
    #[test]
    fn a_mutated_answer_is_never_accepted_as_complete_without_proof(
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
        is_shuffled in any::<bool>(),
        doubled in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        mutations in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(any::<prop::sample::Index>(), 0..6), odd()), 0..4),
        has_done in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
        splits in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ending in prop::sample::select(vec!["\n", "\r\n"]),
    ) {
        let mut chunks = answer();
        if is_shuffled {
            chunks = order.iter().map(|index| answer()[*index].clone()).collect();
        }
        for index in doubled {
            let index = index.index(chunks.len());
            chunks.insert(index, chunks[index].clone());
        }
        for (index, path, odd) in &mutations {
            let index = index.index(chunks.len());
            replace(&mut chunks[index], path, odd);
        }
        let frames: Vec<String> = chunks.iter().map(|chunk| format!("data: {chunk}{ending}{ending}")).collect();
        let mut body = frames.concat();
        if has_done {
            body.push_str("data: [DONE]\n\n");
        }
        let mut bytes = body.into_bytes();
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let mut offsets: Vec<usize> = splits.iter().map(|split| split.index(bytes.len() + 1)).collect();
        offsets.extend([0, bytes.len()]);
        offsets.sort_unstable();
        let pieces: Vec<&[u8]> = offsets.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();

        if let Ok(deltas) = read_pieces(&pieces) {
            let body = String::from_utf8_lossy(&bytes);
            let has_known_reason = body.contains("\"finish_reason\":\"tool_calls\"");
            let is_said = deltas.iter().any(|delta| {
                matches!(delta, ChatDelta::Text(_) | ChatDelta::Refusal(_) | ChatDelta::Call(_))
            });
            let is_done = body.contains("data: [DONE]") && is_said;
            prop_assert!(has_known_reason || is_done, "{body}");
            let ends = deltas.iter().filter(|delta| matches!(delta, ChatDelta::Finish(_))).count();
            prop_assert_eq!((ends, matches!(deltas.last(), Some(ChatDelta::Finish(_)))), (1, true));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_pieces(&[&bytes]);
    }
}
