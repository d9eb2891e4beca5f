//! Files, uploads and their parts.

use assistd::api::file::Purpose;
use assistd::api::upload::UploadState;
use assistd::api::{File, FileId, PartId, ProjectId, Upload, UploadPart};
use assistd::store::{BlobId, BlobKind};

use super::*;

const EXPIRY: i64 = 3_600;

fn file(name: &str) -> File {
    File {
        id: ids().generate(),
        created_at: NOW,
        purpose: Purpose::Assistants,
        filename: name.to_owned(),
        bytes: 3,
        expires_at: None,
    }
}

fn upload() -> Upload {
    Upload {
        id: ids().generate(),
        created_at: NOW,
        filename: "a.txt".to_owned(),
        bytes: 3,
        purpose: Purpose::Assistants,
        expires_after_s: None,
        state: UploadState::Pending,
    }
}

fn part(upload: &Upload) -> UploadPart {
    UploadPart { id: ids().generate(), created_at: NOW, upload_id: upload.id.clone() }
}

fn other() -> Scope {
    Scope::of(ProjectId::from_stored("proj_other"))
}

fn file_blob(id: &FileId) -> BlobId {
    BlobId { kind: BlobKind::File, project: ProjectId::from_stored(scope().as_str()), id: id.to_string() }
}

fn part_blob(id: &PartId) -> BlobId {
    BlobId { kind: BlobKind::Part, project: ProjectId::from_stored(scope().as_str()), id: id.to_string() }
}

async fn create_file(store: &Arc<dyn Store>, file: &File) {
    store.create_pending_file(&scope(), &file.id, NOW, LEASE).await.unwrap();
    assert!(store.finish_file(&scope(), file).await.unwrap());
}

async fn add_part(store: &Arc<dyn Store>, part: &UploadPart, bytes: u64) -> bool {
    store.create_pending_part(&scope(), part, LEASE).await.unwrap();
    store.finish_part(&scope(), part, bytes).await.unwrap()
}

async fn removable(store: &Arc<dyn Store>, kind: BlobKind) -> Vec<String> {
    let mut found: Vec<String> =
        store.blobs_to_remove(kind, 100).await.unwrap().into_iter().map(|blob| blob.id).collect();
    found.sort();
    found
}

both_stores!(a_file_is_visible_to_its_project_when_it_is_finished, async |database: Database| {
    let (store, _) = open(&database).await;
    let file = file("NUL \u{0} 你好.txt");
    store.create_pending_file(&scope(), &file.id, NOW, LEASE).await.unwrap();

    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), None, "pending");
    assert!(!store.delete_file(&scope(), &file.id).await.unwrap(), "pending");
    assert!(!store.finish_file(&other(), &file).await.unwrap(), "of another project");
    assert!(store.finish_file(&scope(), &file).await.unwrap());
    assert!(!store.finish_file(&scope(), &file).await.unwrap(), "finished already");

    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), Some(file.clone()));
    assert_eq!(store.file(&other(), &file.id).await.unwrap(), None);
    let page = store.list_files(&scope(), None, &PageQuery::default()).await.unwrap();
    assert_eq!((page.data, page.has_more), (vec![file.clone()], false));
    assert!(store.list_files(&other(), None, &PageQuery::default()).await.unwrap().data.is_empty());
    assert!(!store.delete_file(&other(), &file.id).await.unwrap());
    assert!(removable(&store, BlobKind::File).await.is_empty());

    assert!(store.delete_file(&scope(), &file.id).await.unwrap());
    assert!(!store.delete_file(&scope(), &file.id).await.unwrap(), "deleted already");
    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), None);
});

both_stores!(files_are_listed_by_purpose_in_pages, async |database: Database| {
    let (store, _) = open(&database).await;
    let files = [file("a"), file("b"), File { purpose: Purpose::Vision, ..file("c") }, file("d")];
    for file in &files {
        create_file(&store, file).await;
    }

    let list = async |purpose, query: PageQuery| {
        let page = store.list_files(&scope(), purpose, &query).await.unwrap();
        (page.data.into_iter().map(|file| file.filename).collect::<Vec<_>>().concat(), page.has_more)
    };

    assert_eq!(list(None, query(2, Order::Ascending)).await, ("ab".to_owned(), true));
    let after = PageQuery { after: Some(files[1].id.to_string()), ..query(20, Order::Ascending) };
    assert_eq!(list(None, after).await, ("cd".to_owned(), false));
    assert_eq!(list(Some(Purpose::Assistants), query(20, Order::Descending)).await, ("dba".to_owned(), false));
    let unknown = PageQuery { after: Some("file-x".to_owned()), ..PageQuery::default() };
    assert!(matches!(store.list_files(&scope(), None, &unknown).await, Err(Error::NoCursor(_))));
});

both_stores!(a_file_disappears_when_it_expires, async |database: Database| {
    let (store, clock) = open(&database).await;
    let file = File { expires_at: Some(NOW.plus(3_600)), ..file("a") };
    create_file(&store, &file).await;

    clock.advance(EXPIRY - 1);
    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), Some(file.clone()));
    assert!(removable(&store, BlobKind::File).await.is_empty());
    clock.advance(1);

    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), None);
    assert!(store.list_files(&scope(), None, &PageQuery::default()).await.unwrap().data.is_empty());
    assert!(!store.delete_file(&scope(), &file.id).await.unwrap());
    let found = store.blobs_to_remove(BlobKind::File, 100).await.unwrap();
    assert_eq!(found, [file_blob(&file.id)]);
    assert_eq!(store.blobs_to_remove(BlobKind::File, 100).await.unwrap(), found, "until the row is deleted");
    store.delete_blob_row(&file_blob(&file.id)).await.unwrap();
    assert!(removable(&store, BlobKind::File).await.is_empty());
});

both_stores!(a_pending_file_is_removed_when_its_lease_ends, async |database: Database| {
    let (store, clock) = open(&database).await;
    let (renewed, lost) = (file("a"), file("b"));
    for file in [&renewed, &lost] {
        store.create_pending_file(&scope(), &file.id, NOW, LEASE).await.unwrap();
        store.delete_blob_row(&file_blob(&file.id)).await.unwrap();
    }

    clock.advance(10);
    assert!(store.renew_pending(&file_blob(&renewed.id), LEASE).await.unwrap());
    clock.advance(10);

    assert_eq!(removable(&store, BlobKind::File).await, [lost.id.to_string()]);
    assert!(!store.finish_file(&scope(), &lost).await.unwrap());
    assert!(!store.renew_pending(&file_blob(&lost.id), LEASE).await.unwrap());
    assert!(store.finish_file(&scope(), &renewed).await.unwrap());
    store.discard_pending(&file_blob(&renewed.id), LEASE).await.unwrap();
    assert!(store.file(&scope(), &renewed.id).await.unwrap().is_some(), "a finished file is not discarded");
    let ids = [renewed.id.to_string(), "file-unknown".to_owned()];
    assert_eq!(store.blobs_with_row(BlobKind::File, &ids).await.unwrap(), [renewed.id.to_string()]);
});

both_stores!(a_completed_upload_makes_its_file_visible_and_removes_its_parts, async |database: Database| {
    let (store, _) = open(&database).await;
    let pending = upload();
    store.create_upload(&scope(), &pending).await.unwrap();
    let (first, second, late) = (part(&pending), part(&pending), part(&pending));
    assert!(add_part(&store, &first, 1).await && add_part(&store, &second, 2).await);
    store.create_pending_part(&scope(), &late, LEASE).await.unwrap();
    assert_eq!(store.upload(&scope(), &pending.id).await.unwrap(), Some(pending.clone()));
    assert_eq!(store.upload(&other(), &pending.id).await.unwrap(), None);
    assert_eq!(store.parts(&scope(), &pending.id).await.unwrap(), [(first.id.clone(), 1), (second.id.clone(), 2)]);
    assert!(store.parts(&other(), &pending.id).await.unwrap().is_empty());

    let file = pending.to_file(ids().generate(), NOW);
    let completed = Upload { state: UploadState::Completed(Box::new(file.clone())), ..pending.clone() };
    assert!(!store.end_upload(&scope(), &completed).await.unwrap(), "the file has no row");
    store.create_pending_file(&scope(), &file.id, NOW, LEASE).await.unwrap();
    assert!(!store.end_upload(&other(), &completed).await.unwrap());
    assert!(store.end_upload(&scope(), &completed).await.unwrap());

    assert_eq!(store.upload(&scope(), &pending.id).await.unwrap(), Some(completed));
    assert_eq!(store.file(&scope(), &file.id).await.unwrap(), Some(file));
    assert!(store.parts(&scope(), &pending.id).await.unwrap().is_empty());
    let mut parts = vec![first.id.to_string(), second.id.to_string()];
    parts.sort();
    assert_eq!(removable(&store, BlobKind::Part).await, parts);
    assert!(!store.finish_part(&scope(), &late, 1).await.unwrap(), "the upload has ended");
    let cancelled = Upload { state: UploadState::Cancelled, ..pending };
    assert!(!store.end_upload(&scope(), &cancelled).await.unwrap(), "the upload has ended");
});

both_stores!(the_parts_of_an_upload_are_removed_when_it_expires, async |database: Database| {
    let (store, clock) = open(&database).await;
    let (upload, unknown) = (upload(), upload());
    store.create_upload(&scope(), &upload).await.unwrap();
    let (first, stray, late) = (part(&upload), part(&unknown), part(&upload));
    assert!(add_part(&store, &first, 1).await);
    assert!(!add_part(&store, &stray, 1).await, "of an unknown upload");

    clock.advance(EXPIRY - 1);
    assert_eq!(removable(&store, BlobKind::Part).await, [stray.id.to_string()]);
    clock.advance(1);

    let mut expired = vec![first.id.to_string(), stray.id.to_string()];
    expired.sort();
    assert_eq!(removable(&store, BlobKind::Part).await, expired);
    store.delete_blob_row(&part_blob(&first.id)).await.unwrap();
    assert!(!add_part(&store, &late, 1).await, "the upload has expired");
    assert_eq!(store.delete_uploads_before(NOW.plus(3_600), 100).await.unwrap(), 0);
    assert_eq!(store.delete_uploads_before(NOW.plus(3_601), 100).await.unwrap(), 1);
    assert_eq!(store.upload(&scope(), &upload.id).await.unwrap(), None);
});
