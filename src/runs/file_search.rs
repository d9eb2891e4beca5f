//! The file search of a run: the function that the model calls, and what it reads of the results. Pure.
//!
//! The passages that a run has found are numbered from 1, over all its searches, in the order in which the model reads
//! them. Neighbouring chunks of a file are one passage.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::citations::Source;
use crate::api::run::RunSpec;
use crate::api::run_step::RunStep;
use crate::api::tool::{CalledFileSearch, CalledRankingOptions, CalledTool, FileSearch, FileSearchResult, Tool};
use crate::api::vector_store::HybridWeights;
use crate::api::{FileId, ToolCallId, VectorStoreId};
use crate::retrieval::rank::{FoundChunk, Passage, merge_neighbours};

/// The name of the function, unless a function of the client has it.
const NAME: &str = "file_search";
/// Maximum number of queries in one call.
const QUERIES_MAX: usize = 8;
/// Maximum length of a query, in characters.
const QUERY_CHARS_MAX: usize = 4_096;
/// Maximum number of results if the tool sets none.
///
/// Source: File Search guide, "Customizing File Search settings".
const RESULTS_DEFAULT: u32 = 20;

/// Returns the options of the run's file search, if it has one.
#[must_use]
pub fn options(spec: &RunSpec) -> Option<&FileSearch> {
    spec.tools.iter().find_map(|tool| match tool {
        Tool::FileSearch { file_search } => Some(file_search),
        Tool::Function { .. } | Tool::CodeInterpreter => None,
    })
}

/// Returns the name under which the file search is offered to the model. It differs from the names of all functions of the
/// run.
#[must_use]
pub fn name(spec: &RunSpec) -> String {
    free_name(spec, NAME)
}

/// Returns a name for a built-in tool that differs from the names of all functions of the run.
pub(super) fn free_name(spec: &RunSpec, name: &str) -> String {
    let is_taken =
        |name: &str| spec.tools.iter().any(|tool| matches!(tool, Tool::Function { function } if function.name == name));
    let mut name = name.to_owned();
    while is_taken(&name) {
        name.insert_str(0, "built_in_");
    }
    name
}

/// Returns the call of a search, without results.
#[must_use]
pub fn unanswered(options: &FileSearch) -> CalledTool {
    let ranking_options = CalledRankingOptions::from(&options.ranking_options);
    CalledTool::FileSearch { file_search: CalledFileSearch { ranking_options, results: Vec::new() } }
}

/// Returns the function for the model, in the form of chat completions.
#[must_use]
pub fn definition(name: &str) -> Value {
    json!({"type": "function", "function": {
        "name": name,
        "description": "Searches the user's files for passages. Call it for any question that the files may answer. Cite \
                        the passages that you use with their numbers in square brackets, such as [1].",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to search for: a question or keywords."}},
            "required": ["query"],
        },
    }})
}

/// Returns the maximum number of results of a search.
#[must_use]
pub fn results_max(options: &FileSearch) -> usize {
    options.max_num_results.unwrap_or(RESULTS_DEFAULT) as usize
}

/// Returns the weights of embeddings and words, if the tool sets them.
#[must_use]
pub fn weights(options: &FileSearch) -> Option<HybridWeights> {
    let given = options.ranking_options.hybrid_search.as_ref()?;
    let weight = |name| given.get(name).and_then(Value::as_f64).filter(|weight| *weight >= 0.0);
    let weights = HybridWeights { embedding: weight("embedding_weight")?, text: weight("text_weight")? };
    (weights.embedding + weights.text > 0.0).then_some(weights)
}

/// Returns the queries in the arguments of a call: every text in them, or the arguments themselves if they are not JSON.
#[must_use]
pub fn queries(arguments: &str) -> Vec<String> {
    let mut found = Vec::new();
    match serde_json::from_str::<Value>(arguments) {
        Ok(value) => collect_texts(&value, &mut found),
        Err(_) => found.push(arguments.to_owned()),
    }
    let clean = |text: String| text.trim().chars().take(QUERY_CHARS_MAX).collect::<String>();
    let mut queries: Vec<String> = found.into_iter().map(clean).filter(|text| !text.is_empty()).collect();
    queries.dedup();
    queries.truncate(QUERIES_MAX);
    queries
}

fn collect_texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| collect_texts(value, found)),
        Value::Object(members) => members.values().for_each(|value| collect_texts(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The passages that a run has found.
#[derive(Debug, Default)]
pub struct Passages {
    sources: Vec<Source>,
    /// The passages of each call.
    by_call: Vec<(ToolCallId, std::ops::Range<usize>)>,
}

impl Passages {
    /// Returns the passages of the searches in these steps.
    #[must_use]
    pub fn of(steps: &[RunStep]) -> Self {
        let mut all = Self::default();
        let mut search = 0;
        for call in steps.iter().filter(|step| !step.is_open()).flat_map(RunStep::tool_calls) {
            let CalledTool::FileSearch { file_search } = &call.tool else { continue };
            let start = all.sources.len();
            for (passage, found) in passages(&file_search.results).into_iter().enumerate() {
                let (file_id, file_name) = (found.file.id.clone(), found.file.name.to_owned());
                all.sources.push(Source { file_id, file_name, text: found.text, search, passage });
            }
            all.by_call.push((call.id.clone(), start..all.sources.len()));
            search += 1;
        }
        all
    }

    /// Returns the passages, in the order of their numbers.
    #[must_use]
    pub fn into_sources(self) -> Vec<Source> {
        self.sources
    }

    /// Returns the output of a search for the model.
    #[must_use]
    pub fn output(&self, call: &ToolCallId) -> String {
        let found = self.by_call.iter().find(|(known, _)| known == call).map(|(_, range)| range.clone());
        let range = found.filter(|range| !range.is_empty());
        let Some(range) = range else {
            return "No passages were found. Other words may find some; otherwise say that the files do not contain it."
                .to_owned();
        };
        let mut output =
            "Passages of the files. Cite each passage that you use with its number in square brackets, such \
                          as [1]. Write nothing else in these brackets.\n"
                .to_owned();
        for (source, number) in self.sources[range.clone()].iter().zip(range.start + 1..) {
            let (name, text) = (&source.file_name, source.text.trim());
            let _ = write!(output, "\n[{number}] {name}\n{text}\n");
        }
        output
    }
}

/// Returns the passages of search results. A chunk that two vector stores have is in one of them.
fn passages(results: &[FileSearchResult]) -> Vec<Passage<ResultFile<'_>>> {
    let mut seen = HashSet::new();
    let distinct = results.iter().filter(|result| seen.insert((&result.file_id, &result.text)));
    merge_neighbours(distinct.map(found_chunk).collect())
}

fn found_chunk(result: &FileSearchResult) -> FoundChunk<ResultFile<'_>> {
    FoundChunk {
        file: ResultFile { id: &result.file_id, name: &result.file_name, store: result.vector_store_id.as_ref() },
        number: result.chunk,
        text: result.text.clone(),
        overlap_bytes: result.overlap_bytes as usize,
        score: result.score,
    }
}

/// The file of a result. Two vector stores may divide it in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ResultFile<'a> {
    id: &'a FileId,
    name: &'a str,
    store: Option<&'a VectorStoreId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::id::Ids;
    use crate::api::vector_store::Attributes;

    #[test]
    fn queries_are_read_from_any_arguments() {
        for (arguments, expected) in [
            (r#"{"query": "a b"}"#, vec!["a b"]),
            (r#"{"queries": ["a", "b"]}"#, vec!["a", "b"]),
            (r#"{"q": " a "}"#, vec!["a"]),
            (r#""a""#, vec!["a"]),
            ("what is a", vec!["what is a"]),
            ("{}", vec![]),
            ("", vec![]),
            (r#"{"query": null, "top_k": 5}"#, vec![]),
        ] {
            assert_eq!(queries(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn neighbouring_chunks_are_one_passage() {
        let ids = Ids::counting();
        let (one, other): (FileId, FileId) = (ids.generate(), ids.generate());
        let (store, second): (VectorStoreId, VectorStoreId) = (ids.generate(), ids.generate());
        let result_of = |store: &VectorStoreId, file: &FileId, chunk, overlap_bytes, text: &str| FileSearchResult {
            vector_store_id: Some(store.clone()),
            file_id: file.clone(),
            file_name: "f".to_owned(),
            score: 0.5,
            attributes: Attributes::default(),
            chunk,
            overlap_bytes,
            text: text.to_owned(),
        };
        let result =
            |file: &FileId, chunk, overlap_bytes, text: &str| result_of(&store, file, chunk, overlap_bytes, text);
        let results = [
            result(&one, 3, 2, "cd ef"),
            result(&other, 0, 0, "other"),
            result(&one, 2, 0, "ab cd"),
            result(&one, 7, 0, "far"),
            // The same chunk in another vector store, and one that is divided in another way.
            result_of(&second, &one, 3, 2, "cd ef"),
            result_of(&second, &one, 4, 0, "cd"),
        ];

        let texts: Vec<String> = passages(&results).into_iter().map(|passage| passage.text).collect();

        assert_eq!(texts, ["ab cd ef", "other", "far", "cd"]);
    }
}
