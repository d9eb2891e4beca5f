//! Parses a server's list of models. Pure.

use serde::Deserialize;

use crate::llm::ModelObject;

/// The body of `GET /models`.
#[derive(Deserialize)]
pub struct ModelList {
    data: Vec<ListedModel>,
}

/// A model with its context window under the names that servers use: vLLM, LM Studio and OpenRouter, Groq, llama.cpp.
#[derive(Deserialize)]
struct ListedModel {
    #[serde(flatten)]
    model: ModelObject,
    max_model_len: Option<u32>,
    context_length: Option<u32>,
    context_window: Option<u32>,
    meta: Option<ModelMeta>,
}

#[derive(Deserialize)]
struct ModelMeta {
    n_ctx: Option<u32>,
    n_ctx_train: Option<u32>,
}

impl From<ModelList> for Vec<ModelObject> {
    fn from(list: ModelList) -> Self {
        let models = list.data.into_iter().map(|listed| {
            let meta = listed.meta.and_then(|meta| meta.n_ctx.or(meta.n_ctx_train));
            let window = listed.max_model_len.or(listed.context_length).or(listed.context_window).or(meta);
            ModelObject { window, ..listed.model }
        });
        models.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_window_is_read_from_the_field_of_each_server() {
        let windows = [
            r#""max_model_len": 7"#,
            r#""context_length": 7"#,
            r#""context_window": 7"#,
            r#""meta": {"n_ctx": 7, "n_ctx_train": 9}"#,
            r#""meta": {"n_ctx_train": 7}"#,
        ];
        for window in windows {
            let list: ModelList = serde_json::from_str(&format!(r#"{{"data":[{{"id":"m",{window}}}]}}"#)).unwrap();

            assert_eq!(Vec::from(list), [ModelObject { window: Some(7), ..ModelObject::ours("m") }], "{window}");
        }
    }
}
