//! The errors of rules.

use std::fmt;

use serde_json::Value;

use super::{At, Error};

/// Returns 400 `Missing required parameter: 'assistant_id'.`
#[must_use]
pub fn missing(at: &At<'_>) -> Error {
    Error::invalid(format!("Missing required parameter: '{at}'.")).at(at.to_string()).code("missing_required_parameter")
}

/// Returns the type of a value for error messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Returns 400 `Invalid type for 'x': expected a string, but got a boolean instead.`
#[must_use]
pub fn wrong_type(at: &At<'_>, expected: &str, got: &Value) -> Error {
    let kind = kind_of(got);
    let message = if at.is_root() {
        format!("Invalid type for the request body: expected {expected}, but got {kind} instead.")
    } else {
        format!("Invalid type for '{at}': expected {expected}, but got {kind} instead.")
    };
    let error = Error::invalid(message).code("invalid_type");
    if at.is_root() { error } else { error.at(at.to_string()) }
}

/// Returns 400 `Invalid value: 'x'. Supported values are: 'a', 'b', and 'c'.`
#[must_use]
pub fn unsupported_value(at: &At<'_>, got: &str, supported: &[&str]) -> Error {
    let quoted: Vec<String> = supported.iter().map(|value| format!("'{value}'")).collect();
    let list = match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first, second] => format!("{first} and {second}"),
        [init @ .., last] => format!("{}, and {last}", init.join(", ")),
    };
    Error::invalid(format!("Invalid value: '{got}'. Supported values are: {list}."))
        .at(at.to_string())
        .code("invalid_value")
}

/// Returns 400 `Invalid 'name': string too long. Expected a string with maximum length 256, but got a string with length
/// 257 instead.`
#[must_use]
pub fn too_long(at: &At<'_>, max: usize, length: usize) -> Error {
    Error::invalid(format!(
        "Invalid '{at}': string too long. Expected a string with maximum length {max}, but got a string with length \
         {length} instead."
    ))
    .at(at.to_string())
    .code("string_above_max_length")
}

/// Returns 400 `Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.`
pub fn out_of_range(
    at: &At<'_>,
    noun: &str,
    got: &dyn fmt::Display,
    above: bool,
    min: impl fmt::Display,
    max: impl fmt::Display,
) -> Error {
    let (text, code) = match (above, noun) {
        (true, "decimal") => {
            (format!("decimal above maximum value. Expected a value <= {max}"), "decimal_above_max_value")
        }
        (true, _) => (format!("integer above maximum value. Expected a value <= {max}"), "integer_above_max_value"),
        (false, "decimal") => {
            (format!("decimal below minimum value. Expected a value >= {min}"), "decimal_below_min_value")
        }
        (false, _) => (format!("integer below minimum value. Expected a value >= {min}"), "integer_below_min_value"),
    };
    Error::invalid(format!("Invalid '{at}': {text}, but got {got} instead.")).at(at.to_string()).code(code)
}
