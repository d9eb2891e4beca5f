//! Runs the built-in tools that the model has called.
//!
//! The calls are stored before the tools run, and the results afterwards. If the server is lost in between, searches run
//! again, and code does not: see [`super::machine`].

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::drive::{DriveError, Driver, LeasedRun};
use super::file_search;
use super::machine::{Input, Progress};
use super::model_turn::{failed, in_background};
use crate::api::organization::usage::CallOrigin;
use crate::api::run::RunSpec;
use crate::api::tool::{
    CalledCodeInterpreter, CalledFileSearch, CalledRankingOptions, CalledTool, FileSearch, FileSearchResult,
    ToolResources,
};
use crate::api::usage::Usage;
use crate::api::{FileId, VectorStoreId};
use crate::llm::tokens;
use crate::retrieval;
use crate::retrieval::search::{Caller, Hit, Query};
use crate::tools::code_interpreter::sessions::{self, Call, Outcome};
use crate::work::Attempt;

/// Maximum number of searches of one turn that run at the same time.
const SEARCHES_MAX: usize = 4;
/// How long a run waits for the files of its thread that are being processed, from its creation.
///
/// Source: File Search guide, "Ensuring vector store readiness".
const READY_MAX: Duration = Duration::from_mins(1);
/// How often a run looks whether the files of its thread are processed.
const READY_POLL: Duration = Duration::from_millis(250);
/// Maximum share of the model's context window for the results of one turn.
const WINDOW_SHARE: usize = 2;

/// Why a run fails while its tools run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// A vector store has expired.
    #[error("Vector store '{0}' has expired.")]
    Expired(VectorStoreId),
    /// The code interpreter is not installed.
    #[error("{0}")]
    NoInterpreter(String),
}

/// The vector stores of a run.
#[derive(Debug, Default)]
struct Stores {
    all: Vec<VectorStoreId>,
    of_thread: Vec<VectorStoreId>,
}

impl Driver {
    /// Runs the built-in tools of the open step, and returns the outcome as an input for the machine.
    pub(super) async fn run_tools(&self, run: &mut LeasedRun, attempt: &Attempt) -> Result<Input, DriveError> {
        let spec = run.current.progress.run.spec.clone();
        let mut interrupted = std::pin::pin!(self.interrupted(&spec, run.live.clone(), attempt.stopping()));
        let ended = tokio::select! {
            biased;
            interruption = &mut interrupted => return Box::pin(self.resolve(interruption, run, Usage::default())).await,
            ended = Box::pin(self.run_next(&run.current.progress)) => ended?,
        };
        Ok(ended.unwrap_or_else(|error| failed(error.to_string(), Usage::default())))
    }

    /// Runs the next code of the open step, or all its searches after all code has ended. Returns the outcome as an input for
    /// the machine, or why the run must fail.
    async fn run_next(&self, progress: &Progress) -> Result<Result<Input, ToolError>, DriveError> {
        match progress.running_code() {
            Some((index, call)) => {
                let ended = self.run_code(&progress.run.spec, call).await?;
                Ok(ended.map(|call| Input::CodeEnded { index, call }))
            }
            None => Ok(self.tool_results(progress).await?.map(Input::ToolsEnded)),
        }
    }

    async fn run_code(
        &self,
        spec: &RunSpec,
        call: &CalledCodeInterpreter,
    ) -> Result<Result<CalledCodeInterpreter, ToolError>, DriveError> {
        let files = self.code_files(spec).await?;
        let code = Call { scope: &spec.scope, thread: &spec.thread_id, files: &files, code: &call.input };
        match self.dependencies.interpreter.run(code, &CancellationToken::new()).await {
            Ok(Outcome { outputs, result, files }) => {
                let input = call.input.clone();
                Ok(Ok(CalledCodeInterpreter { input, outputs, result: Some(result), files }))
            }
            Err(sessions::Error::Unavailable(reason)) => Ok(Err(ToolError::NoInterpreter(reason))),
            Err(sessions::Error::Store(error)) => Err(error.into()),
            Err(error @ (sessions::Error::Sandbox(_) | sessions::Error::Folder(_))) => {
                tracing::error!(error = &error as &dyn std::error::Error, "failed to run code");
                Ok(Err(ToolError::NoInterpreter("The code interpreter has failed; see the server's log.".to_owned())))
            }
        }
    }

    /// Returns the files that the code of a run can read: those of the run, its assistant and its thread.
    async fn code_files(&self, spec: &RunSpec) -> Result<Vec<FileId>, DriveError> {
        let store = &self.dependencies.store;
        let context = self.retry(|| store.run_context(&spec.scope, Some(&spec.thread_id), &spec.assistant_id)).await?;
        let of_assistant = context.assistant.iter().flat_map(|assistant| assistant.tool_resources.code_files());
        let of_thread = context.thread.iter().flat_map(|thread| thread.tool_resources.code_files());
        let mut files = Vec::new();
        for id in spec.tool_resources.code_files().iter().chain(of_assistant).chain(of_thread) {
            if !files.contains(id) {
                files.push(id.clone());
            }
        }
        Ok(files)
    }

    /// Returns the results of the open step's calls, in order, or why the run must fail.
    async fn tool_results(&self, progress: &Progress) -> Result<Result<Vec<CalledTool>, ToolError>, DriveError> {
        let Some(step) = progress.running_tools() else { return Ok(Ok(Vec::new())) };
        let spec = &progress.run.spec;
        let stores = self.vector_stores(spec).await?;
        self.wait_until_processed(spec, &stores.of_thread).await?;
        let tokens_max = self.result_tokens_max(spec).await / step.tool_calls().len().max(1);
        let arguments = step.turn.as_ref().map(|turn| turn.arguments.as_slice()).unwrap_or_default();
        let calls: Vec<_> = step.tool_calls().iter().zip(arguments).collect();
        let mut results = Vec::with_capacity(calls.len());
        for together in calls.chunks(SEARCHES_MAX) {
            let mut searches: Vec<BoxFuture<'_, _>> = Vec::new();
            for (call, arguments) in together {
                searches.push(match &call.tool {
                    CalledTool::FileSearch { .. } => Box::pin(self.search(spec, &stores.all, arguments, tokens_max)),
                    ended @ (CalledTool::CodeInterpreter { .. } | CalledTool::Function { .. }) => {
                        Box::pin(std::future::ready(Ok(ended.clone())))
                    }
                });
            }
            match futures_util::future::try_join_all(searches).await {
                Ok(found) => results.extend(found),
                Err(SearchFailure::Run(error)) => return Ok(Err(error)),
                Err(SearchFailure::Attempt(error)) => return Err(error),
            }
        }
        Ok(Ok(results))
    }

    async fn search(
        &self,
        spec: &RunSpec,
        stores: &[VectorStoreId],
        arguments: &str,
        tokens_max: usize,
    ) -> Result<CalledTool, SearchFailure> {
        // The tool is in the specification, which never changes.
        let options = file_search::options(spec).cloned().unwrap_or_default();
        let queries = file_search::queries(arguments);
        let found =
            if queries.is_empty() { Vec::new() } else { self.search_stores(spec, stores, queries, &options).await? };
        let results = in_background(move || within_tokens(found, tokens_max)).await.map_err(SearchFailure::Attempt)?;
        let ranking_options = CalledRankingOptions::from(&options.ranking_options);
        Ok(CalledTool::FileSearch { file_search: CalledFileSearch { ranking_options, results } })
    }

    /// Searches the vector stores that exist, and retries while the database is unavailable.
    async fn search_stores(
        &self,
        spec: &RunSpec,
        stores: &[VectorStoreId],
        queries: Vec<String>,
        options: &FileSearch,
    ) -> Result<Vec<FileSearchResult>, SearchFailure> {
        let mut query = Query::new(queries, file_search::results_max(options));
        query.score_threshold = options.ranking_options.score_threshold;
        query.weights = file_search::weights(options);
        query.caller = Caller { api_key_id: spec.api_key_id.clone(), origin: Some(CallOrigin::of(spec)) };
        let mut stores = stores.to_vec();
        loop {
            if stores.is_empty() {
                return Ok(Vec::new());
            }
            let (retrieval, searched) = (&self.dependencies.retrieval, &stores);
            let found = self.retry(|| async {
                match retrieval.search(&spec.scope, searched, &query).await {
                    Err(retrieval::search::Error::Store(error)) => Err(error),
                    other => Ok(other),
                }
            });
            match found.await.map_err(|error| SearchFailure::Attempt(error.into()))? {
                Ok(found) => return Ok(found.hits.into_iter().map(result).collect()),
                // It was deleted.
                Err(retrieval::search::Error::NoStore(deleted)) => stores.retain(|store| *store != deleted),
                Err(retrieval::search::Error::Expired(store)) => {
                    return Err(SearchFailure::Run(ToolError::Expired(store)));
                }
                Err(retrieval::search::Error::Store(error)) => return Err(SearchFailure::Attempt(error.into())),
            }
        }
    }

    /// Returns the vector stores of the run, its assistant and its thread.
    async fn vector_stores(&self, spec: &RunSpec) -> Result<Stores, DriveError> {
        let store = &self.dependencies.store;
        let context = self.retry(|| store.run_context(&spec.scope, Some(&spec.thread_id), &spec.assistant_id)).await?;
        let of = |resources: &ToolResources| {
            resources.file_search.as_ref().map(|resources| resources.vector_store_ids.clone()).unwrap_or_default()
        };
        let of_thread = context.thread.as_ref().map(|thread| of(&thread.tool_resources)).unwrap_or_default();
        let of_assistant = context.assistant.as_ref().map(|assistant| of(&assistant.tool_resources));
        let all = of(&spec.tool_resources).into_iter().chain(of_assistant.unwrap_or_default());
        let all: BTreeSet<VectorStoreId> = all.chain(of_thread.iter().cloned()).collect();
        Ok(Stores { all: all.into_iter().collect(), of_thread })
    }

    /// Waits until the files of these vector stores are processed, but not longer than [`READY_MAX`] from the creation of
    /// the run.
    async fn wait_until_processed(&self, spec: &RunSpec, stores: &[VectorStoreId]) -> Result<(), DriveError> {
        let until = spec.created_at.plus(READY_MAX.as_secs());
        for store in stores {
            while self.dependencies.clock.now() < until && self.is_processing(spec, store).await? {
                tokio::time::sleep(READY_POLL).await;
            }
        }
        Ok(())
    }

    /// Returns whether files of a vector store are being processed.
    async fn is_processing(&self, spec: &RunSpec, store: &VectorStoreId) -> Result<bool, DriveError> {
        let state = self.retry(|| self.dependencies.store.store_state(&spec.scope, store)).await?;
        Ok(state.is_some_and(|state| state.is_in_progress))
    }

    /// Returns the maximum number of tokens of the results of one turn.
    async fn result_tokens_max(&self, spec: &RunSpec) -> usize {
        let models = &self.dependencies.models;
        let route = models.route(&spec.model).await;
        let of_window = models.window(&spec.model, &route).await.map(|window| window as usize / WINDOW_SHARE);
        of_window.map_or(self.settings.search_tokens_max, |max| max.min(self.settings.search_tokens_max))
    }
}

/// Why a search has no results.
enum SearchFailure {
    /// The run fails.
    Run(ToolError),
    /// The attempt fails, and the run is tried again.
    Attempt(DriveError),
}

fn result(hit: Hit) -> FileSearchResult {
    FileSearchResult {
        file_id: hit.file_id,
        file_name: hit.filename,
        vector_store_id: Some(hit.store),
        score: hit.score,
        attributes: hit.attributes,
        chunk: hit.number,
        overlap_bytes: u32::try_from(hit.overlap_bytes).unwrap_or(u32::MAX),
        text: hit.text,
    }
}

/// Returns the best results that have at most this many tokens together; at least the best one.
fn within_tokens(found: Vec<FileSearchResult>, tokens_max: usize) -> Vec<FileSearchResult> {
    let mut tokens = 0;
    let mut is_first = true;
    let fits = |result: &FileSearchResult| {
        tokens += tokens::estimate(&result.text);
        std::mem::take(&mut is_first) || tokens <= tokens_max
    };
    found.into_iter().take_while(fits).collect()
}
