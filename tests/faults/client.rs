//! Clients that use the servers while faults occur, and record the acknowledged requests.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::reader::{End, Reader};
use crate::upstream::{BuiltIn, Script, Turn};
use crate::world::World;

/// How long a run can take before it counts as stuck: longer than any fault and several leases.
const RUN_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a stream can be idle, although a comment is due every two seconds: longer than any fault.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const END_STATES: [&str; 5] = ["completed", "failed", "cancelled", "expired", "incomplete"];

/// What a client knows about a thread.
#[derive(Debug, Default)]
pub struct Conversation {
    pub thread: String,
    /// Acknowledged user messages, in order: ID and text.
    pub messages: Vec<(String, String)>,
    /// Runs that were acknowledged or found: ID and script.
    pub runs: Vec<(String, Script)>,
    /// All scripts that were sent, acknowledged or not.
    pub scripts: Vec<Script>,
    /// Tags of the runs whose cancellation was requested.
    pub cancelled: Vec<String>,
    /// Whether a message of a run was deleted.
    pub has_deleted_messages: bool,
    pub is_deleted: bool,
}

pub fn has_ended(run: &Value) -> bool {
    run["status"].as_str().is_some_and(|status| END_STATES.contains(&status))
}

/// Runs a client: one conversation after the other, until the test stops.
pub async fn run_conversations(world: Arc<World>, number: usize, seed: u64) -> Vec<Conversation> {
    let mut rng = Rng::with_seed(seed);
    let mut all = Vec::new();
    while !world.is_stopping() {
        let tag = format!("c{number}.{}", all.len());
        let mut client = Client { world: world.clone(), rng: rng.fork(), tag, conversation: Conversation::default() };
        client.converse().await;
        all.push(client.conversation);
    }
    all
}

pub struct Client {
    pub world: Arc<World>,
    pub rng: Rng,
    pub tag: String,
    pub conversation: Conversation,
}

impl Client {
    async fn converse(&mut self) {
        let Some((_, thread)) = self.world.call(Method::POST, "/v1/threads", Some(&json!({}))).await else { return };
        thread["id"].as_str().unwrap_or_default().clone_into(&mut self.conversation.thread);
        for _ in 0..self.rng.usize(1..4) {
            if self.world.is_stopping() {
                return;
            }
            if self.rng.u8(..3) == 0 {
                self.post_message().await;
            }
            let turns = self.turns();
            self.run(turns).await;
        }
        if self.rng.u8(..20) == 0 {
            self.delete_thread().await;
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/threads/{}{rest}", self.conversation.thread)
    }

    /// Returns the turns of a random run: text, slow text, or one or two rounds of tool calls.
    fn turns(&mut self) -> Vec<Turn> {
        let text = |rng: &mut Rng, duration_ms| Turn { words: rng.usize(1..30), duration_ms, calls: 0, tool: None };
        match self.rng.u8(..12) {
            0..4 => vec![text(&mut self.rng, 50)],
            4..6 => {
                let duration_ms = self.rng.u64(1_000..6_000);
                vec![text(&mut self.rng, duration_ms)]
            }
            6..8 => {
                let is_code = self.rng.bool() && self.world.coding_assistant.is_some();
                let tool = Some(if is_code { BuiltIn::Code } else { BuiltIn::FileSearch });
                let call = |rng: &mut Rng| Turn {
                    words: [0, 5][rng.usize(..2)],
                    duration_ms: rng.u64(10..800),
                    calls: 0,
                    tool,
                };
                let mut turns: Vec<Turn> = (0..self.rng.usize(1..3)).map(|_| call(&mut self.rng)).collect();
                turns.push(text(&mut self.rng, 100));
                turns
            }
            _ => {
                let mut turns = Vec::new();
                for _ in 0..self.rng.usize(1..3) {
                    let (words, duration_ms) = ([0, 5][self.rng.usize(..2)], self.rng.u64(10..800));
                    turns.push(Turn { words, duration_ms, calls: self.rng.usize(1..4), tool: None });
                }
                turns.push(text(&mut self.rng, 100));
                turns
            }
        }
    }

    pub async fn post_message(&mut self) {
        let text = format!("note {}.{}", self.tag, self.conversation.messages.len());
        let body = json!({"role": "user", "content": text});
        // Not retried, because it is not known whether a message without a response was stored.
        let replica = self.rng.usize(..);
        if let Some((200, message)) =
            self.world.try_call(replica, Method::POST, &self.path("/messages"), Some(&body)).await
        {
            let id = message["id"].as_str().unwrap_or_default().to_owned();
            self.conversation.messages.push((id, text));
        }
    }

    async fn delete_thread(&mut self) {
        let turns = vec![Turn { words: 50, duration_ms: 3_000, calls: 0, tool: None }];
        let _ = self.create(&turns, false).await;
        self.world.call(Method::DELETE, &self.path(""), None).await;
        self.conversation.is_deleted = true;
        self.world.count("threads deleted");
    }

    /// Creates a run, and follows it to its end.
    pub async fn run(&mut self, turns: Vec<Turn>) {
        let is_streamed = self.rng.bool();
        let Some((run, script)) = self.create(&turns, is_streamed).await else { return };
        self.conversation.runs.push((run.clone(), script.clone()));
        if self.rng.u8(..8) == 0 {
            self.cancel_later(&run, script.tag.clone());
        } else if self.rng.u8(..12) == 0 {
            self.delete_message(&run).await;
        }
        self.follow(&run, &script).await;
    }

    /// Creates a run and returns its ID. After a request without a response, looks for the run, and retries if there is none.
    pub async fn create(&mut self, turns: &[Turn], is_streamed: bool) -> Option<(String, Script)> {
        let began = Instant::now();
        let mut sent: Vec<Script> = Vec::new();
        while began.elapsed() < RUN_TIMEOUT {
            let attempt = sent.len();
            let tag = format!("{}.r{}.{attempt}", self.tag, self.conversation.runs.len());
            let script = Script { tag: tag.clone(), turns: turns.to_vec() };
            sent.push(script.clone());
            self.conversation.scripts.push(script.clone());
            let assistant = match turns.iter().find_map(|turn| turn.tool) {
                Some(BuiltIn::FileSearch) => &self.world.searching_assistant,
                Some(BuiltIn::Code) => self.world.coding_assistant.as_ref().expect("code is written only with it"),
                None => &self.world.assistant,
            };
            let mut body = json!({"assistant_id": assistant, "metadata": {"tag": tag},
                "additional_messages": [{"role": "user", "content": script.message()}]});
            let replica = self.rng.usize(..);
            if is_streamed {
                body["stream"] = json!(true);
                if let Some(run) = self.stream(replica, &self.path("/runs"), &body).await {
                    return Some((run, script));
                }
            } else {
                match self.world.try_call(replica, Method::POST, &self.path("/runs"), Some(&body)).await {
                    Some((200, run)) => return Some((run["id"].as_str().unwrap_or_default().to_owned(), script)),
                    // The run of an earlier request without a response, which is found below.
                    Some((400, error))
                        if error["error"]["message"].as_str().is_some_and(|m| m.contains("active run")) => {}
                    Some((status, error)) if status < 500 => {
                        self.world.violation(format!("{tag}: a run was rejected with {status}: {error}"));
                        return None;
                    }
                    _ => self.world.count("run creations without a response"),
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let (_, list) = self.world.call(Method::GET, &self.path("/runs?limit=100"), None).await?;
            for run in list["data"].as_array().into_iter().flatten() {
                if let Some(script) = sent.iter().find(|script| run["metadata"]["tag"] == script.tag.as_str()) {
                    return Some((run["id"].as_str().unwrap_or_default().to_owned(), script.clone()));
                }
            }
        }
        self.world.violation(format!("{}: no run could be created within {} s", self.tag, RUN_TIMEOUT.as_secs()));
        None
    }

    /// Reads a stream. Returns the run ID, if known.
    async fn stream(&mut self, replica: usize, path: &str, body: &Value) -> Option<String> {
        let Some(mut response) = self.world.open(replica, path, body).await else {
            self.world.count("streams without a response");
            return None;
        };
        if response.status() != 200 {
            self.world.count(format!("streams rejected with {}", response.status().as_u16()));
            return None;
        }
        let mut reader = Reader::default();
        let disconnect_after = if self.rng.u8(..6) == 0 { self.rng.usize(..20) } else { usize::MAX };
        let mut chunks = 0;
        let end = loop {
            if chunks >= disconnect_after {
                break End::Disconnected;
            }
            match tokio::time::timeout(IDLE_TIMEOUT, response.chunk()).await {
                Ok(Ok(Some(bytes))) => reader.push(&bytes),
                Ok(Ok(None)) => break reader.finish(),
                Ok(Err(_)) => break End::Broken,
                Err(_) => {
                    let idle_s = IDLE_TIMEOUT.as_secs();
                    self.world.violation(format!("{}: a stream was idle for {idle_s} s", self.tag));
                    break End::Broken;
                }
            }
            chunks += 1;
        };
        self.world.count(format!("streams {end:?}"));
        for problem in &reader.problems {
            self.world.violation(format!("{}: {path}: {problem}", self.tag));
        }
        reader.run
    }

    fn cancel_later(&mut self, run: &str, tag: String) {
        self.conversation.cancelled.push(tag);
        let (world, path) = (self.world.clone(), self.path(&format!("/runs/{run}/cancel")));
        let pause = Duration::from_millis(self.rng.u64(..2_000));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            world.call(Method::POST, &path, Some(&json!({}))).await;
        });
    }

    async fn delete_message(&mut self, run: &str) {
        let Some((200, list)) =
            self.world.call(Method::GET, &self.path(&format!("/messages?run_id={run}")), None).await
        else {
            return;
        };
        if let Some(id) = list["data"][0]["id"].as_str() {
            self.conversation.has_deleted_messages = true;
            self.world.call(Method::DELETE, &self.path(&format!("/messages/{id}")), None).await;
            self.world.count("messages deleted");
        }
    }

    /// Polls a run until it has ended, and submits the outputs of its calls.
    pub async fn follow(&mut self, run: &str, script: &Script) {
        let path = self.path(&format!("/runs/{run}"));
        let mut began = Instant::now();
        let mut submitted = String::new();
        while began.elapsed() < RUN_TIMEOUT {
            let Some((status, now)) = self.world.call(Method::GET, &path, None).await else { return };
            if status != 200 {
                return self.world.violation(format!("{}: an acknowledged run is missing: {now}", script.tag));
            }
            if has_ended(&now) {
                return;
            }
            let calls = now["required_action"]["submit_tool_outputs"]["tool_calls"].as_array();
            if let Some(calls) = calls.filter(|calls| calls[0]["id"] != submitted.as_str()) {
                submitted = calls[0]["id"].as_str().unwrap_or_default().to_owned();
                let outputs: Vec<Value> = calls
                    .iter()
                    .map(|call| {
                        json!({"tool_call_id": call["id"],
                    "output": format!("output of {}", call["id"].as_str().unwrap_or_default())})
                    })
                    .collect();
                self.submit(&path, &json!({"tool_outputs": outputs}), script).await;
                began = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(self.rng.u64(20..200))).await;
        }
        self.world.violation(format!("{}: {path} is stuck", script.tag));
    }

    async fn submit(&mut self, path: &str, outputs: &Value, script: &Script) {
        let path = format!("{path}/submit_tool_outputs");
        if self.rng.bool() {
            let mut body = outputs.clone();
            body["stream"] = json!(true);
            let replica = self.rng.usize(..);
            if self.stream(replica, &path, &body).await.is_some() {
                return;
            }
        }
        // The first request may have been a stream without a response, so all further ones are sent as retries.
        for attempt in 1..400 {
            let replica = self.rng.usize(..);
            match self.world.try_call_with_retries(replica, Method::POST, &path, Some(outputs), attempt).await {
                Some((200, _)) => return,
                Some((status, error)) if status < 500 => {
                    if !self.conversation.cancelled.contains(&script.tag) {
                        self.world.violation(format!("{}: outputs were rejected with {status}: {error}", script.tag));
                    }
                    return;
                }
                _ => self.world.count("submissions without a response"),
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.world.violation(format!("{}: outputs could not be submitted within two minutes", script.tag));
    }
}
