//! The format of the model's answers.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::rule::{
    At, Request as _, Rule, boolean, custom, free_object, identifier, object, string, tagged, tagged_schema,
    unsupported_value, wrong_type,
};
use super::tool::BareTool;
use crate::request;

/// Maximum length of the name of a format, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Maximum length of the description of a format, in characters. The service documents none; this limits the stored size.
const DESCRIPTION_CHARS_MAX: usize = 256_000;

/// The format of the answers, stored and returned unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ResponseFormat(Value);

impl Default for ResponseFormat {
    fn default() -> Self {
        Self(Value::String("auto".to_owned()))
    }
}

impl ResponseFormat {
    /// Returns the format for chat completions; `None` for `auto`, the default.
    #[must_use]
    pub fn for_model(&self) -> Option<&Value> {
        self.0.is_object().then_some(&self.0)
    }
}

request! {
    /// A JSON schema format.
    pub struct JsonSchemaFormatRequest {
        required json_schema: JsonSchemaRequest = object();
    }
}

request! {
    /// A JSON schema with its name.
    pub struct JsonSchemaRequest {
        required name: String = identifier(NAME_CHARS_MAX);
        optional description: String = string(0, DESCRIPTION_CHARS_MAX);
        optional schema: Map<String, Value> = free_object();
        optional strict: bool = boolean();
    }
}

/// The rule for `response_format`.
#[must_use]
pub fn response_format() -> impl Rule<Out = ResponseFormat> + Copy {
    let schema = |schemas: &mut SchemaGenerator| {
        let object = tagged_schema(vec![
            ("text", BareTool::schema(schemas)),
            ("json_object", BareTool::schema(schemas)),
            ("json_schema", JsonSchemaFormatRequest::schema(schemas)),
        ]);
        json!({"anyOf": [{"type": "string", "const": "auto"}, object]})
    };
    let read = |value: Value, at: &At<'_>| match &value {
        Value::String(word) if word == "auto" => Ok(ResponseFormat(value)),
        Value::String(word) => Err(unsupported_value(at, word, &["auto"])),
        Value::Object(_) => {
            let (kind, members) = tagged(value.clone(), at, &["text", "json_object", "json_schema"])?;
            if kind == "json_schema" {
                object::<JsonSchemaFormatRequest>().read(members.into(), at)?;
            } else {
                object::<BareTool>().read(members.into(), at)?;
            }
            // Null means absent, and strict clients reject null in the response.
            let mut value = value.clone();
            if let Some(Value::Object(schema)) = value.get_mut("json_schema") {
                schema.retain(|_, value| !value.is_null());
            }
            Ok(ResponseFormat(value))
        }
        other => Err(wrong_type(at, "one of a string or object", other)),
    };
    custom(read, schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_returned_unchanged() {
        let at = At::Member(&At::Root, "x");
        for format in [
            json!("auto"),
            json!({"type": "json_object"}),
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}),
        ] {
            let read = response_format().read(format.clone(), &at).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), format);
        }
    }
}
