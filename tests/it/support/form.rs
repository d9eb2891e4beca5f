//! Forms with files.

use std::path::{Path, PathBuf};

use reqwest::Method;

use super::client::{Client, Reply};
use super::contract;

const BOUNDARY: &str = "----boundary";

/// A `multipart/form-data` body.
#[derive(Debug, Clone, Default)]
pub struct Form(pub Vec<u8>);

impl Form {
    pub fn text(self, name: &str, value: &str) -> Self {
        self.part(&format!("name=\"{name}\""), value.as_bytes())
    }

    pub fn file(self, name: &str, filename: &str, bytes: &[u8]) -> Self {
        self.part(&format!("name=\"{name}\"; filename=\"{filename}\""), bytes)
    }

    /// Adds a part with these parameters of `content-disposition`.
    pub fn part(mut self, parameters: &str, bytes: &[u8]) -> Self {
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {parameters}\r\n\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    /// Returns the whole body.
    pub fn body(mut self) -> Vec<u8> {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.0
    }

    pub fn content_type() -> String {
        format!("multipart/form-data; boundary={BOUNDARY}")
    }

    /// Sends the form. The response must be JSON, and meet the contract.
    pub async fn send(self, client: &Client, path: &str) -> Reply {
        let request = client.request(Method::POST, path).header("content-type", Self::content_type()).body(self.body());
        let reply = Client::read(request.send().await.unwrap()).await;
        if reply.status == 200 {
            contract::check_reply("POST", path, &reply.body);
        } else {
            contract::check_error(&reply.body);
        }
        reply
    }
}

/// Returns the paths of all files below a folder.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { files_in(&path) } else { vec![path] }
        })
        .collect()
}
