//! A part of an index: inverted lists and vectors of some files. Immutable, pure.

use std::ops::Range;

use super::score::TermWeight;
use super::vectors::Vectors;
use super::{IndexChunk, IndexFile};
use crate::retrieval::lexical::{ANALYSES, analysis_index, read_varint, write_varint};

/// Maximum number of entries of inverted lists that a builder collects: 16 MiB; few in unit tests.
const BUILDER_ENTRIES_MAX: usize = if cfg!(test) { 16 * 1024 } else { 2 * 1024 * 1024 };
/// Maximum number of chunks of a segment that a builder makes: an entry has 24 bits for the chunk.
const BUILDER_CHUNKS_MAX: usize = 1 << 20;
/// Maximum number of occurrences that is stored. More do not change a score noticeably.
pub(super) const COUNT_MAX: u32 = 255;

/// A file, or a part of one, in a segment.
#[derive(Debug, Clone)]
pub(super) struct FileRange {
    pub(super) key: Box<str>,
    /// Position of the file among all of the store: equal scores are in this order.
    pub(super) order: i64,
    /// See [`analysis_index`].
    pub(super) analysis: u8,
    pub(super) chunks: Range<u32>,
    /// The rows of the chunks, in their order; empty if no chunk has a vector.
    pub(super) rows: Range<u32>,
}

impl FileRange {
    /// Returns the row of a chunk of this file; `None` if no chunk of the file has a vector.
    pub(super) fn row(&self, chunk: u32) -> Option<u32> {
        (!self.rows.is_empty()).then(|| self.rows.start + (chunk - self.chunks.start))
    }

    fn chunk_range(&self) -> Range<usize> {
        self.chunks.start as usize..self.chunks.end as usize
    }
}

/// Chunks with their terms and vectors.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// In the order of their chunks.
    pub(super) files: Vec<FileRange>,
    /// Indexes of `files`, sorted by key.
    by_key: Vec<u32>,
    /// For each chunk: its number in the file.
    pub(super) numbers: Vec<u32>,
    /// For each chunk: its length in words.
    pub(super) lengths: Vec<u32>,
    /// For each chunk: see [`analysis_index`].
    analyses: Vec<u8>,
    pub(super) lists: Lists,
    pub(super) vectors: Vectors,
}

/// Inverted lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lists {
    /// The terms, sorted.
    terms: Vec<u32>,
    /// For each term, the number of chunks that have it, and the end of its list in `postings`.
    ends: Vec<(u32, u32)>,
    /// For each term, its chunks in ascending order: the difference to the chunk before, times two, plus one if the term
    /// occurs once in the chunk; otherwise the number of occurrences follows. Both as varint.
    postings: Vec<u8>,
}

impl Lists {
    /// Adds the list of a term, which must be greater than those before: the number of its chunks, and the list.
    pub(super) fn push(&mut self, term: u32, chunks: u32, list: &[u8]) {
        self.postings.extend_from_slice(list);
        self.end_list(term, chunks);
    }

    /// Completes the list of a term that was written to `postings`.
    fn end_list(&mut self, term: u32, chunks: u32) {
        self.terms.push(term);
        self.ends.push((chunks, count_u32(self.postings.len())));
    }

    /// Returns each term with the number of its chunks and its list.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32, &[u8])> {
        self.terms.iter().enumerate().map(|(index, term)| (*term, self.ends[index].0, self.bytes_of(index)))
    }

    fn bytes_of(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].1 as usize);
        &self.postings[start..self.ends[index].1 as usize]
    }

    /// Returns the number of chunks with a term, and the chunks.
    fn find(&self, term: u32) -> Option<(u32, Postings<'_>)> {
        let index = self.terms.binary_search(&term).ok()?;
        Some((self.ends[index].0, self.at(index)))
    }

    fn at(&self, index: usize) -> Postings<'_> {
        Postings { bytes: self.bytes_of(index), chunk: 0 }
    }

    fn shrink_to_fit(&mut self) {
        self.terms.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.postings.shrink_to_fit();
    }

    /// Returns the allocated memory, in bytes.
    fn bytes(&self) -> usize {
        4 * self.terms.capacity() + 8 * self.ends.capacity() + self.postings.capacity()
    }
}

impl Segment {
    pub(super) fn chunks(&self) -> usize {
        self.numbers.len()
    }

    /// Returns the index of a chunk's file.
    pub(super) fn file_of(&self, chunk: u32) -> usize {
        self.files.partition_point(|file| file.chunks.end <= chunk)
    }

    /// Returns the indexes of a file's parts: there is one, unless the file is larger than a builder.
    pub(super) fn find(&self, key: &str) -> impl Iterator<Item = usize> {
        let key_of = |index: &u32| &*self.files[*index as usize].key;
        let start = self.by_key.partition_point(|index| key_of(index) < key);
        let rest = self.by_key[start..].iter();
        rest.take_while(move |index| key_of(index) == key).map(|index| *index as usize)
    }

    /// Returns the allocated memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let keys: usize = self.files.iter().map(|file| file.key.len()).sum();
        size_of::<Self>()
            + keys
            + self.files.capacity() * size_of::<FileRange>()
            + 4 * (self.by_key.capacity() + self.numbers.capacity() + self.lengths.capacity())
            + self.analyses.capacity()
            + self.lists.bytes()
            + self.vectors.bytes()
    }

    /// Returns the number of chunks with a term in files that `is_live` accepts; `None` accepts all. `lists` are those of
    /// this segment.
    pub(super) fn document_count(&self, lists: &Lists, term: u32, is_live: Option<&dyn Fn(usize) -> bool>) -> u64 {
        let Some((count, postings)) = lists.find(term) else { return 0 };
        let Some(is_live) = is_live else { return u64::from(count) };
        let mut files = FileCursor { segment: self, file: 0 };
        postings.filter(|(chunk, _)| is_live(files.file_of(*chunk))).count() as u64
    }

    /// Adds the weight of a term to the scores of its chunks; `scores` has a place for each chunk of the segment, and `lists`
    /// are those of this segment.
    pub(super) fn add_scores(&self, lists: &Lists, term: u32, weight: &TermWeight, scores: &mut [f32]) {
        let Some((_, postings)) = lists.find(term) else { return };
        for (chunk, count) in postings {
            let chunk = chunk as usize;
            scores[chunk] += weight.of(self.analyses[chunk], count, self.lengths[chunk]);
        }
    }

    /// Merges segments, without the files that `is_live` does not accept (by segment and file).
    ///
    /// The files are in the order of the segments. Returns the segment and where each of its files comes from.
    pub(super) fn merge(segments: &[&Self], is_live: &dyn Fn(usize, usize) -> bool) -> (Self, Vec<(usize, usize)>) {
        let mut merged = Self {
            vectors: Vectors::new(segments.first().map_or(0, |first| first.vectors.dimensions())),
            ..Self::default()
        };
        let mut sources = Vec::new();
        // For each segment and chunk, the chunk in the merged segment.
        let mut moved: Vec<Vec<u32>> = segments.iter().map(|segment| vec![u32::MAX; segment.chunks()]).collect();
        let live_rows = |(index, segment): (usize, &&Self)| -> usize {
            let live = segment.files.iter().enumerate().filter(|(file, _)| is_live(index, *file));
            live.map(|(_, file)| file.rows.len()).sum()
        };
        merged.vectors.reserve_exact(segments.iter().enumerate().map(live_rows).sum());
        for (index, segment) in segments.iter().enumerate() {
            for (file_index, file) in segment.files.iter().enumerate() {
                if !is_live(index, file_index) {
                    continue;
                }
                let (first_chunk, first_row) = (count_u32(merged.numbers.len()), merged.vectors.rows());
                let chunks = file.chunk_range();
                for (place, chunk) in moved[index][chunks.clone()].iter_mut().zip(first_chunk..) {
                    *place = chunk;
                }
                merged.numbers.extend_from_slice(&segment.numbers[chunks.clone()]);
                merged.lengths.extend_from_slice(&segment.lengths[chunks.clone()]);
                merged.analyses.extend_from_slice(&segment.analyses[chunks]);
                merged.vectors.extend(&segment.vectors, file.rows.clone());
                merged.files.push(FileRange {
                    chunks: first_chunk..count_u32(merged.numbers.len()),
                    rows: first_row..merged.vectors.rows(),
                    ..file.clone()
                });
                sources.push((index, file_index));
            }
        }
        merged.merge_lists(segments, &moved);
        merged.finish();
        (merged, sources)
    }

    fn merge_lists(&mut self, segments: &[&Self], moved: &[Vec<u32>]) {
        let mut heads = vec![0; segments.len()];
        loop {
            let terms = heads.iter().zip(segments).filter_map(|(head, segment)| segment.lists.terms.get(*head));
            let Some(term) = terms.min().copied() else { break };
            let mut list = ListWriter::new(&mut self.lists.postings);
            for ((head, segment), moved) in heads.iter_mut().zip(segments).zip(moved) {
                if segment.lists.terms.get(*head) != Some(&term) {
                    continue;
                }
                for (chunk, count) in segment.lists.at(*head) {
                    let chunk = moved[chunk as usize];
                    if chunk != u32::MAX {
                        list.push(chunk, count);
                    }
                }
                *head += 1;
            }
            if list.chunks > 0 {
                let chunks = list.chunks;
                self.lists.end_list(term, chunks);
            }
        }
    }

    /// Completes a segment whose files and lists are there.
    fn finish(&mut self) {
        self.by_key = (0..count_u32(self.files.len())).collect();
        let files = &self.files;
        self.by_key.sort_by(|left, right| files[*left as usize].key.cmp(&files[*right as usize].key));
        self.files.shrink_to_fit();
        self.numbers.shrink_to_fit();
        self.lengths.shrink_to_fit();
        self.analyses.shrink_to_fit();
        self.lists.shrink_to_fit();
        self.vectors.shrink_to_fit();
    }
}

/// Version of [`Segment::to_bytes`].
const VERSION: u8 = 1;

impl Segment {
    /// Encodes the files and the chunks, without the lists and the vectors: the version as one byte, the number of files,
    /// and for each file its key (its length and the bytes), its order (8 bytes, little-endian), its analysis and the number
    /// of its chunks; for each chunk its number and its length. Numbers are varints.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        write_varint(&mut bytes, count_u32(self.files.len()));
        for file in &self.files {
            write_varint(&mut bytes, count_u32(file.key.len()));
            bytes.extend_from_slice(file.key.as_bytes());
            bytes.extend_from_slice(&file.order.to_le_bytes());
            write_varint(&mut bytes, file.analysis.into());
            write_varint(&mut bytes, file.chunks.end - file.chunks.start);
            for chunk in file.chunk_range() {
                write_varint(&mut bytes, self.numbers[chunk]);
                write_varint(&mut bytes, self.lengths[chunk]);
            }
        }
        bytes
    }

    /// Decodes what [`Segment::to_bytes`] encoded. Returns `None` if it has another version or is damaged.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, mut bytes) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
        let mut segment = Self::default();
        for _ in 0..read_varint(&mut bytes)? {
            let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
            let (key, rest) = bytes.split_at_checked(length)?;
            let (order, rest) = rest.split_first_chunk()?;
            bytes = rest;
            let analysis =
                u8::try_from(read_varint(&mut bytes)?).ok().filter(|index| usize::from(*index) < ANALYSES)?;
            let start = count_u32(segment.numbers.len());
            for _ in 0..read_varint(&mut bytes)? {
                segment.numbers.push(read_varint(&mut bytes)?);
                segment.lengths.push(read_varint(&mut bytes)?);
                segment.analyses.push(analysis);
            }
            segment.files.push(FileRange {
                key: std::str::from_utf8(key).ok()?.into(),
                order: i64::from_le_bytes(*order),
                analysis,
                chunks: start..count_u32(segment.numbers.len()),
                rows: 0..0,
            });
        }
        segment.finish();
        bytes.is_empty().then_some(segment)
    }

    /// Returns the chunk with a number of the file with this index.
    pub(super) fn chunk(&self, file: usize, number: u32) -> Option<u32> {
        let chunks = self.files.get(file)?.chunk_range();
        let index = self.numbers[chunks.clone()].binary_search(&number).ok()?;
        Some(count_u32(chunks.start + index))
    }
}

/// Finds the file of chunks that are asked for in ascending order.
struct FileCursor<'a> {
    segment: &'a Segment,
    file: usize,
}

impl FileCursor<'_> {
    fn file_of(&mut self, chunk: u32) -> usize {
        if self.segment.files[self.file].chunks.end <= chunk {
            let rest = &self.segment.files[self.file..];
            self.file += rest.partition_point(|file| file.chunks.end <= chunk);
        }
        self.file
    }
}

/// The chunks of a list with the number of occurrences, in ascending order.
struct Postings<'a> {
    bytes: &'a [u8],
    chunk: u32,
}

impl Iterator for Postings<'_> {
    type Item = (u32, u32);

    #[inline]
    fn next(&mut self) -> Option<(u32, u32)> {
        let value = match self.bytes {
            // Most differences are small.
            [byte, rest @ ..] if *byte < 0x80 => {
                self.bytes = rest;
                u32::from(*byte)
            }
            _ => read_varint(&mut self.bytes)?,
        };
        self.chunk += value >> 1;
        let count = if value & 1 == 1 { 1 } else { read_varint(&mut self.bytes)? };
        Some((self.chunk, count))
    }
}

/// Writes a list.
struct ListWriter<'a> {
    bytes: &'a mut Vec<u8>,
    last: u32,
    chunks: u32,
}

impl<'a> ListWriter<'a> {
    fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, last: 0, chunks: 0 }
    }

    fn push(&mut self, chunk: u32, count: u32) {
        let difference = chunk - self.last;
        write_varint(self.bytes, difference << 1 | u32::from(count == 1));
        if count != 1 {
            write_varint(self.bytes, count);
        }
        self.last = chunk;
        self.chunks += 1;
    }
}

/// Builds a segment from files.
pub(super) struct Builder {
    segment: Segment,
    /// A term in the highest 32 bits, then the chunk, then the number of occurrences in 8 bits.
    entries: Vec<u64>,
}

impl Builder {
    pub(super) fn new(dimensions: usize) -> Self {
        Self { segment: Segment { vectors: Vectors::new(dimensions), ..Segment::default() }, entries: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segment.files.is_empty()
    }

    /// Adds as many of a file's chunks as there is room for, from the beginning, and removes them from it. Returns `false` if
    /// chunks are left: they must go to another segment.
    ///
    /// `has_rows` says whether any chunk of the file has a vector that `accepts` accepts; it must be the same for all its parts.
    pub(super) fn add<F>(
        &mut self,
        file: &mut IndexFile<F>,
        has_rows: bool,
        accepts: impl Fn(&IndexChunk) -> bool,
    ) -> bool {
        let (first_chunk, first_row) = (count_u32(self.segment.chunks()), self.segment.vectors.rows());
        let analysis = u8::try_from(analysis_index(file.language)).unwrap_or(0);
        let mut added = 0;
        for chunk in &file.chunks {
            let is_full = self.entries.len() + chunk.terms.counts.len() > BUILDER_ENTRIES_MAX
                || self.segment.chunks() >= BUILDER_CHUNKS_MAX;
            if is_full && self.segment.chunks() > 0 {
                break;
            }
            self.add_chunk(chunk, analysis);
            match chunk.vector.as_ref().filter(|_| accepts(chunk)) {
                Some(vector) => self.segment.vectors.push(vector),
                None if has_rows => self.segment.vectors.push_absent(),
                None => {}
            }
            added += 1;
        }
        if added > 0 || file.chunks.is_empty() {
            self.segment.files.push(FileRange {
                key: file.key.as_str().into(),
                order: file.order,
                analysis,
                chunks: first_chunk..count_u32(self.segment.chunks()),
                rows: first_row..self.segment.vectors.rows(),
            });
        }
        file.chunks.drain(..added);
        file.chunks.is_empty()
    }

    fn add_chunk(&mut self, chunk: &IndexChunk, analysis: u8) {
        let index = self.segment.chunks() as u64;
        for (term, count) in &chunk.terms.counts {
            let count = (*count).clamp(1, COUNT_MAX);
            self.entries.push(u64::from(*term) << 32 | index << 8 | u64::from(count));
        }
        self.segment.numbers.push(chunk.number);
        self.segment.lengths.push(chunk.terms.words);
        self.segment.analyses.push(analysis);
    }

    pub(super) fn build(self) -> Segment {
        let Self { mut segment, mut entries } = self;
        entries.sort_unstable();
        for of_term in entries.chunk_by(|left, right| left >> 32 == right >> 32) {
            let mut list = ListWriter::new(&mut segment.lists.postings);
            for entry in of_term {
                let [_, _, _, _, high, middle, low, count] = entry.to_be_bytes();
                list.push(u32::from_be_bytes([0, high, middle, low]), u32::from(count));
            }
            let chunks = list.chunks;
            segment.lists.end_list(count_u32(usize::try_from(of_term[0] >> 32).unwrap_or_default()), chunks);
        }
        segment.finish();
        segment
    }
}

/// Converts a count of things in memory, which are fewer than 2^32.
fn count_u32(count: usize) -> u32 {
    u32::try_from(count).expect("a segment has less than 2^32 of anything")
}

/// Returns the number of live chunks and words for each way to analyze.
pub(super) fn totals(segment: &Segment, is_live: &dyn Fn(usize) -> bool) -> ([u64; ANALYSES], [u64; ANALYSES]) {
    let (mut chunks, mut words) = ([0; ANALYSES], [0; ANALYSES]);
    for (_, file) in segment.files.iter().enumerate().filter(|(index, _)| is_live(*index)) {
        chunks[usize::from(file.analysis)] += file.chunks.len() as u64;
        let lengths = &segment.lengths[file.chunk_range()];
        words[usize::from(file.analysis)] += lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
    }
    (chunks, words)
}
