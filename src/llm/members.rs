//! Members of a model's answer that we do not know, but that the model needs back. Pure.
//!
//! Some models fail unless the next request repeats what they wrote beside their tool calls: `reasoning_content`
//! (`DeepSeek`), `reasoning_details` (`OpenRouter`), `extra_content` of a call (Gemini). They arrive in pieces.

use serde_json::{Map, Value};

/// String members of an element of a list that arrive in pieces. All others arrive whole.
const PIECES: [&str; 5] = ["text", "summary", "thinking", "reasoning", "content"];

/// Adds the next piece of a member.
///
/// Strings are joined, objects are merged, and lists are joined; an element continues the last one of its list if both
/// have the same `type`, `index` and `id`, and only text in pieces. Other values replace the ones before.
pub fn merge(members: &mut Map<String, Value>, name: &str, piece: Value) {
    match (members.get_mut(name), piece) {
        (Some(Value::String(text)), Value::String(more)) => text.push_str(&more),
        (Some(Value::Array(list)), Value::Array(more)) => {
            for element in more {
                add(list, element);
            }
        }
        (Some(Value::Object(object)), Value::Object(more)) => merge_object(object, more),
        (_, Value::Array(elements)) => {
            let mut list = Vec::new();
            for element in elements {
                add(&mut list, element);
            }
            members.insert(name.to_owned(), Value::Array(list));
        }
        (_, piece) => {
            members.insert(name.to_owned(), piece);
        }
    }
}

/// Adds the members of an object that has arrived before; a null does not replace a value.
fn merge_object(object: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (object.get_mut(&name), value) {
            (Some(_), Value::Null) => {}
            (Some(Value::Object(inner)), Value::Object(more)) => merge_object(inner, more),
            (Some(Value::String(text)), Value::String(more)) if PIECES.contains(&name.as_str()) => text.push_str(&more),
            (_, value) => {
                object.insert(name, value);
            }
        }
    }
}

/// Adds an element to a list, or continues its last element.
fn add(list: &mut Vec<Value>, element: Value) {
    match (list.last_mut(), element) {
        (Some(Value::Object(last)), Value::Object(more)) if continues(last, &more) => merge_object(last, more),
        (_, element) => list.push(element),
    }
}

/// Whether an element is the next piece of the one before. An element with `data` is encrypted, and arrives whole.
fn continues(last: &Map<String, Value>, more: &Map<String, Value>) -> bool {
    let has_text =
        |object: &Map<String, Value>| PIECES.iter().any(|name| object.get(*name).is_some_and(Value::is_string));
    let is_whole = |object: &Map<String, Value>| object.get("data").is_some_and(|data| !data.is_null());
    let is_same = |name: &str, required: bool| {
        let known = |object: &'_ Map<String, Value>| object.get(name).filter(|value| !value.is_null()).cloned();
        match (known(last), known(more)) {
            (Some(one), Some(other)) => one == other,
            (None, None) => true,
            _ => !required,
        }
    };
    has_text(last)
        && !is_whole(last)
        && !is_whole(more)
        && is_same("type", true)
        && is_same("index", true)
        && is_same("id", false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(name: &str, pieces: &[Value]) -> Value {
        let mut members = Map::new();
        for piece in pieces {
            merge(&mut members, name, piece.clone());
        }
        members.remove(name).unwrap()
    }

    #[test]
    fn strings_are_joined_and_objects_are_merged() {
        assert_eq!(merged("reasoning_content", &[json!("Let"), json!(" me")]), json!("Let me"));
        assert_eq!(
            merged("extra", &[json!({"google": {"a": "x"}}), json!({"google": {"b": "y", "a": null}})]),
            json!({"google": {"a": "x", "b": "y"}})
        );
    }

    #[test]
    fn the_pieces_of_one_reasoning_block_are_joined_and_different_blocks_are_not() {
        let text = |text: &str| json!([{"type": "reasoning.text", "text": text, "format": "f", "index": 0}]);
        let signature = json!([{"type": "reasoning.text", "text": null, "signature": "s", "format": "f", "index": 0}]);
        let encrypted = |id: &str| json!([{"type": "reasoning.encrypted", "data": "d", "id": id, "index": 0}]);

        let list = merged(
            "reasoning_details",
            &[text("Let"), text(" me"), signature, encrypted("a"), encrypted("b"), json!([{"type": "reasoning.text"}])],
        );

        assert_eq!(
            list,
            json!([
                {"type": "reasoning.text", "text": "Let me", "format": "f", "index": 0, "signature": "s"},
                {"type": "reasoning.encrypted", "data": "d", "id": "a", "index": 0},
                {"type": "reasoning.encrypted", "data": "d", "id": "b", "index": 0},
                {"type": "reasoning.text"},
            ])
        );
    }

    #[test]
    fn blocks_of_different_indexes_are_not_joined() {
        let block = |index: u32| json!([{"type": "thinking", "thinking": "a", "index": index}]);

        assert_eq!(merged("thinking_blocks", &[block(0), block(1), block(1)]).as_array().unwrap().len(), 2);
    }
}
