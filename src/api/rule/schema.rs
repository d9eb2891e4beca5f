//! The JSON schemas of objects.

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::Rule;

/// Returns the schema of a rule with the result `T`.
#[must_use]
pub fn schema_of<T>(rule: &impl Rule<Out = T>, schemas: &mut SchemaGenerator) -> Value {
    rule.schema(schemas)
}

/// Returns the schema of an object with these properties: name, whether it is required, schema. Optional properties may be
/// null.
#[must_use]
pub fn members_schema(members: Vec<(&str, bool, Value)>) -> Value {
    let required: Vec<&str> = members.iter().filter(|(_, required, _)| *required).map(|(name, ..)| *name).collect();
    let properties: Map<String, Value> = members
        .into_iter()
        .map(|(name, required, schema)| (name.to_owned(), if required { schema } else { nullable(schema) }))
        .collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn nullable(mut schema: Value) -> Value {
    match schema.get("type") {
        Some(Value::String(kind)) if schema.get("enum").is_none() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

/// Returns the schema of an object whose other properties depend on its `type`; [`super::tagged`] parses it.
#[must_use]
pub fn tagged_schema(variants: Vec<(&str, Value)>) -> Value {
    let variants: Vec<Value> = variants
        .into_iter()
        .map(|(tag, mut schema)| {
            schema["properties"]["type"] = json!({"type": "string", "const": tag});
            let mut required = vec![json!("type")];
            required.extend(schema["required"].as_array().cloned().unwrap_or_default());
            schema["required"] = Value::Array(required);
            schema
        })
        .collect();
    json!({"oneOf": variants})
}
