//! Segments whose lists and vectors are in a database. Memory has their files and the lengths of their chunks; a search reads
//! the lists of its terms, and computes the same scores as from memory. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::segment::{Lists, Segment};
use super::vectors::{StoredRow, row_bytes};
use super::{ChunkLocation, FileLocation, QueryVector, SegmentView, StoreIndex};
use crate::retrieval::lexical::{LexicalQuery, read_varint, write_varint};

/// Maximum size of a block of vectors, in bytes.
const BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// Terms have 32 bits. The highest 12 say in which of 4,096 parts the list of a term is.
const PART_SHIFT: u32 = 20;

/// Identifies a stored segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(Arc<str>);

impl SegmentId {
    /// Names a stored segment.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The number of a part of the lists of a segment.
pub type PartNumber = u32;

/// Chunks as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredForm {
    /// Number of chunks.
    pub chunks: usize,
    /// The files and the lengths of the chunks, which are kept in memory.
    pub body: Vec<u8>,
    /// The inverted lists in parts. Parts without a list are left out.
    pub lists: Vec<(PartNumber, Vec<u8>)>,
    /// The vectors in blocks of about 1 MiB, rounded to 8 bits.
    pub vectors: Vec<Vec<u8>>,
}

/// The state of a stored segment in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSegment {
    /// The segment.
    pub id: SegmentId,
    /// Number of its chunks.
    pub chunks: usize,
    /// Number of its chunks whose files are live.
    pub live_chunks: usize,
}

/// Returns the parts in which the lists of a query are, each once.
#[must_use]
pub fn parts_of(queries: &[LexicalQuery]) -> Vec<PartNumber> {
    let terms = queries.iter().flat_map(|query| &query.terms);
    let mut parts: Vec<PartNumber> = terms.map(|term| term.term >> PART_SHIFT).collect();
    parts.sort_unstable();
    parts.dedup();
    parts
}

impl<F> StoreIndex<F> {
    /// Encodes all live chunks as one segment.
    #[must_use]
    pub fn to_stored(&self) -> StoredForm {
        let segments: Vec<&Segment> = self.segments.iter().map(|view| &*view.segment).collect();
        let (segment, _) = Segment::merge(&segments, &|view, file| self.segments[view].files[file].is_some());
        StoredForm {
            chunks: segment.chunks(),
            body: segment.to_bytes(),
            lists: list_parts(&segment.lists),
            vectors: vector_blocks(&segment),
        }
    }

    /// Adds a stored segment. Its files are found after their facts were set by a
    /// [`Change::Replace`](super::Change::Replace). Returns `None` if it has another version or is damaged.
    #[must_use]
    pub fn with_stored(mut self, id: SegmentId, body: &[u8]) -> Option<Self> {
        let segment = Segment::from_bytes(body)?;
        let files = segment.files.iter().map(|_| None).collect();
        let mut view = SegmentView::new(segment, files);
        view.stored = Some((id, Arc::default()));
        self.segments.push(view);
        Some(self)
    }

    /// Returns the stored segments.
    pub fn stored(&self) -> impl Iterator<Item = StoredSegment> {
        self.segments.iter().filter_map(|view| {
            let (id, _) = view.stored.as_ref()?;
            Some(StoredSegment { id: id.clone(), chunks: view.segment.chunks(), live_chunks: view.live_chunks() })
        })
    }

    /// Returns the number of chunks in segments that are not stored.
    #[must_use]
    pub fn resident_chunks(&self) -> usize {
        let resident = self.segments.iter().filter(|view| view.stored.is_none());
        resident.map(SegmentView::live_chunks).sum()
    }

    /// Reports whether the chunks of a file are in the index, be it that they are not found yet.
    #[must_use]
    pub fn has_chunks(&self, key: &str) -> bool {
        let is_here = |view: &SegmentView<F>| {
            view.segment.find(key).any(|file| view.stored.is_some() || view.files[file].is_some())
        };
        self.segments.iter().any(is_here)
    }

    /// Returns this index with the lists of some queries, from the parts of stored segments.
    #[must_use]
    pub fn with_lists(&self, queries: &[LexicalQuery], parts: &HashMap<(SegmentId, PartNumber), Vec<u8>>) -> Self {
        let mut terms: Vec<u32> = queries.iter().flat_map(|query| &query.terms).map(|term| term.term).collect();
        terms.sort_unstable();
        terms.dedup();
        let mut index = self.clone();
        for view in &mut index.segments {
            let Some((id, lists)) = &mut view.stored else { continue };
            let mut found = Lists::default();
            for of_part in terms.chunk_by(|left, right| left >> PART_SHIFT == right >> PART_SHIFT) {
                let part = parts.get(&(id.clone(), of_part[0] >> PART_SHIFT));
                read_part(part.map_or(&[], Vec::as_slice), of_part, &mut found);
            }
            *lists = Arc::new(found);
        }
        index
    }

    /// Returns the location of a chunk in a stored segment, if its file is live and allowed.
    #[must_use]
    pub fn locate_stored(
        &self,
        key: &str,
        number: u32,
        is_allowed: Option<&dyn Fn(&F) -> bool>,
    ) -> Option<ChunkLocation> {
        let is_found = |facts: &F| is_allowed.is_none_or(|is_allowed| is_allowed(facts));
        let stored = self.segments.iter().zip(0..).filter(|(view, _)| view.stored.is_some());
        stored.into_iter().find_map(|(view, segment)| {
            let mut parts = view.segment.find(key);
            parts.find_map(|file| {
                let facts = view.files[file].as_ref()?;
                let chunk = view.segment.chunk(file, number)?;
                is_found(&facts.facts).then_some(ChunkLocation { segment, chunk })
            })
        })
    }

    /// Returns the key of a chunk: that of its file, and its number.
    #[must_use]
    pub fn chunk_key(&self, location: ChunkLocation) -> Option<(&str, u32)> {
        let segment = &self.segments.get(location.segment as usize)?.segment;
        let number = segment.numbers.get(location.chunk as usize)?;
        Some((&segment.files[segment.file_of(location.chunk)].key, *number))
    }

    /// Returns the keys of the chunks of stored segments in files that are allowed.
    #[must_use]
    pub fn stored_keys(&self, is_allowed: &dyn Fn(&F) -> bool) -> Vec<(ChunkLocation, &str, u32)> {
        let mut keys = Vec::new();
        for (view, segment) in self.segments.iter().zip(0..).filter(|(view, _)| view.stored.is_some()) {
            for (file, facts) in view.segment.files.iter().zip(view.files.iter()) {
                if facts.as_ref().is_some_and(|facts| is_allowed(&facts.facts)) {
                    let chunks = file.chunks.clone();
                    keys.extend(chunks.map(|chunk| {
                        let number = view.segment.numbers[chunk as usize];
                        (ChunkLocation { segment, chunk }, &*file.key, number)
                    }));
                }
            }
        }
        keys
    }

    /// Reports whether a file is in a stored segment.
    #[must_use]
    pub fn is_stored(&self, location: FileLocation) -> bool {
        self.segments.get(location.segment as usize).is_some_and(|view| view.stored.is_some())
    }

    /// Returns the number of chunks of stored segments in files that are allowed.
    #[must_use]
    pub fn stored_chunks(&self, is_allowed: Option<&dyn Fn(&F) -> bool>) -> usize {
        let stored = self.segments.iter().filter(|view| view.stored.is_some());
        let count = |view: &SegmentView<F>| match is_allowed {
            None => view.live_chunks(),
            Some(is_allowed) => view.allowed_spans(is_allowed).iter().map(|span| span.chunks.len()).sum(),
        };
        stored.map(count).sum()
    }
}

/// Finds the chunks of stored segments that may be nearest to a query, from blocks of their vectors.
#[derive(Debug)]
pub struct Nearest {
    query: Arc<QueryVector>,
    depth: usize,
    /// Chunks with the least and the greatest score that they can have.
    found: Vec<(ChunkLocation, f32, f32)>,
}

impl Nearest {
    /// Searches for the nearest `depth` chunks.
    #[must_use]
    pub fn new(query: Arc<QueryVector>, depth: usize) -> Self {
        Self { query, depth, found: Vec::new() }
    }

    /// Compares the vectors of a block with the query. Chunks that are not live or not allowed are left out.
    pub fn read<F>(
        &mut self,
        index: &StoreIndex<F>,
        id: &SegmentId,
        block: &[u8],
        is_allowed: Option<&dyn Fn(&F) -> bool>,
    ) {
        let is_searched = |view: &SegmentView<F>| view.stored.as_ref().is_some_and(|(stored, _)| stored == id);
        let view = index.segments.iter().zip(0..).find(|(view, _)| is_searched(view));
        let Some((view, segment)) = view else { return };
        let spans = match is_allowed {
            Some(is_allowed) => view.allowed_spans(is_allowed),
            None => view.spans.clone(),
        };
        let mut spans = spans.iter().peekable();
        for row in StoredRow::read_all(block, self.query.dimensions()) {
            // Rows and spans are in the order of the chunks.
            while spans.next_if(|span| span.chunks.end <= row.chunk).is_some() {}
            let Some(span) = spans.peek() else { break };
            if row.chunk < span.chunks.start {
                continue;
            }
            let (score, error) = row.estimate(&self.query);
            self.found.push((ChunkLocation { segment, chunk: row.chunk }, score - error, score + error));
        }
        self.keep_possible();
    }

    /// Removes what cannot be among the nearest.
    fn keep_possible(&mut self) {
        if self.found.len() <= self.depth {
            return;
        }
        let (_, nth, _) = self.found.select_nth_unstable_by(self.depth, |left, right| right.1.total_cmp(&left.1));
        let bound = nth.1;
        self.found.retain(|(_, _, greatest)| *greatest >= bound);
    }

    /// Returns the chunks that may be among the nearest. Their scores must be computed from their embeddings.
    #[must_use]
    pub fn into_chunks(self) -> Vec<ChunkLocation> {
        self.found.into_iter().map(|(chunk, _, _)| chunk).collect()
    }
}

/// Divides lists into parts. A part has, for each term in order: the lowest bits of the term, the number of chunks and the
/// size of the list, as varints, and the list.
fn list_parts(lists: &Lists) -> Vec<(PartNumber, Vec<u8>)> {
    let mut parts: Vec<(PartNumber, Vec<u8>)> = Vec::new();
    for (term, chunks, list) in lists.iter() {
        let number = term >> PART_SHIFT;
        if parts.last().is_none_or(|(last, _)| *last != number) {
            parts.push((number, Vec::new()));
        }
        let Some((_, part)) = parts.last_mut() else { continue };
        write_varint(part, term & ((1 << PART_SHIFT) - 1));
        write_varint(part, chunks);
        write_varint(part, u32::try_from(list.len()).unwrap_or(u32::MAX));
        part.extend_from_slice(list);
    }
    parts
}

/// Adds the lists of some terms, which are in order, from their part.
fn read_part(mut part: &[u8], terms: &[u32], found: &mut Lists) {
    let mut terms = terms.iter().copied().peekable();
    let mut next = || {
        let low = read_varint(&mut part)?;
        let chunks = read_varint(&mut part)?;
        let size = usize::try_from(read_varint(&mut part)?).ok()?;
        let (list, rest) = part.split_at_checked(size)?;
        part = rest;
        Some((low, chunks, list))
    };
    while let Some((low, chunks, list)) = next() {
        let of = |term: u32| term & ((1 << PART_SHIFT) - 1);
        while terms.next_if(|term| of(*term) < low).is_some() {}
        match terms.peek() {
            Some(term) if of(*term) == low => found.push(*term, chunks, list),
            Some(_) => {}
            None => return,
        }
    }
}

/// Returns the vectors of a segment in blocks, in the order of the chunks.
fn vector_blocks(segment: &Segment) -> Vec<Vec<u8>> {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let size = row_bytes(segment.vectors.dimensions());
    for file in segment.files.iter().filter(|file| !file.rows.is_empty()) {
        let rows = file.chunks.clone().zip(file.rows.clone());
        for (chunk, row) in rows.filter(|(_, row)| segment.vectors.has(*row)) {
            if blocks.last().is_none_or(|block| block.len() + size > BLOCK_BYTES_MAX) {
                blocks.push(Vec::new());
            }
            if let Some(block) = blocks.last_mut() {
                segment.vectors.write_row(row, chunk, block);
            }
        }
    }
    blocks
}
