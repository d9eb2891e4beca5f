//! Scores chunks by their words: BM25. Pure.

use crate::retrieval::lexical::{ANALYSES, LexicalQuery};

/// How quickly further occurrences of a term count less.
const K1: f64 = 1.2;
/// How much the length of a chunk matters.
const B: f64 = 0.75;

/// What BM25 needs to know about all chunks of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// For each way to analyze, the number of chunks.
    pub chunks: [u64; ANALYSES],
    /// For each way to analyze, the number of words in all chunks.
    pub words: [u64; ANALYSES],
    /// For each term of the query, the number of chunks that have it.
    pub documents: Vec<u64>,
}

impl Statistics {
    /// Creates the statistics of an empty collection, for a query.
    #[must_use]
    pub fn new(query: &LexicalQuery) -> Self {
        Self { chunks: [0; ANALYSES], words: [0; ANALYSES], documents: vec![0; query.terms.len()] }
    }

    /// Adds those of another part of the collection, for the same query.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.chunks.iter_mut().zip(other.chunks);
        let pairs = pairs.chain(self.words.iter_mut().zip(other.words));
        for (sum, value) in pairs.chain(self.documents.iter_mut().zip(other.documents.iter().copied())) {
            *sum += value;
        }
    }
}

/// The weight of a term of a query.
pub(super) struct TermWeight {
    /// For each way to analyze: the term's share of the best possible score.
    shares: [f32; ANALYSES],
    /// What the length of a chunk is multiplied with, for each way to analyze.
    per_word: [f32; ANALYSES],
    /// What is added to that.
    constant: f32,
}

impl TermWeight {
    /// Returns what a term adds to the score of a chunk.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "counts are below 256, and lengths are far below 2^24")]
    pub(super) fn of(&self, analysis: u8, count: u32, words: u32) -> f32 {
        let (analysis, count) = (usize::from(analysis), count as f32);
        self.shares[analysis] * count / (count + self.constant + self.per_word[analysis] * words as f32)
    }
}

/// Computes the weights of a query's terms in a collection.
///
/// The score of a chunk is the sum over the terms of `idf · tf / (tf + k1 · (1 - b + b · length / average length))`, with
/// `idf = ln(1 + (N - n + 0.5) / (n + 0.5))`, as in Lucene, divided by its least upper bound, which is the sum of the terms'
/// `idf`. So it is between 0 and 1, and has the same meaning for short and long queries, and for small and large collections:
/// the share of what was asked for that the chunk has.
pub(super) fn term_weights(query: &LexicalQuery, statistics: &Statistics) -> Vec<TermWeight> {
    let total: u64 = statistics.chunks.iter().sum();
    let idf: Vec<f64> = statistics.documents.iter().map(|documents| idf(total, *documents)).collect();
    let mut bounds = [0.0; ANALYSES];
    for (term, idf) in query.terms.iter().zip(&idf) {
        for (bound, count) in bounds.iter_mut().zip(term.counts) {
            *bound += f64::from(count) * idf;
        }
    }
    let mut per_word = [0.0; ANALYSES];
    for ((per_word, chunks), words) in per_word.iter_mut().zip(statistics.chunks).zip(statistics.words) {
        if words > 0 {
            *per_word = narrow(K1 * B * float(chunks) / float(words));
        }
    }
    let weight = |(term, idf): (&crate::retrieval::lexical::QueryTerm, f64)| {
        let mut shares = [0.0; ANALYSES];
        for ((share, count), bound) in shares.iter_mut().zip(term.counts).zip(bounds) {
            if bound > 0.0 {
                *share = narrow(f64::from(count) * idf / bound);
            }
        }
        TermWeight { shares, per_word, constant: narrow(K1 * (1.0 - B)) }
    };
    query.terms.iter().zip(idf).map(weight).collect()
}

fn idf(chunks: u64, documents: u64) -> f64 {
    let (chunks, documents) = (float(chunks), float(documents));
    ((chunks - documents + 0.5) / (documents + 0.5)).max(0.0).ln_1p()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, reason = "scores are single precision")]
fn narrow(value: f64) -> f32 {
    value as f32
}
