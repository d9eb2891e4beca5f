//! Scenarios with one specific fault each.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::check::{self, ATTEMPTS_MAX};
use crate::client::{Client, Conversation};
use crate::disk::Disk;
use crate::skip::skip;
use crate::upstream::{Script, Turn};
use crate::world::{Plan, Store, World};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Servers whose clocks are ten minutes ahead and behind.
    ClockSkew,
    /// A run that crashes the server at each attempt.
    FatalRun,
    /// A full disk.
    FullDisk,
    /// Runs on large threads with a memory limit.
    MemoryLimit,
    /// More idle connections than the limit on open files allows.
    FileHandles,
    /// No fault: damages the database, and expects the checks to detect it.
    SelfTest,
}

impl Name {
    pub fn runs_on(self, store: &Store) -> bool {
        match self {
            Self::ClockSkew => *store != Store::Sqlite,
            Self::FatalRun | Self::FileHandles => true,
            Self::FullDisk | Self::MemoryLimit | Self::SelfTest => *store == Store::Sqlite,
        }
    }
}

/// Runs a scenario. Returns the violations, or `None` if the scenario is skipped.
pub async fn run(name: Name, assistd: &Path, store: &Store) -> Option<Vec<String>> {
    let plan = Plan {
        assistd: assistd.to_owned(),
        store: store.clone(),
        replicas: 1,
        settings: Vec::new(),
        wrappers: Vec::new(),
        home: None,
    };
    Some(match name {
        Name::ClockSkew => clock_skew(plan).await?,
        Name::FatalRun => fatal_run(plan).await,
        Name::FullDisk => full_disk(plan).await?,
        Name::MemoryLimit => memory_limit(plan).await,
        Name::FileHandles => file_handles(plan).await,
        Name::SelfTest => self_test(plan).await,
    })
}

fn text(words: usize, duration_ms: u64) -> Vec<Turn> {
    vec![Turn { words, duration_ms, calls: 0, tool: None }]
}

fn with_tools(duration_ms: u64) -> Vec<Turn> {
    vec![Turn { words: 3, duration_ms, calls: 2, tool: None }, Turn { words: 5, duration_ms, calls: 0, tool: None }]
}

/// Creates a client with a new thread.
async fn client(world: &Arc<World>, tag: &str) -> Client {
    let (_, thread) = world.call(Method::POST, "/v1/threads", Some(&json!({}))).await.expect("a server is running");
    let thread = thread["id"].as_str().expect("an id").to_owned();
    let conversation = Conversation { thread, ..Conversation::default() };
    Client { world: world.clone(), rng: Rng::with_seed(1), tag: tag.to_owned(), conversation }
}

/// Creates a run, polls it to its end, and checks it.
async fn converse(world: &Arc<World>, tag: &str, turns: Vec<Turn>) -> Conversation {
    let mut client = client(world, tag).await;
    if let Some((run, script)) = client.create(&turns, false).await {
        client.conversation.runs.push((run.clone(), script.clone()));
        client.follow(&run, &script).await;
    }
    client.conversation
}

async fn converse_concurrently(world: &Arc<World>, count: usize, tag: &str, turns: &[Turn]) -> Vec<Conversation> {
    let started: Vec<_> = (0..count)
        .map(|index| {
            let (world, tag, turns) = (world.clone(), format!("{tag}{index}"), turns.to_vec());
            tokio::spawn(async move { converse(&world, &tag, turns).await })
        })
        .collect();
    let mut all = Vec::new();
    for conversation in started {
        all.push(conversation.await.expect("a client does not panic"));
    }
    all
}

async fn clock_skew(plan: Plan) -> Option<Vec<String>> {
    // Loads the library of faketime directly, because the faketime command would receive the signals for the server.
    let library = Command::new("faketime").args(["-f", "+0s", "sh", "-c", "echo \"$LD_PRELOAD\""]).output();
    let Ok(library) = library else {
        skip("faketime");
        return None;
    };
    let library = String::from_utf8_lossy(&library.stdout).trim().to_owned();
    let shifted = |offset: &str| {
        let preload = format!("LD_PRELOAD={library}");
        ["env", &preload, &format!("FAKETIME={offset}"), "FAKETIME_DONT_FAKE_MONOTONIC=1"].map(str::to_owned).to_vec()
    };
    let plan = Plan { replicas: 3, wrappers: vec![shifted("+620s"), shifted("-620s")], ..plan };
    let world = World::start(plan).await;
    let conversations = converse_concurrently(&world, 20, "skew", &text(20, 4_000)).await;
    check::check_all(&world, &conversations).await;
    for (_, script) in conversations.iter().flat_map(|conversation| &conversation.runs) {
        let calls = world.upstream.answers(&script.tag, 0).len();
        if calls != 1 {
            world.violation(format!("{}: the model was called {calls} times", script.tag));
        }
    }
    world.stop().await;
    Some(world.violations())
}

async fn fatal_run(plan: Plan) -> Vec<String> {
    let world = World::start(plan).await;
    let (requested, mut requests) = tokio::sync::mpsc::unbounded_channel();
    world.upstream.on_request(move |tag| {
        if tag.starts_with("fatal") {
            let _ = requested.send(());
        }
    });
    let killer = tokio::spawn({
        let world = world.clone();
        async move {
            while requests.recv().await.is_some() {
                world.count("kills");
                world.replicas[0].kill().await;
                if let Err(error) = world.replicas[0].start().await {
                    world.violation(error);
                }
            }
        }
    });
    let fatal = tokio::spawn({
        let world = world.clone();
        async move {
            let mut client = client(&world, "fatal").await;
            // The server may be killed before it responds, so the run is created once and then found in the list.
            let script = Script { tag: "fatal".to_owned(), turns: text(50, 2_000) };
            let path = format!("/v1/threads/{}/runs", client.conversation.thread);
            let body = json!({"assistant_id": world.assistant, "metadata": {"tag": "fatal"},
                "additional_messages": [{"role": "user", "content": script.message()}]});
            world.try_call(0, Method::POST, &path, Some(&body)).await;
            client.conversation.scripts.push(script.clone());
            let (_, list) = world.call(Method::GET, &path, None).await.expect("a server is running");
            let run = list["data"][0]["id"].as_str().unwrap_or_default().to_owned();
            client.follow(&run, &script).await;
            (client.conversation, format!("{path}/{run}"))
        }
    });
    let mut others = Vec::new();
    while !fatal.is_finished() {
        others.push(converse(&world, &format!("other{}", others.len()), text(3, 30)).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (conversation, path) = fatal.await.expect("it does not panic");
    let (_, run) = world.call(Method::GET, &path, None).await.unwrap_or_default();
    let cause = run["last_error"]["message"].as_str().unwrap_or_default();
    if run["status"] != "failed" || !cause.contains(&format!("{ATTEMPTS_MAX} times")) {
        world.violation(format!("unexpected end of a run that crashes its server: {run}"));
    }
    killer.abort();
    others.push(conversation);
    check::check_all(&world, &others).await;
    let failed = world.counts().get("runs failed").copied();
    if failed != Some(1) {
        world.violation(format!("expected only the run that crashes its server to fail, but {failed:?} runs failed"));
    }
    world.stop().await;
    world.violations()
}

async fn full_disk(plan: Plan) -> Option<Vec<String>> {
    let Some(disk) = Disk::mount("16m") else {
        skip("permission to mount a small disk");
        return None;
    };
    let world = World::start(Plan { home: Some(disk.0.clone()), ..plan }).await;
    let mut conversations = converse_concurrently(&world, 8, "before", &with_tools(100)).await;
    // One run is active while the disk is full.
    let mut active = client(&world, "during").await;
    let created = active.create(&text(40, 2_000), false).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    disk.fill();
    let path = format!("/v1/threads/{}/messages", conversations[0].thread);
    let large = "x".repeat(200_000);
    let mut rejected = 0;
    for _ in 0..20 {
        let body = json!({"role": "user", "content": large});
        match world.try_call(0, Method::POST, &path, Some(&body)).await {
            Some((200, message)) => {
                let id = message["id"].as_str().unwrap_or_default().to_owned();
                conversations[0].messages.push((id, large.clone()));
            }
            Some((503, error)) if error["error"]["message"].is_string() => rejected += 1,
            other => world.violation(format!("unexpected response to a message on a full disk: {other:?}")),
        }
    }
    if rejected == 0 {
        world.violation("all messages were stored on a full disk");
    }
    match world.try_call(0, Method::GET, "/ready", None).await {
        Some((503, _)) => {}
        other => world.violation(format!("unexpected response of /ready on a full disk: {other:?}")),
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    // The model has answered, but the answer cannot be committed. Requests must not wait for the commit.
    let runs = format!("/v1/threads/{}/runs", active.conversation.thread);
    let Some((200, list)) = world.try_call(0, Method::GET, &runs, None).await else {
        panic!("runs can be listed on a full disk");
    };
    let run = list["data"][0]["id"].as_str().unwrap_or_default();
    match world.try_call(0, Method::POST, &format!("{runs}/{run}/cancel"), Some(&json!({}))).await {
        Some((503, _)) => {}
        other => world.violation(format!("unexpected response to a cancellation on a full disk: {other:?}")),
    }
    // A server that starts on a full disk waits until there is space.
    world.replicas[0].kill().await;
    let restarted = tokio::spawn({
        let world = world.clone();
        async move { world.replicas[0].start().await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    disk.free();
    if let Err(error) = restarted.await.expect("it does not panic") {
        world.violation(format!("a server started on a full disk: {error}"));
    }
    if let Some((run, script)) = created {
        active.conversation.runs.push((run.clone(), script.clone()));
        active.follow(&run, &script).await;
    }
    conversations.push(active.conversation);
    conversations.extend(converse_concurrently(&world, 8, "after", &with_tools(100)).await);
    check::check_all(&world, &conversations).await;
    world.stop().await;
    Some(world.violations())
}

/// Maximum address space of the server, in KiB.
const ADDRESS_SPACE_KIB: u32 = 400_000;
/// Number of messages of 250,000 bytes on each thread.
const LARGE_MESSAGES: usize = 80;

async fn memory_limit(plan: Plan) -> Vec<String> {
    let limit = format!("ulimit -v {ADDRESS_SPACE_KIB} && exec \"$0\" \"$@\"");
    // The arenas of the allocator and the thread stacks use address space per processor.
    let limited =
        ["env", "MALLOC_ARENA_MAX=2", "TOKIO_WORKER_THREADS=2", "sh", "-c", &limit].map(str::to_owned).to_vec();
    let settings =
        vec![("PROMPT_MEMORY_BYTES_MAX", "33554432".to_owned()), ("DATABASE_CONNECTIONS_MAX", "2".to_owned())];
    let world = World::start(Plan { wrappers: vec![limited], settings, ..plan }).await;
    let large = json!({"role": "user", "content": "lorem ipsum ".repeat(20_800)});
    let mut clients = Vec::new();
    for number in 0..8 {
        let client = client(&world, &format!("large{number}")).await;
        let path = format!("/v1/threads/{}/messages", client.conversation.thread);
        for _ in 0..LARGE_MESSAGES {
            world.call(Method::POST, &path, Some(&large)).await;
        }
        clients.push(client);
    }
    let started: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                if let Some((run, script)) = client.create(&text(5, 500), false).await {
                    client.conversation.runs.push((run.clone(), script.clone()));
                    client.follow(&run, &script).await;
                }
                client.conversation
            })
        })
        .collect();
    let mut conversations = Vec::new();
    for conversation in started {
        conversations.push(conversation.await.expect("a client does not panic"));
    }
    check::check_all(&world, &conversations).await;
    if world.upstream.repeated() > 0 {
        world.violation("the server crashed");
    }
    world.stop().await;
    world.violations()
}

async fn file_handles(plan: Plan) -> Vec<String> {
    let limited = ["sh", "-c", "ulimit -Sn 64 && ulimit -Hn 256 && exec \"$0\" \"$@\""].map(str::to_owned).to_vec();
    let world = World::start(Plan { wrappers: vec![limited], ..plan }).await;
    let active = tokio::spawn({
        let world = world.clone();
        async move { converse_concurrently(&world, 8, "before", &text(40, 3_000)).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Half of the connections send nothing, and half send a part of a request.
    let mut idle = Vec::new();
    for index in 0..400 {
        let connecting = TcpStream::connect(("127.0.0.1", world.replicas[0].port));
        let Ok(Ok(mut connection)) = tokio::time::timeout(Duration::from_secs(1), connecting).await else { continue };
        if index % 2 == 0 {
            let _ = connection.write_all(b"GET /v1/assistants HTTP/1.1\r\nhost: ").await;
        }
        idle.push(connection);
    }
    for path in ["/health", "/ready"] {
        // As a load balancer does, with a connection of its own: the server closes idle ones at any moment.
        match reqwest::get(world.replicas[0].url(path)).await.map(|response| response.status()) {
            Ok(StatusCode::OK) => {}
            other => {
                world.violation(format!(
                    "unexpected response of {path} with {} idle connections: {other:?}",
                    idle.len()
                ));
            }
        }
    }
    let mut conversations = active.await.expect("a client does not panic");
    conversations.extend(converse_concurrently(&world, 8, "idle", &with_tools(100)).await);
    check::check_all(&world, &conversations).await;
    drop(idle);
    world.stop().await;
    world.violations()
}

/// The damages: a name, and a statement for the thread `$1`.
const DAMAGES: [(&str, &str); 7] = [
    ("a missing message", "delete from messages where thread_id = $1 and run_id is null and body like '%note%'"),
    ("a missing run", "delete from runs where thread_id = $1"),
    (
        "a different text",
        "update messages set body = replace(body, '.1 ', '.7 ') where thread_id = $1 and run_id is not null",
    ),
    ("a missing step", "delete from run_steps where thread_id = $1 and body like '%message_creation%'"),
    (
        "two messages",
        "insert into messages (id, thread_id, seq, created_at, run_id, metadata, body) select 'msg_' || hex(randomblob(12)), \
         thread_id, seq + 100, created_at, run_id, metadata, body from messages where thread_id = $1 and run_id is not null",
    ),
    (
        "a different usage",
        "update runs set state = replace(state, '\"total_tokens\":', '\"total_tokens\":1') where thread_id = $1",
    ),
    ("a locked thread", "update threads set active_run = (select id from runs where thread_id = $1) where id = $1"),
];

async fn self_test(plan: Plan) -> Vec<String> {
    let world = World::start(plan).await;
    let mut conversations = Vec::new();
    for (index, _) in DAMAGES.iter().enumerate() {
        let mut client = client(&world, &format!("damage{index}")).await;
        client.post_message().await;
        if let Some((run, script)) = client.create(&text(5, 10), false).await {
            client.conversation.runs.push((run.clone(), script.clone()));
            client.follow(&run, &script).await;
        }
        conversations.push(client.conversation);
    }
    check::check_all(&world, &conversations).await;
    let mut violations = world.take_violations();
    for ((what, statement), conversation) in DAMAGES.iter().zip(&conversations) {
        // The server is restarted, because it caches the run for a short time.
        world.replicas[0].kill().await;
        let mut connection = SqliteConnection::connect(&world.database_url).await.expect("the file exists");
        let done = connection.execute(sqlx::query(*statement).bind(&conversation.thread)).await.expect("it is SQL");
        connection.close().await.expect("it can be closed");
        if done.rows_affected() == 0 {
            violations.push(format!("{what}: nothing was damaged"));
        }
        world.replicas[0].start().await.expect("the server starts");
        check::check_all(&world, std::slice::from_ref(conversation)).await;
        if world.take_violations().is_empty() {
            violations.push(format!("{what}: not detected by the checks"));
        }
    }
    world.stop().await;
    violations.extend(world.take_violations());
    violations
}
