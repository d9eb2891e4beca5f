//! Servers that die or stop, and databases that go away.

use std::time::Duration;

use assistd::api::rule::Request as _;
use assistd::api::tool::ToolResources;
use assistd::api::{CreateAssistant, CreateMessage, CreateRun, CreateThread, Ids};
use assistd::clock::Clock;
use assistd::runs::machine::{self, Input, Progress};
use assistd::store::{FIRST_VERSION, NewRun, NextLease, SavedText, Start};
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{names, parse};
use crate::support::transition::commit;
use crate::support::upstream::{Answer, Upstream};

/// Leaves a run behind as a server does that died in the middle of the answer: in progress, with some text, and on a
/// lease that has lapsed. Gives the run's path.
async fn leave_behind(database: &Database) -> String {
    let (store, ids, now) = (database.open().await, Ids::unique_everywhere(), Clock::system().now());
    let assistant = CreateAssistant::parse(json!({"model": "m"})).unwrap().into_assistant(ids.make(), now);
    store.create_assistant(&assistant).await.unwrap();
    let (thread, _) = CreateThread::parse(json!({})).unwrap().into_thread(ids.make(), now);
    let hi = CreateMessage::parse(json!({"role": "user", "content": "Hi"})).unwrap();
    store.create_thread(&thread, &[hi.into_message(&ids, &thread.id, now)]).await.unwrap();
    let request = CreateRun::parse(json!({"assistant_id": assistant.id})).unwrap();
    let (run, _) = request.into_run(&ids, &thread.id, &assistant, ToolResources::default(), now, 600);
    store.create_run(&NewRun { run: &run, thread: None, messages: &[], owner: "", start: Start::Due }).await.unwrap();
    let mut progress = Progress::new(run);
    let mut version = FIRST_VERSION;
    for input in [Input::Claimed, Input::TextBegan] {
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

async fn answer(server: &Server, run: &str) -> (Value, Vec<Value>, Vec<Value>) {
    let done = server.client.until(run, "completed").await;
    let steps = server.client.get(&format!("{run}/steps")).await;
    let thread = run.split("/runs/").next().unwrap();
    let messages = server.client.get(&format!("{thread}/messages")).await;
    (done, steps["data"].as_array().unwrap().clone(), messages["data"].as_array().unwrap().clone())
}

both_stores!(a_run_whose_server_died_is_answered_once_by_the_next, async |database: Database| {
    let run = leave_behind(&database).await;
    let upstream = Upstream::saying([Answer::Words(vec!["A whole", " answer"])]).await;

    let server = Server::start(&database, &upstream).await;

    let (_, steps, messages) = answer(&server, &run).await;
    assert_eq!(steps.len(), 1);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0]["content"][0]["text"]["value"], "A whole answer");
    assert_eq!(
        upstream.requests()[0]["messages"],
        json!([{"role": "user", "content": "Hi"}]),
        "the model does not see its own half answer"
    );
});

both_stores!(a_server_that_stops_hands_its_runs_on, async |database: Database| {
    let upstream =
        Upstream::saying([Answer::Pause(vec!["Half an ans"]), Answer::Words(vec!["A whole", " answer"])]).await;
    let first = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "0")]).await;
    let (assistant, thread) = (first.client.assistant().await, first.client.thread("Hi").await);
    let stream = first
        .client
        .begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true}))
        .await;
    upstream.asked(1).await;

    let (text, ()) = tokio::join!(stream.text(), first.stop());
    let events = parse(&text.unwrap());

    assert_eq!(names(&events).last_chunk::<2>().unwrap(), &["error", "done"]);
    let error = &events[events.len() - 2].data;
    assert_eq!(error["error"]["message"], error["message"], "in both known forms");
    let second = Server::start(&database, &upstream).await;
    let run = format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap());
    let (_, steps, messages) = answer(&second, &run).await;
    assert_eq!((steps.len(), messages.len()), (1, 2));
    assert_eq!(messages[0]["content"][0]["text"]["value"], "A whole answer");
});

both_stores!(a_server_that_stops_lets_its_runs_finish_in_the_grace_time, async |database: Database| {
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "30")]).await;
    let client = server.client.clone();
    let (assistant, thread) = (client.assistant().await, client.thread("Hi").await);
    let stream =
        client.begin(&format!("/v1/threads/{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    upstream.asked(1).await;

    let finish = async {
        // No new run begins, and load balancers are told; then the model goes on.
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
        let refused = client.send(reqwest::Method::POST, "/v1/threads/runs", Some(&body)).await;
        assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &"1".parse().unwrap()));
        upstream.go_on();
    };
    let (text, (), ()) = tokio::join!(stream.text(), server.stop(), finish);

    assert_eq!(names(&parse(&text.unwrap())).last_chunk::<2>().unwrap(), &["run.completed", "done"]);
});

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_a_503_until_it_is_back() {
    use sqlx::{Connection, Executor, PgConnection};
    let Some(database) = Database::postgres().await else { return };
    let server = Server::start(&database, &Upstream::start().await).await;
    let thread = server.client.thread("Hi").await;
    let (url, name) = database.url.rsplit_once('/').unwrap();
    let mut admin = PgConnection::connect(&format!("{url}/postgres")).await.unwrap();
    let kick = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    let close = |open: bool| sqlx::AssertSqlSafe(format!("alter database {name} with allow_connections {open}"));

    admin.execute(close(false)).await.unwrap();
    admin.execute(sqlx::AssertSqlSafe(kick)).await.unwrap();
    let refused = server.client.send(reqwest::Method::GET, &format!("/v1/threads/{thread}"), None).await;
    assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(refused.body["error"]["type"], "server_error");
    admin.execute(close(true)).await.unwrap();

    for _ in 0..1_000 {
        if server.client.send(reqwest::Method::GET, &format!("/v1/threads/{thread}"), None).await.status == 200 {
            let run = server.client.run(&server.client.assistant().await, &thread).await;
            server.client.until(&run, "completed").await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server did not recover");
}

/// A relay to a database that can be made to fall silent: what is connected then hears nothing any more, and what comes
/// later is served.
async fn relay(to: String) -> (u16, tokio::sync::watch::Sender<u32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silence = tokio::sync::watch::Sender::new(0);
    let silenced = silence.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut silenced) = (to.clone(), silenced.subscribe());
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = silenced.changed() => std::future::pending().await,
                }
            });
        }
    });
    (port, silence)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_connection_that_falls_silent_holds_nobody_for_good() {
    let Some(database) = Database::postgres().await else { return };
    let (scheme, rest) = database.url.split_once("://").unwrap();
    let (authority, name) = rest.split_once('/').unwrap();
    let (user, host) = authority.split_once('@').unwrap();
    let (port, silence) = relay(host.to_owned()).await;
    let relayed = Database::at(format!("{scheme}://{user}@127.0.0.1:{port}/{name}"));
    let upstream = Upstream::saying([Answer::Pause(vec!["Hm"])]).await;
    let server = Server::with(&relayed, &upstream, &[("DATABASE_STATEMENT_TIMEOUT_S", "1")]).await;
    let client = &server.client;
    let run = client.run(&client.assistant().await, &client.thread("Hi").await).await;
    upstream.asked(1).await;

    silence.send_modify(|times| *times += 1);
    upstream.go_on();

    // Each connection that is silent costs one request at most.
    for _ in 0..100 {
        if client.request(reqwest::Method::GET, &run).send().await.unwrap().status().as_u16() == 200 {
            break;
        }
    }
    client.until(&run, "completed").await;
}
