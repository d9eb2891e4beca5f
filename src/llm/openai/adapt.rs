//! The JSON body of a request, adapted to what a server accepts. Pure.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::llm::{ChatRequest, Error};

/// Parameters that a request can omit: the two names of the same limit, of which one is sufficient; the option to report
/// usage; and an option that we enforce ourselves.
pub const DROPPABLE_PARAMETERS: [&str; 4] =
    ["max_completion_tokens", "max_tokens", "stream_options", "parallel_tool_calls"];
/// The two names of the limit on completion tokens. At most one of them may be dropped.
const LIMIT_PARAMETERS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// The JSON body of a chat request.
///
/// The droppable parameters are at its end, so that one of them can be removed without serializing the prompt again.
#[derive(Debug)]
pub struct RequestBody {
    json: Bytes,
    /// Length of the JSON up to the droppable parameters.
    fixed_bytes: usize,
    droppable: Map<String, Value>,
}

impl RequestBody {
    /// Serializes a request for a streamed answer, without the `unsupported` parameters.
    #[must_use]
    pub fn new(mut request: ChatRequest, is_openai: bool, unsupported: &[&str]) -> Self {
        let mut droppable = Map::new();
        if let Some(tokens) = request.max_completion_tokens.take() {
            droppable.insert("max_completion_tokens".to_owned(), json!(tokens));
            if !is_openai {
                // Some servers support only the older name; OpenAI's newer models reject it.
                droppable.insert("max_tokens".to_owned(), json!(tokens));
            }
        }
        droppable.insert("stream_options".to_owned(), json!({"include_usage": true}));
        let parallel_tool_calls = match request.parallel_tool_calls.take() {
            // OpenAI's default. llama.cpp requires the parameter; some of OpenAI's models reject it.
            None if !request.tools.is_empty() && !is_openai => Some(true),
            set => set,
        };
        if let Some(parallel) = parallel_tool_calls {
            droppable.insert("parallel_tool_calls".to_owned(), json!(parallel));
        }
        droppable.retain(|parameter, _| !unsupported.contains(&parameter.as_str()));
        let mut json = serde_json::to_vec(&request).expect("a request of strings, numbers and JSON values serializes");
        drop(request);
        json.pop();
        json.extend_from_slice(br#","stream":true"#);
        let mut body = Self { fixed_bytes: json.len(), json: Bytes::new(), droppable };
        body.write_droppable(json);
        body
    }

    /// Removes a droppable parameter.
    pub fn remove(&mut self, parameter: &str) {
        self.droppable.shift_remove(parameter);
        let json = Vec::from(std::mem::take(&mut self.json));
        self.write_droppable(json);
    }

    /// Replaces the end of `json` with the droppable parameters.
    fn write_droppable(&mut self, mut json: Vec<u8>) {
        json.truncate(self.fixed_bytes);
        for (parameter, value) in &self.droppable {
            json.extend_from_slice(format!(",\"{parameter}\":{value}").as_bytes());
        }
        json.push(b'}');
        self.json = json.into();
    }

    /// Returns the body; the bytes are shared, not copied.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.json.clone()
    }

    /// Returns the parameter that a server rejected, if the request can omit it.
    #[must_use]
    pub fn rejected_parameter(&self, error: &Error) -> Option<&'static str> {
        let Error::Refused(message) = error else { return None };
        let is_rejected = |parameter: &str| message.contains(parameter) && self.droppable.contains_key(parameter);
        if LIMIT_PARAMETERS.into_iter().all(is_rejected) {
            return Some("max_tokens");
        }
        let has_both = LIMIT_PARAMETERS.into_iter().all(|parameter| self.droppable.contains_key(parameter));
        DROPPABLE_PARAMETERS
            .into_iter()
            .find(|parameter| is_rejected(parameter) && (has_both || !LIMIT_PARAMETERS.contains(parameter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::ChatMessage;

    fn request() -> ChatRequest {
        ChatRequest {
            model: "m".to_owned(),
            messages: vec![ChatMessage::new("user", json!("Hi"))],
            max_completion_tokens: Some(5),
            tools: vec![json!({"type": "function"})],
            ..ChatRequest::default()
        }
    }

    fn parse(body: &RequestBody) -> Value {
        serde_json::from_slice(&body.json()).unwrap()
    }

    #[test]
    fn a_body_has_the_streaming_options_and_both_names_of_the_limit() {
        let body = RequestBody::new(request(), false, &[]);

        assert_eq!(
            parse(&body),
            json!({
                "model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}],
                "stream": true, "stream_options": {"include_usage": true}, "max_completion_tokens": 5,
                "max_tokens": 5, "parallel_tool_calls": true,
            })
        );
    }

    #[test]
    fn the_older_name_and_default_values_are_not_sent_to_openai() {
        let body = parse(&RequestBody::new(request(), true, &[]));

        assert_eq!((body.get("max_tokens"), body.get("parallel_tool_calls")), (None, None));
    }

    #[test]
    fn a_rejected_parameter_is_removed_and_an_unsupported_one_is_never_sent() {
        let mut body = RequestBody::new(request(), false, &["stream_options"]);
        let rejected = body.rejected_parameter(&Error::Refused("unknown: parallel_tool_calls".to_owned()));
        body.remove(rejected.unwrap());

        let json = parse(&body);
        assert_eq!((json.get("stream_options"), json.get("parallel_tool_calls")), (None, None));
        assert_eq!((&json["max_tokens"], &json["messages"][0]["content"]), (&json!(5), &json!("Hi")));
    }

    #[test]
    fn one_name_of_the_limit_is_always_sent() {
        let mut body = RequestBody::new(request(), false, &[]);
        let both = Error::Refused("max_tokens and max_completion_tokens".to_owned());
        assert_eq!(body.rejected_parameter(&both), Some("max_tokens"));
        body.remove("max_tokens");

        assert_eq!(body.rejected_parameter(&both), None);
    }
}
