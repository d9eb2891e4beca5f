//! How the text of a file is split into chunks.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::error::Error;
use crate::api::rule::{At, Request as _, Rule, custom, integer, object, out_of_range, tagged, tagged_schema};
use crate::api::tool::BareTool;
use crate::request;

/// Minimum and maximum of the size of a chunk, in tokens.
const CHUNK_TOKENS: (u32, u32) = (100, 4_096);
/// The size of a chunk of the strategy `auto`, in tokens.
const AUTO_CHUNK_TOKENS: u32 = 800;
/// The overlap of two chunks of the strategy `auto`, in tokens.
const AUTO_OVERLAP_TOKENS: u32 = 400;

/// How the text of a file is split into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ChunkingStrategy {
    /// Chunks of at most a given size.
    Static {
        /// The sizes.
        r#static: StaticChunking,
    },
}

/// The sizes of chunks. The overlap is at most half of the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StaticChunking {
    /// Maximum size of a chunk, in tokens: 100 to 4,096.
    pub max_chunk_size_tokens: u32,
    /// The overlap of two chunks, in tokens.
    pub chunk_overlap_tokens: u32,
}

impl Default for ChunkingStrategy {
    /// Returns the form in which the service returned the strategy `auto`.
    fn default() -> Self {
        let r#static =
            StaticChunking { max_chunk_size_tokens: AUTO_CHUNK_TOKENS, chunk_overlap_tokens: AUTO_OVERLAP_TOKENS };
        Self::Static { r#static }
    }
}

impl ChunkingStrategy {
    /// Returns the sizes.
    #[must_use]
    pub fn sizes(self) -> StaticChunking {
        let Self::Static { r#static: sizes } = self;
        sizes
    }
}

request! {
    /// The strategy `static` in a request.
    pub struct StaticChunkingStrategy {
        required r#static: StaticChunking = custom(sizes, |schemas| object::<StaticChunkingSizes>().schema(schemas));
    }
}

request! {
    /// The sizes of chunks in a request. The overlap can be at most half of the size.
    pub struct StaticChunkingSizes {
        required max_chunk_size_tokens: u32 = integer(CHUNK_TOKENS.0, CHUNK_TOKENS.1);
        required chunk_overlap_tokens: u32 = integer(0, CHUNK_TOKENS.1 / 2);
    }
}

fn sizes(value: Value, at: &At<'_>) -> Result<StaticChunking, Error> {
    let StaticChunkingSizes { max_chunk_size_tokens, chunk_overlap_tokens } = object().read(value, at)?;
    let overlap_max = max_chunk_size_tokens / 2;
    if chunk_overlap_tokens > overlap_max {
        let at = At::Member(at, "chunk_overlap_tokens");
        return Err(out_of_range(&at, "integer", &chunk_overlap_tokens, true, 0, overlap_max));
    }
    Ok(StaticChunking { max_chunk_size_tokens, chunk_overlap_tokens })
}

/// The rule for `chunking_strategy`.
#[must_use]
pub fn chunking_strategy() -> impl Rule<Out = ChunkingStrategy> + Copy {
    let schema = |schemas: &mut SchemaGenerator| {
        tagged_schema(vec![("auto", BareTool::schema(schemas)), ("static", StaticChunkingStrategy::schema(schemas))])
    };
    let read = |value, at: &At<'_>| {
        let (kind, members) = tagged(value, at, &["auto", "static"])?;
        if kind == "auto" {
            return object::<BareTool>().read(members.into(), at).map(|_| ChunkingStrategy::default());
        }
        let StaticChunkingStrategy { r#static } = object().read(members.into(), at)?;
        Ok(ChunkingStrategy::Static { r#static })
    };
    custom(read, schema)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Value, (String, Option<String>)> {
        let read = chunking_strategy().read(value, &At::Member(&At::Root, "chunking_strategy"));
        read.map(|strategy| serde_json::to_value(strategy).unwrap()).map_err(|error| (error.message, error.param))
    }

    fn sizes(size: u32, overlap: u32) -> Value {
        json!({"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap}})
    }

    #[test]
    fn strategies_are_returned_in_the_static_form() {
        assert_eq!(read(json!({"type": "auto"})), Ok(sizes(800, 400)));
        for valid in [sizes(100, 0), sizes(101, 50), sizes(4_096, 2_048)] {
            assert_eq!(read(valid.clone()), Ok(valid));
        }
    }

    #[test]
    fn sizes_are_limited_and_the_overlap_is_at_most_half_of_the_size() {
        let param = |name: &str| Some(format!("chunking_strategy.static.{name}"));
        for (size, overlap, name) in [
            (99, 0, "max_chunk_size_tokens"),
            (4_097, 0, "max_chunk_size_tokens"),
            (101, 51, "chunk_overlap_tokens"),
            (4_096, 2_049, "chunk_overlap_tokens"),
        ] {
            assert_eq!(read(sizes(size, overlap)).unwrap_err().1, param(name), "{size} {overlap}");
        }
        assert_eq!(
            read(sizes(200, 101)).unwrap_err().0,
            "Invalid 'chunking_strategy.static.chunk_overlap_tokens': integer above maximum value. Expected a value <= \
             100, but got 101 instead."
        );
        assert_eq!(
            read(json!({"type": "static"})).unwrap_err().0,
            "Missing required parameter: 'chunking_strategy.static'."
        );
        assert_eq!(
            read(json!({"type": "other"})).unwrap_err().0,
            "Invalid value: 'other'. Supported values are: 'auto' and 'static'."
        );
    }
}
