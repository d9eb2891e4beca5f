//! Pages of a large table: their latency compared with those of a small table, and their query plans.

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use crate::client::Client;
use crate::closed_loop::{Operation, create_thread};
use crate::contestant::{Contestant, Kind, Setup};
use crate::measurements::time_alone;
use crate::report::{Report, Row};
use crate::{Plan, Result};

/// Number of messages in the small table.
const SMALL: usize = 100;
/// Number of threads that share the other half of the large table.
const OTHER_THREADS: usize = 10_000;

#[derive(Deserialize)]
struct List {
    data: Vec<serde_json::Value>,
}

/// Lists pages of a small table, then fills the table, half of it with the messages of one thread, and lists them again.
pub async fn measure(plan: &Plan, setup: &Setup, report: &mut Report) -> Result<()> {
    let database_url = setup.store.create_database().await?;
    let server = Contestant::start_on(setup, Kind::Assistd, &database_url, None).await?;
    let mut client = Client::new(server.target.address);
    let thread = create_thread(&mut client).await?;
    for (messages, first, last) in [(SMALL, 1, SMALL), (plan.messages_table, SMALL + 1, plan.messages_table)] {
        fill(setup, &database_url, &thread, first, last).await?;
        let middle = message_id(&format!("{}", messages / 4 * 2));
        for (what, query) in [
            ("newest 20", "limit=20&order=desc".to_owned()),
            ("20 after the middle", format!("limit=20&order=asc&after={middle}")),
        ] {
            let path = format!("/v1/threads/{thread}/messages?{query}");
            let list: List = client.fetch_json(Method::GET, &path, Bytes::new()).await?;
            if list.data.len() != 20 {
                return Err(format!("a page of 20 has {} elements", list.data.len()).into());
            }
            let what = format!("{what}, table of {messages} messages, p50 / p95");
            let assistd = time_alone(plan, &server.target, &Operation::Get { path }, &what, report).await;
            report.add(Row { what, unit: "ms", direct: Vec::new(), floor: Vec::new(), assistd, ratios: false });
        }
    }
    // The same queries as in src/store/sql.
    let page = format!(
        "select id, created_at, metadata, body from messages where true and thread_id = '{thread}'
         and (created_at, seq) > (1000, {}) order by created_at, seq limit 21",
        plan.messages_table / 2
    );
    let conversation = format!(
        "select id, created_at, metadata, body from messages where thread_id = '{thread}'
         and coalesce(place, seq) <= coalesce((select sees_to from runs where id = ''), {})
         order by coalesce(place, seq) desc, seq desc limit 11",
        i64::MAX
    );
    for (what, sql) in [("a page after a cursor", page), ("the last ten messages for a run", conversation)] {
        let plan = setup.store.explain(&database_url, &sql).await?.join("\n");
        report.add_note(format!("Query plan of {what}:\n\n```text\n{plan}\n```"));
    }
    Ok(())
}

/// Inserts the messages `first` to `last`. Those with even numbers belong to `thread`.
async fn fill(setup: &Setup, database_url: &str, thread: &str, first: usize, last: usize) -> Result<()> {
    let id = message_id_sql();
    let author = format!("case when n % 2 = 0 then '{thread}' else 'thread_' || cast(n % {OTHER_THREADS} as text) end");
    let numbers = setup.store.numbers(last);
    let sql = format!(
        r#"insert into messages (id, thread_id, seq, created_at, metadata, body)
           select {id}, {author}, n, 1000, '{{}}',
               '{{"id":"' || {id} || '","created_at":1000,"thread_id":"{thread}","author":null,"role":"user",'
               || '"content":[{{"type":"text","text":{{"value":"How long is the longest river?","annotations":[]}}}}],'
               || '"attachments":[],"metadata":{{}},"state":{{"completed":{{"at":1000}}}}}}'
           from {numbers}
           where n >= {first}"#
    );
    setup.store.execute(database_url, &sql).await?;
    setup.store.execute(database_url, "analyze").await
}

fn message_id(number: &str) -> String {
    format!("msg_{number}")
}

/// Returns [`message_id`] of the column `n` in SQL.
fn message_id_sql() -> &'static str {
    "'msg_' || cast(n as text)"
}
