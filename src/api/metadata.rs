//! Key-value pairs that clients attach to objects.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::Error;
use super::rule::{At, Rule, string, wrong_type};

/// Maximum number of pairs of an object.
pub(super) const PAIRS_MAX: usize = 16;
/// Maximum length of a key, in characters.
pub(super) const KEY_CHARS_MAX: usize = 64;
/// Maximum length of a value, in characters.
pub(super) const VALUE_CHARS_MAX: usize = 512;

/// At most 16 pairs, with keys of at most 64 and values of at most 512 characters. Preserves the client's order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Metadata(Map<String, Value>);

/// The rule for `metadata`.
#[derive(Debug, Clone, Copy)]
pub struct MetadataRule;

/// The rule for `metadata`.
#[must_use]
pub fn metadata() -> MetadataRule {
    MetadataRule
}

impl Rule for MetadataRule {
    type Out = Metadata;

    fn read(&self, value: Value, at: &At<'_>) -> Result<Metadata, Error> {
        let Value::Object(pairs) = value else {
            return Err(wrong_type(at, "an object", &value));
        };
        check_pairs(&pairs, at)?;
        let mut checked = Map::new();
        for (key, value) in pairs {
            let value = string(0, VALUE_CHARS_MAX).read(value, &At::Member(at, &key))?;
            checked.insert(key, Value::String(value));
        }
        Ok(Metadata(checked))
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        json!({
            "type": "object",
            "maxProperties": PAIRS_MAX,
            "propertyNames": {"maxLength": KEY_CHARS_MAX},
            "additionalProperties": string(0, VALUE_CHARS_MAX).schema(schemas),
        })
    }
}

/// Checks the number of pairs and the length of their keys.
///
/// # Errors
/// 400 that names the object or the key.
pub(super) fn check_pairs(pairs: &Map<String, Value>, at: &At<'_>) -> Result<(), Error> {
    if pairs.len() > PAIRS_MAX {
        return Err(Error::invalid(format!(
            "Invalid '{at}': too many properties. Expected an object with at most {PAIRS_MAX} properties, \
             but got an object with {} properties instead.",
            pairs.len()
        ))
        .at(at.to_string())
        .code("object_above_max_properties"));
    }
    for key in pairs.keys() {
        let length = key.chars().count();
        if length > KEY_CHARS_MAX {
            return Err(key_too_long(at, key, length));
        }
    }
    Ok(())
}

fn key_too_long(at: &At<'_>, key: &str, length: usize) -> Error {
    let first: String = key.chars().take(3).collect();
    let last: String = key.chars().skip(length - 3).collect();
    Error::invalid(format!(
        "Invalid property name in '{at}': '{first}...{last}' is too long. Expected a string with maximum length \
         {KEY_CHARS_MAX}, but got a string with length {length} instead."
    ))
    .at(At::Member(at, key).to_string())
    .code("property_name_above_max_length")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Metadata, Error> {
        metadata().read(value, &At::Member(&At::Root, "metadata"))
    }

    #[test]
    fn values_that_are_not_strings_are_rejected_with_the_parameter_name() {
        let error = read(json!({"modified": true})).unwrap_err();

        assert_eq!(
            error.message,
            "Invalid type for 'metadata.modified': expected a string, but got a boolean instead."
        );
        assert_eq!(error.param.as_deref(), Some("metadata.modified"));
    }

    #[test]
    fn metadata_is_limited_to_16_pairs_of_64_and_512_characters() {
        let pairs = |count: usize| Value::Object((0..count).map(|n| (n.to_string(), json!("v"))).collect());

        assert!(read(pairs(16)).is_ok());
        assert_eq!(read(pairs(17)).unwrap_err().code, Some("object_above_max_properties"));
        assert!(read(json!({"k".repeat(64): "v".repeat(512)})).is_ok());
        assert_eq!(read(json!({"k".repeat(65): "v"})).unwrap_err().code, Some("property_name_above_max_length"));
        assert_eq!(read(json!({"k": "v".repeat(513)})).unwrap_err().code, Some("string_above_max_length"));
    }
}
