//! The tables `code_sessions` and `code_files`.

use std::time::Duration;

use async_trait::async_trait;

use super::{Backend, Db};
use crate::api::tool::WrittenFile;
use crate::api::{CodeSessionId, FileId, Scope, ThreadId};
use crate::store::{CodeSessions, Error};

#[async_trait]
impl CodeSessions for Backend {
    async fn open_code_session(&self, scope: &Scope, thread: &ThreadId, id: &CodeSessionId) -> Result<(), Error> {
        sqlx::query::<Db>(concat!(
            "insert into code_sessions (id, project_id, thread_id, opened_at, calls, run_ms)
             values ($2, $3, $4, ",
            now!("$1"),
            ", 0, 0)"
        ))
        .bind(self.fixed_time())
        .bind(id.as_str())
        .bind(scope.as_str())
        .bind(thread.as_str())
        .execute(self.writer())
        .await?;
        Ok(())
    }

    async fn newest_code_session(&self, scope: &Scope, thread: &ThreadId) -> Result<Option<CodeSessionId>, Error> {
        let found: Option<(String,)> = sqlx::query_as::<Db, _>(
            "select id from code_sessions
             where thread_id = $1 and project_id = $2
             order by opened_at desc, id desc
             limit 1",
        )
        .bind(thread.as_str())
        .bind(scope.as_str())
        .fetch_optional(self.reader())
        .await?;
        Ok(found.map(|(id,)| CodeSessionId::from_stored(id)))
    }

    async fn record_code_call(&self, id: &CodeSessionId, duration: Duration) -> Result<(), Error> {
        sqlx::query::<Db>("update code_sessions set calls = calls + 1, run_ms = run_ms + $2 where id = $1")
            .bind(id.as_str())
            .bind(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
            .execute(self.writer())
            .await?;
        Ok(())
    }

    async fn code_files(&self, scope: &Scope, thread: &ThreadId) -> Result<Vec<WrittenFile>, Error> {
        let rows: Vec<(String, String)> = sqlx::query_as::<Db, _>(
            "select path, file_id from code_files where thread_id = $1 and project_id = $2 order by path",
        )
        .bind(thread.as_str())
        .bind(scope.as_str())
        .fetch_all(self.reader())
        .await?;
        let file = |(path, file_id): (String, String)| WrittenFile { path, file_id: FileId::from_stored(file_id) };
        Ok(rows.into_iter().map(file).collect())
    }

    async fn set_code_files(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        session: &CodeSessionId,
        files: &[WrittenFile],
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        for file in files {
            sqlx::query::<Db>(
                "insert into code_files (project_id, thread_id, path, file_id)
                 select $1, $2, $3, $4
                 where exists (select 1 from threads where id = $2 and project_id = $1)
                     and $5 = (
                         select id from code_sessions
                         where thread_id = $2 and project_id = $1
                         order by opened_at desc, id desc
                         limit 1
                     )
                 on conflict (thread_id, path) do update set file_id = excluded.file_id",
            )
            .bind(scope.as_str())
            .bind(thread.as_str())
            .bind(&file.path)
            .bind(file.file_id.as_str())
            .bind(session.as_str())
            .execute(&mut tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}
