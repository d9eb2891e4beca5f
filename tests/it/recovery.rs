//! Server crashes and shutdowns, and unavailable databases.

use std::time::Duration;

use assistd::api::rule::Request as _;
use assistd::api::{CreateAssistant, CreateMessage, CreateRun, CreateThread, Ids, Scope};
use assistd::clock::Clock;
use assistd::runs::machine::{self, Input, Progress};
use assistd::store::{FIRST_VERSION, NewRun, NextLease, SavedText, Start};
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::run::{NOTHING, origin};
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::transition::commit;
use crate::support::upstream::{Answer, Upstream};

/// Stores a run as if its server had crashed during the answer: in progress, with some text, and with an expired lease.
/// Returns the run's path.
async fn create_interrupted_run(database: &Database) -> String {
    let (store, ids, now) = (database.open().await, Ids::unique_everywhere(), Clock::system().now());
    let assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(&ids, now).0;
    store.create_assistant(&Scope::default_project(), &assistant, &NOTHING).await.unwrap();
    let (thread, ..) = CreateThread::parse(json!({})).unwrap().into_thread(&ids, now);
    let hi = CreateMessage::parse(json!({"role": "user", "content": "Hi"})).unwrap();
    store
        .create_thread(&Scope::default_project(), &thread, &[hi.into_message(&ids, &thread.id, now)], &NOTHING)
        .await
        .unwrap();
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    let (run, _) = request.into_run(&ids, origin(&thread.id, &assistant, now));
    store
        .create_run(&NewRun {
            run: &run,
            thread: None,
            messages: &[],
            new: &NOTHING,
            owner: "",
            active_runs_max: 0,
            start: Start::Due,
        })
        .await
        .unwrap();
    let mut progress = Progress::new(run);
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextStarted] {
        let transition = machine::step(&progress, input, now, &ids).unwrap();
        version = store.commit(commit(&transition, version, NextLease::Due)).await.unwrap().version;
        progress = transition.progress;
    }
    progress.append("Half an ans");
    let id = progress.run.spec.id.clone();
    let message = progress.message.as_ref().unwrap();
    let saved = store.save_messages(&[SavedText { run: &id, version, message }]).await.unwrap();
    assert_eq!(saved, std::slice::from_ref(&id));
    store.close().await;
    format!("/v1/threads/{}/runs/{id}", thread.id)
}

async fn completed_run(server: &Server, run: &str) -> (Value, Vec<Value>, Vec<Value>) {
    let done = server.client.wait_for_status(run, "completed").await;
    let steps = server.client.get(&format!("{run}/steps")).await;
    let thread = run.split("/runs/").next().unwrap();
    let messages = server.client.get(&format!("{thread}/messages")).await;
    (done, steps["data"].as_array().unwrap().clone(), messages["data"].as_array().unwrap().clone())
}

both_stores!(a_run_whose_server_crashed_is_completed_once_by_the_next_server, async |database: Database| {
    let run = create_interrupted_run(&database).await;
    let upstream = Upstream::scripted([Answer::Tokens(vec!["A whole", " answer"])]).await;

    let server = Server::start(&database, &upstream).await;

    let (_, steps, messages) = completed_run(&server, &run).await;
    assert_eq!(steps.len(), 1);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0]["content"][0]["text"]["value"], "A whole answer");
    assert_eq!(
        upstream.requests()[0]["messages"],
        json!([{"role": "user", "content": "Hi"}]),
        "the prompt does not contain the partial answer"
    );
});

both_stores!(a_run_is_resumed_by_the_next_server_after_a_shutdown, async |database: Database| {
    let upstream =
        Upstream::scripted([Answer::Pause(vec!["Half an ans"]), Answer::Tokens(vec!["A whole", " answer"])]).await;
    let first = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "0")]).await;
    let (assistant, thread) = (first.client.create_assistant().await, first.client.create_thread("Hi").await);
    let stream = first
        .client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    upstream.wait_for_requests(1).await;

    let (text, ()) = tokio::join!(stream.text(), first.stop());
    let events = parse(&text.unwrap());

    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["error", "done"]);
    let error = &events[events.len() - 2].data;
    assert_eq!(error["error"]["message"], error["message"], "the error has both forms that clients read");
    let second = Server::start(&database, &upstream).await;
    let run = format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap());
    let (_, steps, messages) = completed_run(&second, &run).await;
    assert_eq!((steps.len(), messages.len()), (1, 2));
    assert_eq!(messages[0]["content"][0]["text"]["value"], "A whole answer");
});

both_stores!(runs_may_finish_within_the_shutdown_grace_period, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "30")]).await;
    let client = server.client.clone();
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    let stream = client
        .open_stream(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    upstream.wait_for_requests(1).await;

    let finish = async {
        // The server is not ready and rejects new runs; then the model continues.
        let ready = format!("{}/ready", client.base_url);
        loop {
            let reply = client
                .request(reqwest::Method::GET, "/ready")
                .send()
                .await
                .unwrap_or_else(|error| panic!("{ready}: {error}"));
            if reply.status().as_u16() == 503 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let body = json!({"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "x"}]}});
        let rejected = client.send(reqwest::Method::POST, "/v1/threads/runs", Some(&body)).await;
        assert_eq!((rejected.status, &rejected.headers["retry-after"]), (503, &"1".parse().unwrap()));
        upstream.resume();
    };
    let (text, (), ()) = tokio::join!(stream.text(), server.stop(), finish);

    assert_eq!(names(&parse(&text.unwrap())).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_database_returns_503_until_it_recovers() {
    use sqlx::{Connection, Executor, PgConnection};
    let Some(database) = Database::postgres().await else { return };
    let server = Server::start(&database, &Upstream::start().await).await;
    let thread = server.client.create_thread("Hi").await;
    let (url, name) = database.url.rsplit_once('/').unwrap();
    let mut admin = PgConnection::connect(&format!("{url}/postgres")).await.unwrap();
    let terminate = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    let allow = |open: bool| sqlx::AssertSqlSafe(format!("alter database {name} with allow_connections {open}"));

    admin.execute(allow(false)).await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(terminate)).await.unwrap();
    let rejected = server.client.send(reqwest::Method::GET, &format!("/v1/threads/{thread}"), None).await;
    assert_eq!((rejected.status, &rejected.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(rejected.body["error"]["type"], "server_error");
    admin.execute(allow(true)).await.unwrap();

    for _ in 0..1_000 {
        if server.client.send(reqwest::Method::GET, &format!("/v1/threads/{thread}"), None).await.status == 200 {
            let run = server.client.create_run(&server.client.create_assistant().await, &thread).await;
            server.client.wait_for_status(&run, "completed").await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server did not recover");
}

/// Starts a TCP proxy to a database. Each message to the returned sender stalls all open connections; later connections
/// work.
async fn start_proxy(to: String) -> (u16, tokio::sync::watch::Sender<u32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stall = tokio::sync::watch::Sender::new(0);
    let stalled = stall.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut stalled) = (to.clone(), stalled.subscribe());
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = stalled.changed() => std::future::pending().await,
                }
            });
        }
    });
    (port, stall)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_database_connection_times_out() {
    let Some(database) = Database::postgres().await else { return };
    let (scheme, rest) = database.url.split_once("://").unwrap();
    let (authority, name) = rest.split_once('/').unwrap();
    let (user, host) = authority.split_once('@').unwrap();
    let (port, stall) = start_proxy(host.to_owned()).await;
    let proxied = Database::at(format!("{scheme}://{user}@127.0.0.1:{port}/{name}"));
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&proxied, &upstream, &[("DATABASE_STATEMENT_TIMEOUT_S", "1")]).await;
    let client = &server.client;
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    upstream.wait_for_requests(1).await;

    stall.send_modify(|times| *times += 1);
    upstream.resume();

    // Each stalled connection fails at most one request.
    for _ in 0..100 {
        if client.request(reqwest::Method::GET, &run).send().await.unwrap().status().as_u16() == 200 {
            break;
        }
    }
    client.wait_for_status(&run, "completed").await;
}
