//! The table `messages`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, Parent, page, read};
use super::resources::{attach_to_thread, find_files};
use super::store_files::finish;
use super::{Backend, Db, Row, insert_message};
use crate::api::message::MessageState;
use crate::api::tool::NewResources;
use crate::api::{Message, MessageId, Metadata, Page, PageQuery, RunId, Scope, ThreadId, Timestamp};
use crate::store::{ConversationCursor, ConversationPage, Error, Messages, from_json, to_json};

pub(super) const TABLE: &str = "messages";
const COLUMNS: &str = "id, created_at, metadata, body";

/// Reads a message. The columns override the body: the store may have changed the time, and a client the metadata.
pub(super) fn from_row(row: &Row) -> Result<Message, Error> {
    let id: &str = row.try_get("id")?;
    let mut message: Message = from_json(TABLE, id, row.try_get("body")?)?;
    message.metadata = from_json(TABLE, id, row.try_get("metadata")?)?;
    Ok(at(message, Timestamp(row.try_get("created_at")?)))
}

/// Sets the time of a message, which is also the completion time of a message that a client created.
fn at(mut message: Message, created_at: Timestamp) -> Message {
    if let (MessageState::Completed { at }, None) = (&mut message.state, &message.author) {
        *at = created_at;
    }
    message.created_at = created_at;
    message
}

impl Backend {
    /// Returns the message's time, or `None` if the thread is locked or does not exist.
    async fn insert_message_with_files(
        &self,
        scope: &Scope,
        message: &Message,
        while_busy: bool,
        new: &NewResources,
    ) -> Result<Option<Timestamp>, Error> {
        let (mut tx, time) = (self.begin().await?, self.fixed_time());
        let outcome = async {
            // Locked before the thread. A missing thread is reported before a missing file.
            let found = find_files(&mut tx, time, scope, new).await;
            if let Err(error @ (Error::Unavailable(_) | Error::Rejected(_))) = found {
                return Err(error);
            }
            let Some(created_at) = insert_message(&mut tx, scope, message, while_busy).await? else { return Ok(None) };
            let found = found?;
            if new.attachments.is_some() {
                let new = (new, &found, message.created_at);
                attach_to_thread(&mut tx, time, scope, &message.thread_id, new).await?;
            }
            Ok(Some(created_at))
        }
        .await;
        finish(tx, outcome).await
    }
}

#[async_trait]
impl Messages for Backend {
    async fn create_message(
        &self,
        scope: &Scope,
        message: Message,
        while_busy: bool,
        new: &NewResources,
    ) -> Result<Message, Error> {
        loop {
            let inserted = if new.is_empty() {
                self.insert_message(scope, &message, while_busy).await?
            } else {
                self.insert_message_with_files(scope, &message, while_busy, new).await?
            };
            if let Some(created_at) = inserted {
                return Ok(at(message, created_at));
            }
            self.check_lock(scope, &message.thread_id).await?;
        }
    }

    async fn message(&self, scope: &Scope, thread: &ThreadId, id: &MessageId) -> Result<Option<Message>, Error> {
        let sql = "select id, created_at, metadata, body from messages
                   where id = $1 and thread_id = $2 and project_id = $3";
        let row = sqlx::query::<Db>(sql)
            .bind(id.as_str())
            .bind(thread.as_str())
            .bind(scope.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_messages(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: Option<&RunId>,
        query: &PageQuery,
    ) -> Result<Page<Message>, Error> {
        let of_run = run.map(|run| [("run_id", run.as_str())]);
        let filter = of_run.as_ref().map_or(&[][..], |filter| filter);
        let parent = Some(Parent::Thread(scope, thread));
        let rows = page(self, &List { table: TABLE, columns: COLUMNS, body: "body", filter, parent }, query).await?;
        read(self, &rows, from_row)
    }

    async fn conversation_page(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run: &RunId,
        before: Option<ConversationCursor>,
        rows: u32,
        bytes: usize,
    ) -> Result<ConversationPage, Error> {
        // The inner query selects the rows by index; the outer one omits the bodies above the size limit.
        let before = before.unwrap_or(ConversationCursor { context_seq: i64::MAX, seq: i64::MAX });
        let found = sqlx::query::<Db>(
            "select id, created_at, metadata, body, context_seq, seq, count from (
                 select id, created_at, metadata, body, context_seq, seq, count(*) over () as count,
                        sum(octet_length(body)) over (
                            order by context_seq desc, seq desc rows between unbounded preceding and current row
                        ) - octet_length(body) as bytes_before
                 from (
                     select id, created_at, metadata, body, coalesce(place, seq) as context_seq, seq
                     from messages
                     where thread_id = (select id from threads where id = $1 and project_id = $8)
                       and coalesce(place, seq) <= coalesce((select sees_to from runs where id = $2), $3)
                       and (coalesce(place, seq), seq) < ($4, $5)
                     order by coalesce(place, seq) desc, seq desc
                     limit $6
                 ) as page
             ) as page
             where bytes_before < $7
             order by context_seq desc, seq desc",
        )
        .bind(thread.as_str())
        .bind(run.as_str())
        .bind(i64::MAX)
        .bind(before.context_seq)
        .bind(before.seq)
        .bind(i64::from(rows))
        .bind(i64::try_from(bytes.max(1)).unwrap_or(i64::MAX))
        .bind(scope.as_str())
        .fetch_all(self.reader())
        .await?;
        let messages = self.unreadable.skip_all(found.iter().map(from_row))?;
        let next = match found.last() {
            Some(last) => {
                let count: i64 = last.try_get("count")?;
                let is_cut = count > i64::try_from(found.len()).unwrap_or(i64::MAX) || count == i64::from(rows);
                let cursor =
                    ConversationCursor { context_seq: last.try_get("context_seq")?, seq: last.try_get("seq")? };
                is_cut.then_some(cursor)
            }
            None => None,
        };
        Ok(ConversationPage { messages, next })
    }

    async fn oldest_message(&self, scope: &Scope, thread: &ThreadId, run: &RunId) -> Result<Option<Message>, Error> {
        let row = sqlx::query::<Db>(
            "select id, created_at, metadata, body from messages
             where thread_id = (select id from threads where id = $1 and project_id = $4)
               and coalesce(place, seq) <= coalesce((select sees_to from runs where id = $2), $3)
             order by coalesce(place, seq), seq
             limit 1",
        )
        .bind(thread.as_str())
        .bind(run.as_str())
        .bind(i64::MAX)
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        Ok(row.as_ref().map(|row| self.unreadable.skip(from_row(row))).transpose()?.flatten())
    }

    async fn modify_message(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        id: &MessageId,
        metadata: &Metadata,
    ) -> Result<Option<Message>, Error> {
        let row = sqlx::query::<Db>(
            "update messages set metadata = $3 where id = $1 and thread_id = $2 and project_id = $4
             returning id, created_at, metadata, body",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .bind(to_json(metadata))
        .bind(scope.as_str())
        .fetch_optional(self.writer())
        .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn delete_message(&self, scope: &Scope, thread: &ThreadId, id: &MessageId) -> Result<bool, Error> {
        let done = sqlx::query::<Db>("delete from messages where id = $1 and thread_id = $2 and project_id = $3")
            .bind(id.as_str())
            .bind(thread.as_str())
            .bind(scope.as_str())
            .execute(self.writer())
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
