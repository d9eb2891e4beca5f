//! The scripted chat model of the benchmark: it calls the first function that it is offered, and then answers.

use std::convert::Infallible;
use std::time::Duration;

use async_stream::stream;
use axum::Json;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

/// The model that answers like a slow server.
pub const PACED: &str = "paced";
/// Number of tokens of an answer.
const TOKENS: usize = 32;
/// Paced: time until the first token, and between tokens.
const FIRST_TOKEN_AFTER: Duration = Duration::from_millis(100);
const TOKEN_INTERVAL: Duration = Duration::from_millis(10);

/// Answers a streamed chat completion.
pub async fn complete(Json(request): Json<Value>) -> Response {
    let last_role =
        request["messages"].as_array().and_then(|messages| messages.last()?["role"].as_str().map(str::to_owned));
    let function = request["tools"][0]["function"]["name"].as_str().map(str::to_owned);
    let is_paced = request["model"] == PACED;
    let chunk = |delta: &Value, finish_reason: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
        let chunk =
            json!({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]});
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let mut chunks = Vec::new();
    match function {
        Some(name) if last_role.as_deref() != Some("tool") => {
            let arguments = json!({"query": "w1 w2 w3"}).to_string();
            let call = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}});
            chunks.push(chunk(&json!({"role": "assistant", "tool_calls": [call]}), None));
            chunks.push(chunk(&json!({}), Some("tool_calls")));
        }
        _ => {
            let tokens = (0..TOKENS).map(|token| chunk(&json!({"content": format!("w{token} ")}), None));
            chunks.extend(tokens);
            chunks.push(chunk(&json!({}), Some("stop")));
        }
    }
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20});
    let last = json!({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [], "usage": usage});
    chunks.push(Bytes::from(format!("data: {last}\n\ndata: [DONE]\n\n")));
    let body = Body::from_stream(stream! {
        for (index, chunk) in chunks.into_iter().enumerate() {
            if is_paced {
                tokio::time::sleep(if index == 0 { FIRST_TOKEN_AFTER } else { TOKEN_INTERVAL }).await;
            }
            yield Ok::<_, Infallible>(chunk);
        }
    });
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}
