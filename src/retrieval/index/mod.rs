//! The chunks of a vector store in memory: inverted lists and vectors. Pure.
//!
//! A [`StoreIndex`] is an immutable value that is cheap to change: [`StoreIndex::apply`] returns a new one that shares all
//! unchanged parts, so searches in the old one go on. It has segments, like Lucene's: added files become a small segment, and
//! segments of similar size are merged, so that each chunk is copied a few times at most. A removed file stays in its segment
//! until that is merged, but is in no result and in no statistics.
//!
//! | file | what it does |
//! | --- | --- |
//! | `segment.rs` | the inverted lists of some files; builds and merges them |
//! | `stored.rs` | segments whose lists and vectors are in a database |
//! | `vectors.rs` | the vectors of a segment, compared exactly |
//! | `score.rs` | BM25 |
//! | `top.rs` | finds the largest of many scores |
//!
//! A collection that does not fit into memory is searched in parts: the [`Statistics`] of all parts are added first, then
//! [`StoreIndex::candidates`] of each part has the same scores as one index of all would have.

mod score;
mod segment;
mod stored;
mod top;
mod vectors;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

pub use score::Statistics;
use segment::{Builder, FileRange, Lists, Segment, totals};
pub use stored::{Nearest, PartNumber, SegmentId, StoredForm, StoredSegment, parts_of};
use top::{Classes, Largest, keep_first, move_first};
use vectors::Vectors;
pub use vectors::{DIMENSIONS_MAX, QueryVector, from_f16_bytes, to_f16_bytes};

use super::lexical::{ANALYSES, Analyses, Language, LexicalQuery, QueryTerm, Terms};

/// Number of segments of similar size that are merged into one.
const MERGED_SEGMENTS: usize = 8;
/// Size of the vectors that are compared with all queries of a batch before the next ones are read, in bytes: they fit into
/// the first cache of a processor.
const READ_TOGETHER_BYTES: usize = 24 * 1024;
/// Size of merged segments, in chunks: larger ones are not merged, which bounds the time of a change.
const MERGED_CHUNKS_MAX: usize = 16 * 1024;

/// A chunk of a file to add.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexChunk {
    /// Its number in the file.
    pub number: u32,
    /// Its terms.
    pub terms: Terms,
    /// Its embedding, as encoded by [`to_f16_bytes`].
    pub vector: Option<Vec<u8>>,
}

/// A file to add. `F` is what the index does not interpret, such as the name and the attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexFile<F> {
    /// The file's key, by which it is removed.
    pub key: String,
    /// Position of the file among all of the store: equal scores are in this order.
    pub order: i64,
    /// The language of its terms.
    pub language: Option<Language>,
    /// The facts.
    pub facts: Facts<F>,
    /// The chunks. If all have an embedding with the index's number of dimensions, they are found by it; otherwise only by
    /// their words.
    pub chunks: Vec<IndexChunk>,
}

/// What an index stores with a file and does not interpret.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts<F> {
    /// The facts.
    pub facts: Arc<F>,
    /// Their memory, in bytes.
    pub bytes: usize,
}

impl<F> Clone for Facts<F> {
    fn clone(&self) -> Self {
        Self { facts: self.facts.clone(), bytes: self.bytes }
    }
}

/// A change of an index.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<F> {
    /// Adds a file, or a further part of a large one, with the same key. A chunk must not be added twice.
    Add(IndexFile<F>),
    /// Replaces the facts of a file.
    Replace {
        /// The file's key.
        key: String,
        /// The new facts.
        facts: Facts<F>,
    },
    /// Removes a file.
    Remove {
        /// The file's key.
        key: String,
    },
}

/// A chunk that is among the best for a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its lexical score, between 0 and 1: the share of the query's words, weighted by their rarity, that it has.
    pub lexical: f32,
    /// The cosine of the angle between its embedding and the query's, if both have one.
    pub vector: Option<f32>,
    /// Position of its file among all of the store.
    pub order: i64,
    /// Its number in the file.
    pub number: u32,
    /// The file in the index that returned this: see [`StoreIndex::file`].
    pub file: FileLocation,
}

/// The location of a file in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileLocation {
    segment: u32,
    file: u32,
}

/// The location of a chunk in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkLocation {
    segment: u32,
    chunk: u32,
}

/// A query for the candidates of an index.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The words.
    pub lexical: &'a LexicalQuery,
    /// The statistics of the whole collection for these words.
    pub statistics: &'a Statistics,
    /// The embedding. Ignored if it has another number of dimensions than the index.
    pub vector: Option<&'a QueryVector>,
    /// How many of the best chunks by words, and by the embedding, are candidates.
    pub depth: usize,
    /// Chunks of stored segments with their scores by the embedding. They compete with those of the other segments.
    pub nearest: &'a [(ChunkLocation, f32)],
}

/// Reports whether a file with these facts can be found.
pub type IsAllowed<'a, F> = &'a dyn Fn(&F) -> bool;

/// The chunks of a vector store.
#[derive(Debug)]
pub struct StoreIndex<F> {
    dimensions: Option<usize>,
    /// From the oldest.
    segments: Vec<SegmentView<F>>,
}

impl<F> Clone for StoreIndex<F> {
    fn clone(&self) -> Self {
        Self { dimensions: self.dimensions, segments: self.segments.clone() }
    }
}

/// Chunks of a segment that follow each other, and their rows of vectors: one for each, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    chunks: Range<u32>,
    rows: Range<u32>,
}

impl Span {
    fn chunk_range(&self) -> Range<usize> {
        self.chunks.start as usize..self.chunks.end as usize
    }

    fn row_range(&self) -> Range<usize> {
        self.rows.start as usize..self.rows.end as usize
    }
}

/// Joins the chunks of files, in their order, to as few spans as possible.
fn spans<'a>(files: impl Iterator<Item = &'a FileRange>) -> Arc<[Span]> {
    let mut spans: Vec<Span> = Vec::new();
    for file in files.filter(|file| !file.chunks.is_empty()) {
        match spans.last_mut() {
            Some(last)
                if last.chunks.end == file.chunks.start
                    && last.rows.end == file.rows.start
                    && last.rows.is_empty() == file.rows.is_empty() =>
            {
                last.chunks.end = file.chunks.end;
                last.rows.end = file.rows.end;
            }
            _ => spans.push(Span { chunks: file.chunks.clone(), rows: file.rows.clone() }),
        }
    }
    spans.into()
}

/// A segment, and what is live in it.
#[derive(Debug)]
struct SegmentView<F> {
    segment: Arc<Segment>,
    /// If the segment's lists are stored: its ID, and those of its lists that were read.
    stored: Option<(SegmentId, Arc<Lists>)>,
    /// The live chunks.
    spans: Arc<[Span]>,
    /// For each file of the segment, its facts; `None` for a removed one.
    files: Arc<Vec<Option<Facts<F>>>>,
    /// For each way to analyze, the number of live chunks.
    chunks: [u64; ANALYSES],
    /// For each way to analyze, the number of words of the live chunks.
    words: [u64; ANALYSES],
    has_removed: bool,
    /// Whether the fields above are those of the live files.
    is_counted: bool,
}

impl<F> Clone for SegmentView<F> {
    fn clone(&self) -> Self {
        let (segment, stored) = (self.segment.clone(), self.stored.clone());
        Self { segment, stored, spans: self.spans.clone(), files: self.files.clone(), ..*self }
    }
}

impl<F> SegmentView<F> {
    fn new(segment: Segment, files: Vec<Option<Facts<F>>>) -> Self {
        let mut view = Self {
            segment: Arc::new(segment),
            stored: None,
            spans: Arc::default(),
            files: Arc::new(files),
            chunks: [0; ANALYSES],
            words: [0; ANALYSES],
            has_removed: false,
            is_counted: false,
        };
        view.count();
        view
    }

    /// Computes what follows from the live files.
    fn count(&mut self) {
        self.is_counted = true;
        self.has_removed = self.files.iter().any(Option::is_none);
        (self.chunks, self.words) = totals(&self.segment, &|file| self.files[file].is_some());
        self.spans = self.allowed_spans(&|_| true);
    }

    fn lists(&self) -> &Lists {
        self.stored.as_ref().map_or(&self.segment.lists, |(_, lists)| lists)
    }

    fn live_chunks(&self) -> usize {
        usize::try_from(self.chunks.iter().sum::<u64>()).unwrap_or(usize::MAX)
    }

    /// Replaces the facts of a file, or removes it. A file of a stored segment is live from the first time on.
    fn set(&mut self, key: &str, facts: Option<&Facts<F>>) {
        let is_settable = |file: &usize| self.files[*file].is_some() || self.stored.is_some();
        let found: Vec<usize> = self.segment.find(key).filter(is_settable).collect();
        if found.is_empty() {
            return;
        }
        // Copies the files only for the first change since the index was copied.
        let files = Arc::make_mut(&mut self.files);
        for file in found {
            self.is_counted &= files[file].is_some() && facts.is_some();
            files[file] = facts.cloned();
        }
    }

    /// Returns the chunks of the live files that are allowed.
    fn allowed_spans(&self, is_allowed: &dyn Fn(&F) -> bool) -> Arc<[Span]> {
        let files = self.segment.files.iter().zip(self.files.iter());
        spans(
            files
                .filter(|(_, facts)| facts.as_ref().is_some_and(|facts| is_allowed(&facts.facts)))
                .map(|(file, _)| file),
        )
    }
}

impl<F> StoreIndex<F> {
    /// Creates an empty index for embeddings with a number of dimensions; with `None`, chunks are found by words only.
    #[must_use]
    pub fn new(dimensions: Option<usize>) -> Self {
        Self { dimensions, segments: Vec::new() }
    }

    /// Returns the index after some changes, made in their order.
    #[must_use]
    pub fn apply(&self, changes: impl IntoIterator<Item = Change<F>>) -> Self {
        let mut index = self.clone();
        let mut added = Added::new(self.dimensions);
        for change in changes {
            match change {
                Change::Add(file) => added.add(file, &mut index.segments),
                Change::Replace { key, facts } => {
                    added.finish(&mut index.segments);
                    index.set(&key, Some(&facts));
                }
                Change::Remove { key } => {
                    added.finish(&mut index.segments);
                    index.set(&key, None);
                }
            }
        }
        added.finish(&mut index.segments);
        index.segments.iter_mut().filter(|view| !view.is_counted).for_each(SegmentView::count);
        index.merge_segments();
        index
    }

    fn set(&mut self, key: &str, facts: Option<&Facts<F>>) {
        for segment in &mut self.segments {
            segment.set(key, facts);
        }
    }

    /// Returns the facts of a file by its key, if it is in the index.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&Facts<F>> {
        let of_segment = |view: &'_ SegmentView<F>| view.segment.find(key).find(|file| view.files[*file].is_some());
        self.segments.iter().find_map(|view| view.files[of_segment(view)?].as_ref())
    }

    /// Returns the facts and the key of a candidate's file.
    #[must_use]
    pub fn file(&self, location: FileLocation) -> Option<(&Arc<F>, &str)> {
        let view = self.segments.get(location.segment as usize)?;
        let facts = view.files.get(location.file as usize)?.as_ref()?;
        Some((&facts.facts, &view.segment.files.get(location.file as usize)?.key))
    }

    /// Returns the number of chunks.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.segments.iter().map(SegmentView::live_chunks).sum()
    }

    /// Returns the number of chunks of files that are found by embeddings.
    #[must_use]
    pub fn vectors(&self) -> usize {
        let spans = self.segments.iter().flat_map(|view| view.spans.iter());
        spans.map(|span| span.rows.len()).sum()
    }

    /// Returns the allocated memory, in bytes, with what is shared with earlier indexes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of_view = |view: &SegmentView<F>| {
            let facts: usize = view.files.iter().flatten().map(|facts| facts.bytes).sum();
            facts + view.files.capacity() * size_of::<Option<Facts<F>>>() + view.segment.bytes()
        };
        size_of::<Self>()
            + self.segments.capacity() * size_of::<SegmentView<F>>()
            + self.segments.iter().map(of_view).sum::<usize>()
    }

    /// Returns the languages of the chunks.
    #[must_use]
    pub fn analyses(&self) -> Analyses {
        let mut analyses = Analyses::default();
        for view in &self.segments {
            analyses.extend(Analyses::of_counts(&view.chunks));
        }
        analyses
    }

    /// Returns the statistics of the chunks for the words of a query.
    #[must_use]
    pub fn statistics(&self, query: &LexicalQuery) -> Statistics {
        let mut statistics = Statistics::new(query);
        for view in &self.segments {
            let is_live = |file: usize| view.files[file].is_some();
            let is_live = view.has_removed.then_some(&is_live as &dyn Fn(usize) -> bool);
            let documents = |term: &QueryTerm| view.segment.document_count(view.lists(), term.term, is_live);
            let documents = query.terms.iter().map(documents).collect();
            statistics.add(&Statistics { chunks: view.chunks, words: view.words, documents });
        }
        statistics
    }

    /// Returns the best chunks by words and the best by the embedding, `depth` of each, among the files that are allowed (all
    /// with `None`); in no order. A candidate has both scores. Equal scores are decided by the order of the files and chunks.
    #[must_use]
    pub fn candidates(&self, query: &Query<'_>, is_allowed: Option<IsAllowed<'_, F>>) -> Vec<Candidate> {
        self.candidates_of_all(&[(*query, is_allowed)]).pop().unwrap_or_default()
    }

    /// Returns the [candidates](Self::candidates) of several queries, each among the files that are allowed for it. The vectors
    /// are read once for all of them.
    #[must_use]
    pub fn candidates_of_all(&self, queries: &[(Query<'_>, Option<IsAllowed<'_, F>>)]) -> Vec<Vec<Candidate>> {
        let searches: Vec<_> =
            queries.iter().map(|(query, is_allowed)| Search::new(self, query, *is_allowed)).collect();
        let estimates = self.estimates(&searches);
        let candidates_of = |((search, estimates), (query, _)): ((&Search<'_, F>, _), &(Query<'_>, _))| {
            let mut found = search.best_by_vector(estimates, query.nearest);
            found.extend(search.best_by_words());
            // The sort is stable: of a chunk that was found twice, the score by vector stays.
            found.sort_by_key(|found| found.chunk);
            found.dedup_by_key(|found| found.chunk);
            found.into_iter().map(|found| search.candidate(found)).collect()
        };
        searches.iter().zip(estimates).zip(queries).map(candidates_of).collect()
    }

    /// Estimates the scores by embedding of the allowed chunks, for each search. Some rows are compared with all queries before
    /// the next ones are read, so that they are in the cache of the processor.
    fn estimates(&self, searches: &[Search<'_, F>]) -> Vec<Estimates> {
        let (starts, total) = starts(self.segments.iter().map(|view| view.segment.vectors.rows() as usize));
        let empty = |search: &Search<'_, F>| search.vector.map_or_else(Vec::new, |_| vec![0.0; total]);
        let mut all: Vec<Estimates> =
            searches.iter().map(|search| Estimates { starts: starts.clone(), scores: empty(search) }).collect();
        for (segment, (view, start)) in self.segments.iter().zip(&starts).enumerate() {
            let vectors = &view.segment.vectors;
            let step = vectors.rows_of_bytes(READ_TOGETHER_BYTES);
            for first in (0..vectors.rows()).step_by(step as usize) {
                let block = first..vectors.rows().min(first.saturating_add(step));
                for (search, estimates) in searches.iter().zip(&mut all) {
                    let Some(vector) = search.vector else { continue };
                    for rows in rows_in(&search.spans[segment], &block) {
                        let scores = start + rows.start as usize..start + rows.end as usize;
                        vectors.estimate(rows, vector, &mut estimates.scores[scores]);
                    }
                }
            }
        }
        all
    }

    /// Merges segments of similar size, and those of which more than half was removed. Leaves stored ones unchanged.
    fn merge_segments(&mut self) {
        self.segments.retain(|view| view.stored.is_some() || view.files.iter().any(Option::is_some));
        for index in 0..self.segments.len() {
            let view = &self.segments[index];
            if view.stored.is_none() && view.live_chunks() * 2 < view.segment.chunks() {
                self.segments[index] = merged(std::slice::from_ref(view));
            }
        }
        while let Some(range) = self.mergeable() {
            let view = merged(&self.segments[range.clone()]);
            self.segments.splice(range, [view]);
        }
    }

    /// Returns a run of segments to merge: the first [`MERGED_SEGMENTS`] that follow each other and have a similar size, or
    /// are smaller than the others of the run.
    fn mergeable(&self) -> Option<Range<usize>> {
        let class = |view: &SegmentView<F>| (view.live_chunks() + 1).ilog(MERGED_SEGMENTS);
        let is_small =
            |view: &SegmentView<F>| view.stored.is_none() && view.live_chunks() <= MERGED_CHUNKS_MAX / MERGED_SEGMENTS;
        let small: Vec<bool> = self.segments.iter().map(is_small).collect();
        let classes: Vec<u32> = self.segments.iter().map(class).collect();
        (0..self.segments.len()).find_map(|start| {
            let largest = classes[start];
            let similar = |index: &usize| small[*index] && classes[*index] <= largest;
            let end = start + (start..self.segments.len()).take_while(similar).take(MERGED_SEGMENTS).count();
            let equal = classes[start..end].iter().filter(|class| **class == largest).count();
            (end - start == MERGED_SEGMENTS && equal * 2 >= MERGED_SEGMENTS).then_some(start..end)
        })
    }
}

/// Merges segments into one that has only what is live.
fn merged<F>(views: &[SegmentView<F>]) -> SegmentView<F> {
    let segments: Vec<&Segment> = views.iter().map(|view| &*view.segment).collect();
    let (segment, sources) = Segment::merge(&segments, &|view, file| views[view].files[file].is_some());
    let files = sources.into_iter().map(|(view, file)| views[view].files[file].clone()).collect();
    SegmentView::new(segment, files)
}

/// Files that are being added.
struct Added<F> {
    dimensions: Option<usize>,
    builder: Builder,
    files: Vec<Option<Facts<F>>>,
}

impl<F> Added<F> {
    fn new(dimensions: Option<usize>) -> Self {
        Self { dimensions, builder: Builder::new(dimensions.unwrap_or(0)), files: Vec::new() }
    }

    fn add(&mut self, mut file: IndexFile<F>, segments: &mut Vec<SegmentView<F>>) {
        let dimensions = self.dimensions;
        let accepts = |chunk: &IndexChunk| {
            let fits = |bytes: &Vec<u8>| dimensions.is_some_and(|dimensions| Vectors::accepts(dimensions, bytes));
            chunk.vector.as_ref().is_some_and(fits)
        };
        let has_rows = file.chunks.iter().any(accepts);
        loop {
            let before = file.chunks.len();
            let is_complete = self.builder.add(&mut file, has_rows, accepts);
            if is_complete || file.chunks.len() < before {
                self.files.push(Some(file.facts.clone()));
            }
            if is_complete {
                return;
            }
            self.finish(segments);
        }
    }

    fn finish(&mut self, segments: &mut Vec<SegmentView<F>>) {
        if self.builder.is_empty() {
            return;
        }
        let builder = std::mem::replace(&mut self.builder, Builder::new(self.dimensions.unwrap_or(0)));
        segments.push(SegmentView::new(builder.build(), std::mem::take(&mut self.files)));
    }
}

/// Returns the rows of spans, which are in order, that are in a block.
fn rows_in<'a>(spans: &'a [Span], block: &'a Range<u32>) -> impl Iterator<Item = Range<u32>> + 'a {
    let first = spans.partition_point(|span| span.rows.end <= block.start);
    let spans = spans[first..].iter().take_while(|span| span.rows.start < block.end);
    spans.map(|span| span.rows.start.max(block.start)..span.rows.end.min(block.end)).filter(|rows| !rows.is_empty())
}

/// The estimated scores of the rows of all segments.
struct Estimates {
    /// For each segment, the index of its first row in `scores`.
    starts: Vec<usize>,
    /// The estimate of each row that is allowed; of the others, 0. Empty without an embedding of the query.
    scores: Vec<f32>,
}

/// A chunk that may be one of the best.
struct Near {
    chunk: Location,
    row: u32,
    estimate: f32,
}

/// A query in an index.
struct Search<'a, F> {
    index: &'a StoreIndex<F>,
    depth: usize,
    /// The query's embedding, if it can be compared with those of the index.
    vector: Option<&'a QueryVector>,
    /// For each segment, the allowed chunks.
    spans: Vec<Arc<[Span]>>,
    /// For each segment, the index of its first chunk in `scores`.
    starts: Vec<usize>,
    /// The lexical score of each chunk of each segment.
    scores: Vec<f32>,
}

/// The location of a chunk: its segment and its index there.
type Location = (usize, u32);

/// A chunk that was found.
#[derive(Debug, Clone, Copy)]
struct Found {
    chunk: Location,
    score: f32,
    is_by_vector: bool,
}

impl<'a, F> Search<'a, F> {
    fn new(index: &'a StoreIndex<F>, query: &Query<'a>, is_allowed: Option<IsAllowed<'_, F>>) -> Self {
        let (starts, total) = starts(index.segments.iter().map(|view| view.segment.chunks()));
        let mut scores = vec![0.0; total];
        let weights = score::term_weights(query.lexical, query.statistics);
        for (view, start) in index.segments.iter().zip(&starts) {
            let scores = &mut scores[*start..start + view.segment.chunks()];
            for (term, weight) in query.lexical.terms.iter().zip(&weights) {
                view.segment.add_scores(view.lists(), term.term, weight, scores);
            }
        }
        let allowed = |view: &SegmentView<F>| match is_allowed {
            Some(is_allowed) => view.allowed_spans(is_allowed),
            None => view.spans.clone(),
        };
        let spans = index.segments.iter().map(allowed).collect();
        let vector = query.vector.filter(|vector| index.dimensions == Some(vector.dimensions()));
        Self { index, depth: query.depth, vector, spans, starts, scores }
    }

    /// Returns the allowed chunks with the index of their segment.
    fn spans(&self) -> impl Iterator<Item = (usize, &Span)> {
        self.spans.iter().enumerate().flat_map(|(segment, spans)| spans.iter().map(move |span| (segment, span)))
    }

    fn segment(&self, index: usize) -> &'a Segment {
        &self.index.segments[index].segment
    }

    /// Keeps the best chunks. Equal ones are in the order of their files and numbers.
    fn keep_best(&self, found: &mut Vec<Found>) {
        let place = |found: &Found| {
            let segment = self.segment(found.chunk.0);
            let order = segment.files[segment.file_of(found.chunk.1)].order;
            (order, segment.numbers[found.chunk.1 as usize])
        };
        keep_first(found, self.depth, |left, right| {
            right.score.total_cmp(&left.score).then_with(|| place(left).cmp(&place(right)))
        });
    }

    fn best_by_words(&self) -> Vec<Found> {
        let ranges: Vec<Range<usize>> =
            self.spans().map(|(segment, span)| shifted(span.chunk_range(), self.starts[segment])).collect();
        let max =
            ranges.iter().flat_map(|range| &self.scores[range.clone()]).fold(0.0_f32, |max, score| score.max(max));
        let mut best = Vec::new();
        if max > 0.0 {
            let classes = Classes::new(0.0, max);
            let bound = classes.bound(&self.scores, &ranges, self.depth);
            for ((segment, span), range) in self.spans().zip(ranges) {
                for (chunk, score) in span.chunks.clone().zip(&self.scores[range]) {
                    if *score > 0.0 && classes.of(*score) >= bound {
                        best.push(Found { chunk: (segment, chunk), score: *score, is_by_vector: false });
                    }
                }
            }
            self.keep_best(&mut best);
        }
        best
    }

    fn best_by_vector(&self, estimates: Estimates, nearest: &[(ChunkLocation, f32)]) -> Vec<Found> {
        let Some(vector) = self.vector else { return Vec::new() };
        let Estimates { starts, scores: estimates } = estimates;
        let spans = || self.spans().filter(|(_, span)| !span.rows.is_empty());
        let ranges: Vec<_> = spans().map(|(segment, span)| shifted(span.row_range(), starts[segment])).collect();
        let classes = Classes::new(-1.5, 1.5);
        let bound = classes.start(classes.bound(&estimates, &ranges, self.depth));
        // The best have at least this score: as many estimates are at least `bound`, and no error is larger.
        let error_max = self.index.segments.iter().map(|view| view.segment.vectors.error_max()).fold(0.0, f32::max);
        let score_min = bound - error_max;
        let stored = |(location, score): &(ChunkLocation, f32)| {
            let chunk = (location.segment as usize, location.chunk);
            Found { chunk, score: *score, is_by_vector: true }
        };
        let mut best: Vec<Found> = nearest.iter().map(stored).collect();
        let mut near = Vec::new();
        for ((segment, span), range) in spans().zip(ranges) {
            for ((chunk, row), estimate) in span.chunks.clone().zip(span.rows.clone()).zip(&estimates[range]) {
                if *estimate + error_max >= score_min {
                    near.push(Near { chunk: (segment, chunk), row, estimate: *estimate });
                }
            }
        }
        // The best by their estimates first: with their scores, most of the others cannot be among the best.
        move_first(&mut near, self.depth, |left, right| right.estimate.total_cmp(&left.estimate));
        let mut largest = Largest::new(self.depth);
        for found in &best {
            largest.add(found.score);
        }
        for Near { chunk, row, estimate } in near {
            let vectors = &self.segment(chunk.0).vectors;
            if estimate + vectors.error(row) >= largest.bound() && vectors.has(row) {
                let score = vectors.score(row, vector);
                largest.add(score);
                best.push(Found { chunk, score, is_by_vector: true });
            }
        }
        self.keep_best(&mut best);
        best
    }

    fn candidate(&self, found: Found) -> Candidate {
        let (segment_index, chunk) = found.chunk;
        let segment = self.segment(segment_index);
        let file_index = segment.file_of(chunk);
        let file = &segment.files[file_index];
        let row = file.row(chunk).filter(|row| segment.vectors.has(*row));
        let of_row = || self.vector.zip(row).map(|(vector, row)| segment.vectors.score(row, vector));
        let as_u32 = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Candidate {
            lexical: self.scores[self.starts[segment_index] + chunk as usize],
            vector: if found.is_by_vector { Some(found.score) } else { of_row() },
            order: file.order,
            number: segment.numbers[chunk as usize],
            file: FileLocation { segment: as_u32(segment_index), file: as_u32(file_index) },
        }
    }
}

/// Returns where each of some parts starts if they follow each other, and their total length.
fn starts(lengths: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut total = 0;
    let starts = lengths
        .map(|length| {
            total += length;
            total - length
        })
        .collect();
    (starts, total)
}

fn shifted(range: Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}
