//! Token usage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The token usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    #[serde(default)]
    pub prompt_token_details: PromptTokenDetails,
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Details of prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct PromptTokenDetails {
    pub cached_tokens: u32,
}

/// Details of completion tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the fields are those of the API reference")]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: u32,
}

impl Usage {
    /// Returns the usage of a model call with this many prompt and completion tokens.
    #[must_use]
    pub fn counted(prompt: usize, completion: usize) -> Self {
        let number = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt_tokens, completion_tokens) = (number(prompt), number(completion));
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self { prompt_tokens, completion_tokens, total_tokens, ..Self::default() }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(more.total_tokens);
        let (cached, reasoning) = (more.prompt_token_details, more.completion_tokens_details);
        self.prompt_token_details.cached_tokens += cached.cached_tokens;
        self.completion_tokens_details.reasoning_tokens += reasoning.reasoning_tokens;
    }
}
