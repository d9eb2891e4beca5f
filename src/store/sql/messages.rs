//! The table `messages`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::page::{List, page};
use super::{Backend, Db, Row};
use crate::api::message::MessageState;
use crate::api::{Message, MessageId, Metadata, Page, PageQuery, RunId, ThreadId, Timestamp};
use crate::store::{Error, Messages, from_json, to_json};

pub(super) const TABLE: &str = "messages";
const COLUMNS: &str = "id, created_at, metadata, body";

/// The columns win over the body: the store may have moved the time, and a client may have changed the metadata.
pub(super) fn from_row(row: &Row) -> Result<Message, Error> {
    let id: &str = row.try_get("id")?;
    let mut message: Message = from_json(TABLE, id, row.try_get("body")?)?;
    message.metadata = from_json(TABLE, id, row.try_get("metadata")?)?;
    Ok(at(message, Timestamp(row.try_get("created_at")?)))
}

/// The message as kept at a time that may be later than its own: a message that came whole was complete then.
fn at(mut message: Message, created_at: Timestamp) -> Message {
    if let (MessageState::Completed { at }, None) = (&mut message.state, &message.author) {
        *at = created_at;
    }
    message.created_at = created_at;
    message
}

#[async_trait]
impl Messages for Backend {
    async fn create_message(&self, message: Message, while_busy: bool) -> Result<Message, Error> {
        loop {
            if let Some(created_at) = self.insert_message(&message, while_busy).await? {
                return Ok(at(message, created_at));
            }
            self.check_lock(&message.thread_id).await?;
        }
    }

    async fn message(&self, thread: &ThreadId, id: &MessageId) -> Result<Option<Message>, Error> {
        let row =
            sqlx::query::<Db>("select id, created_at, metadata, body from messages where id = $1 and thread_id = $2")
                .bind(id.as_str())
                .bind(thread.as_str())
                .fetch_optional(self.reader())
                .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn list_messages(
        &self,
        thread: &ThreadId,
        run: Option<&RunId>,
        query: &PageQuery,
    ) -> Result<Page<Message>, Error> {
        let mut scope = vec![("thread_id", thread.as_str())];
        if let Some(run) = run {
            scope.push(("run_id", run.as_str()));
        }
        let rows = page(self, &List { table: TABLE, columns: COLUMNS, scope: &scope }, query).await?;
        rows.try_map(|row| from_row(&row))
    }

    async fn conversation(&self, thread: &ThreadId, run: &RunId, newest: Option<usize>) -> Result<Vec<Message>, Error> {
        let limit = newest.and_then(|newest| i64::try_from(newest).ok()).unwrap_or(i64::MAX);
        let rows = sqlx::query::<Db>(
            "select id, created_at, metadata, body from messages
             where thread_id = $1
               and coalesce(place, seq) <= coalesce((select sees_to from runs where id = $3), $4)
             order by coalesce(place, seq) desc, seq desc
             limit $2",
        )
        .bind(thread.as_str())
        .bind(limit)
        .bind(run.as_str())
        .bind(i64::MAX)
        .fetch_all(self.reader())
        .await?;
        rows.iter().rev().map(from_row).collect()
    }

    async fn modify_message(
        &self,
        thread: &ThreadId,
        id: &MessageId,
        metadata: &Metadata,
    ) -> Result<Option<Message>, Error> {
        let row = sqlx::query::<Db>(
            "update messages set metadata = $3 where id = $1 and thread_id = $2
             returning id, created_at, metadata, body",
        )
        .bind(id.as_str())
        .bind(thread.as_str())
        .bind(to_json(metadata))
        .fetch_optional(self.writer())
        .await?;
        row.as_ref().map(from_row).transpose()
    }

    async fn delete_message(&self, thread: &ThreadId, id: &MessageId) -> Result<bool, Error> {
        let done = sqlx::query::<Db>("delete from messages where id = $1 and thread_id = $2")
            .bind(id.as_str())
            .bind(thread.as_str())
            .execute(self.writer())
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
