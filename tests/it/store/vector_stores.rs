//! Vector stores: what clients do with them, the processing of their files, and what searches read.

use std::collections::HashMap;

use assistd::api::file::Purpose;
use assistd::api::vector_store::{
    Attributes, ChunkingStrategy, CreateVectorStore, FileCounts, NewStoreFile, StoreFileError, StoreFileErrorCode,
    StoreFileState, StoreFileStatus,
};
use assistd::api::{File, FileBatchId, FileId, ModifyVectorStore, ProjectId, StoreFileId, VectorStore, VectorStoreId};
use assistd::store::{
    BlobKind, ChunkKey, ChunkText, ClaimedStoreFile, CompletedFile, EXPIRED_KEPT_S, IndexedFile, NewChunk,
    NewFileBatch, TOMBSTONE_KEPT_S,
};

use super::*;
use crate::support::ingest;

const DAY_S: i64 = 86_400;
const MODEL: &str = "minilm@2";

fn other() -> Scope {
    Scope::of(ProjectId::from_stored("proj_other"))
}

/// Stores a file of the default project; returns its ID.
async fn create_file(store: &Arc<dyn Store>, filename: &str) -> FileId {
    ingest::create_file(store, ids().generate(), NOW, filename).await
}

async fn create_files<const N: usize>(store: &Arc<dyn Store>) -> [FileId; N] {
    let mut files = Vec::new();
    for number in 0..N {
        files.push(create_file(store, &format!("{number}.txt")).await);
    }
    files.try_into().unwrap()
}

async fn create_store(store: &Arc<dyn Store>, files: &[FileId]) -> VectorStore {
    create_store_with(store, json!({"file_ids": files})).await
}

async fn create_store_with(store: &Arc<dyn Store>, request: serde_json::Value) -> VectorStore {
    let (new, files) = CreateVectorStore::parse(request).unwrap().into_vector_store(ids(), NOW);
    store.create_vector_store(&scope(), &new, &files).await.unwrap()
}

fn new_file(file: &FileId) -> NewStoreFile {
    NewStoreFile {
        id: ids().generate(),
        file_id: file.clone(),
        attributes: Attributes::default(),
        chunking: ChunkingStrategy::default(),
    }
}

fn attributes(value: serde_json::Value) -> Attributes {
    serde_json::from_value(value).unwrap()
}

async fn add(store: &Arc<dyn Store>, id: &VectorStoreId, file: &FileId) -> Result<Option<StoreFileState>, Error> {
    let added = store.add_store_file(&scope(), id, &new_file(file), NOW).await?;
    Ok(added.map(|file| file.state))
}

async fn add_batch(store: &Arc<dyn Store>, id: &VectorStoreId, files: &[FileId]) -> (FileBatchId, FileCounts) {
    let batch = NewFileBatch { id: ids().generate(), created_at: NOW };
    let files: Vec<NewStoreFile> = files.iter().map(new_file).collect();
    let added = store.add_file_batch(&scope(), id, &batch, &files).await.unwrap().unwrap();
    (added.id, added.file_counts)
}

/// Counts in the order of the API: in progress, completed, failed, cancelled.
fn counts(in_progress: u64, completed: u64, failed: u64, cancelled: u64) -> FileCounts {
    FileCounts { in_progress, completed, failed, cancelled }
}

async fn counts_of(store: &Arc<dyn Store>, id: &VectorStoreId) -> FileCounts {
    store.vector_store(&scope(), id).await.unwrap().unwrap().file_counts
}

async fn claim_file(store: &Arc<dyn Store>) -> Option<ClaimedStoreFile> {
    store.claim_store_file(LEASE, "", &[], u32::MAX).await.unwrap()
}

fn chunk(text: &str, overlap_bytes: u32) -> NewChunk {
    let mut content_hash = [0; 32];
    content_hash[..text.len().min(32)].copy_from_slice(&text.as_bytes()[..text.len().min(32)]);
    NewChunk {
        text: text.to_owned(),
        overlap_bytes,
        tokens: u32::try_from(text.len()).unwrap(),
        terms: vec![1, 2, 3],
        content_hash,
        embedding: None,
    }
}

fn completed(chunks: &[NewChunk]) -> CompletedFile<'_> {
    CompletedFile { usage_bytes: 7, embedding_model: None, text: Some((Some("en"), chunks)) }
}

/// Claims the next file and makes it searchable.
async fn complete_next(store: &Arc<dyn Store>) -> ClaimedStoreFile {
    let claimed = claim_file(store).await.unwrap();
    store.complete_store_file(&claimed.lease, &completed(&[chunk("text", 0)])).await.unwrap();
    claimed
}

fn failure() -> StoreFileError {
    StoreFileError { code: StoreFileErrorCode::InvalidFile, message: "damaged".to_owned() }
}

async fn changes(store: &Arc<dyn Store>, id: &VectorStoreId, since: i64) -> Vec<IndexedFile> {
    store.changed_files(id, since, 100).await.unwrap()
}

async fn version(store: &Arc<dyn Store>, id: &VectorStoreId) -> i64 {
    store.store_state(&scope(), id).await.unwrap().unwrap().version
}

/// Removes all data that can be removed now.
async fn remove_data(store: &Arc<dyn Store>) {
    for _ in 0..100 {
        if !store.remove_store_data(3).await.unwrap() {
            return;
        }
    }
    panic!("the removal does not end");
}

both_stores!(a_vector_store_is_visible_to_its_project_with_its_counts, async |database: Database| {
    let (store, _) = open(&database).await;
    let [a, b] = create_files(&store).await;
    let request = json!({"name": "NUL \u{0}", "file_ids": [a, b], "metadata": {"k": "v"}});

    let created = create_store_with(&store, request).await;

    assert_eq!(created.file_counts, counts(2, 0, 0, 0));
    assert_eq!(store.vector_store(&scope(), &created.id).await.unwrap(), Some(created.clone()));
    assert_eq!(store.vector_store(&other(), &created.id).await.unwrap(), None);
    complete_next(&store).await;
    let claimed = claim_file(&store).await.unwrap();
    store.fail_store_file(&claimed.lease, &failure()).await.unwrap();

    let found = store.vector_store(&scope(), &created.id).await.unwrap().unwrap();
    assert_eq!((found.file_counts, found.usage_bytes), (counts(0, 1, 1, 0), 7));
    assert!(!store.delete_vector_store(&other(), &created.id).await.unwrap());
    assert!(store.delete_vector_store(&scope(), &created.id).await.unwrap());
    assert!(!store.delete_vector_store(&scope(), &created.id).await.unwrap());
    assert_eq!(store.vector_store(&scope(), &created.id).await.unwrap(), None);
});

both_stores!(vector_stores_are_listed_in_pages_also_after_a_deleted_one, async |database: Database| {
    let (store, _) = open(&database).await;
    let [file] = create_files(&store).await;
    let mut created = Vec::new();
    for _ in 0..4 {
        created.push(create_store(&store, std::slice::from_ref(&file)).await);
    }
    let list = async |query: PageQuery| {
        let page = store.list_vector_stores(&scope(), &query).await.unwrap();
        (page.data, page.has_more)
    };

    assert_eq!(list(query(2, Order::Ascending)).await, (created[..2].to_vec(), true));
    assert!(store.delete_vector_store(&scope(), &created[1].id).await.unwrap());
    let after = PageQuery { after: Some(created[1].id.to_string()), ..query(20, Order::Ascending) };
    assert_eq!(list(after).await, (created[2..].to_vec(), false));
    assert!(store.list_vector_stores(&other(), &PageQuery::default()).await.unwrap().data.is_empty());
});

both_stores!(files_that_do_not_exist_or_cannot_be_searched_are_rejected, async |database: Database| {
    let (store, _) = open(&database).await;
    let [good, deleted] = create_files(&store).await;
    let table = create_file(&store, "a.CSV").await;
    assert!(store.delete_file(&scope(), &deleted).await.unwrap());
    let id = create_store(&store, &[]).await.id;
    let unknown = FileId::from_stored("file-unknown");
    let files = [&good, &unknown, &deleted].map(new_file);
    let batch = NewFileBatch { id: ids().generate(), created_at: NOW };

    let missing = store.add_file_batch(&scope(), &id, &batch, &files).await.unwrap_err();
    assert!(matches!(missing, Error::NoFiles(ids) if ids == [unknown.clone(), deleted.clone()]));
    let unsupported = store.add_store_file(&scope(), &id, &new_file(&table), NOW).await.unwrap_err();
    assert!(unsupported.to_string().contains("[.csv] are not supported for retrieval"), "{unsupported}");
    let (new, _) = CreateVectorStore::parse(json!({})).unwrap().into_vector_store(ids(), NOW);
    assert!(store.create_vector_store(&scope(), &new, &files).await.is_err());
    assert_eq!(store.vector_store(&scope(), &new.id).await.unwrap(), None);
    let unknown_store = VectorStoreId::from_stored("vs_unknown");
    assert_eq!(add(&store, &unknown_store, &unknown).await.unwrap(), None, "the vector store is checked first");
    assert_eq!(store.add_store_file(&other(), &id, &new_file(&good), NOW).await.unwrap(), None);

    assert_eq!(counts_of(&store, &id).await, counts(0, 0, 0, 0));
    assert_eq!(add(&store, &id, &good).await.unwrap(), Some(StoreFileState::InProgress), "the connection is usable");
});

both_stores!(a_file_is_added_once_and_processed_again_if_it_has_failed, async |database: Database| {
    let (store, _) = open(&database).await;
    let [file] = create_files(&store).await;
    let id = create_store(&store, std::slice::from_ref(&file)).await.id;

    assert_eq!(add(&store, &id, &file).await.unwrap(), Some(StoreFileState::InProgress));
    let claimed = claim_file(&store).await.unwrap();
    assert_eq!(claim_file(&store).await, None, "it is there once");
    store.fail_store_file(&claimed.lease, &failure()).await.unwrap();
    assert!(matches!(store.fail_store_file(&claimed.lease, &failure()).await, Err(Error::Stale)));
    let failed = store.store_file(&scope(), &id, &file).await.unwrap().unwrap();
    assert_eq!(failed.state, StoreFileState::Failed(failure()));

    assert_eq!(add(&store, &id, &file).await.unwrap(), Some(StoreFileState::InProgress));
    complete_next(&store).await;
    assert_eq!(add(&store, &id, &file).await.unwrap(), Some(StoreFileState::Completed));
    assert_eq!(claim_file(&store).await, None);
    assert_eq!(counts_of(&store, &id).await, counts(0, 1, 0, 0));
});

both_stores!(concurrent_additions_of_the_same_files_add_each_once, async |database: Database| {
    let (store, _) = open(&database).await;
    let files: [FileId; 5] = create_files(&store).await;
    let id = create_store(&store, &[]).await.id;

    let batches = (0..8).map(|_| add_batch(&store, &id, &files));
    for (batch, _) in futures_util::future::join_all(batches).await {
        let found = store.file_batch(&scope(), &id, &batch).await.unwrap().unwrap();
        assert_eq!(found.file_counts, counts(5, 0, 0, 0));
    }

    assert_eq!(counts_of(&store, &id).await, counts(5, 0, 0, 0));
});

both_stores!(vector_stores_take_turns_when_files_are_claimed, async |database: Database| {
    let (store, _) = open(&database).await;
    let files: [FileId; 3] = create_files(&store).await;
    let mut stores = Vec::new();
    for _ in 0..2 {
        stores.push(create_store(&store, &files).await.id);
    }
    stores.sort();

    let (mut after, mut order) = (String::new(), Vec::new());
    while let Some(claimed) = store.claim_store_file(LEASE, &after, &[], u32::MAX).await.unwrap() {
        after = claimed.vector_store.to_string();
        order.push(claimed);
    }

    let claimed_stores: Vec<&VectorStoreId> = order.iter().map(|claimed| &claimed.vector_store).collect();
    let expected: Vec<&VectorStoreId> = stores.iter().cycle().take(6).collect();
    assert_eq!(claimed_stores, expected);
    let of_first: Vec<&FileId> = order.iter().step_by(2).map(|claimed| &claimed.file_id).collect();
    assert_eq!(of_first, files.iter().collect::<Vec<_>>(), "in the order of their addition");
});

both_stores!(an_expired_lease_is_claimed_again_and_the_earlier_one_is_stale, async |database: Database| {
    let (store, clock) = open(&database).await;
    let [file] = create_files(&store).await;
    create_store(&store, std::slice::from_ref(&file)).await;
    let first = claim_file(&store).await.unwrap();
    assert_eq!((first.attempts, first.chunks), (1, None));

    clock.advance(10);
    assert_eq!(
        store.renew_leases(JobKind::StoreFile, std::slice::from_ref(&first.lease), LEASE).await.unwrap().len(),
        1
    );
    clock.advance(10);
    assert_eq!(claim_file(&store).await, None, "renewed");
    clock.advance(5);
    assert_eq!(
        store.claim_store_file(LEASE, "", std::slice::from_ref(&first.lease.id), 9).await.unwrap(),
        None,
        "excluded"
    );
    assert_eq!(store.claim_store_file(LEASE, "", &[], 0).await.unwrap(), None, "too many attempts");
    let second = claim_file(&store).await.unwrap();
    assert_eq!(second.attempts, 2);

    let chunks = [chunk("text", 0)];
    assert!(matches!(store.save_chunks(&first.lease, None, &chunks).await, Err(Error::Stale)));
    assert!(matches!(store.save_embeddings(&first.lease, MODEL, &[]).await, Err(Error::Stale)));
    assert!(matches!(store.complete_store_file(&first.lease, &completed(&chunks)).await, Err(Error::Stale)));
    assert!(matches!(store.fail_store_file(&first.lease, &failure()).await, Err(Error::Stale)));
    store.record_failed_attempt(JobKind::StoreFile, &second.lease, "no model", LEASE).await.unwrap();
    assert_eq!(claim_file(&store).await, None, "it is retried later");
    clock.advance(15);
    let third = claim_file(&store).await.unwrap();
    assert_eq!((third.attempts, third.last_failure.as_deref()), (3, Some("no model")));
    store.save_chunks(&third.lease, None, &chunks).await.unwrap();
    store.release_lease(JobKind::StoreFile, &third.lease).await.unwrap();
    assert_eq!(claim_file(&store).await.unwrap().attempts, 1, "it made progress");
});

both_stores!(a_completed_file_can_be_found_with_its_chunks, async |database: Database| {
    let (store, _) = open(&database).await;
    let file = create_file(&store, "NUL \u{0}.txt").await;
    let id = create_store(&store, &[]).await.id;
    let new = NewStoreFile { attributes: attributes(json!({"k": 1})), ..new_file(&file) };
    store.add_store_file(&scope(), &id, &new, NOW).await.unwrap().unwrap();
    let before = store.store_state(&scope(), &id).await.unwrap().unwrap();
    assert!(before.is_in_progress && !before.is_expired);
    assert!(changes(&store, &id, 0).await.is_empty());
    assert_eq!(store.store_state(&other(), &id).await.unwrap(), None);

    let claimed = claim_file(&store).await.unwrap();
    let chunks = [chunk("one two", 0), chunk("two three", 3), chunk("\u{e9}\u{0}", 0)];
    store.complete_store_file(&claimed.lease, &completed(&chunks)).await.unwrap();

    let state = store.store_state(&scope(), &id).await.unwrap().unwrap();
    assert!(state.version > before.version && !state.is_in_progress);
    let found = changes(&store, &id, before.version).await;
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(found.id, claimed.id());
    assert_eq!((&found.file_id, found.filename.as_str()), (&file, "NUL \u{fffd}.txt"));
    assert_eq!((&found.attributes, found.language.as_deref()), (&new.attributes, Some("en")));
    assert_eq!((found.changed_version, found.is_deleted), (state.version, false));
    assert!(changes(&store, &id, state.version).await.is_empty());

    let indexed = store.index_chunks(&[claimed.id()], None, usize::MAX).await.unwrap();
    assert_eq!(indexed.iter().map(|chunk| chunk.number).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((indexed[0].tokens, indexed[0].terms.as_slice(), &indexed[0].embedding), (7, &[1, 2, 3][..], &None));
    let key = |number| -> ChunkKey { (claimed.id(), number) };
    let texts = store.chunk_texts(&[key(1), key(2), key(9)]).await.unwrap();
    let chunk_text = |text: &str, overlap_bytes| ChunkText { text: text.to_owned(), overlap_bytes };
    let expected = [(key(1), chunk_text("two three", 3)), (key(2), chunk_text("\u{e9}\u{fffd}", 0))];
    assert_eq!(texts, HashMap::from(expected));
    let text = async |after, bytes| store.store_file_text(&scope(), &id, &file, after, bytes).await.unwrap();
    let whole = text(None, usize::MAX).await.unwrap();
    assert_eq!((whole.texts.concat().as_str(), whole.next), ("one two three\u{e9}\u{fffd}", None));
    assert_eq!(text(None, 1).await.unwrap().next, Some(0), "one chunk at least");
    assert_eq!(text(Some(1), 1).await.unwrap().texts, ["\u{e9}\u{fffd}"]);
    assert_eq!(store.store_file_text(&other(), &id, &file, None, 1).await.unwrap(), None);
    let summary = store.index_summary(&scope(), &id).await.unwrap().unwrap();
    assert_eq!((summary.version, summary.groups.len()), (state.version, 1));
    assert_eq!((summary.groups[0].chunks, summary.groups[0].language.as_deref()), (3, Some("en")));
    assert_eq!(store.index_summary(&other(), &id).await.unwrap(), None);
});

both_stores!(many_chunks_are_stored_in_several_transactions_and_read_in_pages, async |database: Database| {
    let (store, _) = open(&database).await;
    let [file, second] = create_files(&store).await;
    let id = create_store(&store, &[file.clone(), second]).await.id;
    let claimed = claim_file(&store).await.unwrap();
    let chunks: Vec<NewChunk> = (0..450).map(|number| chunk(&format!("{number},"), 0)).collect();

    store.save_chunks(&claimed.lease, None, &chunks[..250]).await.unwrap();
    store.complete_store_file(&claimed.lease, &completed(&chunks)).await.unwrap();
    complete_next(&store).await;

    let (mut text, mut after) = (String::new(), None);
    loop {
        let page = store.store_file_text(&scope(), &id, &file, after, 1_000).await.unwrap().unwrap();
        text += &page.texts.concat();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(text, chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>());
    let files: Vec<StoreFileId> = changes(&store, &id, 0).await.into_iter().map(|file| file.id).collect();
    let (mut keys, mut after) = (Vec::<ChunkKey>::new(), None);
    loop {
        let page = store.index_chunks(&files, after.as_ref(), 100).await.unwrap();
        assert!(page.len() <= 40, "{}", page.len());
        keys.extend(page.into_iter().map(|chunk| (chunk.store_file, chunk.number)));
        if after.as_ref() == keys.last() {
            break;
        }
        after = keys.last().cloned();
    }
    assert_eq!(keys.len(), 451);
    assert!(keys.is_sorted());
    assert_eq!(store.store_file(&scope(), &id, &file).await.unwrap().unwrap().usage_bytes, 7);
});

both_stores!(embeddings_are_stored_once_and_reused_for_equal_texts, async |database: Database| {
    let (store, clock) = open(&database).await;
    let [a, b] = create_files(&store).await;
    let id = create_store(&store, std::slice::from_ref(&a)).await.id;
    let claimed = claim_file(&store).await.unwrap();
    let chunks = ["one", "two", "three"].map(|text| chunk(text, 0));
    let project = ProjectId::from_stored(scope().as_str());
    let hashes = [chunks[0].content_hash, chunks[1].content_hash];
    let known = async |project: &ProjectId, model: &str| {
        let mut known: Vec<Vec<u8>> =
            store.known_embeddings(project, model, &hashes).await.unwrap().into_values().collect();
        known.sort();
        known
    };
    store.save_chunks(&claimed.lease, Some("en"), &chunks).await.unwrap();
    let numbers = async |model: &str, after, limit| {
        let chunks = store.chunks_to_embed(&claimed.id(), model, after, limit).await.unwrap();
        chunks.into_iter().map(|chunk| (chunk.number, chunk.text)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(MODEL, Some(0), 1).await, [(1, "two".to_owned())]);

    store.save_embeddings(&claimed.lease, MODEL, &[(0, vec![1; 4]), (2, vec![3; 4])]).await.unwrap();
    assert_eq!(numbers(MODEL, None, 9).await, [(1, "two".to_owned())]);
    assert_eq!(numbers("other@2", None, 9).await.len(), 3);
    assert_eq!(known(&project, MODEL).await, [vec![1; 4]]);
    assert!(known(&project, "other@2").await.is_empty());
    assert!(known(&ProjectId::from_stored("proj_other"), MODEL).await.is_empty());

    // After a crash, another server continues.
    clock.advance(15);
    let again = claim_file(&store).await.unwrap();
    assert_eq!(
        (again.chunks, again.embedding_model.as_deref(), again.language.as_deref()),
        (Some(3), Some(MODEL), Some("en"))
    );
    store.save_embeddings(&again.lease, MODEL, &[(1, vec![2; 4])]).await.unwrap();
    let done = CompletedFile { usage_bytes: 9, embedding_model: Some(MODEL), text: None };
    store.complete_store_file(&again.lease, &done).await.unwrap();
    let indexed = store.index_chunks(&[again.id()], None, usize::MAX).await.unwrap();
    let embeddings: Vec<_> = indexed.into_iter().map(|chunk| chunk.embedding.unwrap()).collect();
    assert_eq!(embeddings, [vec![1; 4], vec![2; 4], vec![3; 4]]);
    assert_eq!(known(&project, MODEL).await, [vec![1; 4], vec![2; 4]]);

    // A retry with another model replaces the embeddings.
    add(&store, &id, &b).await.unwrap();
    let other = claim_file(&store).await.unwrap();
    store.save_chunks(&other.lease, None, &chunks).await.unwrap();
    store.save_embeddings(&other.lease, MODEL, &[(0, vec![1; 4]), (1, vec![2; 4])]).await.unwrap();
    store.save_embeddings(&other.lease, "other@2", &[(0, vec![5; 4])]).await.unwrap();
    let left = store.chunks_to_embed(&other.id(), "other@2", None, 9).await.unwrap();
    assert_eq!(left.iter().map(|chunk| chunk.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(known(&project, "other@2").await, [vec![5; 4]]);
});

both_stores!(a_cancelled_batch_ends_the_files_in_progress, async |database: Database| {
    let (store, _) = open(&database).await;
    let files: [FileId; 3] = create_files(&store).await;
    let id = create_store(&store, &[]).await.id;
    let (batch, added) = add_batch(&store, &id, &files).await;
    assert_eq!(added, counts(3, 0, 0, 0));
    complete_next(&store).await;
    let claimed = claim_file(&store).await.unwrap();
    assert_eq!(store.cancel_file_batch(&other(), &id, &batch).await.unwrap(), None);

    let cancelled = store.cancel_file_batch(&scope(), &id, &batch).await.unwrap().unwrap();

    assert_eq!((cancelled.status(), cancelled.file_counts), ("cancelled", counts(0, 1, 0, 2)));
    assert!(matches!(store.complete_store_file(&claimed.lease, &completed(&[])).await, Err(Error::Stale)));
    assert!(store.renew_leases(JobKind::StoreFile, &[claimed.lease], LEASE).await.unwrap().is_empty());
    assert_eq!(claim_file(&store).await, None);
    assert_eq!(store.file_batch(&scope(), &id, &batch).await.unwrap(), Some(cancelled));
    assert_eq!(store.file_batch(&other(), &id, &batch).await.unwrap(), None);
    let retried = store.retry_store_file(&scope(), &id, &files[1]).await.unwrap().unwrap();
    assert_eq!(retried.state, StoreFileState::InProgress);
    complete_next(&store).await;

    let (finished, _) = add_batch(&store, &id, &files[..2]).await;
    let unchanged = store.cancel_file_batch(&scope(), &id, &finished).await.unwrap().unwrap();
    assert_eq!((unchanged.status(), unchanged.file_counts), ("completed", counts(0, 2, 0, 0)));
});

both_stores!(a_failed_file_is_retried_with_its_chunks, async |database: Database| {
    let (store, _) = open(&database).await;
    let [file] = create_files(&store).await;
    let id = create_store(&store, std::slice::from_ref(&file)).await.id;
    let claimed = claim_file(&store).await.unwrap();
    store.save_chunks(&claimed.lease, None, &[chunk("text", 0)]).await.unwrap();
    let retry = async || store.retry_store_file(&scope(), &id, &file).await.unwrap().unwrap().state;
    assert_eq!(retry().await, StoreFileState::InProgress, "unchanged");
    store.fail_store_file(&claimed.lease, &failure()).await.unwrap();

    assert_eq!(retry().await, StoreFileState::InProgress);
    let claimed = claim_file(&store).await.unwrap();
    assert_eq!((claimed.chunks, claimed.attempts), (Some(1), 1));
    store.fail_store_file(&claimed.lease, &failure()).await.unwrap();
    let sizes = json!({"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}});
    let new = NewStoreFile { chunking: serde_json::from_value(sizes).unwrap(), ..new_file(&file) };
    store.add_store_file(&scope(), &id, &new, NOW).await.unwrap().unwrap();
    let claimed = claim_file(&store).await.unwrap();
    assert_eq!((claimed.chunks, claimed.chunking), (None, new.chunking), "it is split again");

    store.complete_store_file(&claimed.lease, &completed(&[chunk("text", 0)])).await.unwrap();
    assert_eq!(retry().await, StoreFileState::Completed, "unchanged");
    assert_eq!(store.retry_store_file(&other(), &id, &file).await.unwrap(), None);
});

both_stores!(files_are_listed_by_status_and_batch_also_after_a_deleted_one, async |database: Database| {
    let (store, _) = open(&database).await;
    let files: [FileId; 6] = create_files(&store).await;
    let id = create_store(&store, &files[..2]).await.id;
    let (batch, _) = add_batch(&store, &id, &files[1..5]).await;
    add(&store, &id, &files[5]).await.unwrap();
    for _ in 0..3 {
        complete_next(&store).await;
    }
    let list = async |batch: Option<&FileBatchId>, status, query: PageQuery| {
        let page = store.list_store_files(&scope(), &id, batch, status, &query).await.unwrap();
        let numbers = page.data.iter().map(|file| files.iter().position(|id| *id == file.file_id).unwrap());
        (numbers.collect::<Vec<_>>(), page.has_more)
    };
    let after = |file: &FileId| PageQuery { after: Some(file.to_string()), ..query(2, Order::Ascending) };

    assert_eq!(list(None, None, PageQuery::default()).await, (vec![5, 4, 3, 2, 1, 0], false));
    assert_eq!(list(None, None, after(&files[1])).await, (vec![2, 3], true));
    let before = PageQuery { before: Some(files[4].to_string()), ..query(2, Order::Ascending) };
    assert_eq!(list(None, None, before).await, (vec![2, 3], true));
    assert_eq!(list(Some(&batch), None, query(9, Order::Ascending)).await, (vec![1, 2, 3, 4], false));
    let completed = Some(StoreFileStatus::Completed);
    assert_eq!(list(None, completed, query(9, Order::Ascending)).await, (vec![0, 1, 2], false));
    assert_eq!(list(Some(&batch), completed, query(1, Order::Descending)).await, (vec![2], true));

    assert!(store.delete_store_file(&scope(), &id, &files[3]).await.unwrap());
    assert_eq!(list(None, None, after(&files[3])).await, (vec![4, 5], false), "the cursor was deleted");
    assert_eq!(list(Some(&batch), None, query(9, Order::Ascending)).await, (vec![1, 2, 4], false));
    let unknown = after(&FileId::from_stored("file-x"));
    let rejected = store.list_store_files(&scope(), &id, None, None, &unknown).await;
    assert!(matches!(rejected, Err(Error::NoCursor(id)) if id == "file-x"));
    let foreign = store.list_store_files(&other(), &id, None, None, &PageQuery::default()).await.unwrap();
    assert!(foreign.data.is_empty());
});

both_stores!(changed_attributes_and_deletions_are_changes_of_what_can_be_found, async |database: Database| {
    let (store, clock) = open(&database).await;
    let files: [FileId; 2] = create_files(&store).await;
    let id = create_store(&store, &files).await.id;
    let first = complete_next(&store).await;
    let before = version(&store, &id).await;

    let red = attributes(json!({"color": "red"}));
    let modified = store.modify_store_file(&scope(), &id, &files[0], &red).await.unwrap().unwrap();
    assert_eq!(modified.attributes, red);
    assert_eq!(store.modify_store_file(&other(), &id, &files[0], &red).await.unwrap(), None);
    let changed = changes(&store, &id, before).await;
    assert_eq!((changed.len(), &changed[0].attributes, &changed[0].id), (1, &red, &first.id()));
    // A file that cannot be found yet has the new attributes later.
    store.modify_store_file(&scope(), &id, &files[1], &red).await.unwrap().unwrap();
    complete_next(&store).await;
    let before = version(&store, &id).await;
    assert_eq!(changes(&store, &id, 0).await.iter().filter(|file| file.attributes == red).count(), 2);

    assert!(!store.delete_store_file(&other(), &id, &files[0]).await.unwrap());
    assert!(store.delete_store_file(&scope(), &id, &files[0]).await.unwrap());
    assert!(!store.delete_store_file(&scope(), &id, &files[0]).await.unwrap());
    let changed = changes(&store, &id, before).await;
    assert_eq!(changed.iter().map(|file| (&file.id, file.is_deleted)).collect::<Vec<_>>(), [(&first.id(), true)]);
    assert_eq!(counts_of(&store, &id).await, counts(0, 1, 0, 0));
    assert_eq!(store.store_file(&scope(), &id, &files[0]).await.unwrap(), None);

    // The chunks are removed immediately, the row later.
    remove_data(&store).await;
    assert!(store.index_chunks(&[first.id()], None, 1).await.unwrap().is_empty());
    assert!(changes(&store, &id, before).await[0].is_deleted);
    assert_eq!(store.store_state(&scope(), &id).await.unwrap().unwrap().purged_version, 0);
    clock.advance(TOMBSTONE_KEPT_S);
    remove_data(&store).await;
    assert!(changes(&store, &id, before).await.is_empty());
    assert_eq!(store.store_state(&scope(), &id).await.unwrap().unwrap().purged_version, before + 1);
    // It can be added again.
    assert_eq!(add(&store, &id, &files[0]).await.unwrap(), Some(StoreFileState::InProgress));
});

both_stores!(a_deleted_or_expired_file_is_taken_out_of_all_vector_stores, async |database: Database| {
    let (store, clock) = open(&database).await;
    let [kept, deleted] = create_files(&store).await;
    let expiring = File {
        id: ids().generate(),
        created_at: NOW,
        purpose: Purpose::Assistants,
        filename: "e.txt".to_owned(),
        bytes: 3,
        expires_at: Some(NOW.plus(3_600)),
    };
    store.create_pending_file(&scope(), &expiring.id, NOW, LEASE).await.unwrap();
    assert!(store.finish_file(&scope(), &expiring).await.unwrap());
    let all = [kept.clone(), deleted.clone(), expiring.id.clone()];
    let stores = [create_store(&store, &all).await.id, create_store(&store, &all[1..]).await.id];
    for _ in 0..4 {
        complete_next(&store).await;
    }
    let driven = claim_file(&store).await.unwrap();
    let before = [version(&store, &stores[0]).await, version(&store, &stores[1]).await];

    assert!(store.delete_file(&scope(), &deleted).await.unwrap());
    for (id, before) in stores.iter().zip(before) {
        assert_eq!(version(&store, id).await, before + 1);
        let changed = changes(&store, id, before).await;
        assert_eq!(changed.iter().map(|file| (&file.file_id, file.is_deleted)).collect::<Vec<_>>(), [(&deleted, true)]);
    }
    clock.advance(3_600);
    assert_eq!(store.blobs_to_remove(BlobKind::File, 100).await.unwrap().len(), 2);

    assert_eq!(counts_of(&store, &stores[0]).await.total(), 1);
    assert_eq!(counts_of(&store, &stores[1]).await.total(), 0);
    assert_eq!(add(&store, &stores[1], &expiring.id).await.unwrap_err().to_string(), "1 files do not exist");
    assert!(matches!(store.complete_store_file(&driven.lease, &completed(&[])).await, Err(Error::Stale)));
});

both_stores!(a_deleted_vector_store_is_removed_with_its_data, async |database: Database| {
    let (store, clock) = open(&database).await;
    let files: [FileId; 8] = create_files(&store).await;
    let kept = create_store(&store, &files[..1]).await.id;
    let id = create_store(&store, &files).await.id;
    let (batch, _) = add_batch(&store, &id, &files[..2]).await;
    for _ in 0..7 {
        complete_next(&store).await;
    }
    let driven = claim_file(&store).await.unwrap();
    assert_eq!(driven.vector_store, id);

    assert!(store.delete_vector_store(&scope(), &id).await.unwrap());
    assert!(matches!(store.complete_store_file(&driven.lease, &completed(&[])).await, Err(Error::Stale)));
    clock.advance(60);
    assert_eq!(claim_file(&store).await, None, "its files are not processed");
    assert_eq!(store.file_batch(&scope(), &id, &batch).await.unwrap(), None);
    assert_eq!(store.store_state(&scope(), &id).await.unwrap(), None);
    assert_eq!(add(&store, &id, &files[0]).await.unwrap(), None);

    remove_data(&store).await;
    let count = async |table: &str| {
        database.text(&format!("select cast(count(*) as text) from {table} where vector_store_id = '{id}'")).await
    };
    assert_eq!((count("vector_store_chunks").await, count("vector_store_files").await), ("0".into(), "0".into()));
    clock.advance(TOMBSTONE_KEPT_S);
    remove_data(&store).await;
    assert_eq!(count("vector_store_file_batches").await, "0");
    assert_eq!(database.text("select cast(count(*) as text) from vector_stores").await, "1");
    assert_eq!(counts_of(&store, &kept).await.total(), 1);
});

both_stores!(a_vector_store_expires_after_its_last_use, async |database: Database| {
    let (store, clock) = open(&database).await;
    let [a, b] = create_files(&store).await;
    let expires_after = json!({"anchor": "last_active_at", "days": 1});
    let created = create_store_with(&store, json!({"expires_after": expires_after, "file_ids": [a]})).await;
    let id = created.id;
    let times = async || {
        let found = store.vector_store(&scope(), &id).await.unwrap().unwrap();
        (found.last_active_at.0 - NOW.0, found.expires_at.map(|at| at.0 - NOW.0), found.status())
    };
    assert_eq!(times().await, (0, Some(DAY_S), "in_progress"));
    complete_next(&store).await;
    let touch = async || store.touch_vector_stores(&scope(), std::slice::from_ref(&id)).await.unwrap();

    clock.advance(59);
    touch().await;
    assert_eq!(times().await, (0, Some(DAY_S), "completed"), "at most once per minute");
    clock.advance(1);
    store.touch_vector_stores(&other(), std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(times().await.0, 0, "of another project");
    touch().await;
    assert_eq!(times().await, (60, Some(60 + DAY_S), "completed"));
    clock.advance(10);
    add(&store, &id, &a).await.unwrap();
    assert_eq!(times().await, (70, Some(70 + DAY_S), "completed"));
    clock.advance(10);
    let rename = ModifyVectorStore::parse(json!({"name": "n"})).unwrap();
    store.modify_vector_store(&scope(), &id, &rename).await.unwrap().unwrap();
    assert_eq!(times().await, (80, Some(80 + DAY_S), "completed"));

    clock.advance(DAY_S);
    assert_eq!(times().await.2, "expired");
    touch().await;
    store.modify_vector_store(&scope(), &id, &rename).await.unwrap().unwrap();
    assert_eq!(times().await, (80, Some(80 + DAY_S), "expired"), "it is not revived");
    let longer = ModifyVectorStore::parse(json!({"expires_after": null})).unwrap();
    let revived = store.modify_vector_store(&scope(), &id, &longer).await.unwrap_err();
    assert!(matches!(revived, Error::VectorStoreExpired(expired) if expired == id));
    assert!(matches!(add(&store, &id, &b).await, Err(Error::VectorStoreExpired(_))));
    assert!(store.store_state(&scope(), &id).await.unwrap().unwrap().is_expired);

    clock.advance(EXPIRED_KEPT_S - 1);
    remove_data(&store).await;
    assert_eq!(counts_of(&store, &id).await.total(), 1, "it is kept for a day");
    clock.advance(1);
    remove_data(&store).await;
    assert_eq!(counts_of(&store, &id).await.total(), 0);
    clock.advance(TOMBSTONE_KEPT_S);
    remove_data(&store).await;
    assert_eq!(times().await.2, "expired");
    assert_eq!(database.text("select cast(count(*) as text) from vector_store_chunks").await, "0");
});

both_stores!(changes_of_one_version_are_returned_together, async |database: Database| {
    let (store, clock) = open(&database).await;
    let mut files = Vec::new();
    for number in 0..5 {
        let file = File {
            id: ids().generate(),
            created_at: NOW,
            purpose: Purpose::Assistants,
            filename: format!("{number}.txt"),
            bytes: 3,
            expires_at: Some(NOW.plus(3_600)),
        };
        store.create_pending_file(&scope(), &file.id, NOW, LEASE).await.unwrap();
        assert!(store.finish_file(&scope(), &file).await.unwrap());
        files.push(file.id);
    }
    let id = create_store(&store, &files).await.id;
    for _ in 0..5 {
        complete_next(&store).await;
    }

    let first = store.changed_files(&id, 0, 2).await.unwrap();
    assert_eq!(first.len(), 2);
    let second = store.changed_files(&id, first[1].changed_version, 2).await.unwrap();
    assert_eq!(second.iter().map(|file| &file.file_id).collect::<Vec<_>>(), [&files[2], &files[3]]);
    clock.advance(3_600);
    store.blobs_to_remove(BlobKind::File, 100).await.unwrap();
    let deleted = store.changed_files(&id, first[1].changed_version, 2).await.unwrap();
    assert_eq!(deleted.iter().filter(|file| file.is_deleted).count(), 5);
});

/// What the model of the random test knows of a file of a vector store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    InProgress,
    Completed,
    Failed,
    Cancelled,
}

/// What the random test knows: two vector stores, and batches with their vector store.
struct Model {
    files: Vec<FileId>,
    stores: [VectorStoreId; 2],
    known: [HashMap<FileId, Known>; 2],
    batches: Vec<(usize, FileBatchId, Vec<FileId>)>,
}

impl Model {
    async fn create(store: &Arc<dyn Store>) -> Self {
        let files: [FileId; 6] = create_files(store).await;
        let stores = [create_store(store, &[]).await.id, create_store(store, &[]).await.id];
        Self { files: files.to_vec(), stores, known: Default::default(), batches: Vec::new() }
    }

    fn counts(files: &HashMap<FileId, Known>) -> FileCounts {
        let count = |state: Known| files.values().filter(|known| **known == state).count() as u64;
        counts(count(Known::InProgress), count(Known::Completed), count(Known::Failed), count(Known::Cancelled))
    }

    fn add(&mut self, index: usize, file: &FileId) {
        let state = self.known[index].entry(file.clone()).or_insert(Known::InProgress);
        if matches!(state, Known::Failed | Known::Cancelled) {
            *state = Known::InProgress;
        }
    }

    /// Removes a file. If it is added again, it is not in the earlier batches.
    fn remove(&mut self, index: usize, file: &FileId) -> bool {
        for (_, _, batch) in self.batches.iter_mut().filter(|(of, ..)| *of == index) {
            batch.retain(|id| id != file);
        }
        self.known[index].remove(file).is_some()
    }

    /// Does something random in the store and in the model.
    async fn step(&mut self, store: &Arc<dyn Store>, random: &mut fastrand::Rng) {
        let index = random.usize(..2);
        let id = self.stores[index].clone();
        let file = self.files[random.usize(..self.files.len())].clone();
        match random.u8(..10) {
            0 => {
                add(store, &id, &file).await.unwrap().unwrap();
                self.add(index, &file);
            }
            1..=2 => {
                let mut some: Vec<FileId> = self.files.iter().filter(|_| random.bool()).cloned().collect();
                some.push(file);
                some.sort();
                some.dedup();
                let (batch, _) = add_batch(store, &id, &some).await;
                for file in &some {
                    self.add(index, file);
                }
                self.batches.push((index, batch, some));
            }
            3..=5 => self.process(store, random.bool()).await,
            6 => {
                let existed = store.delete_store_file(&scope(), &id, &file).await.unwrap();
                assert_eq!(existed, self.remove(index, &file));
            }
            7 => {
                store.retry_store_file(&scope(), &id, &file).await.unwrap();
                if self.known[index].contains_key(&file) {
                    self.add(index, &file);
                }
            }
            8 if !self.batches.is_empty() => {
                let (index, batch, some) = &self.batches[random.usize(..self.batches.len())];
                store.cancel_file_batch(&scope(), &self.stores[*index], batch).await.unwrap().unwrap();
                for file in some {
                    if let Some(state @ Known::InProgress) = self.known[*index].get_mut(file) {
                        *state = Known::Cancelled;
                    }
                }
            }
            _ => {
                store.delete_file(&scope(), &file).await.unwrap();
                self.files.retain(|id| *id != file);
                self.files.push(create_file(store, "again.txt").await);
                self.remove(0, &file);
                self.remove(1, &file);
            }
        }
    }

    async fn process(&mut self, store: &Arc<dyn Store>, succeeds: bool) {
        let Some(claimed) = claim_file(store).await else { return };
        let index = self.stores.iter().position(|id| *id == claimed.vector_store).unwrap();
        let state = if succeeds {
            store.complete_store_file(&claimed.lease, &completed(&[chunk("x", 0)])).await.unwrap();
            Known::Completed
        } else {
            store.fail_store_file(&claimed.lease, &failure()).await.unwrap();
            Known::Failed
        };
        assert_eq!(self.known[index].insert(claimed.file_id, state), Some(Known::InProgress));
    }

    /// Compares the store with the model.
    async fn check(&self, store: &Arc<dyn Store>, context: &str) {
        for (id, known) in self.stores.iter().zip(&self.known) {
            let found = store.vector_store(&scope(), id).await.unwrap().unwrap();
            let expected = Self::counts(known);
            assert_eq!((found.file_counts, found.usage_bytes), (expected, 7 * expected.completed), "{context}");
        }
        for (index, batch, some) in &self.batches {
            let found = store.file_batch(&scope(), &self.stores[*index], batch).await.unwrap().unwrap();
            let of_batch = some.iter().map(|file| (file.clone(), self.known[*index][file])).collect();
            assert_eq!(found.file_counts, Self::counts(&of_batch), "{context}");
        }
    }

    /// An index that follows the changes has exactly the completed files.
    async fn check_changes(&self, store: &Arc<dyn Store>, context: &str) {
        for (id, known) in self.stores.iter().zip(&self.known) {
            let (mut found, mut since) = (HashMap::new(), 0);
            loop {
                let changed = store.changed_files(id, since, 2).await.unwrap();
                let Some(last) = changed.last() else { break };
                since = last.changed_version;
                for file in changed {
                    if file.is_deleted {
                        found.remove(&file.id)
                    } else {
                        found.insert(file.id, file.file_id)
                    };
                }
            }
            let mut found: Vec<&FileId> = found.values().collect();
            found.sort();
            let completed = known.iter().filter(|(_, state)| **state == Known::Completed);
            let mut completed: Vec<&FileId> = completed.map(|(file, _)| file).collect();
            completed.sort();
            assert_eq!(found, completed, "{context}");
        }
    }
}

both_stores!(counts_are_those_of_a_simple_model_after_random_operations, async |database: Database| {
    let (store, _) = open(&database).await;
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = Model::create(&store).await;
        for number in 0..60 {
            model.step(&store, &mut random).await;
            model.check(&store, &format!("seed {seed}, operation {number}")).await;
            if random.u8(..8) == 0 {
                store.remove_store_data(2).await.unwrap();
            }
        }
        model.check_changes(&store, &format!("seed {seed}")).await;
        for id in &model.stores {
            assert!(store.delete_vector_store(&scope(), id).await.unwrap());
        }
    }
});
