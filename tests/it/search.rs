//! Searches of vector stores: scores, filters, freshness, fallbacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assistd::api::rule::Request as _;
use assistd::api::vector_store::{
    Attributes, ChunkingStrategy, CreateVectorStore, HybridWeights, NewStoreFile, VectorStoreSearchRequest,
};
use assistd::api::{FileId, Ids, ProjectId, Scope, StoreFileId, Timestamp, VectorStoreId};
use assistd::clock::Clock;
use assistd::llm::{self, Echo, Embedded, Embedder, EmbeddingInput, Entry, Models};
use assistd::retrieval::index::{self, Change, Facts, IndexChunk, IndexFile, QueryVector, StoreIndex, to_f16_bytes};
use assistd::retrieval::lexical::{Analyzer, Language, LexicalQuery};
use assistd::retrieval::rank::{DEFAULT_WEIGHTS, DEPTH, rank};
use assistd::retrieval::search::{self, Found, Hit, LexicalOnly, Query, Retrieval};
use assistd::store::{CompletedFile, IndexClaim, IndexSegment, NewChunk, Store, VectorsIn};
use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::both_stores;
use crate::support::client::{Client, Reply};
use crate::support::database::Database;
use crate::support::embeddings::Embeddings;
use crate::support::form::Form;
use crate::support::ingest;
use crate::support::process;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

const NOW: Timestamp = Timestamp(1_000);
const LEASE: Duration = Duration::from_mins(10);
const DIMENSIONS: usize = 32;
const DAY_S: i64 = 86_400;

fn scope() -> Scope {
    Scope::default_project()
}

fn ids() -> &'static Ids {
    static IDS: std::sync::OnceLock<Ids> = std::sync::OnceLock::new();
    IDS.get_or_init(Ids::unique_everywhere)
}

/// Embeds texts as sums of a pseudo-random vector for each word, so that texts with the same words are similar.
#[derive(Debug)]
struct Words {
    model: Mutex<String>,
    dimensions: AtomicU32,
    is_down: AtomicBool,
    requests: AtomicU32,
}

impl Words {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new("words".to_owned()),
            dimensions: AtomicU32::new(u32::try_from(DIMENSIONS).unwrap()),
            is_down: AtomicBool::new(false),
            requests: AtomicU32::new(0),
        })
    }

    fn dimensions(&self) -> usize {
        self.dimensions.load(Ordering::SeqCst) as usize
    }

    fn key_now(&self) -> String {
        format!("{}@{}", self.model.lock().unwrap(), self.dimensions())
    }

    fn vector(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0; self.dimensions()];
        for word in text.to_lowercase().split_whitespace() {
            let seed = word.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
            let mut random = fastrand::Rng::with_seed(seed);
            for value in &mut vector {
                *value += random.f32() - 0.5;
            }
        }
        if vector.iter().all(|value| *value == 0.0) {
            vector[0] = 1.0;
        }
        vector
    }
}

#[async_trait]
impl Embedder for Words {
    async fn embed(&self, _: EmbeddingInput, texts: &[String]) -> Result<Embedded, llm::Error> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(llm::Error::Unavailable("down".into()));
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        let vectors = texts.iter().map(|text| self.vector(text)).collect();
        Ok(Embedded { vectors, tokens: 5, model: self.key_now() })
    }

    fn model(&self) -> &'static str {
        "words"
    }

    async fn key(&self) -> Result<String, llm::Error> {
        Ok(self.key_now())
    }
}

fn settings(cache_bytes_max: usize) -> search::Settings {
    search::Settings { cache_bytes_max, memory_chunks_max: None, weights: DEFAULT_WEIGHTS, rewrite_model: None }
}

struct World {
    store: Arc<dyn Store>,
    clock: Arc<Clock>,
    embedder: Arc<Words>,
    /// The vector store.
    id: VectorStoreId,
}

impl World {
    async fn new(database: &Database) -> Self {
        let clock = Arc::new(Clock::manual(NOW));
        let store = database.open_at(clock.clone()).await;
        let id = create_store(&store, json!({})).await;
        Self { store, clock, embedder: Words::new(), id }
    }

    /// Returns the searches of a server with a cache of this size, with the embedding model.
    fn server_with(&self, cache_bytes_max: usize) -> Retrieval {
        self.server_of(Some(self.embedder.clone()), settings(cache_bytes_max))
    }

    fn server(&self) -> Retrieval {
        self.server_with(64 << 20)
    }

    fn server_of(&self, embedder: Option<Arc<dyn Embedder>>, settings: search::Settings) -> Retrieval {
        let models = Models::new(
            vec![Entry { model: Arc::new(Echo), names: Vec::new() }],
            BTreeMap::new(),
            None,
            BTreeMap::new(),
        );
        Retrieval::new(self.store.clone(), self.clock.clone(), Arc::new(models), embedder, settings)
    }

    /// Adds a file with these chunks, which have embeddings of the current model.
    async fn add(&self, name: &str, attributes: Value, texts: &[&str]) -> FileId {
        self.add_to(&self.id, name, attributes, texts, true).await
    }

    async fn add_to(
        &self,
        id: &VectorStoreId,
        name: &str,
        attributes: Value,
        texts: &[&str],
        is_embedded: bool,
    ) -> FileId {
        let attributes: Attributes = serde_json::from_value(attributes).unwrap();
        let file = ingest::create_file(&self.store, ids().generate(), NOW, &format!("{name}.txt")).await;
        let new = NewStoreFile {
            id: ids().generate(),
            file_id: file.clone(),
            attributes,
            chunking: ChunkingStrategy::default(),
        };
        self.store.add_store_file(&scope(), id, &new, self.clock.now()).await.unwrap().unwrap();
        let claimed = self.store.claim_store_file(LEASE, "", &[], u32::MAX).await.unwrap().unwrap();
        assert_eq!(claimed.file_id, file, "files are completed one after the other");
        let chunks: Vec<NewChunk> = texts.iter().map(|text| self.chunk(text, is_embedded)).collect();
        let model = self.embedder.key_now();
        let completed = CompletedFile {
            usage_bytes: 1,
            embedding_model: is_embedded.then_some(model.as_str()),
            text: Some((Some("en"), &chunks)),
        };
        self.store.complete_store_file(&claimed.lease, &completed).await.unwrap();
        file
    }

    /// A chunk whose text begins with "Unembedded" has no embedding.
    fn chunk(&self, text: &str, is_embedded: bool) -> NewChunk {
        let has_vector = is_embedded && !text.starts_with("Unembedded");
        NewChunk {
            text: text.to_owned(),
            overlap_bytes: 0,
            tokens: 1,
            terms: Analyzer::new(Some(Language::English)).analyze(text).to_bytes(),
            content_hash: Sha256::digest(text).into(),
            embedding: has_vector.then(|| to_f16_bytes(&self.embedder.vector(text)).unwrap()),
        }
    }

    async fn search(&self, server: &Retrieval, text: &str) -> Found {
        self.search_with(server, json!({"query": text})).await
    }

    /// Searches with the body of a request.
    async fn search_with(&self, server: &Retrieval, request: Value) -> Found {
        let request = VectorStoreSearchRequest::parse(request).unwrap();
        server.search(&scope(), std::slice::from_ref(&self.id), &query(request)).await.unwrap()
    }
}

fn query(request: VectorStoreSearchRequest) -> Query {
    Query {
        limit: request.limit(),
        score_threshold: request.score_threshold(),
        weights: request.weights(),
        rewrite: request.rewrite_query.unwrap_or(false),
        filter: request.filters.clone(),
        ..Query::new(request.query, 0)
    }
}

async fn create_store(store: &Arc<dyn Store>, request: Value) -> VectorStoreId {
    let (new, files) = CreateVectorStore::parse(request).unwrap().into_vector_store(ids(), NOW);
    store.create_vector_store(&scope(), &new, &files).await.unwrap().id
}

fn texts(found: &Found) -> Vec<&str> {
    found.hits.iter().map(|hit| hit.text.as_str()).collect()
}

/// Returns the name that the test gave a file.
fn name(hit: &Hit) -> &str {
    hit.filename.strip_suffix(".txt").unwrap()
}

fn names(found: &Found) -> BTreeSet<&str> {
    found.hits.iter().map(name).collect()
}

/// Texts of different lengths with some common words.
const TEXTS: [&str; 8] = [
    "Refunds are paid within thirty days after the return of the goods.",
    "A return is free of charge in all countries of the union.",
    "The invoice has a number, and the tax number of the customer.",
    "Orders are shipped within two days; express orders on the same day.",
    "Gift cards cannot be returned, and are not paid out.",
    "For a refund of an order by card, the bank needs some days.",
    "Customers find the number of an order in its confirmation.",
    "Days without shipping: Sundays and bank holidays. Refunds take longer then.",
];

both_stores!(scores_are_those_of_the_formulas_on_each_database, async |database: Database| {
    let world = World::new(&database).await;
    for (number, text) in TEXTS.iter().enumerate() {
        world.add(&number.to_string(), json!({}), &[text]).await;
    }

    let mut index: StoreIndex<usize> = StoreIndex::new(Some(DIMENSIONS));
    for (number, text) in TEXTS.iter().enumerate() {
        let file = IndexFile {
            key: number.to_string(),
            order: i64::try_from(number).unwrap(),
            language: Some(Language::English),
            facts: Facts { facts: Arc::new(number), bytes: 0 },
            chunks: vec![IndexChunk {
                number: 0,
                terms: Analyzer::new(Some(Language::English)).analyze(text),
                vector: to_f16_bytes(&world.embedder.vector(text)),
            }],
        };
        index = index.apply([Change::Add(file)]);
    }
    for text in ["refund of an order", "number", "When is the bank open on sundays?", "nothing of the kind"] {
        let lexical = LexicalQuery::new(text, index.analyses());
        let statistics = index.statistics(&lexical);
        for embedder in [None, Some(world.embedder.clone() as Arc<dyn Embedder>)] {
            let vector = embedder.as_ref().and_then(|_| QueryVector::new(&world.embedder.vector(text)));
            let query = index::Query {
                lexical: &lexical,
                statistics: &statistics,
                vector: vector.as_ref(),
                depth: DEPTH,
                nearest: &[],
            };
            let candidates = index.candidates(&query, None);
            let expected: Vec<(&str, f64, f64, Option<f64>)> = rank(&candidates, DEFAULT_WEIGHTS, 10, 0.0)
                .into_iter()
                .map(|ranked| {
                    let candidate = candidates[ranked.index];
                    let text = TEXTS[**index.file(candidate.file).unwrap().0];
                    (text, ranked.score, candidate.lexical.into(), candidate.vector.map(f64::from))
                })
                .collect();

            // The second cache is too small for any index.
            for cache_bytes_max in [64 << 20, 0] {
                let server = world.server_of(embedder.clone(), settings(cache_bytes_max));
                let found = world.search(&server, text).await;

                let hits = found.hits.iter().map(|hit| (hit.text.as_str(), hit.score, hit.lexical, hit.vector));
                assert_eq!(hits.collect::<Vec<_>>(), expected, "{text}");
                assert_eq!(found.lexical_only, None);
            }
        }
    }
});

both_stores!(results_have_what_clients_see, async |database: Database| {
    let world = World::new(&database).await;
    let file = world.add("Rückgabe", json!({"year": 2024}), &[TEXTS[0], TEXTS[2]]).await;
    let server = world.server();

    let found = world.search(&server, "tax number").await;

    let [first, second] = found.hits.as_slice() else { panic!("{:?}", found.hits) };
    assert_eq!((first.text.as_str(), second.text.as_str()), (TEXTS[2], TEXTS[0]));
    assert_eq!((&first.file_id, first.filename.as_str(), first.number), (&file, "Rückgabe.txt", 1));
    assert_eq!((&first.store, first.attributes.get("year")), (&world.id, Some(&json!(2024))));
    assert!(first.score > second.score && first.score <= 1.0 && first.vector > second.vector);
    assert_eq!((found.queries, found.embedding_tokens), (vec!["tax number".to_owned()], 5));
    // The embedding of the query is in memory now.
    assert_eq!(world.search(&server, "tax number").await.embedding_tokens, 0);
    assert_eq!(world.embedder.requests.load(Ordering::SeqCst), 1);
    let calls =
        database.text("select cast(sum(input_tokens) as text) from model_calls where kind = 'embeddings'").await;
    assert_eq!(calls, "5");
});

both_stores!(limits_thresholds_and_weights_apply, async |database: Database| {
    let world = World::new(&database).await;
    for (number, text) in TEXTS.iter().enumerate() {
        world.add(&number.to_string(), json!({}), &[text]).await;
    }
    let server = world.server();
    let all = world.search(&server, "refund of an order").await;
    // One text has none of the words, and an embedding at more than 90 degrees: its score is 0, and it is not a result.
    assert_eq!(all.hits.len(), TEXTS.len() - 1);
    assert!(all.hits.iter().all(|hit| hit.score > 0.0));
    assert!(all.hits.windows(2).all(|pair| pair[0].score >= pair[1].score));

    let request = |options: Value| json!({"query": "refund of an order", "ranking_options": options});
    let mut limited = request(json!({}));
    limited["max_num_results"] = json!(3);
    assert_eq!(world.search_with(&server, limited).await.hits, all.hits[..3]);
    let threshold = all.hits[2].score;
    let above = world.search_with(&server, request(json!({"score_threshold": threshold}))).await;
    assert_eq!(above.hits, all.hits[..all.hits.iter().filter(|hit| hit.score >= threshold).count()]);

    let weighted = async |embedding: f64, text: f64| {
        let weights = json!({"hybrid_search": {"embedding_weight": embedding, "text_weight": text}});
        world.search_with(&server, request(weights)).await.hits
    };
    let by_vector = weighted(1.0, 0.0).await;
    assert!(by_vector.windows(2).all(|pair| pair[0].vector >= pair[1].vector));
    let requests = world.embedder.requests.load(Ordering::SeqCst);
    let by_words = weighted(0.0, 1.0).await;
    assert!(by_words.windows(2).all(|pair| pair[0].lexical >= pair[1].lexical));
    assert!(by_words.iter().all(|hit| hit.lexical > 0.0 && (hit.score - hit.lexical).abs() < 1e-6));
    assert_eq!(world.embedder.requests.load(Ordering::SeqCst), requests, "no embedding is needed");
    let of_settings = search::Settings { weights: HybridWeights { embedding: 1.0, text: 0.0 }, ..settings(64 << 20) };
    let server = world.server_of(Some(world.embedder.clone()), of_settings);
    assert_eq!(world.search(&server, "refund of an order").await.hits, by_vector);
});

both_stores!(filters_select_files_by_their_attributes, async |database: Database| {
    let world = World::new(&database).await;
    let files = [
        ("a", json!({"year": 2023, "kind": "rule", "draft": false})),
        ("b", json!({"year": 2024, "kind": "rule", "draft": true})),
        ("c", json!({"year": 2024.5, "kind": "note"})),
        ("d", json!({})),
    ];
    for (name, attributes) in files {
        world.add(name, attributes, &["refund"]).await;
    }
    let (server, without_cache) = (world.server(), world.server_with(0));
    let compare = |key: &str, kind: &str, value: Value| json!({"type": kind, "key": key, "value": value});
    let cases = [
        (compare("year", "eq", json!(2024)), "b"),
        (compare("year", "ne", json!(2024)), "acd"),
        (compare("year", "gt", json!(2023)), "bc"),
        (compare("year", "gte", json!(2023)), "abc"),
        (compare("year", "lt", json!(2024.5)), "ab"),
        (compare("year", "lte", json!(2024.5)), "abc"),
        (compare("kind", "in", json!(["note", "other"])), "c"),
        (compare("kind", "nin", json!(["note", "other"])), "abd"),
        (compare("kind", "gt", json!("note")), "ab"),
        (compare("draft", "eq", json!(false)), "a"),
        (compare("year", "eq", json!("2024")), ""),
        (
            json!({"type": "and", "filters": [compare("kind", "eq", json!("rule")), compare("year", "gt", json!(2023))]}),
            "b",
        ),
        (
            json!({"type": "or", "filters": [
                compare("draft", "eq", json!(true)),
                {"type": "and", "filters": [compare("year", "lt", json!(2024)), compare("kind", "ne", json!("note"))]},
            ]}),
            "ab",
        ),
    ];
    for (filter, expected) in cases {
        let request = json!({"query": "refund", "filters": filter});

        let found = world.search_with(&server, request.clone()).await;

        assert_eq!(names(&found).into_iter().collect::<String>(), expected, "{filter}");
        assert_eq!(world.search_with(&without_cache, request).await.hits, found.hits, "{filter}");
    }
});

both_stores!(changes_are_found_by_all_servers_at_once, async |database: Database| {
    let world = World::new(&database).await;
    let servers = [world.server(), world.server(), world.server_with(0)];
    let check = async |expected: &[&str]| {
        for server in &servers {
            let found = world.search(server, "refund return").await;
            assert_eq!(names(&found), expected.iter().copied().collect(), "{:?}", found.hits);
        }
    };
    check(&[]).await;

    let a = world.add("a", json!({"n": 1}), &["refund", "return", "something else"]).await;
    check(&["a"]).await;
    let b = world.add("b", json!({"n": 1}), &["return"]).await;
    check(&["a", "b"]).await;
    assert!(world.store.delete_store_file(&scope(), &world.id, &a).await.unwrap());
    check(&["b"]).await;

    let attributes = serde_json::from_value(json!({"n": 2})).unwrap();
    world.store.modify_store_file(&scope(), &world.id, &b, &attributes).await.unwrap().unwrap();
    for server in &servers {
        let filter = json!({"type": "eq", "key": "n", "value": 2});
        let found = world.search_with(server, json!({"query": "return", "filters": filter})).await;
        assert_eq!(names(&found), BTreeSet::from(["b"]));
        assert_eq!(found.hits[0].attributes, attributes);
    }
    assert!(world.store.delete_file(&scope(), &b).await.unwrap());
    check(&[]).await;
});

both_stores!(files_whose_removal_was_forgotten_are_not_found, async |database: Database| {
    let world = World::new(&database).await;
    let (server, other) = (world.server(), world.server());
    let a = world.add("a", json!({}), &["refund"]).await;
    world.add("b", json!({}), &["refund"]).await;
    assert_eq!(names(&world.search(&server, "refund").await), BTreeSet::from(["a", "b"]));
    assert_eq!(names(&world.search(&other, "refund").await), BTreeSet::from(["a", "b"]));

    assert!(world.store.delete_store_file(&scope(), &world.id, &a).await.unwrap());
    assert_eq!(names(&world.search(&other, "refund").await), BTreeSet::from(["b"]));
    world.clock.advance(2 * assistd::store::TOMBSTONE_KEPT_S);
    while world.store.remove_store_data(100).await.unwrap() {}
    let rows = database.text("select cast(count(*) as text) from vector_store_files").await;
    assert_eq!(rows, "1", "the row of the deleted file is removed");

    assert_eq!(names(&world.search(&server, "refund").await), BTreeSet::from(["b"]));
    assert_eq!(names(&world.search(&other, "refund").await), BTreeSet::from(["b"]));
    world.add("c", json!({}), &["refund"]).await;
    for server in [server, other, world.server()] {
        assert_eq!(names(&world.search(&server, "refund").await), BTreeSet::from(["b", "c"]));
    }
});

/// Returns the published segments.
async fn segments(database: &Database) -> String {
    database
        .text("select coalesce(min(id) || ' of ' || count(*), '') from vector_store_segments where remove_at is null")
        .await
}

/// Searches until the index of the vector store was written to the database: until there is one segment, and it is not
/// `before`. Returns it.
async fn write_index(world: &World, database: &Database, server: &Retrieval, before: &str) -> String {
    // Long enough for the server to write it again.
    world.clock.advance(61);
    for _ in 0..1_000 {
        world.search(server, "refund").await;
        let segments = segments(database).await;
        if segments.ends_with(" of 1") && segments != before {
            return segments;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the segments are {}", segments(database).await);
}

both_stores!(an_index_in_the_database_has_the_same_results, async |database: Database| {
    let world = World::new(&database).await;
    let with = |memory_chunks_max| search::Settings { memory_chunks_max, ..settings(64 << 20) };
    let embedder = || Some(world.embedder.clone() as Arc<dyn Embedder>);
    let (in_memory, stored) =
        (world.server_of(embedder(), with(Some(1_000))), world.server_of(embedder(), with(Some(5))));
    let compare = async |servers: &[&Retrieval]| {
        let newer = json!({"type": "gt", "key": "n", "value": 3});
        for request in [
            json!({"query": "refund of an order"}),
            json!({"query": "number", "max_num_results": 3}),
            json!({"query": ["When is the bank open on sundays?", "gift cards"], "max_num_results": 50}),
            json!({"query": "nothing of the kind"}),
            json!({"query": "return of an order", "filters": newer}),
            json!({"query": "number", "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}}),
            json!({"query": "days", "ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}}),
        ] {
            let expected = world.search_with(&in_memory, request.clone()).await;
            for server in servers {
                assert_eq!(world.search_with(server, request.clone()).await.hits, expected.hits, "{request}");
            }
        }
    };
    let mut files = Vec::new();
    for (number, text) in TEXTS.iter().enumerate() {
        files.push(world.add(&number.to_string(), json!({"n": number}), &[text, "Refunds.", TEXTS[0]]).await);
    }
    // A file of which one chunk has no embedding.
    files.push(world.add("odd", json!({"n": 5}), &["Unembedded refund of an order.", TEXTS[1], "Refunds."]).await);
    compare(&[&stored]).await;
    let first = write_index(&world, &database, &stored, "").await;
    let finds_vectors = database.url.starts_with("postgres") && std::env::var_os("ASSISTD_TEST_PGVECTOR").is_some();
    assert_eq!(world.store.vector_search().is_some(), finds_vectors);
    if finds_vectors {
        let vectors = database.text("select count(*)::text from vector_store_vectors").await;
        assert_eq!(vectors, (3 * TEXTS.len() + 2).to_string());
    }

    // Other servers use what the first one has written.
    let (second, words_only) = (world.server_of(embedder(), with(Some(5))), world.server_of(None, with(Some(5))));
    compare(&[&stored, &second]).await;
    let by_words = world.search(&world.server_of(None, with(None)), "refund of an order").await;
    assert_eq!(world.search(&words_only, "refund of an order").await.hits, by_words.hits);
    assert_eq!(segments(&database).await, first);

    // Later changes are found, whether the file is in the segment or not.
    world.add("new", json!({"n": 9}), &["A refund of another order.", "Sundays."]).await;
    assert!(world.store.delete_store_file(&scope(), &world.id, &files[5]).await.unwrap());
    let attributes = serde_json::from_value(json!({"n": 10})).unwrap();
    world.store.modify_store_file(&scope(), &world.id, &files[0], &attributes).await.unwrap().unwrap();
    compare(&[&stored, &second, &world.server_of(embedder(), with(Some(5)))]).await;

    // A segment whose files were removed is replaced; a server that has it in memory notices.
    for file in &files[1..] {
        world.store.delete_store_file(&scope(), &world.id, file).await.unwrap();
    }
    for (number, text) in TEXTS.iter().take(4).enumerate() {
        world.add(&format!("late{number}"), json!({"n": number}), &[text, "An order."]).await;
    }
    compare(&[&stored, &second]).await;
    write_index(&world, &database, &stored, &first).await;
    while world.store.remove_store_data(100).await.unwrap() {}
    compare(&[&second, &stored, &world.server_of(embedder(), with(Some(5)))]).await;

    // Nothing is left of a deleted vector store.
    assert!(world.store.delete_vector_store(&scope(), &world.id).await.unwrap());
    world.clock.advance(DAY_S);
    while world.store.remove_store_data(100).await.unwrap() {}
    for table in ["segments", "segment_parts", "index_claims", "chunks"] {
        let rows = database.text(&format!("select cast(count(*) as text) from vector_store_{table}")).await;
        assert_eq!(rows, "0", "{table}");
    }
    if world.store.vector_search().is_some() {
        assert_eq!(database.text("select cast(count(*) as text) from vector_store_vectors").await, "0");
    }
});

both_stores!(indexes_of_vectors_are_built_at_the_same_time, async |database: Database| {
    let world = World::new(&database).await;
    if world.store.vector_search().is_none() {
        return;
    }
    let stores: Vec<VectorStoreId> = (0..4).map(|_| ids().generate()).collect();
    for (store, number) in stores.iter().zip(0_u16..) {
        let vector = |chunk: u16| {
            let of_chunk = (0..8_u16).map(|at| f32::from(at) + f32::from(chunk) * 0.01 + f32::from(number));
            ((ids().generate(), u32::from(chunk)), of_chunk.collect::<Vec<f32>>())
        };
        let vectors: Vec<_> = (0..300).map(vector).collect();
        assert!(world.store.add_vectors(store, 8, &vectors).await.unwrap());
    }

    // Two servers build the indexes of two vector stores each.
    let other = database.open_at(world.clock.clone()).await;
    let servers = [&world.store, &other, &world.store, &other];
    let builds = stores.iter().zip(servers).map(|(store, server)| server.index_vectors(store, 8));
    let built = futures_util::future::join_all(builds).await;

    assert!(built.iter().all(Result::is_ok), "{built:?}");
    assert_eq!(vector_indexes(&database).await, ["valid"; 4]);
});

/// Returns the states of the indexes of vectors.
async fn vector_indexes(database: &Database) -> Vec<String> {
    let states =
        "select coalesce(string_agg(case when indisvalid then 'valid' else 'invalid' end, ' '), '') from pg_index
                  where indrelid = 'vector_store_vectors'::regclass and not indisprimary";
    database.text(states).await.split_whitespace().map(str::to_owned).collect()
}

both_stores!(an_index_of_vectors_that_is_missing_or_invalid_is_built_after_a_search, async |database: Database| {
    let world = World::new(&database).await;
    if world.store.vector_search().is_none() {
        return;
    }
    let embedder = Some(world.embedder.clone() as Arc<dyn Embedder>);
    let server = world.server_of(embedder, search::Settings { memory_chunks_max: Some(5), ..settings(64 << 20) });
    for (number, text) in TEXTS.iter().enumerate() {
        world.add(&number.to_string(), json!({}), &[text]).await;
    }
    write_index(&world, &database, &server, "").await;
    let is_valid = async || vector_indexes(&database).await == ["valid"];
    while !is_valid().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let expected = world.search(&server, "refund of an order").await;

    // What a build leaves that has failed at its beginning, or later.
    let indexes = "pg_index where indrelid = 'vector_store_vectors'::regclass and not indisprimary";
    let name = database.text(&format!("select indexrelid::regclass::text from {indexes}")).await;
    for (damage, left) in [
        (format!("drop index {name}"), Vec::new()),
        (format!("update pg_index set indisvalid = false where indexrelid = '{name}'::regclass"), vec!["invalid"]),
    ] {
        database.execute(&damage).await;
        assert_eq!(vector_indexes(&database).await, left);
        world.clock.advance(300);

        assert_eq!(world.search(&server, "refund of an order").await.hits, expected.hits);

        while !is_valid().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.search(&server, "refund of an order").await.hits, expected.hits);
    }
});

both_stores!(an_index_of_vectors_whose_build_has_failed_is_built_again, async |database: Database| {
    let world = World::new(&database).await;
    if world.store.vector_search().is_none() {
        return;
    }
    let vectors = |dimensions: u16, file: &str| {
        vec![((StoreFileId::from_stored(file), 0), (0..dimensions).map(|at| f32::from(at) + 1.0).collect::<Vec<f32>>())]
    };
    assert!(world.store.add_vectors(&world.id, 8, &vectors(8, "good")).await.unwrap());
    // A vector with another number of dimensions makes the build fail.
    assert!(world.store.add_vectors(&world.id, 8, &vectors(3, "bad")).await.unwrap());

    let failed = world.store.index_vectors(&world.id, 8).await;

    assert!(failed.is_err(), "{failed:?}");
    assert_eq!(vector_indexes(&database).await, ["invalid"]);
    database.execute("delete from vector_store_vectors where store_file_id = 'bad'").await;
    world.store.index_vectors(&world.id, 8).await.unwrap();
    assert_eq!(vector_indexes(&database).await, ["valid"]);
});

both_stores!(vector_stores_are_removed_while_an_index_of_vectors_is_built, async |database: Database| {
    let world = World::new(&database).await;
    if world.store.vector_search().is_none() {
        return;
    }
    let without_index = create_store(&world.store, json!({})).await;
    let vectors = vec![((ids().generate(), 0), vec![1.0_f32; 8])];
    assert!(world.store.add_vectors(&world.id, 8, &vectors).await.unwrap());
    world.store.index_vectors(&world.id, 8).await.unwrap();
    // As a server that builds another index.
    let mut building = sqlx::PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("select pg_advisory_lock(x'6173736973746477'::bigint)").execute(&mut building).await.unwrap();
    for id in [&world.id, &without_index] {
        assert!(world.store.delete_vector_store(&scope(), id).await.unwrap());
    }
    world.clock.advance(2 * assistd::store::TOMBSTONE_KEPT_S);
    let remove = async || while world.store.remove_store_data(100).await.unwrap() {};
    let left = async || database.text("select coalesce(string_agg(id, ' '), '') from vector_stores").await;

    remove().await;
    assert_eq!((left().await, vector_indexes(&database).await), (world.id.to_string(), vec!["valid".to_owned()]));

    sqlx::query("select pg_advisory_unlock_all()").execute(&mut building).await.unwrap();
    remove().await;
    assert_eq!((left().await, vector_indexes(&database).await), (String::new(), Vec::new()));
});

both_stores!(the_log_says_why_a_server_stopped_writing_an_index, async |database: Database| {
    let files = format!("file://{}", database.files().display());
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database.url.as_str()),
        ("FILES_URL", files.as_str()),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1"),
        ("SEARCH_MEMORY_CHUNKS_MAX", "1"),
        ("LOG", "assistd=debug"),
    ];
    let (mut child, address, _out) = process::serve(&settings).await;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (sender, mut log) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let _ = sender.send(line);
        }
    });
    let client = Client::new(address.parse().unwrap());
    let texts = [("a.txt", "A refund.", json!({})), ("b.txt", "An order.", json!({})), ("c.txt", "A card.", json!({}))];
    let deleted = create_searchable(&client, &texts).await;
    let claimed = create_searchable(&client, &texts).await;
    // While their indexes are written, the first vector store is deleted, and another server claims the second one.
    let changes = format!(
        "update vector_stores set status = 'deleted' where id = '{deleted}' and id = new.vector_store_id;
         update vector_store_index_claims set owner = 'another' where vector_store_id = new.vector_store_id;"
    );
    let trigger = "create trigger on_segment after insert on vector_store_segments for each row";
    let sql = if database.url.starts_with("sqlite:") {
        format!("{trigger} begin {changes} end")
    } else {
        format!(
            "create function change() returns trigger as $$ begin {changes} return new; end $$ language plpgsql;
             {trigger} execute function change()"
        )
    };
    database.execute(&sql).await;
    let mut seen = Vec::new();
    for (store, reason) in [(&deleted, "it was deleted or has expired"), (&claimed, "another server writes it")] {
        client.post(&format!("/v1/vector_stores/{store}/search"), json!({"query": "refund"})).await;

        loop {
            let line = log.recv().await.unwrap();
            let is_reason = line.contains("stopped writing the index") && line.contains(store.as_str());
            seen.push(line);
            if is_reason {
                break;
            }
        }
        assert!(seen[seen.len() - 1].contains(reason), "{seen:?}");
    }

    let warned: Vec<_> =
        seen.iter().filter(|line| line.contains("\"WARN\"") && line.contains("the index of")).collect();
    assert!(warned.len() == 1 && warned[0].contains(&claimed), "{warned:?}");
});

both_stores!(the_nearest_vectors_are_found_among_many_that_are_not_allowed, async |database: Database| {
    let world = World::new(&database).await;
    let with = |memory_chunks_max| search::Settings { memory_chunks_max, ..settings(64 << 20) };
    let embedder = || Some(world.embedder.clone() as Arc<dyn Embedder>);
    let (in_memory, stored) = (world.server_of(embedder(), with(None)), world.server_of(embedder(), with(Some(100))));
    let text = |chunk: usize| format!("w{} w{} w{}", chunk % 7, chunk % 11, chunk % 13);
    let mut files = Vec::new();
    for number in 0..40 {
        let texts: Vec<String> = (number * 25..(number + 1) * 25).map(text).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        files.push(world.add(&number.to_string(), json!({"n": number}), &texts).await);
    }
    let is_written = async || !segments(&database).await.is_empty();
    while !is_written().await {
        world.search(&stored, "w1").await;
    }

    // The vectors of removed files are still in the database.
    for file in &files[8..] {
        world.store.delete_store_file(&scope(), &world.id, file).await.unwrap();
    }
    for request in [
        json!({"query": "w1 w2 w3"}),
        json!({"query": "w6 w10 w12", "filters": {"type": "lt", "key": "n", "value": 2}}),
        json!({"query": "w5", "ranking_options": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}}),
    ] {
        let expected = world.search_with(&in_memory, request.clone()).await;
        let found = world.search_with(&stored, request.clone()).await;
        assert_eq!(found.hits, expected.hits, "{request}");
        assert!(found.hits.iter().all(|hit| hit.vector.is_some()));
    }
});

both_stores!(an_index_that_does_not_fit_into_memory_is_written_to_the_database, async |database: Database| {
    let world = World::new(&database).await;
    // Room for the files and lengths, but not for the lists.
    let small = world.server_with(48 << 10);
    let words: Vec<String> = (0..4_000).map(|word| format!("w{word}")).collect();
    for number in 0..12 {
        let text = words[number * 300..(number + 1) * 300].join(" ") + " refund";
        world.add(&number.to_string(), json!({"n": number}), &[&text, "order"]).await;
    }
    let expected = world.search(&world.server(), "refund order w301").await;

    assert_eq!(world.search(&small, "refund order w301").await.hits, expected.hits);
    write_index(&world, &database, &small, "").await;

    assert_eq!(world.search(&small, "refund order w301").await.hits, expected.hits);
    let memory = database.text("select cast(max(length(body)) as text) from vector_store_segments").await;
    assert!(memory.parse::<usize>().unwrap() < 4_096, "{memory} bytes are kept in memory");
});

both_stores!(an_unfinished_segment_is_not_used_and_removed, async |database: Database| {
    let world = World::new(&database).await;
    let id = &world.id;
    let claim = |owner: &str| IndexClaim { store: id.clone(), owner: owner.to_owned() };
    let segment = |id: &str| IndexSegment {
        id: id.to_owned(),
        embedding_model: None,
        vectors: VectorsIn::Blocks,
        chunks: 1,
        body: vec![1, 0],
    };
    let (first, second) = (claim("first"), claim("second"));
    assert!(world.store.claim_index(&first, LEASE).await.unwrap());
    assert!(!world.store.claim_index(&second, LEASE).await.unwrap(), "one server writes at a time");
    world.store.add_segment(&first, &segment("lost"), &[(0, vec![1]), (4_096, vec![2])]).await.unwrap();

    // The first server is lost.
    world.clock.advance(2 * 600);
    assert!(world.store.claim_index(&second, LEASE).await.unwrap());
    let late = world.store.publish_segments(&first, &["lost".to_owned()], &[]).await;
    assert!(matches!(late, Err(assistd::store::Error::Stale)), "{late:?}");
    assert_eq!(world.store.segments(id).await.unwrap(), []);
    world.store.add_segment(&second, &segment("good"), &[(7, vec![3]), (4_096, vec![4])]).await.unwrap();
    world.store.publish_segments(&second, &["good".to_owned()], &[]).await.unwrap();
    world.clock.advance(DAY_S);
    while world.store.remove_store_data(100).await.unwrap() {}

    assert_eq!(world.store.segments(id).await.unwrap(), [segment("good")]);
    let parts = database.text("select cast(count(*) as text) from vector_store_segment_parts").await;
    assert_eq!(parts, "2", "those of the lost segment are removed");
    let good = ["good".to_owned()];
    let parts = world.store.segment_parts(&good, &[6, 7]).await.unwrap().unwrap();
    assert_eq!(parts, [(("good".to_owned(), 7), vec![3])].into());
    assert_eq!(world.store.vector_blocks("good", None, 9).await.unwrap(), [(4_096, vec![4])]);
    let missing = world.store.segment_parts(&["good".to_owned(), "lost".to_owned()], &[7]).await.unwrap();
    assert_eq!(missing, None);
});

both_stores!(an_index_is_current_although_the_newest_change_was_forgotten, async |database: Database| {
    let world = World::new(&database).await;
    world.add("a", json!({}), &["refund"]).await;
    let b = world.add("b", json!({}), &["refund"]).await;
    assert!(world.store.delete_store_file(&scope(), &world.id, &b).await.unwrap());
    world.clock.advance(2 * assistd::store::TOMBSTONE_KEPT_S);
    while world.store.remove_store_data(100).await.unwrap() {}
    let server = world.server();
    assert_eq!(names(&world.search(&server, "refund").await), BTreeSet::from(["a"]));

    // The row of the remaining file is hidden from later reads: only an index that is built again would miss it.
    database.execute("update vector_store_files set changed_version = 0").await;

    assert_eq!(names(&world.search(&server, "refund").await), BTreeSet::from(["a"]));
    assert_eq!(names(&world.search(&world.server(), "refund").await), BTreeSet::new());
});

both_stores!(without_the_embedding_model_words_decide_and_the_reason_is_known, async |database: Database| {
    let world = World::new(&database).await;
    world.add("a", json!({}), &[TEXTS[0]]).await;
    world.add("b", json!({}), &[TEXTS[2]]).await;
    let server = world.server();
    world.embedder.is_down.store(true, Ordering::SeqCst);

    let found = world.search(&server, "tax number").await;

    assert_eq!(texts(&found), [TEXTS[2]]);
    assert!((found.hits[0].score - found.hits[0].lexical).abs() < 1e-6 && found.hits[0].vector.is_none());
    let down = LexicalOnly::ModelFailed(llm::Error::Unavailable("down".into()));
    assert_eq!((found.lexical_only, found.embedding_tokens), (Some(down), 0));
    world.embedder.is_down.store(false, Ordering::SeqCst);
    let found = world.search(&server, "tax number").await;
    assert_eq!((found.hits.len(), found.lexical_only), (2, None));
});

both_stores!(embeddings_of_other_models_are_not_compared, async |database: Database| {
    let world = World::new(&database).await;
    let server = world.server();
    world.add_to(&world.id, "plain", json!({}), &["refund"], false).await;
    let found = world.search(&server, "refund").await;
    assert_eq!((found.hits[0].vector, &found.lexical_only), (None, &Some(LexicalOnly::NoEmbeddings)));
    assert_eq!(world.embedder.requests.load(Ordering::SeqCst), 0, "there is nothing to compare with");

    world.add("embedded", json!({}), &["refund"]).await;
    let found = world.search(&server, "refund").await;
    let vectors = |found: &Found| -> BTreeMap<String, bool> {
        found.hits.iter().map(|hit| (name(hit).to_owned(), hit.vector.is_some())).collect()
    };
    let expected = |pairs: &[(&str, bool)]| pairs.iter().map(|(name, has)| ((*name).to_owned(), *has)).collect();
    assert_eq!((vectors(&found), &found.lexical_only), (expected(&[("plain", false), ("embedded", true)]), &None));

    // The same model with other dimensions.
    world.embedder.dimensions.store(16, Ordering::SeqCst);
    let restarted = world.server();
    let found = world.search(&restarted, "refund").await;
    assert_eq!(found.lexical_only, Some(LexicalOnly::NoEmbeddings));
    world.add("smaller", json!({}), &["refund"]).await;
    for server in [&server, &restarted, &world.server(), &world.server_with(0)] {
        // A server that has compared the larger ones remembers the query.
        let found = world.search(server, "refund now").await;
        let expected = expected(&[("plain", false), ("embedded", false), ("smaller", true)]);
        assert_eq!((vectors(&found), &found.lexical_only), (expected, &None));
    }
});

both_stores!(searches_at_the_same_time_have_the_results_that_they_have_alone, async |database: Database| {
    let world = World::new(&database).await;
    for file in 0..5 {
        // Enough chunks that they are computed on other threads.
        let texts: Vec<String> = (0..500).map(|n| format!("{} {}", TEXTS[(n + file) % 8], n * file % 97)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        world.add(&format!("{file}"), json!({"file": file}), &texts).await;
    }
    let server = world.server();
    let request = |number: usize| match number % 3 {
        0 => json!({"query": format!("refund of order {number}")}),
        1 => json!({"query": ["tax number", "gift cards"], "max_num_results": 20}),
        _ => json!({"query": "days of shipping", "filters": {"type": "eq", "key": "file", "value": number % 5}}),
    };
    let mut alone = Vec::new();
    for number in 0..24 {
        alone.push(world.search_with(&server, request(number)).await.hits);
    }

    let together =
        futures_util::future::join_all((0..24).map(|number| world.search_with(&server, request(number)))).await;

    let together: Vec<_> = together.into_iter().map(|found| found.hits).collect();
    assert_eq!(together, alone);
    assert!(alone.iter().all(|hits| !hits.is_empty()));
});

both_stores!(several_queries_and_vector_stores_are_searched_together, async |database: Database| {
    let world = World::new(&database).await;
    let other = create_store(&world.store, json!({})).await;
    world.add("a", json!({}), &["refund policy", "opening hours"]).await;
    world.add_to(&other, "b", json!({}), &["refund form", "tax number"], true).await;
    let server = world.server();
    let search = async |queries: &[&str], stores: &[&VectorStoreId]| {
        let query = Query::new(queries.iter().map(|text| (*text).to_owned()).collect(), 10);
        let stores: Vec<VectorStoreId> = stores.iter().map(|id| (*id).clone()).collect();
        server.search(&scope(), &stores, &query).await.unwrap()
    };

    let both = search(&["refund"], &[&world.id, &other]).await;
    let first: BTreeSet<&str> = texts(&both)[..2].iter().copied().collect();
    assert_eq!(first, BTreeSet::from(["refund policy", "refund form"]));
    assert_eq!(both.hits.iter().map(|hit| hit.store.clone()).collect::<BTreeSet<_>>().len(), 2);

    let several = search(&["opening", "tax"], &[&world.id, &other]).await;
    let first: BTreeSet<&str> = texts(&several)[..2].iter().copied().collect();
    assert_eq!(first, BTreeSet::from(["opening hours", "tax number"]));
    assert_eq!(texts(&several).len(), texts(&several).iter().collect::<BTreeSet<_>>().len(), "each chunk once");
    assert_eq!(search(&["refund"], &[&world.id, &world.id]).await.hits, search(&["refund"], &[&world.id]).await.hits);
    assert_eq!(search(&["refund"], &[]).await.hits, Vec::new());
});

both_stores!(only_vector_stores_of_the_project_that_have_not_expired_are_searched, async |database: Database| {
    let world = World::new(&database).await;
    let server = world.server();
    let days = json!({"expires_after": {"anchor": "last_active_at", "days": 1}});
    let expiring = create_store(&world.store, days).await;
    let query = Query::new(vec!["refund".to_owned()], 10);
    let search = async |scope: &Scope, id: &VectorStoreId| server.search(scope, std::slice::from_ref(id), &query).await;
    world.add("a", json!({}), &["refund"]).await;
    assert_eq!(search(&scope(), &world.id).await.unwrap().hits.len(), 1);

    let foreign = Scope::of(ProjectId::from_stored("proj_other"));
    for (scope, id) in [(scope(), VectorStoreId::from_stored("vs_unknown")), (foreign, world.id.clone())] {
        let error = search(&scope, &id).await.unwrap_err();
        assert!(matches!(error, search::Error::NoStore(of) if of == id));
    }
    // A search is a use, which postpones the expiry.
    for _ in 0..3 {
        world.clock.advance(DAY_S - 100);
        assert!(search(&scope(), &expiring).await.is_ok());
    }
    world.clock.advance(DAY_S);
    let error = search(&scope(), &expiring).await.unwrap_err();
    assert!(matches!(error, search::Error::Expired(of) if of == expiring));
});

both_stores!(terms_of_another_version_are_replaced_by_those_of_the_text, async |database: Database| {
    let world = World::new(&database).await;
    world.add("a", json!({}), &[TEXTS[0], TEXTS[2]]).await;
    let expected = world.search(&world.server(), "tax number").await;
    let old = if database.url.starts_with("sqlite:") { "x'630501'" } else { "'\\x630501'" };

    database.execute(&format!("update vector_store_chunks set terms = {old}")).await;

    assert_eq!(world.search(&world.server(), "tax number").await.hits, expected.hits);
    assert_eq!(world.search(&world.server_with(0), "tax number").await.hits, expected.hits);
});

both_stores!(the_index_of_a_store_that_grows_beyond_the_cache_is_not_kept, async |database: Database| {
    let world = World::new(&database).await;
    let server = world.server_with(20_000);
    let mut all = BTreeSet::new();
    for number in 0..30 {
        let name = format!("{number:02}");
        let text: Vec<String> = (0..40).map(|word| format!("w{}", number * 40 + word)).collect();
        world.add(&name, json!({}), &[&format!("refund {}", text.join(" "))]).await;
        all.insert(name);

        let found = world.search_with(&server, json!({"query": "refund", "max_num_results": 50})).await;

        assert_eq!(names(&found), all.iter().map(String::as_str).collect());
    }
});

/// The names of files that exist, as the changes of a test define them.
#[derive(Debug, Default)]
struct Model {
    /// After each change that has been committed, and the one that may be.
    states: Vec<BTreeSet<String>>,
    /// Number of states that are certain.
    committed: usize,
}

both_stores!(searches_during_changes_find_what_is_committed, async |database: Database| {
    let world = World::new(&database).await;
    let model = Mutex::new(Model { states: vec![BTreeSet::new()], committed: 1 });
    let is_over = AtomicBool::new(false);
    let change = async {
        let mut random = fastrand::Rng::with_seed(11);
        let mut files: Vec<(String, FileId)> = Vec::new();
        for number in 0..60 {
            let mut state = model.lock().unwrap().states.last().unwrap().clone();
            if files.is_empty() || random.u8(..3) > 0 {
                let name = format!("{number:02}");
                state.insert(name.clone());
                model.lock().unwrap().states.push(state);
                let file = world.add(&name, json!({}), &["refund", "other words", "refund again"]).await;
                files.push((name, file));
            } else {
                let (name, file) = files.swap_remove(random.usize(..files.len()));
                state.remove(&name);
                model.lock().unwrap().states.push(state);
                assert!(world.store.delete_store_file(&scope(), &world.id, &file).await.unwrap());
            }
            let mut model = model.lock().unwrap();
            model.committed = model.states.len();
        }
        is_over.store(true, Ordering::SeqCst);
    };
    // Two servers with a cache, and one without.
    let servers = [world.server(), world.server(), world.server_with(0)];
    let search = async |server: &Retrieval| {
        let mut searches = 0;
        while !is_over.load(Ordering::SeqCst) || searches == 0 {
            let first = model.lock().unwrap().committed - 1;

            let found = world.search_with(server, json!({"query": "refund", "max_num_results": 50})).await;

            let model = model.lock().unwrap();
            let possible = &model.states[first..];
            let found: BTreeSet<String> = found.hits.iter().map(|hit| name(hit).to_owned()).collect();
            // There are at most 50 results, of up to three chunks of a file.
            let always = possible.iter().skip(1).fold(possible[0].clone(), |left, right| &left & right);
            if always.len() <= 16 {
                assert!(always.is_subset(&found), "{found:?} lacks some of {always:?}");
            }
            let ever = possible.iter().fold(BTreeSet::new(), |left, right| &left | right);
            assert!(found.is_subset(&ever), "{found:?} has more than {ever:?}");
            searches += 1;
        }
        searches
    };

    let (searches, ()) = tokio::join!(futures_util::future::join_all(servers.iter().map(search)), change);

    assert!(searches.iter().all(|searches| *searches > 0), "{searches:?}");
});

/// Uploads text files to a new vector store, and waits until they are processed. Returns the ID of the vector store.
async fn create_searchable(client: &Client, files: &[(&str, &str, Value)]) -> String {
    let mut new = Vec::new();
    for (name, text, attributes) in files {
        let form = Form::default().text("purpose", "assistants").file("file", name, text.as_bytes());
        let reply = form.send(client, "/v1/files").await;
        new.push(json!({"file_id": reply.body["id"], "attributes": attributes}));
    }
    let store = client.post("/v1/vector_stores", json!({})).await["id"].as_str().unwrap().to_owned();
    client.post(&format!("/v1/vector_stores/{store}/file_batches"), json!({"files": new})).await;
    for _ in 0..3_000 {
        let counts = client.get(&format!("/v1/vector_stores/{store}")).await["file_counts"].clone();
        if counts["completed"] == files.len() {
            return store;
        }
        assert_eq!(counts["failed"], 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the files are not processed");
}

async fn search_reply(client: &Client, store: &str, request: Value) -> (Reply, Option<String>) {
    let path = format!("/v1/vector_stores/{store}/search");
    let response = client.request(reqwest::Method::POST, &path).json(&request).send().await.unwrap();
    let header = response.headers().get("assistd-search").map(|value| value.to_str().unwrap().to_owned());
    (Client::read(response).await, header)
}

both_stores!(a_vector_store_is_searched_through_the_api, async |database: Database| {
    let embeddings = Embeddings::start().await;
    let server = Server::with(&database, &Upstream::start().await, &embeddings.settings()).await;
    let client = &server.client;
    let files = [
        ("refunds.txt", "Refunds are paid within thirty days.", json!({"year": 2024, "draft": false})),
        ("hours.txt", "We are open from nine to five, except on Sundays.", json!({"year": 2023})),
    ];
    let store = create_searchable(client, &files).await;

    let (reply, header) = search_reply(client, &store, json!({"query": "When is a refund paid?"})).await;

    assert_eq!((reply.status, header), (200, None), "{}", reply.body);
    let members: Vec<&String> = reply.body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["object", "search_query", "data", "has_more", "next_page"]);
    let first = &reply.body["data"][0];
    assert_eq!(reply.body["search_query"], json!(["When is a refund paid?"]));
    assert_eq!((&first["filename"], &first["attributes"]), (&json!("refunds.txt"), &files[0].2));
    assert_eq!(first["content"], json!([{"type": "text", "text": files[0].1}]));
    let score = first["score"].as_f64().unwrap();
    assert!(score > 0.0 && score <= 1.0);

    let filtered = json!({"query": ["refund", "open"], "max_num_results": 1,
        "filters": {"type": "lt", "key": "year", "value": 2024}, "ranking_options": {"score_threshold": 0.01}});
    let (reply, _) = search_reply(client, &store, filtered).await;
    assert_eq!(reply.body["data"].as_array().unwrap().len(), 1);
    assert_eq!(reply.body["data"][0]["filename"], "hours.txt");

    embeddings.fail(Some((400, "no such model")));
    let (reply, header) = search_reply(client, &store, json!({"query": "refunds paid"})).await;
    assert_eq!(header.as_deref(), Some("lexical; the embedding model failed"));
    assert_eq!(reply.body["data"].as_array().unwrap().len(), 1);
    let usage = database.text("select cast(count(*) as text) from model_calls where kind = 'embeddings'").await;
    assert_ne!(usage, "0");
});

both_stores!(invalid_searches_are_rejected_as_by_the_service, async |database: Database| {
    let server = Server::with_manual_clock(&database, &Upstream::start().await, &[]).await;
    let client = &server.client;
    let days = json!({"expires_after": {"anchor": "last_active_at", "days": 1}});
    let store = client.post("/v1/vector_stores", days).await["id"].as_str().unwrap().to_owned();

    let (reply, header) = search_reply(client, &store, json!({"query": "x"})).await;
    assert_eq!((reply.status, &reply.body["data"], header), (200, &json!([]), None));
    for (request, param) in [
        (json!({}), "query"),
        (json!({"query": "x", "max_num_results": 51}), "max_num_results"),
        (json!({"query": "x", "filters": {"type": "near"}}), "filters.type"),
    ] {
        let (reply, _) = search_reply(client, &store, request).await;
        assert_eq!((reply.status, &reply.body["error"]["param"]), (400, &json!(param)), "{}", reply.body);
    }
    let (reply, _) = search_reply(client, "vs_unknown", json!({"query": "x"})).await;
    assert_eq!(reply.status, 404);
    server.clock.advance(2 * DAY_S);
    let (reply, _) = search_reply(client, &store, json!({"query": "x"})).await;
    let message = format!("Vector store '{store}' has expired and can no longer be used. Create a new one.");
    assert_eq!((reply.status, &reply.body["error"]["message"]), (400, &json!(message)));
});

both_stores!(a_query_is_rewritten_by_the_model_of_the_settings, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["\"refund", " period\"\n", "because"])]).await;
    let server = Server::with(&database, &upstream, &[("SEARCH_REWRITE_MODEL", "small")]).await;
    let client = &server.client;
    let store = create_searchable(client, &[("a.txt", "The refund period is thirty days.", json!({}))]).await;
    let query = "Hello! Could you tell me when I get my money back?";

    let (reply, _) = search_reply(client, &store, json!({"query": query, "rewrite_query": true})).await;

    assert_eq!(reply.body["search_query"], json!(["refund period"]));
    assert_eq!(reply.body["data"].as_array().unwrap().len(), 1);
    let (reply, _) = search_reply(client, &store, json!({"query": query})).await;
    assert_eq!(reply.body["search_query"], json!([query]));
});

both_stores!(the_shell_searches_beside_a_server, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let store = create_searchable(
        &server.client,
        &[
            ("refunds.txt", "Refunds are paid\nwithin thirty days.", json!({})),
            ("hours.txt", "We are open on Sundays.", json!({})),
        ],
    )
    .await;
    let run = async |arguments: &[&str]| {
        let mut command =
            process::assistd(&[("DATABASE_URL", &database.url), ("UPSTREAM_URL", "http://127.0.0.1:9/v1")]);
        let output = command.arg("search").args(arguments).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };

    let (ok, out, err) = run(&[&store, "When is a refund paid?"]).await;

    assert!(ok, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(lines[0].starts_with("RANK  SCORE") && lines[0].contains("LEXICAL"), "{out}");
    assert!(lines[1].contains("refunds.txt") && lines[1].contains("Refunds are paid within thirty days."), "{out}");
    let (ok, out, _) = run(&[&store, "refund", "--json", "--limit", "1", "--project", "proj_default"]).await;
    let found: Value = serde_json::from_str(&out).unwrap();
    assert!(ok);
    assert_eq!(found[0]["text"], "Refunds are paid\nwithin thirty days.");
    assert!(found[0]["score"].as_f64().unwrap() > 0.0 && found[0]["vector"].is_null());
    let (ok, _, err) = run(&["vs_unknown", "refund"]).await;
    assert!(!ok && err.contains("vector store vs_unknown does not exist"), "{err}");
});
