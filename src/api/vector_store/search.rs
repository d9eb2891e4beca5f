//! Searches of a vector store.

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Attributes, Filter, TextPart, filter, schema_of_request};
use crate::api::error::Error;
use crate::api::id::FileId;
use crate::api::rule::{At, Rule, array, boolean, custom, decimal, integer, object, one_of, string, wrong_type};
use crate::request;

/// Maximum number of queries of a request. The service documents none; this bounds the work.
const QUERIES_MAX: usize = 16;
/// Maximum length of a query, in characters. The service documents none; this bounds the work.
const QUERY_CHARS_MAX: usize = 16_384;
/// Maximum number of results.
const RESULTS_MAX: u32 = 50;
/// Default number of results.
const RESULTS_DEFAULT: u32 = 10;

request! {
    /// Body of `POST /vector_stores/{vector_store_id}/search`.
    pub struct VectorStoreSearchRequest {
        required query: Vec<String> = custom(queries, queries_schema);
        optional rewrite_query: bool = boolean();
        optional max_num_results: u32 = integer(1, RESULTS_MAX);
        optional filters: Filter = filter();
        optional ranking_options: SearchRankingOptions = object();
    }
}

request! {
    /// The `ranking_options` of a search. There is one ranking: all rankers are equivalent.
    pub struct SearchRankingOptions {
        optional ranker: &'static str = one_of(&RANKERS);
        optional score_threshold: f64 = decimal(0.0, 1.0);
        optional hybrid_search: HybridWeights = custom(weights, schema_of_request::<HybridSearch>);
    }
}

/// The rankers that the service had, in `/search` and in the tool.
const RANKERS: [(&str, &str); 4] = [
    ("none", "none"),
    ("auto", "auto"),
    ("default-2024-11-15", "default-2024-11-15"),
    ("default_2024_08_21", "default_2024_08_21"),
];

request! {
    /// The weights of the two searches in a request. At least one is greater than 0.
    pub struct HybridSearch {
        required embedding_weight: f64 = decimal(0.0, WEIGHT_MAX);
        required text_weight: f64 = decimal(0.0, WEIGHT_MAX);
    }
}

/// Maximum of a weight. The service documents none; this keeps sums finite.
const WEIGHT_MAX: f64 = 1e6;

/// The weights of the two searches: by meaning and by words. At least one is greater than 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HybridWeights {
    /// The weight of the search by embeddings.
    pub embedding: f64,
    /// The weight of the search by words.
    pub text: f64,
}

impl VectorStoreSearchRequest {
    /// Returns the maximum number of results.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.max_num_results.unwrap_or(RESULTS_DEFAULT) as usize
    }

    /// Returns the minimum score of a result, 0 to 1.
    #[must_use]
    pub fn score_threshold(&self) -> f64 {
        self.ranking_options.as_ref().and_then(|options| options.score_threshold).unwrap_or(0.0)
    }

    /// Returns the weights of the two searches, if the request has any.
    #[must_use]
    pub fn weights(&self) -> Option<HybridWeights> {
        self.ranking_options.as_ref().and_then(|options| options.hybrid_search)
    }
}

fn queries(value: Value, at: &At<'_>) -> Result<Vec<String>, Error> {
    let query = string(1, QUERY_CHARS_MAX);
    match value {
        Value::String(_) => Ok(vec![query.read(value, at)?]),
        Value::Array(_) => array(query, 1, QUERIES_MAX).read(value, at),
        other => Err(wrong_type(at, "one of a string or array of strings", &other)),
    }
}

fn queries_schema(schemas: &mut SchemaGenerator) -> Value {
    let query = string(1, QUERY_CHARS_MAX);
    json!({"anyOf": [query.schema(schemas), array(query, 1, QUERIES_MAX).schema(schemas)]})
}

fn weights(value: Value, at: &At<'_>) -> Result<HybridWeights, Error> {
    let HybridSearch { embedding_weight: embedding, text_weight: text } = object().read(value, at)?;
    if embedding > 0.0 || text > 0.0 {
        return Ok(HybridWeights { embedding, text });
    }
    let message =
        format!("Invalid '{at}': at least one of 'embedding_weight' and 'text_weight' must be greater than 0.");
    Err(Error::invalid(message).at(at.to_string()).code("invalid_value"))
}

/// The response of a search.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreSearchResultsPage")]
pub struct SearchResults<'a> {
    object: &'static str,
    search_query: &'a [String],
    data: Vec<SearchResult<'a>>,
    has_more: bool,
    next_page: Option<&'a str>,
}

impl<'a> SearchResults<'a> {
    /// Creates the response with all results of these queries.
    #[must_use]
    pub fn new(search_query: &'a [String], data: Vec<SearchResult<'a>>) -> Self {
        Self { object: "vector_store.search_results.page", search_query, data, has_more: false, next_page: None }
    }
}

/// A result of a search: a chunk of a file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "VectorStoreSearchResult")]
pub struct SearchResult<'a> {
    file_id: &'a FileId,
    filename: &'a str,
    score: f64,
    attributes: &'a Attributes,
    content: [TextPart<'a>; 1],
}

impl<'a> SearchResult<'a> {
    /// Creates a result with a score from 0 to 1.
    #[must_use]
    pub fn new(file_id: &'a FileId, filename: &'a str, score: f64, attributes: &'a Attributes, text: &'a str) -> Self {
        Self { file_id, filename, score, attributes, content: [TextPart::new(text)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rule::Request as _;

    fn parse(request: Value) -> Result<VectorStoreSearchRequest, Error> {
        VectorStoreSearchRequest::parse(request)
    }

    #[test]
    fn a_query_is_a_string_or_a_list_of_strings() {
        assert_eq!(parse(json!({"query": "a"})).unwrap().query, ["a"]);
        assert_eq!(parse(json!({"query": ["a", "b"]})).unwrap().query, ["a", "b"]);
        for (query, param) in [
            (json!(""), "query"),
            (json!([]), "query"),
            (json!(["a", ""]), "query[1]"),
            (json!(vec!["a"; 17]), "query"),
            (json!(1), "query"),
            (json!(null), "query"),
        ] {
            assert_eq!(parse(json!({"query": query})).unwrap_err().param.as_deref(), Some(param), "{query}");
        }
    }

    #[test]
    fn options_have_the_defaults_of_the_service() {
        let request = parse(json!({"query": "a"})).unwrap();
        assert_eq!((request.limit(), request.weights()), (10, None));
        assert!(request.score_threshold().abs() < f64::EPSILON);

        let options = json!({"ranker": "none", "score_threshold": 0.5,
            "hybrid_search": {"embedding_weight": 0, "text_weight": 1}});
        let request = parse(json!({"query": "a", "max_num_results": 50, "ranking_options": options})).unwrap();
        assert_eq!((request.limit(), request.weights()), (50, Some(HybridWeights { embedding: 0.0, text: 1.0 })));
        assert!((request.score_threshold() - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn invalid_options_are_rejected_with_the_parameter_name() {
        for (options, param) in [
            (json!({"max_num_results": 51}), "max_num_results"),
            (json!({"max_num_results": 0}), "max_num_results"),
            (json!({"ranking_options": {"ranker": "best"}}), "ranking_options.ranker"),
            (json!({"ranking_options": {"score_threshold": 1.1}}), "ranking_options.score_threshold"),
            (
                json!({"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}}),
                "ranking_options.hybrid_search",
            ),
            (json!({"ranking_options": {"hybrid_search": {}}}), "ranking_options.hybrid_search.embedding_weight"),
            (json!({"filters": {"type": "eq"}}), "filters.key"),
        ] {
            let mut request = options.clone();
            request["query"] = json!("a");
            assert_eq!(parse(request).unwrap_err().param.as_deref(), Some(param), "{options}");
        }
    }
}
