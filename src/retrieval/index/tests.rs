//! Compares the index with a direct computation over all chunks.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::retrieval::lexical::{Analyzer, analysis_index};

const DIMENSIONS: usize = 8;
const WORDS: [&str; 12] =
    ["refund", "return", "ship", "order", "card", "bank", "invoice", "tax", "gift", "box", "late", "price"];

/// A file as the tests describe it: its facts are one number, by which queries filter.
#[derive(Debug, Clone)]
struct File {
    group: u32,
    language: Option<Language>,
    /// The words of each chunk, and its embedding.
    chunks: Vec<(Vec<usize>, Option<Vec<f32>>)>,
}

fn facts(group: u32) -> Facts<u32> {
    Facts { facts: Arc::new(group), bytes: 4 }
}

fn text(words: &[usize]) -> String {
    words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ")
}

fn entry(key: usize, file: &File) -> IndexFile<u32> {
    let mut analyzer = Analyzer::new(file.language);
    let chunk = |(number, (words, vector)): (usize, &(Vec<usize>, Option<Vec<f32>>))| IndexChunk {
        number: u32::try_from(number).unwrap(),
        terms: analyzer.analyze(&text(words)),
        vector: vector.as_ref().and_then(|vector| to_f16_bytes(vector)),
    };
    IndexFile {
        key: format!("key{key}"),
        order: i64::try_from(key).unwrap(),
        language: file.language,
        facts: facts(file.group),
        chunks: file.chunks.iter().enumerate().map(chunk).collect(),
    }
}

/// Computes the scores of all chunks of the files with the formulas alone.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn expected(
    files: &BTreeMap<usize, File>,
    query: &str,
    vector: &[f32],
    group: Option<u32>,
) -> BTreeMap<(usize, u32), (f64, Option<f64>)> {
    struct Document {
        language: Option<Language>,
        terms: Terms,
    }
    let documents: Vec<Vec<Document>> = files
        .values()
        .map(|file| {
            let document = |(words, _): &(Vec<usize>, _)| Document {
                language: file.language,
                terms: Analyzer::new(file.language).analyze(&text(words)),
            };
            file.chunks.iter().map(document).collect()
        })
        .collect();
    let all = || documents.iter().flatten();
    let count_of =
        |terms: &Terms, term: u32| terms.counts.iter().find(|(of, _)| *of == term).map_or(0, |(_, count)| *count);
    let total = all().count() as f64;
    let mut scores = BTreeMap::new();
    for ((key, file), of_file) in files.iter().zip(&documents) {
        if group.is_some_and(|group| group != file.group) {
            continue;
        }
        let mut analyses = Analyses::default();
        analyses.insert(file.language);
        let query_terms = LexicalQuery::new(query, analyses);
        let same_language = || all().filter(|document| document.language == file.language);
        let length: f64 = same_language().map(|document| f64::from(document.terms.words)).sum::<f64>();
        let average = length / same_language().count() as f64;
        let is_usable = |vector: &Vec<f32>| vector.len() == DIMENSIONS && to_f16_bytes(vector).is_some();
        for (number, (document, (_, own))) in of_file.iter().zip(&file.chunks).enumerate() {
            let (mut sum, mut bound) = (0.0, 0.0);
            for term in &query_terms.terms {
                let with_term = all().filter(|document| count_of(&document.terms, term.term) > 0).count() as f64;
                let idf = (1.0 + (total - with_term + 0.5) / (with_term + 0.5)).ln();
                let weight = f64::from(term.counts[analysis_index(file.language)]) * idf;
                let frequency = f64::from(count_of(&document.terms, term.term));
                let norm = 1.2 * (0.25 + 0.75 * f64::from(document.terms.words) / average);
                bound += weight;
                sum += if frequency > 0.0 { weight * frequency / (frequency + norm) } else { 0.0 };
            }
            let lexical = if bound > 0.0 { sum / bound } else { 0.0 };
            let cosine =
                own.as_ref().filter(|own| is_usable(own)).filter(|_| QueryVector::new(vector).is_some()).map(|own| {
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                    };
                    dot(own, vector) / (dot(own, own).sqrt() * dot(vector, vector).sqrt())
                });
            scores.insert((*key, u32::try_from(number).unwrap()), (lexical, cosine));
        }
    }
    scores
}

fn search(
    index: &StoreIndex<u32>,
    query: &str,
    vector: &[f32],
    group: Option<u32>,
    depth: usize,
) -> BTreeMap<(usize, u32), (f32, Option<f32>)> {
    let lexical = LexicalQuery::new(query, index.analyses());
    let statistics = index.statistics(&lexical);
    let vector = QueryVector::new(vector);
    let query = Query { lexical: &lexical, statistics: &statistics, vector: vector.as_ref(), depth, nearest: &[] };
    let is_allowed = |of: &u32| group.is_none_or(|group| group == *of);
    let candidates = index.candidates(&query, group.is_some().then_some(&is_allowed as &dyn Fn(&u32) -> bool));
    let entry = |candidate: Candidate| {
        let key = index.file(candidate.file).unwrap().1.trim_start_matches("key").parse().unwrap();
        ((key, candidate.number), (candidate.lexical, candidate.vector))
    };
    let count = candidates.len();
    let found: BTreeMap<_, _> = candidates.into_iter().map(entry).collect();
    assert_eq!(found.len(), count, "no chunk is found twice");
    found
}

fn file() -> impl Strategy<Value = File> {
    let language = prop_oneof![3 => Just(Some(Language::English)), 1 => Just(None), 1 => Just(Some(Language::German))];
    let vector = prop::collection::vec(-1.0_f32..1.0, DIMENSIONS);
    let vector = prop_oneof![9 => vector.prop_map(Some), 1 => Just(None), 1 => Just(Some(vec![0.0; DIMENSIONS])), 1 => Just(Some(vec![1.0; 3]))];
    let chunk = (prop::collection::vec(0..WORDS.len(), 0..12), vector);
    (0..3_u32, language, prop::collection::vec(chunk, 0..4)).prop_map(|(group, language, chunks)| File {
        group,
        language,
        chunks,
    })
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<File>),
    Remove(usize),
    Regroup(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => prop::collection::vec(file(), 1..4).prop_map(Step::Add),
        2 => any::<usize>().prop_map(Step::Remove),
        1 => (any::<usize>(), 0..3_u32).prop_map(|(index, group)| Step::Regroup(index, group)),
    ]
}

/// Performs steps on an index and on a list of files.
fn perform(steps: Vec<Step>) -> (StoreIndex<u32>, BTreeMap<usize, File>) {
    let mut index = StoreIndex::new(Some(DIMENSIONS));
    let mut files: BTreeMap<usize, File> = BTreeMap::new();
    let mut next = 0;
    for step in steps {
        let pick = |files: &BTreeMap<usize, File>, at: usize| files.keys().nth(at % files.len().max(1)).copied();
        let changes = match step {
            Step::Add(added) => {
                let mut changes = Vec::new();
                for file in added {
                    changes.push(Change::Add(entry(next, &file)));
                    files.insert(next, file);
                    next += 1;
                }
                changes
            }
            Step::Remove(at) => {
                let Some(key) = pick(&files, at) else { continue };
                files.remove(&key);
                vec![Change::Remove { key: format!("key{key}") }]
            }
            Step::Regroup(at, group) => {
                let Some(key) = pick(&files, at) else { continue };
                if let Some(file) = files.get_mut(&key) {
                    file.group = group;
                }
                vec![Change::Replace { key: format!("key{key}"), facts: facts(group) }]
            }
        };
        index = index.apply(changes);
    }
    (index, files)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_any_changes_all_chunks_have_the_scores_of_the_formulas(
        steps in prop::collection::vec(step(), 1..40),
        words in prop::collection::vec(0..WORDS.len(), 1..5),
        vector in prop::collection::vec(-1.0_f32..1.0, DIMENSIONS),
        group in prop::option::of(0..3_u32),
    ) {
        let (index, files) = perform(steps);
        let query = text(&words);

        let found = search(&index, &query, &vector, group, usize::MAX);

        let expected = expected(&files, &query, &vector, group);
        for (place, (lexical, cosine)) in &expected {
            match found.get(place) {
                Some((of_index, vector)) => {
                    prop_assert!((f64::from(*of_index) - lexical).abs() < 1e-5, "{of_index} is not {lexical}");
                    prop_assert_eq!(vector.is_some(), cosine.is_some());
                    let difference = vector.map_or(0.0, f64::from) - cosine.unwrap_or(0.0);
                    prop_assert!(difference.abs() < 2e-3, "{vector:?} is not {cosine:?}");
                }
                None => prop_assert!(*lexical == 0.0 && cosine.is_none(), "{place:?} was not found"),
            }
        }
        prop_assert!(found.keys().all(|place| expected.contains_key(place)));
        prop_assert_eq!(index.chunks(), files.values().map(|file| file.chunks.len()).sum::<usize>());
        for (key, file) in &files {
            prop_assert_eq!(index.find(&format!("key{key}")).map(|facts| *facts.facts), Some(file.group));
        }
    }

    #[test]
    fn queries_that_are_answered_together_have_the_same_candidates(
        steps in prop::collection::vec(step(), 1..30),
        asked in prop::collection::vec(
            (
                prop::collection::vec(0..WORDS.len(), 1..5),
                prop::option::of(prop::collection::vec(-1.0_f32..1.0, DIMENSIONS)),
                prop::option::of(0..3_u32),
            ),
            0..5,
        ),
        depth in 1_usize..20,
    ) {
        let (index, _) = perform(steps);
        let lexical: Vec<_> = asked.iter().map(|(words, ..)| LexicalQuery::new(&text(words), index.analyses())).collect();
        let statistics: Vec<_> = lexical.iter().map(|lexical| index.statistics(lexical)).collect();
        let vectors: Vec<_> =
            asked.iter().map(|(_, vector, _)| vector.as_ref().and_then(|vector| QueryVector::new(vector))).collect();
        let groups: Vec<_> = asked.iter().map(|(.., group)| group.map(|group| move |of: &u32| *of == group)).collect();
        let queries: Vec<_> = lexical.iter().zip(&statistics).zip(&vectors).zip(&groups).map(
            |(((lexical, statistics), vector), group)| {
                let query = Query { lexical, statistics, vector: vector.as_ref(), depth, nearest: &[] };
                (query, group.as_ref().map(|is_allowed| is_allowed as IsAllowed<'_, u32>))
            },
        ).collect();

        let together = index.candidates_of_all(&queries);

        let alone: Vec<_> = queries.iter().map(|(query, is_allowed)| index.candidates(query, *is_allowed)).collect();
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn scores_do_not_depend_on_how_the_index_came_about(
        steps in prop::collection::vec(step(), 1..30),
        words in prop::collection::vec(0..WORDS.len(), 1..5),
        vector in prop::collection::vec(-1.0_f32..1.0, DIMENSIONS),
        depth in 1_usize..20,
        parts in 1_usize..4,
    ) {
        let (index, files) = perform(steps);
        let query = text(&words);
        let found = search(&index, &query, &vector, None, depth);

        // All files at once.
        let rebuilt = StoreIndex::new(Some(DIMENSIONS)).apply(files.iter().map(|(key, file)| Change::Add(entry(*key, file))));
        prop_assert_eq!(&search(&rebuilt, &query, &vector, None, depth), &found);

        // Some files at a time, as when the store does not fit into memory.
        let entries: Vec<_> = files.iter().collect();
        let part = |entries: &[(&usize, &File)]| {
            StoreIndex::new(Some(DIMENSIONS)).apply(entries.iter().map(|(key, file)| Change::Add(entry(**key, file))))
        };
        let size = entries.len().div_ceil(parts).max(1);
        let lexical = LexicalQuery::new(&query, index.analyses());
        let mut statistics = Statistics::new(&lexical);
        entries.chunks(size).for_each(|entries| statistics.add(&part(entries).statistics(&lexical)));
        let vector = QueryVector::new(&vector);
        let query = Query { lexical: &lexical, statistics: &statistics, vector: vector.as_ref(), depth, nearest: &[] };
        let mut in_parts = BTreeMap::new();
        for entries in entries.chunks(size) {
            let part = part(entries);
            for candidate in part.candidates(&query, None) {
                let key = part.file(candidate.file).unwrap().1.trim_start_matches("key").parse::<usize>().unwrap();
                in_parts.insert((key, candidate.number), (candidate.lexical, candidate.vector));
            }
        }
        for (place, scores) in &found {
            prop_assert_eq!(in_parts.get(place), Some(scores));
        }
    }

    #[test]
    fn a_stored_index_has_the_same_candidates(
        steps in prop::collection::vec(step(), 1..30),
        words in prop::collection::vec(0..WORDS.len(), 1..5),
        vector in prop::collection::vec(-1.0_f32..1.0, DIMENSIONS),
        group in prop::option::of(0..3_u32),
        depth in 1_usize..20,
        stored_steps in 0_usize..30,
    ) {
        // The files of the first steps are stored; the later steps change the index.
        let (first, later) = steps.split_at(stored_steps.min(steps.len()));
        let (stored, _) = perform(first.to_vec());
        let (index, files) = perform([first, later].concat());
        let expected = search(&index, &text(&words), &vector, group, depth);

        let form = stored.to_stored();
        prop_assert_eq!(form.chunks, stored.chunks());
        let id = SegmentId::new("a");
        let mut read = StoreIndex::new(Some(DIMENSIONS)).with_stored(id.clone(), &form.body).unwrap();
        prop_assert_eq!(read.chunks(), 0, "no file is live yet");
        let change = |(key, file): (&usize, &File)| {
            let entry = entry(*key, file);
            if read.has_chunks(&entry.key) {
                Change::Replace { key: entry.key, facts: entry.facts }
            } else {
                Change::Add(entry)
            }
        };
        let changes: Vec<_> = files.iter().map(change).collect();
        read = read.apply(changes);
        prop_assert_eq!(read.chunks(), index.chunks());

        let query = text(&words);
        let lexical = LexicalQuery::new(&query, read.analyses());
        let needed = parts_of(std::slice::from_ref(&lexical));
        let parts = form.lists.into_iter().filter(|(part, _)| needed.contains(part));
        let parts = parts.map(|(part, data)| ((id.clone(), part), data)).collect();
        read = read.with_lists(std::slice::from_ref(&lexical), &parts);
        let statistics = read.statistics(&lexical);
        let is_allowed = |of: &u32| group.is_none_or(|group| group == *of);
        let is_allowed = group.is_some().then_some(&is_allowed as &dyn Fn(&u32) -> bool);
        let vector = QueryVector::new(&vector).map(Arc::new);
        let mut nearest = Vec::new();
        if let Some(vector) = &vector {
            let mut search = Nearest::new(vector.clone(), depth);
            for block in &form.vectors {
                search.read(&read, &id, block, is_allowed);
            }
            for location in search.into_chunks() {
                let (key, number) = read.chunk_key(location).unwrap();
                prop_assert_eq!(read.locate_stored(key, number, is_allowed), Some(location));
                let key: usize = key.trim_start_matches("key").parse().unwrap();
                let embedding = to_f16_bytes(files[&key].chunks[number as usize].1.as_ref().unwrap()).unwrap();
                nearest.push((location, vector.score(&embedding).unwrap()));
            }
        }
        let query = Query {
            lexical: &lexical, statistics: &statistics, vector: vector.as_deref(), depth, nearest: &nearest,
        };
        let candidates = read.candidates(&query, is_allowed);
        prop_assert_eq!(candidates.len(), expected.len());
        for candidate in candidates {
            let key = read.file(candidate.file).unwrap().1.trim_start_matches("key").parse().unwrap();
            let (words, vector) = expected[&(key, candidate.number)];
            prop_assert_eq!(candidate.lexical.to_bits(), words.to_bits());
            // Those that were found by words have no score by the embedding yet.
            prop_assert!(candidate.vector == vector || candidate.vector.is_none() && read.is_stored(candidate.file));
        }
    }

    #[test]
    fn damaged_segments_are_not_used(steps in prop::collection::vec(step(), 1..10), at in any::<usize>(), byte in any::<u8>()) {
        let (index, _) = perform(steps);
        let form = index.to_stored();
        let body = &form.body;
        let id = SegmentId::new("a");
        // Any result is right, but a panic.
        let mut changed = body.clone();
        changed[at % body.len()] = byte;
        let _ = StoreIndex::<u32>::new(None).with_stored(id.clone(), &changed);
        let cut = at % body.len();
        prop_assert!(StoreIndex::<u32>::new(None).with_stored(id, &body[..cut]).is_none());
    }

    #[test]
    fn the_best_chunks_are_found(
        steps in prop::collection::vec(step(), 1..30),
        words in prop::collection::vec(0..WORDS.len(), 1..5),
        vector in prop::collection::vec(-1.0_f32..1.0, DIMENSIONS),
        depth in 1_usize..20,
    ) {
        let (index, _) = perform(steps);
        let query = text(&words);
        let all = search(&index, &query, &vector, None, usize::MAX);

        let found = search(&index, &query, &vector, None, depth);

        let mut by_words: Vec<_> = all.iter().filter(|(_, scores)| scores.0 > 0.0).collect();
        by_words.sort_by(|left, right| right.1.0.total_cmp(&left.1.0).then(left.0.cmp(right.0)));
        let mut by_vector: Vec<_> = all.iter().filter(|(_, scores)| scores.1.is_some()).collect();
        by_vector.sort_by(|left, right| right.1.1.unwrap().total_cmp(&left.1.1.unwrap()).then(left.0.cmp(right.0)));
        let best: BTreeMap<_, _> = by_words.into_iter().take(depth).chain(by_vector.into_iter().take(depth)).collect();
        prop_assert_eq!(found.iter().collect::<BTreeMap<_, _>>(), best);
    }
}

/// Returns a file of chunks with random words and vectors.
fn random_file(key: usize, chunks: usize, random: &mut fastrand::Rng) -> IndexFile<u32> {
    let mut chunk = |number: usize| {
        let words: Vec<String> =
            (0..50).map(|_| format!("w{}", random.u32(..).leading_zeros() * 50 + random.u32(0..50))).collect();
        let vector: Vec<f32> = (0..DIMENSIONS).map(|_| random.f32() - 0.5).collect();
        IndexChunk {
            number: u32::try_from(number).unwrap(),
            terms: Analyzer::new(None).analyze(&words.join(" ")),
            vector: to_f16_bytes(&vector),
        }
    };
    IndexFile {
        key: format!("key{key}"),
        order: i64::try_from(key).unwrap(),
        language: None,
        facts: facts(0),
        chunks: (0..chunks).map(&mut chunk).collect(),
    }
}

#[test]
fn an_index_of_many_small_changes_has_few_segments_and_the_size_of_one_change() {
    let mut random = fastrand::Rng::with_seed(7);
    let files: Vec<_> = (0..2_000).map(|key| random_file(key, 1, &mut random)).collect();

    let mut index = StoreIndex::new(Some(DIMENSIONS));
    for file in files.clone() {
        index = index.apply([Change::Add(file)]);
    }

    let whole = StoreIndex::new(Some(DIMENSIONS)).apply(files.into_iter().map(Change::Add));
    assert!(index.segments.len() <= 40, "{} segments", index.segments.len());
    assert!(index.bytes() < whole.bytes() * 3 / 2, "{} instead of {} bytes", index.bytes(), whole.bytes());
}

#[test]
fn removed_files_free_their_memory() {
    let mut random = fastrand::Rng::with_seed(7);
    let index =
        StoreIndex::new(Some(DIMENSIONS)).apply((0..200).map(|key| Change::Add(random_file(key, 5, &mut random))));
    let bytes = index.bytes();

    let index = index.apply((0..150).map(|key| Change::Remove { key: format!("key{key}") }));

    assert_eq!(index.chunks(), 250);
    assert!(index.bytes() < bytes / 3, "{} of {bytes} bytes", index.bytes());
    let index = index.apply((150..200).map(|key| Change::Remove { key: format!("key{key}") }));
    assert!(index.segments.is_empty());
}

#[test]
fn a_search_in_an_earlier_index_does_not_see_changes() {
    let mut random = fastrand::Rng::with_seed(7);
    let before = StoreIndex::new(Some(DIMENSIONS)).apply([Change::Add(random_file(0, 3, &mut random))]);

    let after = before.apply([Change::Remove { key: "key0".to_owned() }, Change::Add(random_file(1, 2, &mut random))]);

    assert_eq!((before.chunks(), after.chunks()), (3, 2));
    assert_eq!(search(&before, "w60", &[1.0; DIMENSIONS], None, 10).len(), 3);
}

#[test]
fn a_file_that_is_larger_than_a_segment_is_removed_as_a_whole() {
    let mut file = random_file(0, 1, &mut fastrand::Rng::with_seed(7));
    let terms = Terms { words: 10_000, counts: (0..10_000).map(|term| (term, 1)).collect() };
    file.chunks = (0..50)
        .map(|number| IndexChunk { number, terms: terms.clone(), vector: file.chunks[0].vector.clone() })
        .collect();

    let index = StoreIndex::new(Some(DIMENSIONS)).apply([Change::Add(file)]);

    assert!(index.segments.len() > 1);
    assert_eq!(index.chunks(), 50);
    let index = index.apply([Change::Remove { key: "key0".to_owned() }]);
    assert_eq!((index.chunks(), index.segments.len()), (0, 0));
}
