//! The processing of the files of vector stores.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use assistd::api::page::PageQuery;
use assistd::api::rule::Request as _;
use assistd::api::vector_store::{CreateVectorStore, StoreFileErrorCode, StoreFileState};
use assistd::api::{FileId, Ids, Scope, StoreFileId, VectorStoreId};
use assistd::clock::Clock;
use assistd::retrieval::index::from_f16_bytes;
use assistd::store::{self, IndexedFile, Store};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::{Database, Folder};
use crate::support::documents::{doc, docx, pdf, pptx};
use crate::support::embeddings::{DIMENSIONS, Embeddings, vector};
use crate::support::form::Form;
use crate::support::process;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Uploads a file; returns its ID.
async fn upload(client: &Client, name: &str, content: &[u8]) -> FileId {
    let form = Form::default().text("purpose", "assistants").file("file", name, content);
    let reply = form.send(client, "/v1/files").await;
    FileId::from_stored(reply.body["id"].as_str().unwrap())
}

/// The database of a running server.
struct Beside {
    store: Arc<dyn Store>,
    database: Database,
}

impl Beside {
    async fn open(database: &Database) -> Self {
        let store = store::open_beside_server(&database.settings(), Arc::new(Clock::system())).await.unwrap();
        Self { store, database: database.clone() }
    }

    /// Creates a vector store with these files.
    async fn create(&self, files: &[FileId]) -> VectorStoreId {
        let (ids, now) = (Ids::unique_everywhere(), Clock::system().now());
        let request = CreateVectorStore::parse(json!({"file_ids": files})).unwrap();
        let (store, files) = request.into_vector_store(&ids, now);
        self.store.create_vector_store(&Scope::default_project(), &store, &files).await.unwrap().id
    }

    async fn state(&self, store: &VectorStoreId, file: &FileId) -> StoreFileState {
        self.store.store_file(&Scope::default_project(), store, file).await.unwrap().unwrap().state
    }

    /// Waits until no file of a vector store is in progress. Returns the number of completed files.
    async fn settled(&self, id: &VectorStoreId) -> u64 {
        loop {
            let store = self.store.vector_store(&Scope::default_project(), id).await.unwrap().unwrap();
            if store.file_counts.in_progress == 0 {
                return store.file_counts.completed;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn text(&self, store: &VectorStoreId, file: &FileId) -> String {
        let page = self.store.store_file_text(&Scope::default_project(), store, file, None, 1 << 20).await;
        page.unwrap().unwrap().texts.concat()
    }

    async fn files(&self, store: &VectorStoreId) -> Vec<IndexedFile> {
        self.store.changed_files(store, 0, 10_000).await.unwrap()
    }

    /// Returns the embeddings of the stored chunks of a vector store, with their texts, also of files in progress.
    async fn embeddings(&self, store: &VectorStoreId) -> Vec<(String, Option<Vec<u8>>)> {
        let ids = format!("select string_agg(id, ',') from vector_store_files where vector_store_id = '{store}'");
        let ids = self.database.text(&ids).await;
        let ids: Vec<_> = ids.split(',').map(StoreFileId::from_stored).collect();
        let chunks = self.store.index_chunks(&ids, None, 1 << 30).await.unwrap();
        let keys: Vec<_> = chunks.iter().map(|chunk| (chunk.store_file.clone(), chunk.number)).collect();
        let mut texts = self.store.chunk_texts(&keys).await.unwrap();
        let text = |key| texts.remove(&key).unwrap().text;
        let keyed: Vec<String> = keys.into_iter().map(text).collect();
        keyed.into_iter().zip(chunks.into_iter().map(|chunk| chunk.embedding)).collect()
    }
}

/// A text of many chunks, with words of its own.
fn long_text(seed: &str, paragraphs: usize) -> String {
    let paragraph = |index| format!("{seed} paragraph {index}. {}\n\n", "More words follow here. ".repeat(60));
    (0..paragraphs).map(paragraph).collect::<Vec<_>>().concat()
}

both_stores!(files_of_each_format_are_processed, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let beside = Beside::open(&database).await;
    let wide: Vec<u8> = "\u{FEFF}Rome in UTF-16".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let files: [(&str, Vec<u8>, &str); 8] = [
        ("a.txt", b"Rome was not\r\nbuilt in a day.".to_vec(), "Rome was not\nbuilt in a day."),
        ("b.md", wide, "Rome in UTF-16"),
        ("c.py", b"def rome():\n    return 1\n".to_vec(), "def rome():\n    return 1\n"),
        ("d.html", b"<h1>Rome</h1><p>Paris".to_vec(), "Rome\n\nParis"),
        ("e.docx", docx(&["Rome", "Paris"]), "Rome\nParis"),
        ("f.pptx", pptx(&[("Rome", "Paris")]), "Rome\n\nParis"),
        ("g.doc", doc("Rome and Paris"), "Rome and Paris"),
        ("h.pdf", pdf(&["Rome"]), "Rome"),
    ];
    let mut ids = Vec::new();
    for (name, content, _) in &files {
        ids.push(upload(&server.client, name, content).await);
    }

    let store = beside.create(&ids).await;

    assert_eq!(beside.settled(&store).await, files.len() as u64);
    for (id, (name, _, expected)) in ids.iter().zip(&files) {
        let text = beside.text(&store, id).await;
        assert_eq!(text.trim(), expected.trim(), "{name}");
        let file = beside.store.store_file(&Scope::default_project(), &store, id).await.unwrap().unwrap();
        assert_eq!(file.usage_bytes, text.len() as u64, "{name}");
    }
    assert!(beside.files(&store).await.iter().all(|file| file.embedding_model.is_none()));
});

both_stores!(a_file_that_cannot_be_read_fails_and_the_others_are_completed, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let beside = Beside::open(&database).await;
    let bad: [(&str, Vec<u8>, StoreFileErrorCode, &str); 5] = [
        ("latin.txt", b"caf\xE9 in Latin-1".to_vec(), StoreFileErrorCode::InvalidFile, "0xE9 at position 3"),
        ("blank.txt", b" \n ".to_vec(), StoreFileErrorCode::InvalidFile, "it contains no text"),
        ("not.pdf", b"plain text".to_vec(), StoreFileErrorCode::InvalidFile, "none of the formats"),
        ("cut.docx", docx(&["Rome"])[..200].to_vec(), StoreFileErrorCode::InvalidFile, "damaged"),
        ("rtf.doc", b"{\\rtf1 Rome}".to_vec(), StoreFileErrorCode::UnsupportedFile, "Rich Text Format"),
    ];
    let mut ids = vec![upload(&server.client, "first.txt", b"Rome").await];
    for (name, content, ..) in &bad {
        ids.push(upload(&server.client, name, content).await);
    }
    ids.push(upload(&server.client, "last.txt", b"Paris").await);

    let store = beside.create(&ids).await;

    assert_eq!(beside.settled(&store).await, 2);
    for (id, (name, _, code, message)) in ids[1..].iter().zip(&bad) {
        let StoreFileState::Failed(error) = beside.state(&store, id).await else { panic!("{name} did not fail") };
        assert_eq!(error.code, *code, "{name}");
        assert!(error.message.contains(message), "{name}: {}", error.message);
    }
});

both_stores!(embeddings_are_computed_once_for_equal_texts_and_recorded, async |database: Database| {
    let embeddings = Embeddings::start().await;
    let server = Server::with(&database, &Upstream::start().await, &embeddings.settings()).await;
    let beside = Beside::open(&database).await;
    let long = long_text("Rome", 60);
    let ids = [
        upload(&server.client, "long.txt", long.as_bytes()).await,
        upload(&server.client, "short.txt", b"Paris is a city").await,
    ];
    let store = beside.create(&ids).await;
    assert_eq!(beside.settled(&store).await, 2);

    let chunks = beside.embeddings(&store).await;
    assert!(chunks.len() > 20, "{}", chunks.len());
    for (text, embedding) in &chunks {
        let stored = from_f16_bytes(embedding.as_ref().unwrap());
        let expected = vector(text);
        let length = expected.iter().map(|value| value * value).sum::<f32>().sqrt();
        let cosine: f32 = stored.iter().zip(expected).map(|(a, b)| a * b / length).sum();
        assert!((cosine - 1.0).abs() < 0.001 && stored.len() == DIMENSIONS, "{cosine}");
    }
    let model = format!("words@{DIMENSIONS}");
    assert!(beside.files(&store).await.iter().all(|file| file.embedding_model.as_ref() == Some(&model)));
    assert!(embeddings.counts().values().all(|count| *count == 1));
    let requested = embeddings.texts().len();
    let again = upload(&server.client, "copy.txt", long.as_bytes()).await;
    let second = beside.create(&[again]).await;
    assert_eq!(beside.settled(&second).await, 1);
    assert_eq!(embeddings.texts().len(), requested, "known embeddings are reused");
    assert_eq!(beside.embeddings(&second).await.len(), chunks.len() - 1);
    let recorded =
        database.text("select cast(sum(input_tokens) as text) from model_calls where kind = 'embeddings'").await;
    let words: usize = embeddings.texts().iter().skip(1).map(|text| text.split_whitespace().count()).sum();
    assert_eq!(recorded, words.to_string(), "all but the request for the dimensions");
});

both_stores!(files_wait_for_an_embedding_server_that_is_down, async |database: Database| {
    let embeddings = Embeddings::start().await;
    embeddings.fail(Some((503, "loading the model")));
    let settings = [&embeddings.settings()[..], &[("UPSTREAM_RETRIES", "0")]].concat();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let beside = Beside::open(&database).await;
    let file = upload(&server.client, "a.txt", b"Rome").await;
    let store = beside.create(std::slice::from_ref(&file)).await;

    embeddings.wait_for_requests(2).await;
    assert_eq!(beside.state(&store, &file).await, StoreFileState::InProgress);
    assert_eq!(beside.text(&store, &file).await, "Rome", "the text was stored, and is not extracted again");
    embeddings.fail(None);

    assert_eq!(beside.settled(&store).await, 1);
});

both_stores!(a_file_fails_with_the_words_of_the_embedding_server_after_the_last_attempt, async |database: Database| {
    let embeddings = Embeddings::start().await;
    embeddings.fail(Some((404, "model \"words\" not found, try pulling it first")));
    let settings = [&embeddings.settings()[..], &[("INGEST_MAX_ATTEMPTS", "2")]].concat();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let beside = Beside::open(&database).await;
    let file = upload(&server.client, "a.txt", b"Rome").await;

    let store = beside.create(std::slice::from_ref(&file)).await;

    assert_eq!(beside.settled(&store).await, 0);
    let StoreFileState::Failed(error) = beside.state(&store, &file).await else { panic!("it did not fail") };
    assert_eq!(error.code, StoreFileErrorCode::ServerError);
    assert_eq!(error.message, "The embedding server answered 404: model \"words\" not found, try pulling it first");

    // A retry by the client continues after the model was pulled.
    embeddings.fail(None);
    beside.store.retry_store_file(&Scope::default_project(), &store, &file).await.unwrap().unwrap();
    assert_eq!(beside.settled(&store).await, 1);
});

/// Settings of a server as a process.
fn process_settings<'a>(database: &'a Database, files: &'a str, embeddings: &'a Embeddings) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", database.url.as_str()),
        ("FILES_URL", files),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1"),
        ("RUN_LEASE_S", "5"),
    ];
    settings.extend(embeddings.settings());
    settings
}

both_stores!(nothing_that_is_stored_is_embedded_again_after_a_crash, async |database: Database| {
    // The first request asks for the dimensions.
    let embeddings = Embeddings::answering(60).await;
    let files = format!("file://{}", database.files().display());
    let settings = process_settings(&database, &files, &embeddings);
    let (mut child, address, _out) = process::serve(&settings).await;
    let client = Client::new(address.parse().unwrap());
    let mut ids = Vec::new();
    for number in 0..50 {
        let text = long_text(&format!("File {number}"), 1 + number % 20);
        ids.push(upload(&client, &format!("{number}.txt"), text.as_bytes()).await);
    }
    let beside = Beside::open(&database).await;
    let store = beside.create(&ids).await;
    embeddings.wait_for_requests(61).await;

    child.kill().await.unwrap();

    let before: HashMap<String, bool> =
        beside.embeddings(&store).await.into_iter().map(|(text, embedding)| (text, embedding.is_some())).collect();
    assert!(before.values().any(|is_stored| *is_stored) && before.values().any(|is_stored| !is_stored));
    let requested = embeddings.texts().len();
    embeddings.answer(100_000);
    let (_child, _, _out) = process::serve(&settings).await;
    assert_eq!(beside.settled(&store).await, 50);
    let after = embeddings.texts()[requested..].to_vec();
    let repeated = after.iter().filter(|text| before.get(*text) == Some(&true)).count();
    assert_eq!(repeated, 0);
    assert!(beside.embeddings(&store).await.iter().all(|(_, embedding)| embedding.is_some()));
});

both_stores!(the_log_sums_up_what_waits_for_the_embedding_server, async |database: Database| {
    let embeddings = Embeddings::start().await;
    let files = format!("file://{}", database.files().display());
    let settings = process_settings(&database, &files, &embeddings);
    let (mut child, address, _out) = process::serve(&settings).await;
    let client = Client::new(address.parse().unwrap());
    let beside = Beside::open(&database).await;
    let searched = beside.create(&[upload(&client, "a.txt", b"Rome").await]).await;
    assert_eq!(beside.settled(&searched).await, 1);
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(upload(&client, "a.txt", format!("File {number}").as_bytes()).await);
    }

    embeddings.fail(Some((404, "no such model")));
    beside.create(&ids).await;
    for query in 0..5 {
        let body = json!({"query": format!("Paris {query}")});
        let found = client.post(&format!("/v1/vector_stores/{searched}/search"), body).await;
        assert_eq!(found["object"], "vector_store.search_results.page");
    }
    // Wait until each of the files has failed.
    let failed = "select cast(count(*) as text) from vector_store_files where last_failure is not null";
    while database.text(failed).await != "10" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    child.kill().await.unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("files wait for the embedding server"), 1, "{log}");
    assert_eq!(count("searches use words only"), 1, "{log}");
    assert_eq!((count("The embedding server answered 404"), count("\"ERROR\"")), (2, 0), "{log}");
    assert_eq!(count("no such model"), 0, "a server may repeat the text of a file in its errors: {log}");
});

both_stores!(vector_stores_take_turns, async |database: Database| {
    let embeddings = Embeddings::answering(1).await;
    let settings = [&embeddings.settings()[..], &[("INGEST_CONCURRENCY", "1")]].concat();
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let beside = Beside::open(&database).await;
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(upload(&server.client, "large.txt", format!("Large {number}").as_bytes()).await);
    }
    let large = beside.create(&ids).await;
    // The first file is in progress.
    embeddings.wait_for_requests(2).await;
    let small = beside.create(&[upload(&server.client, "small.txt", b"Small").await]).await;

    embeddings.answer(1_000);

    assert_eq!((beside.settled(&small).await, beside.settled(&large).await), (1, 20));
    let texts = embeddings.texts();
    let place = texts.iter().position(|text| text == "Small").unwrap();
    assert!(place <= 4, "{texts:?}");
});

both_stores!(a_stopped_server_leaves_its_files_to_the_next_one, async |database: Database| {
    let embeddings = Embeddings::answering(3).await;
    let upstream = Upstream::start().await;
    let first = Server::with(&database, &upstream, &embeddings.settings()).await;
    let text = long_text("Rome", 60);
    let file = upload(&first.client, "a.txt", text.as_bytes()).await;
    let beside = Beside::open(&database).await;
    let store = beside.create(&[file]).await;
    embeddings.wait_for_requests(4).await;

    // It does not wait for the grace period of runs.
    tokio::time::timeout(Duration::from_secs(8), first.stop()).await.unwrap();

    embeddings.answer(1_000);
    let _second = Server::with(&database, &upstream, &embeddings.settings()).await;
    assert_eq!(beside.settled(&store).await, 1);
    let attempts = database.text("select cast(attempts as text) from vector_store_files").await;
    assert_eq!(attempts, "0");
});

both_stores!(a_file_that_is_deleted_while_it_is_processed_is_gone, async |database: Database| {
    let embeddings = Embeddings::answering(1).await;
    let server = Server::with(&database, &Upstream::start().await, &embeddings.settings()).await;
    let beside = Beside::open(&database).await;
    let doomed = upload(&server.client, "a.txt", b"Rome").await;
    let store = beside.create(std::slice::from_ref(&doomed)).await;
    embeddings.wait_for_requests(2).await;

    server.client.delete(&format!("/v1/files/{doomed}")).await;
    embeddings.answer(1_000);

    // The worker continues.
    let other = upload(&server.client, "b.txt", b"Paris").await;
    let second = beside.create(&[other]).await;
    assert_eq!(beside.settled(&second).await, 1);
    let listed = beside
        .store
        .list_store_files(&Scope::default_project(), &store, None, None, &PageQuery::default())
        .await
        .unwrap();
    assert!(listed.data.is_empty());
});

both_stores!(runs_are_answered_while_many_files_are_processed, async |database: Database| {
    let upstream = Upstream::scripted((0..20).map(|_| Answer::Tokens(vec!["Hel", "lo"]))).await;
    let server = Server::start(&database, &upstream).await;
    let beside = Beside::open(&database).await;
    let mut ids = Vec::new();
    for number in 0..200 {
        let text = long_text(&format!("File {number}"), 3);
        ids.push(upload(&server.client, &format!("{number}.txt"), text.as_bytes()).await);
    }
    let store = beside.create(&ids).await;

    let assistant = server.client.create_assistant().await;
    for _ in 0..20 {
        let thread = server.client.create_thread("Hi").await;
        let run = server.client.create_run(&assistant, &thread).await;
        server.client.wait_for_status(&run, "completed").await;
    }

    assert_eq!(beside.settled(&store).await, 200);
});

#[tokio::test]
async fn texts_are_extracted_after_the_program_was_replaced() {
    let (folder, database, embeddings) = (Folder::new(), Database::sqlite(), Embeddings::start().await);
    let program = folder.0.join("assistd");
    std::fs::copy(env!("CARGO_BIN_EXE_assistd"), &program).unwrap();
    let files = format!("file://{}", database.files().display());
    let mut command = Command::new(&program);
    command.env_clear().kill_on_drop(true);
    for (name, value) in process_settings(&database, &files, &embeddings) {
        command.env(format!("ASSISTD_{name}"), value);
    }
    let (_child, address, _out) = process::start(&mut command).await;
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "another version").unwrap();
    let beside = Beside::open(&database).await;

    let file = upload(&Client::new(address.parse().unwrap()), "a.docx", &docx(&["Rome"])).await;
    let store = beside.create(std::slice::from_ref(&file)).await;

    assert_eq!(beside.settled(&store).await, 1);
    assert_eq!(beside.text(&store, &file).await, "Rome");
}
