//! The server as a process of its own.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
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

/// Starts a server; returns its process, its address, and the rest of its standard output.
pub async fn serve(settings: &[(&str, &str)]) -> (Child, String, BufReader<ChildStdout>) {
    start(&mut assistd(settings)).await
}

/// Starts a server with a command.
pub async fn start(command: &mut Command) -> (Child, String, BufReader<ChildStdout>) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).await.unwrap();
    let address = line.trim().rsplit("http://").next().unwrap().to_owned();
    (child, address, out)
}
