//! What is created together with assistants, threads, messages and runs: vector stores, and the files that messages attach.

use std::collections::HashSet;

use super::store_files::FoundFiles;
use super::vector_stores::{add_found_files, insert_vector_store};
use super::{Backend, Db};
use crate::api::tool::{NewResources, NewVectorStore, ToolResources};
use crate::api::{FileId, Scope, Thread, ThreadId, Timestamp, VectorStoreId};
use crate::store::pool::Transaction;
use crate::store::{Error, from_json, to_json};

/// Finds the files of new resources, which are locked. Fails if they do not exist, cannot be searched, or cannot be images.
pub(super) async fn find_files(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    new: &NewResources,
) -> Result<FoundFiles, Error> {
    let attached: Vec<&FileId> = new.search_files().map(|file| &file.file_id).chain(new.code_files()).collect();
    let ids: Vec<&FileId> = attached.iter().copied().chain(new.images.iter().map(|image| &image.file_id)).collect();
    let found = FoundFiles::find(tx, fixed_time, scope, &ids).await?;
    found.check_exist(&attached)?;
    found.check_supported(new.search_files())?;
    found.check_images(&new.images)?;
    Ok(found)
}

/// Stores what is created with an object that has these tool resources, and adds attached files to them. The files must be
/// locked.
pub(super) async fn store_new(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    resources: &mut ToolResources,
    (new, found, now): (&NewResources, &FoundFiles, Timestamp),
) -> Result<(), Error> {
    if let Some(NewVectorStore { store, files }) = &new.vector_store {
        insert_vector_store(tx, fixed_time, scope, store, (files, found)).await?;
    }
    let Some(attachments) = &new.attachments else { return Ok(()) };
    resources.add_code_files(attachments.code.iter()).map_err(Error::Invalid)?;
    if attachments.search.is_empty() {
        return Ok(());
    }
    let files = (attachments.search.as_slice(), found);
    let is_added = match resources.vector_store() {
        Some(store) => add_found_files(tx, fixed_time, scope, store, now, files).await?.is_some(),
        None => false,
    };
    if !is_added {
        // The thread has no vector store, or its vector store was deleted.
        insert_vector_store(tx, fixed_time, scope, &attachments.vector_store, files).await?;
        resources.set_vector_store(&attachments.vector_store.id);
    }
    Ok(())
}

/// Adds the files that new messages attach to the tool resources of their thread, whose row must be locked.
pub(super) async fn attach_to_thread(
    tx: &mut Transaction<Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    thread: &ThreadId,
    new: (&NewResources, &FoundFiles, Timestamp),
) -> Result<(), Error> {
    let (body,): (String,) = sqlx::query_as::<Db, _>("select body from threads where id = $1 and project_id = $2")
        .bind(thread.as_str())
        .bind(scope.as_str())
        .fetch_one(&mut *tx)
        .await?;
    let mut changed: Thread = from_json("threads", thread.as_str(), &body)?;
    store_new(tx, fixed_time, scope, &mut changed.tool_resources, new).await?;
    sqlx::query::<Db>("update threads set body = $2, version = version + 1 where id = $1")
        .bind(thread.as_str())
        .bind(to_json(&changed))
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Fails if the tool resources name files or vector stores that do not exist, other than the one that is created.
pub(super) async fn check_resources<'e>(
    db: impl sqlx::Executor<'e, Database = Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    resources: &ToolResources,
    new: Option<&NewVectorStore>,
) -> Result<(), Error> {
    let store = resources.vector_store().filter(|id| new.is_none_or(|new| new.store.id != **id));
    let files = resources.code_files();
    if store.is_none() && files.is_empty() {
        return Ok(());
    }
    let existing = existing_files(db, fixed_time, scope, files.iter(), store).await?;
    let missing: Vec<FileId> = files.iter().filter(|id| !existing.contains(id.as_str())).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::NoFiles(missing));
    }
    match store {
        Some(store) if !existing.contains(store.as_str()) => Err(Error::NoVectorStores(vec![store.clone()])),
        Some(_) | None => Ok(()),
    }
}

/// Returns those of the files, and of the vector store, that exist. One statement finds both.
async fn existing_files<'e, 'f>(
    db: impl sqlx::Executor<'e, Database = Db>,
    fixed_time: Option<i64>,
    scope: &Scope,
    files: impl Iterator<Item = &'f FileId>,
    store: Option<&VectorStoreId>,
) -> Result<HashSet<String>, Error> {
    let files: HashSet<&str> = files.map(FileId::as_str).collect();
    let rows: Vec<(String,)> = sqlx::query_as::<Db, _>(concat!(
        "select id from vector_stores where id = $1 and project_id = $2 and status = 'live'
         union all
         select id from files
         where project_id = $2 and status = 'processed' and (remove_at is null or remove_at > ",
        now!("$3"),
        ") and id in (",
        json_texts!("$4"),
        ")"
    ))
    .bind(store.map_or("", VectorStoreId::as_str))
    .bind(scope.as_str())
    .bind(fixed_time)
    .bind(to_json(&files))
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

impl Backend {
    /// Removes files that do not exist from tool resources: a deleted file disappears from all of them.
    pub(super) async fn remove_deleted_files(
        &self,
        scope: &Scope,
        resources: &mut [&mut ToolResources],
    ) -> Result<(), Error> {
        if resources.iter().all(|resources| resources.code_files().is_empty()) {
            return Ok(());
        }
        let files = resources.iter().flat_map(|resources| resources.code_files());
        let existing = existing_files(self.reader(), self.fixed_time(), scope, files, None).await?;
        for resources in resources {
            resources.retain_code_files(|id| existing.contains(id.as_str()));
        }
        Ok(())
    }
}
