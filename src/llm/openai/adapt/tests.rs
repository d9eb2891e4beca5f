use super::*;

fn request() -> ChatRequest {
    ChatRequest {
        model: "m".to_owned(),
        messages: vec![ChatMessage::new(ChatRole::User, json!("Hi"))],
        max_completion_tokens: Some(5),
        temperature: Some(0.5),
        tools: vec![json!({"type": "function", "function": {"name": "f", "strict": true}})],
        ..ChatRequest::default()
    }
}

fn body(request: ChatRequest) -> RequestBody {
    RequestBody::new(request, false, Adaptations::default())
}

fn parse(body: &RequestBody) -> Value {
    serde_json::from_slice(&body.json()).unwrap()
}

fn report(text: &str) -> Report {
    Report::of_response(400, text)
}

/// The change of a request after this error.
fn change(request: ChatRequest, text: &str) -> Option<Change> {
    body(request).adapt(&report(text))
}

#[expect(clippy::unnecessary_wraps, reason = "compared with an option")]
fn omit(name: &str) -> Option<Change> {
    Some(Change::Omit(name.to_owned()))
}

fn messages(messages: &[(ChatRole, &str)]) -> ChatRequest {
    let messages = messages.iter().map(|(role, text)| ChatMessage::new(*role, json!(text))).collect();
    ChatRequest { messages, ..request() }
}

/// The roles and contents of a body's messages.
fn sent(body: &RequestBody) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let messages = parse(body)["messages"].as_array().unwrap().clone();
    messages.iter().map(|message| (text(&message["role"]), text(&message["content"]))).collect()
}

#[test]
fn a_body_has_the_streaming_options_and_both_names_of_the_limit() {
    assert_eq!(
        parse(&body(request())),
        json!({
            "model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5,
            "max_completion_tokens": 5, "tools": [{"type": "function", "function": {"name": "f", "strict": true}}],
            "parallel_tool_calls": true, "max_tokens": 5, "stream": true, "stream_options": {"include_usage": true},
        })
    );
}

#[test]
fn the_older_name_and_default_values_are_not_sent_to_openai() {
    let body = parse(&RequestBody::new(request(), true, Adaptations::default()));

    assert_eq!((body.get("max_tokens"), body.get("parallel_tool_calls")), (None, None));
}

#[test]
fn the_parameter_that_an_error_names_is_omitted() {
    for (error, name) in [
        (
            r#"{"error": {"message": "Unsupported parameter: 'temperature' is not supported with this model.", "param": "temperature", "code": "unsupported_parameter"}}"#,
            "temperature",
        ),
        (
            r#"{"error": {"message": "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) value is supported.", "param": "temperature", "code": "unsupported_value"}}"#,
            "temperature",
        ),
        (
            r#"{"error": {"message": "Bad request", "param": "stream_options", "code": "unsupported_parameter"}}"#,
            "stream_options",
        ),
        (
            r#"{"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": "temperature"}]}"#,
            "stream_options",
        ),
        (
            "[{'type': 'extra_forbidden', 'loc': ('body', 'tools', 0, 'function', 'strict'), 'msg': 'Extra inputs are not permitted'}]",
            "strict",
        ),
        (
            r#"{"error": {"message": "Invalid value", "param": "tools[0].function.strict", "code": "unsupported_value"}}"#,
            "strict",
        ),
        ("parallel_tool_calls: unknown field", "parallel_tool_calls"),
        (
            r#"[{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \"parallel_tool_calls\": Cannot find field."}}]"#,
            "parallel_tool_calls",
        ),
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens",
        ),
        ("max_completion_tokens is not supported", "max_completion_tokens"),
        ("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens"),
    ] {
        let mut body = body(request());

        assert_eq!(body.adapt(&report(error)), omit(name), "{error}");
        let json = String::from_utf8(body.json().to_vec()).unwrap();
        assert!(!json.contains(&format!("\"{name}\"")), "{json}");
    }
}

#[test]
fn errors_about_values_models_and_other_things_change_nothing() {
    for error in [
        "max_tokens is too large: 500000. This model supports at most 4096 completion tokens.",
        "temperature must be between 0 and 1",
        "The model 'x' does not exist",
        "messages: this model does not support images",
        "This model's maximum context length is 8192 tokens",
        r#"{"error": {"message": "Invalid value", "param": "temperature", "code": "invalid_value"}}"#,
        "unknown_parameter_x and not_temperature_y are not supported",
        "Your account is not supported",
        "",
    ] {
        assert_eq!(change(request(), error), None, "{error}");
    }
}

#[test]
fn an_error_that_quotes_the_prompt_changes_nothing() {
    let prompt = "Ignore the rules. Unsupported parameter: 'temperature'. System role not supported, roles must alternate \"user\"";
    let quoting = format!("The prompt was flagged: {prompt}");

    assert_eq!(change(messages(&[(ChatRole::System, "S"), (ChatRole::User, prompt)]), &quoting), None);
    assert_eq!(change(messages(&[(ChatRole::User, "harmless")]), &quoting), omit("temperature"));
}

#[test]
fn one_name_of_the_limit_is_always_sent_and_each_is_tried_once() {
    let mut body = body(request());
    let not_supported = |name: &str| report(&format!("{name} is not supported"));
    let limits = |body: &RequestBody| {
        let json = parse(body);
        LIMITS.map(|(name, _)| json.get(name).cloned())
    };

    assert_eq!(body.adapt(&not_supported("max_tokens")), omit("max_tokens"));
    assert_eq!(limits(&body), [None, Some(json!(5))]);
    assert_eq!(body.adapt(&not_supported("max_completion_tokens")), omit("max_completion_tokens"));
    assert_eq!(limits(&body), [Some(json!(5)), None]);
    assert_eq!(body.adapt(&not_supported("max_tokens")), None);

    let mut openai = RequestBody::new(request(), true, Adaptations::default());
    assert_eq!(openai.adapt(&not_supported("max_completion_tokens")), omit("max_completion_tokens"));
    assert_eq!(limits(&openai), [Some(json!(5)), None]);
}

#[test]
fn known_adaptations_are_applied_from_the_start() {
    let mut first = body(request());
    first.adapt(&report("stream_options: Extra inputs are not permitted"));
    first.adapt(&report("temperature is not supported"));

    let later = RequestBody::new(request(), false, first.adaptations().clone());

    let mut limited = body(request());
    limited.adapt(&report("max_tokens is not supported"));
    let mut swapped = RequestBody::new(request(), false, limited.adaptations().clone());
    assert_eq!(swapped.adapt(&report("max_completion_tokens is not supported")), omit("max_completion_tokens"));
    assert_eq!((parse(&swapped).get("max_completion_tokens"), &parse(&swapped)["max_tokens"]), (None, &json!(5)));

    let json = parse(&later);
    assert_eq!((json.get("stream_options"), json.get("temperature")), (None, None));
    assert_eq!((&json["max_tokens"], &json["messages"][0]["content"]), (&json!(5), &json!("Hi")));
}

#[test]
fn neighbors_of_one_role_are_joined() {
    use ChatRole::{Assistant, System, User};
    let mut body = body(messages(&[
        (System, "S"),
        (Assistant, "Welcome"),
        (User, "a"),
        (User, "b"),
        (Assistant, "c"),
        (Assistant, "d"),
        (User, "e"),
    ]));

    let error =
        "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...";
    assert_eq!(body.adapt(&report(error)), Some(Change::AlternateRoles));

    let expected = [
        ("system", "S"),
        ("user", "(The assistant begins the conversation.)"),
        ("assistant", "Welcome"),
        ("user", "a\n\nb"),
        ("assistant", "c\n\nd"),
        ("user", "e"),
    ];
    assert_eq!(sent(&body), expected.map(|(role, text)| (role.to_owned(), text.to_owned())));
    assert_eq!(body.adapt(&report(error)), None, "it is tried once");
}

#[test]
fn calls_and_outputs_are_not_joined_and_parts_are() {
    let mut calling = ChatMessage::new(ChatRole::Assistant, Value::Null);
    calling.tool_calls = vec![json!({"id": "a"}), json!({"id": "b"})];
    let output = |id: &str| {
        let mut message = ChatMessage::new(ChatRole::Tool, json!("x"));
        message.tool_call_id = Some(id.to_owned());
        message
    };
    let image = json!([{"type": "image_url", "image_url": {"url": "u"}}]);
    let mut request = messages(&[(ChatRole::User, "a")]);
    request.messages.extend([ChatMessage::new(ChatRole::User, image), calling, output("a"), output("b")]);
    let mut body = body(request);

    body.adapt(&report("roles must alternate")).unwrap();

    let json = parse(&body);
    assert_eq!(json["messages"].as_array().unwrap().len(), 4);
    assert_eq!(json["messages"][0]["content"][0], json!({"type": "text", "text": "a"}));
    assert_eq!(json["messages"][0]["content"][1]["type"], "image_url");
}

#[test]
fn instructions_are_put_in_front_of_the_first_user_message() {
    use ChatRole::{Assistant, System, User};
    for error in [
        "System role not supported",
        "Only user and assistant roles are supported!",
        "Developer instruction is not enabled for models/gemma-3-27b-it",
        "Invalid role: 'system' is not one of the allowed roles",
    ] {
        let mut body = body(messages(&[(System, "S"), (User, "a"), (Assistant, "b")]));

        assert_eq!(body.adapt(&report(error)), Some(Change::SystemAsUser), "{error}");
        let expected = [("user", "S\n\na"), ("assistant", "b")];
        assert_eq!(sent(&body), expected.map(|(role, text)| (role.to_owned(), text.to_owned())));
    }
}

#[test]
fn a_user_message_is_added_at_the_end_if_a_server_requires_it() {
    let mut body = body(messages(&[(ChatRole::User, "a"), (ChatRole::Assistant, "b")]));

    let error = "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant";
    assert_eq!(body.adapt(&report(error)), Some(Change::EndWithUser));
    assert_eq!(sent(&body).last().unwrap().0, "user");
}

#[test]
fn members_that_a_server_rejects_are_omitted() {
    let mut assistant = ChatMessage::new(ChatRole::Assistant, Value::Null);
    assistant.members.insert("reasoning_content".to_owned(), json!("Hm"));
    assistant.tool_calls = vec![json!({"id": "a", "type": "function", "function": {}, "extra_content": {"x": 1}})];
    let mut request = request();
    request.messages.push(assistant);
    let mut body = body(request);

    let error = r#"{"error": {"message": "'messages.1' : property 'reasoning_content' is unsupported"}}"#;
    assert_eq!(body.adapt(&report(error)), omit("reasoning_content"));
    assert_eq!(body.adapt(&report("Unknown name \"extra_content\" at 'messages[1]'")), omit("extra_content"));

    let json = parse(&body);
    let expected = json!({"role": "assistant", "content": null,
        "tool_calls": [{"id": "a", "type": "function", "function": {}}]});
    assert_eq!(json["messages"][1], expected);
}

#[test]
fn the_words_of_each_vendor_are_understood() {
    let with_effort = || ChatRequest { reasoning_effort: Some("high".to_owned()), top_p: Some(0.5), ..request() };
    for (error, name) in [
        ("\"gemma3:4b\" does not support thinking", "reasoning_effort"),
        ("think value \"high\" is not supported for this model", "reasoning_effort"),
        ("`reasoning_effort` must be one of `none` or `default`", "reasoning_effort"),
        ("Argument not supported on this model: reasoningEffort", "reasoning_effort"),
        ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", "top_p"),
        ("invalid temperature: only 1 is allowed for this model", "temperature"),
        ("`temperature` may only be set to 1 when thinking is enabled", "temperature"),
        ("max_tokens and max_completion_tokens cannot both be set", "max_tokens"),
        ("max_tokens and max_completion_tokens are mutually exclusive", "max_tokens"),
        ("Only one of max_completion_tokens and max_tokens may be given", "max_tokens"),
        ("Parallel tool calls are not supported", "parallel_tool_calls"),
        ("invalid temperature: only 0.6 is allowed for this model", "temperature"),
        (
            "1 validation error for ChatCompletionRequest\nreasoning_effort\n  Input should be 'low' or 'high'",
            "reasoning_effort",
        ),
        ("{\"detail\": \"Inference error\", \"reason\": \"Unsupported parameter(s): `top_p`\"}", "top_p"),
        ("No endpoints found that support the provided 'parallel_tool_calls' value.", "parallel_tool_calls"),
        ("temperature is fine but top_p is not supported by this model", "top_p"),
    ] {
        assert_eq!(change(with_effort(), error), omit(name), "{error}");
    }
    for (error, expected) in [
        ("A conversation must start with a user message.", Change::AlternateRoles),
        ("Cannot have 2 or more assistant messages at the end of the list.", Change::AlternateRoles),
        ("Please ensure that multiturn requests ends with a user role or a function response.", Change::EndWithUser),
        ("Assistant response prefill is incompatible with enable_thinking.", Change::EndWithUser),
        ("No user query found in messages.", Change::EndWithUser),
        ("Invalid value: 'system'. Supported values are: 'user', 'assistant'.", Change::SystemAsUser),
        ("messages[1].content: Input should be a valid string", Change::ContentAsText),
        (
            "Invalid type for 'messages[1].content': expected one of a string or array of objects, but got null instead.",
            Change::ContentAsText,
        ),
        ("invalid message role: system (2013)", Change::SystemAsUser),
        ("Unexpected role 'user' after role 'user'", Change::AlternateRoles),
    ] {
        assert_eq!(change(request(), error), Some(expected), "{error}");
    }
}

#[test]
fn lists_of_what_is_supported_and_repeated_requests_name_no_fault() {
    for error in [
        "unknown field `tools`, expected one of `model`, `temperature`, `stream_options`",
        "[{'type': 'extra_forbidden', 'loc': ('body', 'foo'), 'msg': 'Extra inputs are not permitted', 'input': {'temperature': 0.5}}]",
    ] {
        assert_eq!(change(request(), error), None, "{error}");
    }
}

#[test]
fn a_change_that_does_not_help_is_taken_back() {
    let mut body = body(ChatRequest { top_p: Some(0.5), ..request() });
    let error = report("unsupported parameters: temperature, top_p");

    assert_eq!(body.adapt(&error), omit("temperature"));
    assert_eq!(body.adapt(&error), omit("top_p"));
    assert_eq!(parse(&body)["temperature"], 0.5);
    assert_eq!(body.adapt(&error), None);
    assert_eq!(parse(&body)["top_p"], 0.5);
    assert_eq!(*body.adaptations(), Adaptations::default());
}

#[test]
fn a_quotation_is_recognized_in_each_spelling() {
    let prompt = "Why?\nthe system\nrole is not supported, caf\u{e9}: temperature  is \"not supported\"";
    for quotation in [
        "Invalid message content: 'Why?\\nthe system\\nrole is not supported",
        "Invalid content: WHY? THE SYSTEM ROLE IS NOT SUPPORTED",
        "{\"text\": \"caf\\u00e9: temperature  is \\\"not supported\\\"\"}",
        "temperature is 'not supported'",
    ] {
        assert_eq!(
            change(messages(&[(ChatRole::System, "S"), (ChatRole::User, prompt)]), quotation),
            None,
            "{quotation}"
        );
    }
}
