//! The database of the floor: threads, messages and runs, with one round trip per durable write.

use std::str::FromStr;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use crate::Result;
use crate::floor::new_id;

/// Maximum number of connections to Postgres. More do not increase the throughput.
const POSTGRES_CONNECTIONS: u32 = 16;
/// Maximum number of `SQLite` connections that read, in addition to the one that writes.
const SQLITE_READERS: u32 = 8;

/// Number of messages of a list.
const PAGE: i64 = 20;

const TABLES: &str = "
create table threads (id text primary key);
create table messages (thread_id text not null, id text not null, role text not null, text text not null,
    primary key (thread_id, id));
create table runs (id text primary key, thread_id text not null, status text not null);
";
const CREATE_THREAD: &str = "insert into threads (id) values ($1)";
const CREATE_MESSAGE: &str = "insert into messages (thread_id, id, role, text) values ($1, $2, $3, $4)";
const START_RUN: &str = "insert into runs (id, thread_id, status) values ($1, $2, 'in_progress')";
const GET_RUN_STATUS: &str = "select status from runs where thread_id = $1 and id = $2";
const GET_MESSAGE: &str = "select id, role, text from messages where thread_id = $1 and id = $2";
const LIST_NEWEST: &str = "select id, role, text from messages where thread_id = $1 order by id desc limit $2";

const CREATE_THREAD_AND_MESSAGE_POSTGRES: &str = "
with thread as (insert into threads (id) values ($1))
insert into messages (thread_id, id, role, text) values ($1, $2, $3, $4)";
const CREATE_THREAD_AND_MESSAGE_SQLITE: &str = "
begin immediate;
insert into threads (id) values ($1);
insert into messages (thread_id, id, role, text) values ($1, $2, $3, $4);
commit";
const END_RUN_POSTGRES: &str = "
with run as (update runs set status = 'completed' where id = $5)
insert into messages (thread_id, id, role, text) values ($1, $2, $3, $4)";
const END_RUN_SQLITE: &str = "
begin immediate;
insert into messages (thread_id, id, role, text) values ($1, $2, $3, $4);
update runs set status = 'completed' where id = $5;
commit";

#[derive(sqlx::FromRow)]
pub struct Message {
    pub id: String,
    pub role: String,
    pub text: String,
}

#[derive(Clone, Copy)]
pub enum Role {
    User,
    Assistant,
}

impl Message {
    /// Creates a message with a new ID.
    pub fn new(role: Role, text: String) -> Self {
        let role = match role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        Self { id: new_id("msg"), role: role.to_owned(), text }
    }
}

/// The floor's tables, on either database.
pub enum FloorStore {
    Postgres(PgPool),
    Sqlite { writer: SqlitePool, readers: SqlitePool },
}

/// Executes a statement on the writing connections of either database.
macro_rules! write {
    ($store:expr, $postgres:expr, $sqlite:expr, $($value:expr),+) => {
        match $store {
            FloorStore::Postgres(pool) => {
                sqlx::query($postgres)$(.bind($value))+.execute(pool).await?;
            }
            FloorStore::Sqlite { writer, .. } => {
                sqlx::query($sqlite)$(.bind($value))+.execute(writer).await?;
            }
        }
    };
}

/// Executes a query on the reading connections of either database.
macro_rules! read {
    ($store:expr, $query:expr, $fetch:ident) => {
        match $store {
            FloorStore::Postgres(pool) => $query.$fetch(pool).await?,
            FloorStore::Sqlite { readers, .. } => $query.$fetch(readers).await?,
        }
    };
}

impl FloorStore {
    /// Opens the database, and creates its tables if they do not exist.
    pub async fn open(url: &str) -> Result<Self> {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full);
            let pool =
                |connections: u32| SqlitePoolOptions::new().max_connections(connections).test_before_acquire(false);
            let writer = pool(1).connect_with(options.clone()).await?;
            let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_schema").fetch_one(&writer).await?;
            if tables == 0 {
                sqlx::raw_sql(TABLES).execute(&writer).await?;
            }
            return Ok(Self::Sqlite { writer, readers: pool(SQLITE_READERS).connect_with(options).await? });
        }
        let pool =
            PgPoolOptions::new().max_connections(POSTGRES_CONNECTIONS).test_before_acquire(false).connect(url).await?;
        let exists: bool = sqlx::query_scalar("select to_regclass('runs') is not null").fetch_one(&pool).await?;
        if !exists {
            sqlx::raw_sql(TABLES).execute(&pool).await?;
        }
        Ok(Self::Postgres(pool))
    }

    pub async fn create_thread(&self, id: &str) -> Result<()> {
        write!(self, CREATE_THREAD, CREATE_THREAD, id);
        Ok(())
    }

    pub async fn create_thread_and_message(&self, id: &str, message: &Message) -> Result<()> {
        write!(
            self,
            CREATE_THREAD_AND_MESSAGE_POSTGRES,
            CREATE_THREAD_AND_MESSAGE_SQLITE, id, &message.id, &message.role, &message.text
        );
        Ok(())
    }

    pub async fn create_message(&self, thread_id: &str, message: &Message) -> Result<()> {
        write!(self, CREATE_MESSAGE, CREATE_MESSAGE, thread_id, &message.id, &message.role, &message.text);
        Ok(())
    }

    pub async fn start_run(&self, id: &str, thread_id: &str) -> Result<()> {
        write!(self, START_RUN, START_RUN, id, thread_id);
        Ok(())
    }

    pub async fn end_run(&self, id: &str, thread_id: &str, message: &Message) -> Result<()> {
        write!(self, END_RUN_POSTGRES, END_RUN_SQLITE, thread_id, &message.id, &message.role, &message.text, id);
        Ok(())
    }

    pub async fn get_run_status(&self, thread_id: &str, id: &str) -> Result<String> {
        Ok(read!(self, sqlx::query_scalar(GET_RUN_STATUS).bind(thread_id).bind(id), fetch_one))
    }

    pub async fn get_message(&self, thread_id: &str, id: &str) -> Result<Message> {
        Ok(read!(self, sqlx::query_as(GET_MESSAGE).bind(thread_id).bind(id), fetch_one))
    }

    pub async fn list_newest_messages(&self, thread_id: &str) -> Result<Vec<Message>> {
        Ok(read!(self, sqlx::query_as(LIST_NEWEST).bind(thread_id).bind(PAGE), fetch_all))
    }
}
