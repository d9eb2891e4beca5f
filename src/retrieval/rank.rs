//! Orders candidates by their words and embeddings. Pure.
//!
//! **Order.** Cosines of different embedding models have different ranges, and so have lexical scores of different queries.
//! Both are therefore scaled to 0..1 over the best [`DEPTH`] candidates of the query, and added with their weights ("min-max
//! normalized sum").
//!
//! **Score.** What is reported must mean the same for every query and store, so it does not depend on other candidates: with
//! `l` for the lexical score and `v` for the cosine (at least 0), it is `1 - (1 - l)^a · (1 - v)^b`, where `a` and `b` are
//! the weights, divided by the larger one. So `l` and `v` are independent evidence: either alone can make a score high,
//! without embeddings the score is `l`, and with a weight of 0 one of them does not count. A chunk is never reported with
//! more than the chunk before it in the order, so a threshold cuts off the end of a list.
//!
//! **No embedding.** A chunk without an embedding counts by its words alone, whether or not other chunks of its file have one:
//! `v` is 0, and so is the scaled cosine.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::index::Candidate;
use crate::api::vector_store::HybridWeights;

/// How many of the best candidates by words, and by embeddings, are scaled.
pub const DEPTH: usize = 1_000;
/// Number of chunks with a cosine of 0 that are assumed when there are fewer than [`DEPTH`]: in a small store, the worst
/// chunk may be a good one.
const ASSUMED_CHUNKS: f64 = 10.0;

/// The weights of a search that names none: embeddings and words count the same.
pub const DEFAULT_WEIGHTS: HybridWeights = HybridWeights { embedding: 0.5, text: 0.5 };

/// A candidate in the order of a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its index in the list that was ranked.
    pub index: usize,
    /// What the order is by, between 0 and 1. It can be compared with those of another query of the same request only.
    pub key: f64,
    /// The reported score, between 0 and 1.
    pub score: f64,
}

/// Returns the best candidates of a query in their order, at most `limit`, with a score of at least `score_threshold`.
///
/// If no candidate has a cosine, the order is that of the lexical scores. Candidates with a score of 0 are left out. Equal
/// ones are in the order of their files and numbers.
#[must_use]
pub fn rank(candidates: &[Candidate], weights: HybridWeights, limit: usize, score_threshold: f64) -> Vec<Ranked> {
    let scale = Scale::new(candidates, weights);
    let place = |ranked: &Ranked| (candidates[ranked.index].order, candidates[ranked.index].number);
    let compare = |left: &Ranked, right: &Ranked| -> Ordering {
        let by_key = right.key.total_cmp(&left.key);
        by_key.then(right.score.total_cmp(&left.score)).then_with(|| place(left).cmp(&place(right)))
    };
    let scored = candidates.iter().enumerate().map(|(index, candidate)| scale.rank(index, candidate));
    let mut ranked: Vec<Ranked> = scored.filter(|ranked| ranked.score > 0.0).collect();
    if ranked.len() > limit && limit > 0 {
        ranked.select_nth_unstable_by(limit - 1, compare);
    }
    ranked.truncate(limit);
    ranked.sort_unstable_by(compare);
    cut(&mut ranked, |ranked| &mut ranked.score, score_threshold);
    ranked
}

/// Lowers scores to those before them, and cuts off the end of the list whose scores are below the threshold.
fn cut<T>(ranked: &mut Vec<T>, score: impl Fn(&mut T) -> &mut f64, score_threshold: f64) {
    let mut lowest = 1.0_f64;
    let mut count = 0;
    for ranked in ranked.iter_mut() {
        let score = score(ranked);
        lowest = lowest.min(*score);
        *score = lowest;
        count += usize::from(lowest >= score_threshold);
    }
    ranked.truncate(count);
}

/// Merges the rankings of several queries: the best chunks by their best query, at most `limit`, with a score of at least
/// `score_threshold`. `T` identifies a chunk; equal ones are in the order of `T`.
#[must_use]
pub fn merge_queries<T: Ord + Copy>(
    rankings: impl IntoIterator<Item = Vec<(T, Ranked)>>,
    limit: usize,
    score_threshold: f64,
) -> Vec<(T, Ranked)> {
    let mut best: BTreeMap<T, Ranked> = BTreeMap::new();
    for (chunk, ranked) in rankings.into_iter().flatten() {
        let found = best.entry(chunk).or_insert(ranked);
        let is_better = ranked.key > found.key;
        found.score = found.score.max(ranked.score);
        if is_better {
            *found = Ranked { score: found.score, ..ranked };
        }
    }
    let mut merged: Vec<(T, Ranked)> = best.into_iter().collect();
    // The sort is stable.
    merged.sort_by(|(_, left), (_, right)| right.key.total_cmp(&left.key).then(right.score.total_cmp(&left.score)));
    merged.truncate(limit);
    cut(&mut merged, |(_, ranked)| &mut ranked.score, score_threshold);
    merged
}

/// How the scores of a query's candidates are combined.
struct Scale {
    lexical: Span,
    /// `None` if no candidate has a cosine: then words count alone.
    vector: Option<Span>,
    weights: HybridWeights,
}

/// The range of scores that is scaled to 0..1.
#[derive(Debug, Clone, Copy)]
struct Span {
    bottom: f64,
    top: f64,
}

impl Span {
    fn scale(self, score: f64) -> f64 {
        if self.top > self.bottom { ((score - self.bottom) / (self.top - self.bottom)).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl Scale {
    fn new(candidates: &[Candidate], weights: HybridWeights) -> Self {
        let lexical = candidates.iter().map(|candidate| candidate.lexical).filter(|score| *score > 0.0);
        let (lexical, has_more) = best_span(lexical.collect());
        // If fewer chunks have any of the words, the others have a score of 0.
        let lexical = Span { bottom: if has_more { lexical.bottom } else { 0.0 }, ..lexical };
        let vectors: Vec<f32> = candidates.iter().filter_map(|candidate| candidate.vector).collect();
        let count = vectors.len();
        let vector = (count > 0).then(|| {
            let (vector, has_more) = best_span(vectors);
            #[expect(clippy::cast_precision_loss, reason = "at most twice the depth")]
            let share = count as f64 / (count as f64 + ASSUMED_CHUNKS);
            Span { bottom: if has_more { vector.bottom } else { vector.bottom * share }, ..vector }
        });
        Self { lexical, vector, weights }
    }

    fn rank(&self, index: usize, candidate: &Candidate) -> Ranked {
        let lexical = f64::from(candidate.lexical).clamp(0.0, 1.0);
        let Some(span) = self.vector else { return Ranked { index, key: lexical, score: lexical } };
        let vector = candidate.vector.map(f64::from);
        let HybridWeights { embedding, text } = self.weights;
        let total = embedding + text;
        let scaled_vector = vector.map_or(0.0, |vector| span.scale(vector));
        let key = (text * self.lexical.scale(lexical) + embedding * scaled_vector) / total;
        let cosine = vector.unwrap_or(0.0).clamp(0.0, 1.0);
        let max = embedding.max(text);
        let score = 1.0 - power(1.0 - lexical, text / max) * power(1.0 - cosine, embedding / max);
        Ranked { index, key, score }
    }
}

fn power(base: f64, exponent: f64) -> f64 {
    // By far the most common exponent.
    if (exponent - 1.0).abs() < f64::EPSILON { base } else { base.powf(exponent) }
}

/// Returns the span of the best [`DEPTH`] scores, and whether there are as many.
fn best_span(mut scores: Vec<f32>) -> (Span, bool) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let has_more = scores.len() >= DEPTH;
    let bottom = if has_more {
        *scores.select_nth_unstable_by(DEPTH - 1, |left, right| right.total_cmp(left)).1
    } else {
        scores.iter().copied().fold(f32::INFINITY, f32::min)
    };
    let span = if scores.is_empty() {
        Span { bottom: 0.0, top: 0.0 }
    } else {
        Span { bottom: bottom.into(), top: top.into() }
    };
    (span, has_more)
}

/// A chunk that was found, for [`merge_neighbours`].
#[derive(Debug, Clone, PartialEq)]
pub struct FoundChunk<K> {
    /// The file.
    pub file: K,
    /// The chunk's number in the file.
    pub number: u32,
    /// The chunk's text.
    pub text: String,
    /// The number of leading bytes of the text that the chunk before has at its end.
    pub overlap_bytes: usize,
    /// Its score.
    pub score: f64,
}

/// A part of a file: chunks that follow each other, as one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Passage<K> {
    /// The file.
    pub file: K,
    /// The numbers of the chunks.
    pub numbers: RangeInclusive<u32>,
    /// The text, where overlaps of the chunks are not repeated.
    pub text: String,
    /// The best score of the chunks.
    pub score: f64,
}

/// Merges found chunks that follow each other in a file. The passages are in the order of their best chunks.
#[must_use]
pub fn merge_neighbours<K: Clone + Eq>(chunks: Vec<FoundChunk<K>>) -> Vec<Passage<K>> {
    // Each group has the indexes of chunks that follow each other.
    let mut left: Vec<Option<FoundChunk<K>>> = chunks.into_iter().map(Some).collect();
    let mut passages = Vec::new();
    for index in 0..left.len() {
        let Some(first) = left[index].take() else { continue };
        let mut group = vec![first];
        // A list of results is short, so a search through all of it for each neighbour is fast.
        while let Some(neighbour) = left.iter_mut().find_map(|chunk| chunk.take_if(|chunk| adjoins(&group, chunk))) {
            let at = group.partition_point(|chunk| chunk.number < neighbour.number);
            group.insert(at, neighbour);
        }
        passages.extend(passage(group));
    }
    passages
}

fn adjoins<K: Eq>(group: &[FoundChunk<K>], chunk: &FoundChunk<K>) -> bool {
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return false };
    first.file == chunk.file && (chunk.number + 1 == first.number || last.number + 1 == chunk.number)
}

fn passage<K>(group: Vec<FoundChunk<K>>) -> Option<Passage<K>> {
    let mut chunks = group.into_iter();
    let first = chunks.next()?;
    let mut passage =
        Passage { file: first.file, numbers: first.number..=first.number, text: first.text, score: first.score };
    for chunk in chunks {
        passage.text.push_str(chunk.text.get(chunk.overlap_bytes..).unwrap_or(&chunk.text));
        passage.numbers = *passage.numbers.start()..=chunk.number;
        passage.score = passage.score.max(chunk.score);
    }
    Some(passage)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::retrieval::index::FileLocation;

    fn candidate(order: i64, lexical: f32, vector: Option<f32>) -> Candidate {
        Candidate { lexical, vector, order, number: 0, file: FileLocation::default() }
    }

    fn order(ranked: &[Ranked]) -> Vec<usize> {
        ranked.iter().map(|ranked| ranked.index).collect()
    }

    #[test]
    fn without_embeddings_the_score_is_the_lexical_one() {
        let candidates =
            [candidate(0, 0.2, None), candidate(1, 0.6, None), candidate(2, 0.0, None), candidate(3, 0.6, None)];

        let ranked = rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0);

        assert_eq!(order(&ranked), [1, 3, 0]);
        assert!((ranked[0].score - 0.6).abs() < 1e-6 && (ranked[2].score - 0.2).abs() < 1e-6);
    }

    #[test]
    fn words_and_embeddings_are_combined() {
        let candidates: Vec<Candidate> = [(0.5, 0.1), (0.0, 0.8), (0.4, 0.7), (0.0, 0.0)]
            .into_iter()
            .zip(0..)
            .map(|((lexical, vector), order)| candidate(order, lexical, Some(vector)))
            .collect();

        let ranked = rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0);

        assert_eq!(order(&ranked), [2, 0, 1]);
        assert!((ranked[0].score - (1.0 - 0.6 * 0.3)).abs() < 1e-6);
        let by_words = rank(&candidates, HybridWeights { embedding: 0.0, text: 2.0 }, 10, 0.0);
        assert_eq!(order(&by_words), [0, 2]);
        assert!((by_words[0].score - 0.5).abs() < 1e-6);
        let by_vectors = rank(&candidates, HybridWeights { embedding: 1.0, text: 0.0 }, 10, 0.0);
        assert_eq!(order(&by_vectors), [1, 2, 0]);
        assert!((by_vectors[0].score - 0.8).abs() < 1e-6);
    }

    #[test]
    fn a_chunk_without_an_embedding_counts_by_its_words_beside_others() {
        let mut candidates = [
            candidate(0, 0.5, None),
            candidate(1, 0.5, Some(0.6)),
            candidate(2, 0.0, Some(0.9)),
            candidate(3, 0.0, None),
            candidate(4, 0.5, None),
        ];

        let ranked = rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0);

        // The last two are as good as each other, and one has neither words nor an embedding.
        assert_eq!(order(&ranked), [1, 2, 0, 4]);
        let score = |ranked: &Ranked| (ranked.score * 1e6).round() / 1e6;
        assert_eq!(ranked.iter().map(score).collect::<Vec<_>>(), [0.8, 0.8, 0.5, 0.5]);
        candidates.reverse();
        let reversed = rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0);
        assert_eq!(order(&reversed), [3, 2, 4, 0], "the order of the candidates does not matter");
        let by_vectors = rank(&candidates, HybridWeights { embedding: 1.0, text: 0.0 }, 10, 0.0);
        assert_eq!(order(&by_vectors), [2, 3]);
    }

    #[test]
    fn a_small_difference_between_the_only_two_vectors_does_not_outweigh_the_words() {
        let candidates = [candidate(0, 0.0, Some(0.52)), candidate(1, 0.5, Some(0.50))];

        assert_eq!(order(&rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0)), [1, 0]);
    }

    #[test]
    fn a_threshold_and_a_limit_cut_off_the_end() {
        let candidates: Vec<Candidate> =
            (0..100_u8).map(|index| candidate(index.into(), f32::from(index) / 100.0, None)).collect();

        assert_eq!(order(&rank(&candidates, DEFAULT_WEIGHTS, 3, 0.0)), [99, 98, 97]);
        assert_eq!(order(&rank(&candidates, DEFAULT_WEIGHTS, 10, 0.975)), [99, 98]);
        assert_eq!(rank(&candidates, DEFAULT_WEIGHTS, 0, 0.0), Vec::new());
        assert_eq!(rank(&[], DEFAULT_WEIGHTS, 10, 0.0), Vec::new());
    }

    proptest! {
        #[test]
        fn scores_are_between_0_and_1_and_descend(
            parts in prop::collection::vec((0.0_f32..=1.0, prop::option::of(-1.0_f32..=1.0)), 0..60),
            embedding in 0.0_f64..2.0,
            text in 0.01_f64..2.0,
            limit in 0_usize..70,
        ) {
            let candidates: Vec<Candidate> =
                parts.into_iter().zip(0..).map(|((lexical, vector), order)| candidate(order, lexical, vector)).collect();
            let weights = HybridWeights { embedding, text };

            let ranked = rank(&candidates, weights, limit, 0.0);

            prop_assert!(ranked.len() <= limit);
            prop_assert!(ranked.iter().all(|ranked| (0.0..=1.0).contains(&ranked.score) && (0.0..=1.0).contains(&ranked.key)));
            prop_assert!(ranked.windows(2).all(|pair| pair[0].score >= pair[1].score && pair[0].key >= pair[1].key));
            // A smaller limit returns the beginning of the same list.
            let shorter = rank(&candidates, weights, limit / 2, 0.0);
            prop_assert_eq!(&shorter[..], &ranked[..shorter.len()]);
        }
    }

    fn found(
        file: &'static str,
        number: u32,
        text: &str,
        overlap_bytes: usize,
        score: f64,
    ) -> FoundChunk<&'static str> {
        FoundChunk { file, number, text: text.to_owned(), overlap_bytes, score }
    }

    #[test]
    fn neighbours_become_one_passage_without_their_overlaps() {
        let chunks = vec![
            found("a", 4, "three four", 5, 0.9),
            found("b", 5, "other", 0, 0.8),
            found("a", 3, "two three", 3, 0.7),
            found("a", 7, "seven", 0, 0.6),
            found("a", 2, "one two", 0, 0.5),
        ];

        let passages = merge_neighbours(chunks);

        let passage = |file, numbers, text: &str, score| Passage { file, numbers, text: text.to_owned(), score };
        assert_eq!(
            passages,
            [
                passage("a", 2..=4, "one two three four", 0.9),
                passage("b", 5..=5, "other", 0.8),
                passage("a", 7..=7, "seven", 0.6),
            ]
        );
    }
}
