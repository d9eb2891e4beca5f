//! The server as a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Returns a command that runs the binary with these settings and no others from the environment.
pub fn assistd(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assistd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ASSISTD_")) {
        command.env_remove(name);
    }
    for (name, value) in settings {
        command.env(format!("ASSISTD_{name}"), value);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Returns the settings of a server on a free port, whose model server cannot be reached.
pub fn without_model(data: &Path) -> Vec<(&str, &str)> {
    let data = data.to_str().unwrap();
    vec![("LISTEN", "127.0.0.1:0"), ("DATA_DIR", data), ("UPSTREAM_URL", "http://127.0.0.1:9/v1")]
}

/// Returns a command that runs a server with these settings, whose output is read.
pub fn piped(settings: &[(&str, &str)]) -> Command {
    let mut command = assistd(settings);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a server whose log is JSON; returns its process, its address, and its standard output.
pub async fn serve(settings: &[(&str, &str)]) -> (Child, String, BufReader<ChildStdout>) {
    start(&mut assistd(settings)).await
}

/// Starts a server with a command.
pub async fn start(command: &mut Command) -> (Child, String, BufReader<ChildStdout>) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    loop {
        let line = next_line(&mut child).await.expect("the server exited");
        if line["message"] == "listening" {
            return (child, line["address"].as_str().unwrap().to_owned(), out);
        }
    }
}

/// Reads the next line of a server's log; `None` at the end. Reads nothing beyond it.
pub async fn next_line(child: &mut Child) -> Option<Value> {
    let log = child.stderr.as_mut().unwrap();
    let mut line = Vec::new();
    loop {
        match log.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => line.push(byte),
            Err(_) if line.is_empty() => return None,
            Err(error) => panic!("the log ends in a line: {error}"),
        }
    }
    let line = String::from_utf8(line).unwrap();
    Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
}

/// The log of a server, read as JSON line by line.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Mutex<Vec<Value>>>,
    reading: tokio::task::JoinHandle<()>,
}

impl Log {
    /// Reads the rest of a server's log.
    pub fn follow(child: &mut Child) -> Self {
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let (read, stderr) = (lines.clone(), child.stderr.take().unwrap());
        let reading = tokio::spawn(async move {
            let mut log = BufReader::new(stderr).lines();
            while let Some(line) = log.next_line().await.unwrap() {
                let line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                read.lock().unwrap().push(line);
            }
        });
        Self { lines, reading }
    }

    /// Returns the lines so far.
    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line with this message, after `skipped` others with the same message.
    pub async fn wait_for(&self, message: &str, skipped: usize) -> Value {
        for _ in 0..6_000 {
            assert!(!self.reading.is_finished() || self.count(message) > skipped, "the log ended: {:#?}", self.lines());
            let found = self.lines().into_iter().filter(|line| line["message"] == message).nth(skipped);
            if let Some(found) = found {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no line \"{message}\": {:#?}", self.lines());
    }

    fn count(&self, message: &str) -> usize {
        self.lines().iter().filter(|line| line["message"] == message).count()
    }

    /// Waits until the server has exited, and returns all lines.
    pub async fn all(self) -> Vec<Value> {
        self.reading.await.unwrap();
        Arc::try_unwrap(self.lines).unwrap().into_inner().unwrap()
    }
}
