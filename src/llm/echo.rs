//! The built-in model: repeats the last user message. Used when no model server is configured or found.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::{ChatDelta, ChatModel, ChatRequest, ChatRole, ChatStream, Endpoint, Error, ModelObject, Proxied};
use crate::api::run::FinishReason;
use crate::api::usage::Usage;

/// Pause before each word, so that streaming is visible.
const PAUSE: Duration = Duration::from_millis(15);

/// Streams the last user message back word by word, after a sentence that names the echo model.
#[derive(Debug)]
pub struct Echo;

impl Echo {
    /// The model name.
    pub const NAME: &'static str = "echo";
}

#[async_trait]
impl ChatModel for Echo {
    fn chat(&self, request: ChatRequest) -> ChatStream {
        let prompts: Vec<&Value> = request
            .messages
            .iter()
            .filter(|message| message.role == ChatRole::User)
            .map(|message| &message.content)
            .collect();
        let words = reply(prompts.last().copied());
        // The echo model has no tokenizer: it counts words.
        let usage =
            Usage::counted(prompts.iter().map(|content| text(content).split_whitespace().count()).sum(), words.len());
        let ending = vec![ChatDelta::Finish(FinishReason::Stop), ChatDelta::Usage(usage)];
        stream::iter(words)
            .then(|word| async move {
                tokio::time::sleep(PAUSE).await;
                Ok(vec![ChatDelta::Text(word)])
            })
            .chain(stream::iter([Ok(ending)]))
            .boxed()
    }

    async fn proxy(&self, endpoint: Endpoint, request: Map<String, Value>) -> Result<Proxied, Error> {
        if endpoint == Endpoint::Embeddings {
            let text =
                "The built-in echo model has no embeddings. Configure a model server (upstream_url) that has some.";
            let error = json!({"error": {"message": text, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}});
            return Ok(Proxied {
                status: 404,
                content_type: Some("application/json".to_owned()),
                retry_after: None,
                is_stream: false,
                usage_was_added: false,
                body: stream::iter([Ok(Bytes::from(error.to_string()))]).boxed(),
            });
        }
        let messages = request.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let prompts: Vec<&Value> =
            messages.iter().filter(|message| message["role"] == "user").map(|message| &message["content"]).collect();
        let words = reply(prompts.last().copied());
        let usage =
            Usage::counted(prompts.iter().map(|content| text(content).split_whitespace().count()).sum(), words.len());
        let head = json!({"id": "chatcmpl-echo", "created": 0, "model": Self::NAME});
        if request.get("stream") == Some(&Value::Bool(true)) {
            let with_usage = request.get("stream_options").is_some_and(|options| options["include_usage"] == true);
            let mut choices: Vec<Value> = words
                .into_iter()
                .map(|word| json!([{"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": null}]))
                .collect();
            choices.push(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]));
            let mut chunks: Vec<Value> = choices
                .into_iter()
                .map(|choices| with(&head, &[("object", json!("chat.completion.chunk")), ("choices", choices)]))
                .collect();
            if with_usage {
                let last =
                    [("object", json!("chat.completion.chunk")), ("choices", json!([])), ("usage", usage_json(usage))];
                chunks.push(with(&head, &last));
            }
            let frames = chunks.into_iter().map(|chunk| format!("data: {chunk}\n\n"));
            let frames: Vec<String> = frames.chain(["data: [DONE]\n\n".to_owned()]).collect();
            let body = stream::iter(frames).then(|frame| async move {
                tokio::time::sleep(PAUSE).await;
                Ok(Bytes::from(frame))
            });
            return Ok(Proxied {
                status: 200,
                content_type: Some("text/event-stream; charset=utf-8".to_owned()),
                retry_after: None,
                is_stream: true,
                usage_was_added: false,
                body: body.boxed(),
            });
        }
        let message = json!({"role": "assistant", "content": words.concat(), "refusal": null});
        let reply = with(
            &head,
            &[
                ("object", json!("chat.completion")),
                ("choices", json!([{"index": 0, "message": message, "finish_reason": "stop", "logprobs": null}])),
                ("usage", usage_json(usage)),
            ],
        );
        Ok(Proxied {
            status: 200,
            content_type: Some("application/json".to_owned()),
            retry_after: None,
            is_stream: false,
            usage_was_added: false,
            body: stream::iter([Ok(Bytes::from(reply.to_string()))]).boxed(),
        })
    }

    async fn list(&self) -> Result<Vec<ModelObject>, Error> {
        Ok(vec![ModelObject::ours(Self::NAME)])
    }

    fn name(&self) -> &'static str {
        "echo"
    }
}

fn with(head: &Value, members: &[(&str, Value)]) -> Value {
    let mut object = head.clone();
    for (name, value) in members {
        object[*name] = value.clone();
    }
    object
}

/// Returns the words of the answer, each with the space after it.
fn reply(prompt: Option<&Value>) -> Vec<String> {
    let prompt = prompt.map(text).unwrap_or_default();
    let text = format!("I am the built-in echo model of assistd. You said: {prompt}");
    text.split_inclusive(' ').map(str::to_owned).collect()
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// Returns the usage with the property names of chat completions.
fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    })
}
