//! Unknown members of a model's answer, which must be sent back to the model. Pure.
//!
//! Some models fail unless the next request repeats other members of a message with tool calls: `reasoning_content`
//! (`DeepSeek`), `reasoning_details` (`OpenRouter`), `extra_content` of a call (Gemini). They are streamed in pieces.

use serde_json::{Map, Value};

/// Parts of the names of members whose text arrives in pieces. The strings of all others arrive complete.
const PIECES: [&str; 6] = ["text", "summary", "think", "thought", "reason", "content"];

/// Adds the next piece of a member.
///
/// Texts are joined, objects are merged, and lists are joined. An element continues the last one of its list if both have
/// the same `type`, `index` and `id` and the last one has text and no signature. Other values replace earlier ones.
pub fn merge(members: &mut Map<String, Value>, name: &str, piece: Value) {
    match (members.get_mut(name), piece) {
        (Some(Value::String(text)), Value::String(more)) if arrives_in_pieces(name) => text.push_str(&more),
        (Some(Value::Array(list)), Value::Array(more)) => extend(list, more),
        (Some(Value::Object(object)), Value::Object(more)) => merge_object(object, more),
        (_, Value::Array(elements)) => {
            let mut list = Vec::new();
            extend(&mut list, elements);
            members.insert(name.to_owned(), Value::Array(list));
        }
        (_, piece) => {
            members.insert(name.to_owned(), piece);
        }
    }
}

/// Merges further members into an object. A null does not replace a value.
fn merge_object(object: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (object.get_mut(&name), value) {
            (Some(_), Value::Null) => {}
            (Some(Value::Object(inner)), Value::Object(more)) => merge_object(inner, more),
            (Some(Value::String(text)), Value::String(more)) if arrives_in_pieces(&name) => text.push_str(&more),
            (_, value) => {
                object.insert(name, value);
            }
        }
    }
}

/// Adds elements to a list. An element may continue the last one.
fn extend(list: &mut Vec<Value>, elements: Vec<Value>) {
    for element in elements {
        match (list.last_mut(), element) {
            (Some(Value::Object(last)), Value::Object(more)) if continues(last, &more) => merge_object(last, more),
            (_, element) => list.push(element),
        }
    }
}

fn arrives_in_pieces(name: &str) -> bool {
    PIECES.iter().any(|part| name.contains(part)) && !name.contains("signature")
}

/// Returns whether an element is the next piece of the last one. A signature ends an element. An element with `data` is
/// encrypted, and arrives complete.
fn continues(last: &Map<String, Value>, more: &Map<String, Value>) -> bool {
    let has_text = |object: &Map<String, Value>| {
        object
            .iter()
            .any(|(name, value)| arrives_in_pieces(name) && value.as_str().is_some_and(|text| !text.is_empty()))
    };
    let is_whole = |object: &Map<String, Value>| set_member(object, "data").is_some();
    let is_same = |name: &str, required: bool| match (set_member(last, name), set_member(more, name)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => true,
        _ => !required,
    };
    let is_ended = is_whole(last) || is_whole(more) || set_member(last, "signature").is_some() && has_text(more);
    has_text(last) && !is_ended && is_same("type", true) && is_same("index", true) && is_same("id", false)
}

/// Returns a member that is present and not null.
fn set_member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
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
    fn a_signature_ends_a_block_and_words_that_are_repeated_are_not_joined() {
        let thinking = |text: &str| json!([{"type": "thinking", "thinking": text}]);
        let signature = |text: &str| json!([{"type": "thinking", "thinking": "", "signature": text}]);

        let blocks = merged("thinking_blocks", &[thinking("A"), signature("1"), thinking("B"), signature("2")]);

        assert_eq!(
            blocks,
            json!([{"type": "thinking", "thinking": "A", "signature": "1"}, {"type": "thinking", "thinking": "B", "signature": "2"}])
        );
        assert_eq!(merged("channel", &[json!("analysis"), json!("analysis")]), json!("analysis"));
    }

    #[test]
    fn blocks_of_different_indexes_are_not_joined() {
        let block = |index: u32| json!([{"type": "thinking", "thinking": "a", "index": index}]);

        assert_eq!(merged("thinking_blocks", &[block(0), block(1), block(1)]).as_array().unwrap().len(), 2);
    }
}
