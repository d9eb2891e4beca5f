//! Searches a vector store in parts, each of which is an index for a moment: for those that do not fit into the cache.

use std::sync::Arc;

use super::snapshot::{Changes, Failure, FileFacts, Vectors};
use super::stored::blocking;
use super::{Error, Inner, Located, Question};
use crate::api::vector_store::{Attributes, IndexSummary};
use crate::api::{Scope, VectorStoreId};
use crate::retrieval::index::{Change, Query, Statistics, StoreIndex};
use crate::retrieval::lexical::{Analyses, Language, LexicalQuery};
use crate::retrieval::rank::DEPTH;
use crate::store;

/// The parts of a vector store.
struct Parts<'a> {
    changes: Changes<'a>,
    dimensions: Option<usize>,
}

impl Parts<'_> {
    /// Returns the next part, with the files whose attributes are wanted.
    async fn next(
        &mut self,
        is_wanted: &(dyn Fn(&Attributes) -> bool + Sync),
    ) -> Result<Option<StoreIndex<FileFacts>>, Error> {
        loop {
            // The chunks of other files are not read.
            let page = match self.changes.next(&|file| !is_wanted(&file.attributes)).await {
                Ok(Some(page)) => page,
                Err(Failure::Store(error)) => return Err(error.into()),
                // No model is wanted beside the given one, and nothing is known before, so the others do not happen.
                Ok(None) | Err(Failure::NewModel(_) | Failure::Forgotten) => return Ok(None),
            };
            let is_added = |change: &Change<FileFacts>| matches!(change, Change::Add(_));
            let added: Vec<_> = page.changes.into_iter().filter(is_added).collect();
            if added.is_empty() {
                continue;
            }
            let dimensions = self.dimensions;
            let build = move || StoreIndex::new(dimensions).apply(added);
            let part = tokio::task::spawn_blocking(build).await.map_err(|_| store::Error::timed_out())?;
            return Ok(Some(part));
        }
    }
}

/// Returns the languages of a vector store.
fn analyses(summary: &IndexSummary) -> Analyses {
    let mut analyses = Analyses::default();
    for group in summary.groups.iter().filter(|group| group.chunks > 0) {
        analyses.insert(group.language.as_deref().and_then(Language::from_code));
    }
    analyses
}

impl Inner {
    /// Returns the candidates of each query in a vector store: in a first pass through its parts, counts what their scores
    /// depend on; in a second one, computes them.
    pub(super) async fn scan(
        &self,
        scope: &Scope,
        id: &VectorStoreId,
        number: usize,
        question: &Arc<Question>,
        model: Option<&str>,
    ) -> Result<Vec<Vec<Located>>, Error> {
        let _permit = self.scans.acquire().await.ok();
        let summary = self.store.index_summary(scope, id).await?.ok_or_else(|| Error::NoStore(id.clone()))?;
        let analyses = analyses(&summary);
        let vectors = model.map_or(Vectors::None { wanted: None }, Vectors::Of);
        let dimensions = model.and_then(|model| model.rsplit_once('@')?.1.parse().ok());
        let parts = || Parts { changes: Changes::new(&*self.store, id, vectors, 0), dimensions };
        let lexical: Arc<Vec<LexicalQuery>> =
            Arc::new(question.queries.iter().map(|text| LexicalQuery::new(text, analyses)).collect());
        let mut statistics: Vec<Statistics> = lexical.iter().map(Statistics::new).collect();
        let mut bytes = 0;
        let mut first_pass = parts();
        while let Some(part) = first_pass.next(&|_| true).await? {
            bytes += part.bytes();
            let lexical = lexical.clone();
            statistics = blocking(move || {
                for (sum, lexical) in statistics.iter_mut().zip(lexical.iter()) {
                    sum.add(&part.statistics(lexical));
                }
                statistics
            })
            .await?;
        }
        self.cache.measured(&Self::key(scope, id), bytes);
        let statistics = Arc::new(statistics);
        let mut candidates: Vec<Vec<Located>> = question.queries.iter().map(|_| Vec::new()).collect();
        let is_wanted =
            |attributes: &Attributes| question.filter.as_ref().is_none_or(|filter| filter.matches(attributes));
        let mut second_pass = parts();
        while let Some(part) = second_pass.next(&is_wanted).await? {
            let (lexical, statistics, question) = (lexical.clone(), statistics.clone(), question.clone());
            candidates = blocking(move || {
                for (query, all) in candidates.iter_mut().enumerate() {
                    let vector = question.vector(query);
                    let query = Query {
                        lexical: &lexical[query],
                        statistics: &statistics[query],
                        vector: vector.map(|vector| &**vector),
                        depth: DEPTH,
                        nearest: &[],
                    };
                    all.extend(part.candidates(&query, None).into_iter().map(|candidate| Located {
                        store: number,
                        candidate,
                        facts: part.file(candidate.file).map(|(facts, _)| facts.clone()),
                    }));
                    keep_best(all);
                }
                candidates
            })
            .await?;
        }
        Ok(candidates)
    }
}

/// Keeps only those that are among the best by words or by vector, to bound the memory.
fn keep_best(all: &mut Vec<Located>) {
    if all.len() <= 4 * DEPTH {
        return;
    }
    let mut kept = vec![false; all.len()];
    for score in [|located: &Located| Some(located.candidate.lexical), |located: &Located| located.candidate.vector] {
        let mut order: Vec<usize> = (0..all.len()).filter(|index| score(&all[*index]).is_some()).collect();
        order.sort_by(|left, right| {
            let by_score = score(&all[*right]).unwrap_or(0.0).total_cmp(&score(&all[*left]).unwrap_or(0.0));
            by_score.then_with(|| all[*left].place().cmp(&all[*right].place()))
        });
        for index in order.into_iter().take(DEPTH) {
            kept[index] = true;
        }
    }
    let mut kept = kept.into_iter();
    all.retain(|_| kept.next().unwrap_or(false));
}
