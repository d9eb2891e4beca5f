//! The attributes of the files of a vector store, which searches can filter by.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::error::Error;
use crate::api::metadata::{KEY_CHARS_MAX, PAIRS_MAX, VALUE_CHARS_MAX, check_pairs};
use crate::api::rule::{At, Rule, string, wrong_type};

/// At most 16 pairs, with keys of at most 64 characters. Values are strings of at most 512 characters, numbers or booleans.
/// Preserves the client's order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Attributes(Map<String, Value>);

impl Attributes {
    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}

/// The rule for `attributes`. Null means no attributes.
#[derive(Debug, Clone, Copy)]
pub struct AttributesRule;

/// The rule for `attributes`. Null means no attributes.
#[must_use]
pub fn attributes() -> AttributesRule {
    AttributesRule
}

impl Rule for AttributesRule {
    type Out = Attributes;

    fn read(&self, value: Value, at: &At<'_>) -> Result<Attributes, Error> {
        let pairs = match value {
            Value::Null => return Ok(Attributes::default()),
            Value::Object(pairs) => pairs,
            other => return Err(wrong_type(at, "an object", &other)),
        };
        check_pairs(&pairs, at)?;
        for (key, value) in &pairs {
            let at = At::Member(at, key);
            match value {
                Value::Number(_) | Value::Bool(_) => {}
                Value::String(text) if text.len() <= VALUE_CHARS_MAX => {}
                Value::String(_) => {
                    string(0, VALUE_CHARS_MAX).read(value.clone(), &at)?;
                }
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    return Err(wrong_type(&at, "one of a string, decimal number, or boolean", value));
                }
            }
        }
        Ok(Attributes(pairs))
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        json!({
            "type": ["object", "null"],
            "maxProperties": PAIRS_MAX,
            "propertyNames": {"maxLength": KEY_CHARS_MAX},
            "additionalProperties": {
                "anyOf": [string(0, VALUE_CHARS_MAX).schema(schemas), {"type": "number"}, {"type": "boolean"}],
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Attributes, Error> {
        attributes().read(value, &At::Member(&At::Root, "attributes"))
    }

    #[test]
    fn values_are_strings_numbers_and_booleans_and_are_returned_unchanged() {
        let given = json!({"b": "x", "a": 1, "c": 1.5, "d": false});

        let echoed = serde_json::to_string(&read(given.clone()).unwrap()).unwrap();

        assert_eq!(echoed, given.to_string());
        assert_eq!(read(Value::Null).unwrap(), Attributes::default());
        for other in [json!(null), json!([]), json!({})] {
            let error = read(json!({"k": other})).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (Some("invalid_type"), Some("attributes.k")));
        }
    }

    #[test]
    fn attributes_have_the_limits_of_metadata() {
        let pairs = |count: usize| Value::Object((0..count).map(|n| (n.to_string(), json!(n))).collect());

        assert!(read(pairs(16)).is_ok());
        assert_eq!(read(pairs(17)).unwrap_err().code, Some("object_above_max_properties"));
        assert!(read(json!({"k".repeat(64): "é".repeat(512)})).is_ok());
        assert_eq!(read(json!({"k".repeat(65): 1})).unwrap_err().code, Some("property_name_above_max_length"));
        assert_eq!(read(json!({"k": "é".repeat(513)})).unwrap_err().code, Some("string_above_max_length"));
    }
}
