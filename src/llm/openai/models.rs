//! Reads a server's list of models. Pure, and lenient: ignores invalid members of an entry, and skips entries without
//! an ID.

use serde_json::Value;

use crate::llm::ModelObject;
use crate::llm::lenient::integer;

/// Members that have the context window: vLLM, LM Studio and OpenRouter, Groq, llama.cpp.
const WINDOW_MEMBERS: [&str; 5] =
    ["/max_model_len", "/context_length", "/context_window", "/meta/n_ctx", "/meta/n_ctx_train"];

/// Returns the models of a `GET /models` response; `None` if it is not a list of models.
#[must_use]
pub fn read(body: &Value) -> Option<Vec<ModelObject>> {
    let list = body.as_array().or_else(|| body["data"].as_array()).or_else(|| body["models"].as_array())?;
    Some(list.iter().filter_map(read_model).collect())
}

fn read_model(entry: &Value) -> Option<ModelObject> {
    let id = entry.as_str().or_else(|| entry["id"].as_str()).or_else(|| entry["name"].as_str());
    let id = id.filter(|id| !id.is_empty())?;
    let mut model = ModelObject::ours(id);
    if let Some(created) = integer(&entry["created"]) {
        model.created = created;
    }
    if let Some(owner) = entry["owned_by"].as_str() {
        owner.clone_into(&mut model.owned_by);
    }
    let window = WINDOW_MEMBERS.iter().filter_map(|member| integer(entry.pointer(member)?));
    model.window = window.filter_map(|tokens| u32::try_from(tokens).ok()).find(|tokens| *tokens > 0);
    Some(model)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_context_window_is_read_from_the_field_of_each_server() {
        for member in [
            json!({"max_model_len": 7}),
            json!({"context_length": "7"}),
            json!({"context_window": 7.0}),
            json!({"meta": {"n_ctx": 7, "n_ctx_train": 9}}),
            json!({"meta": {"n_ctx_train": 7}}),
            json!({"max_model_len": null, "context_length": 7}),
        ] {
            let mut entry = member.clone();
            entry["id"] = json!("m");

            let list = read(&json!({"data": [entry]}));

            assert_eq!(list, Some(vec![ModelObject { window: Some(7), ..ModelObject::ours("m") }]), "{member}");
        }
    }

    #[test]
    fn invalid_members_are_ignored_and_entries_without_an_id_are_skipped() {
        let list = read(&json!({"data": [
            {"id": "a", "created": null, "owned_by": 3, "object": []},
            {"id": "b", "created": 1.5e9},
            {"created": 1},
            {"id": 7},
            "c",
            null,
        ]}));

        let list: Vec<(String, i64)> = list.unwrap().into_iter().map(|model| (model.id, model.created)).collect();
        assert_eq!(list, [("a".into(), 0), ("b".into(), 1_500_000_000), ("c".into(), 0)]);
    }

    #[test]
    fn other_forms_of_the_list_are_read_and_other_bodies_are_not() {
        let names = |body: Value| read(&body).map(|list| list.into_iter().map(|model| model.id).collect::<Vec<_>>());

        assert_eq!(names(json!([{"id": "a"}])), Some(vec!["a".to_owned()]));
        assert_eq!(names(json!({"models": [{"name": "a"}]})), Some(vec!["a".to_owned()]));
        assert_eq!((names(json!({})), names(json!("x"))), (None, None));
    }
}
