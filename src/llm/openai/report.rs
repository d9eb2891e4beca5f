//! Errors as model servers report them: in the body of an error response, or inside of an answer. Pure.

use serde_json::{Map, Value};

use crate::llm::lenient;

/// Maximum length of the part of a text in which the name of an error is searched, in characters.
const TEXT_CHARS_MAX: usize = 500;

/// An error that a model server has reported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The HTTP status: that of the response, or the one in the error.
    pub status: u16,
    /// The rejected parameter, if the error has it in a separate member.
    pub param: Option<String>,
    /// The error code and the error type, if they are strings.
    pub codes: Vec<String>,
    /// The text for people.
    pub message: String,
}

impl Report {
    /// Reads the body of a response with an error status.
    #[must_use]
    pub fn of_response(status: u16, body: &str) -> Self {
        Self { status, ..Self::of_event(body) }
    }

    /// Reads the data of an event that is an error.
    #[must_use]
    pub fn of_event(data: &str) -> Self {
        let value = lenient::parse(data).filter(|value| value.is_object() || value.is_array() || value.is_string());
        match value {
            Some(value) => find(&value).unwrap_or_else(|| read(&value)),
            None => Self::new(data.trim()),
        }
    }

    /// Finds the error in a value that should be an answer or a part of one.
    #[must_use]
    pub fn in_answer(value: &Value) -> Option<Self> {
        find(value)
    }

    /// Reads a value that is not a part of an answer: a status, or an error that is not marked as one. It is an error only if
    /// the answer does not continue after it.
    #[must_use]
    pub fn of_note(value: &Value) -> Option<Self> {
        let object = value.as_object().filter(|object| !object.contains_key("choices"))?;
        let is_good =
            ["code", "status_code", "statusCode"].iter().any(|name| object.get(*name).is_some_and(is_success));
        (has_text(object) && !is_good).then(|| read(value))
    }

    /// Creates a report with this text.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Returns whether the server has too many requests, or the account no quota left.
    #[must_use]
    pub fn is_rate_limit(&self) -> bool {
        const NAMES: [&str; 9] = [
            "rate_limit",
            "ratelimit",
            "rate_quota",
            "ratequota",
            "too_many_requests",
            "toomanyrequests",
            "throttl",
            "resource_exhausted",
            "insufficient_quota",
        ];
        let names = |text: &str| {
            let text = text.to_lowercase().replace(['-', ' '], "_");
            NAMES.iter().any(|name| text.contains(name))
        };
        self.status == 429
            || self.codes.iter().any(|code| names(code))
            || self.status < 400 && names(&self.message.chars().take(TEXT_CHARS_MAX).collect::<String>())
    }
}

/// Members that have the text of an error, the most specific first.
const TEXTS: [&str; 13] = [
    "message",
    "detail",
    "msg",
    "error_msg",
    "error_message",
    "status_msg",
    "reason",
    "description",
    "error_description",
    "faultstring",
    "Message",
    "title",
    "exception",
];

/// Members that only errors have.
const FAILED: [&str; 7] = ["error_code", "error_msg", "error_message", "faultstring", "Message", "exception", "__type"];

/// Finds an error in any of its forms: an `error` member of a body, of a choice or of the first element of a list, or an
/// object that has the form of an error itself.
fn find(value: &Value) -> Option<Report> {
    match value {
        Value::Array(elements) => elements.first().filter(|first| first.is_object()).and_then(find),
        Value::Object(object) => {
            let nested = ["error", "errors", "fault", "Error"]
                .iter()
                .find_map(|name| object.get(*name).filter(|error| is_set(error)));
            if let Some(error) = nested {
                let (outer, inner) = (read(value), read(error));
                return Some(Report {
                    status: if inner.status == 0 { outer.status } else { inner.status },
                    param: inner.param.or(outer.param),
                    codes: inner.codes.into_iter().chain(outer.codes).collect(),
                    message: if inner.message.is_empty() { outer.message } else { inner.message },
                });
            }
            if let Some(status) = object.get("base_resp").filter(|status| status["status_code"] != 0 && is_set(status))
            {
                return Some(read(status));
            }
            let choices = object.get("choices").and_then(Value::as_array).filter(|choices| !choices.is_empty());
            if let Some(choices) = choices {
                let parts = choices.iter().flat_map(|choice| [choice, &choice["delta"], &choice["message"]]);
                return parts.filter(|part| is_set(&part["error"])).find_map(find);
            }
            let is_error = object.get("object").or_else(|| object.get("type")).is_some_and(|kind| kind == "error");
            let report = read(value);
            let is_failure =
                has_text(object) && (report.status != 0 || FAILED.iter().any(|name| object.contains_key(*name)));
            (is_error || is_failure).then_some(report)
        }
        _ => None,
    }
}

/// Reads an error value: a string, a list, or an object.
fn read(error: &Value) -> Report {
    match error {
        Value::String(text) => Report::new(text.as_str()),
        Value::Array(errors) => {
            let first = errors.first().map(read).unwrap_or_default();
            let messages: Vec<String> = errors.iter().map(read).map(|error| error.message).collect();
            Report { message: messages.join("; "), ..first }
        }
        Value::Object(object) => {
            let text = |name: &str| object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
            let location = object.get("loc").and_then(Value::as_array).and_then(|parts| parts.last()?.as_str());
            let mut set = TEXTS.iter().filter_map(|name| object.get(*name)).filter(|text| is_set(text));
            let nested = set.clone().find(|text| text.is_string()).or_else(|| set.next());
            let message = match (nested, location) {
                (Some(Value::String(text)), Some(location)) => format!("{location}: {text}"),
                (Some(Value::String(text)), None) => text.clone(),
                (Some(other @ (Value::Array(_) | Value::Object(_))), _) => read(other).message,
                (Some(other), _) => other.to_string(),
                (None, _) if ["error", "errors", "fault"].iter().any(|name| object.contains_key(*name)) => {
                    String::new()
                }
                (None, _) => error.to_string(),
            };
            // OpenRouter has the text of the server behind it here.
            let message = match object.get("metadata").and_then(|metadata| metadata["raw"].as_str()) {
                Some(raw) => format!("{message}: {raw}"),
                None => message,
            };
            // Some servers have the cause in a second text.
            let message = match text("reason").filter(|reason| !message.contains(reason)) {
                Some(reason) => format!("{message}: {reason}"),
                None => message,
            };
            let status = ["code", "status", "status_code", "statusCode", "error_code"]
                .iter()
                .find_map(|name| status(object.get(*name)?));
            let codes = ["code", "type", "status", "__type"].iter().filter_map(|name| text(name)).map(str::to_owned);
            Report {
                status: status.unwrap_or(0),
                param: text("param").or(location).map(str::to_owned),
                codes: codes.collect(),
                message,
            }
        }
        Value::Number(number) => Report::new(number.to_string()),
        Value::Null | Value::Bool(_) => Report::default(),
    }
}

/// Returns whether an object has the text of an error or of a status, and no usage, as the end of an answer has.
fn has_text(object: &Map<String, Value>) -> bool {
    TEXTS.iter().any(|name| object.get(*name).is_some_and(is_set)) && !object.contains_key("usage")
}

/// Reads the HTTP status of an error.
fn status(value: &Value) -> Option<u16> {
    let number = lenient::integer(value).filter(|status| (400..600).contains(status))?;
    u16::try_from(number).ok()
}

fn is_success(code: &Value) -> bool {
    lenient::integer(code).is_some_and(|number| number == 0 || (200..300).contains(&number))
}

/// Returns whether an error member has a value: some servers always send the member, with empty values.
fn is_set(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            !["", "0", "none", "null", "false", "ok", "success"].contains(&text.trim().to_ascii_lowercase().as_str())
        }
        Value::Array(elements) => elements.iter().any(is_set),
        Value::Object(members) => members.values().any(is_set),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_found_in_each_form() {
        let forms = [
            json!({"error": {"message": "bad"}}),
            json!({"error": "bad"}),
            json!([{"error": {"message": "bad", "code": 400}}]),
            json!({"object": "error", "message": "bad", "code": 400}),
            json!({"type": "error", "error": {"type": "x", "message": "bad"}}),
            json!({"message": "bad", "code": 500}),
            json!({"detail": "bad", "status": 502}),
            json!({"exception": "bad"}),
            json!({"errors": [{"message": "bad"}]}),
            json!({"choices": [{"error": {"message": "bad"}, "finish_reason": "error", "delta": {}}]}),
            json!({"error": true, "message": "bad"}),
            json!({"error": null, "errors": [{"message": "bad"}]}),
            json!({"choices": [{"delta": {"error": {"message": "bad"}}}]}),
            json!({"choices": null, "base_resp": {"status_code": 1008, "status_msg": "bad"}}),
            json!({"error_code": 17, "error_msg": "bad"}),
            json!({"code": 500, "msg": "bad", "success": false}),
            json!({"Message": "bad"}),
            json!({"fault": {"faultstring": "bad"}}),
            json!({"status": 500, "reason": "bad"}),
        ];
        for form in forms {
            assert_eq!(Report::in_answer(&form).map(|report| report.message), Some("bad".to_owned()), "{form}");
        }
    }

    #[test]
    fn an_answer_is_not_an_error() {
        let answers = [
            json!({"choices": [{"delta": {"content": "a"}}], "error": null}),
            json!({"choices": [{"delta": {}, "error": null}]}),
            json!({"choices": [], "usage": {}, "error": {}}),
            json!({"type": "ping"}),
            json!({"code": 0, "message": "Success"}),
            json!({"status": "loading", "message": "Loading model weights"}),
            json!({"choices": [], "error": "None"}),
            json!({"choices": [], "error": {"code": null, "message": null}}),
            json!({"choices": [], "error": {"code": 0, "message": ""}}),
            json!({"choices": [{"delta": {}}], "error": 0, "base_resp": {"status_code": 0, "status_msg": ""}}),
            json!("text"),
            json!(null),
        ];
        for answer in answers {
            assert_eq!(Report::in_answer(&answer), None, "{answer}");
        }
    }

    #[test]
    fn the_members_of_a_validation_error_are_named() {
        let body = json!({"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": {}}]});

        let report = Report::of_response(422, &body.to_string());

        assert_eq!(report.message, "stream_options: Extra inputs are not permitted");
    }

    #[test]
    fn a_rate_limit_is_recognized_by_its_status_or_its_code() {
        for error in [
            json!({"code": 429}),
            json!({"code": "429"}),
            json!({"type": "rate_limit_error"}),
            json!({"code": "RESOURCE_EXHAUSTED"}),
        ] {
            assert!(Report::in_answer(&json!({"error": error})).unwrap().is_rate_limit(), "{error}");
        }
        assert!(!Report::in_answer(&json!({"error": {"code": 500}})).unwrap().is_rate_limit());
    }
}
