//! Clients that upload files, add them to vector stores and search them while faults occur.
//!
//! Each file has a word that no other file has, so that a search for it has one right result.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::World;

/// How long the files of a vector store can take to be processed before they count as stuck.
const PROCESSING_TIMEOUT: Duration = Duration::from_mins(2);

/// A file that a client has added to a vector store.
#[derive(Debug, Clone)]
pub struct Book {
    pub id: String,
    /// The word that only this file has.
    pub word: String,
    pub text: String,
    /// Whether its deletion was acknowledged.
    pub is_deleted: bool,
}

/// A vector store and its files.
#[derive(Debug, Default)]
pub struct Shelf {
    pub store: String,
    pub books: Vec<Book>,
}

/// Runs a client: one vector store after the other, until the test stops.
pub async fn run_librarian(world: Arc<World>, number: usize, seed: u64) -> Vec<Shelf> {
    let mut librarian = Librarian { world: world.clone(), rng: Rng::with_seed(seed), number, words: 0 };
    let mut shelves = Vec::new();
    while !world.is_stopping() {
        if let Some(shelf) = librarian.fill_shelf().await {
            shelves.push(shelf);
        }
    }
    shelves
}

struct Librarian {
    world: Arc<World>,
    rng: Rng,
    number: usize,
    words: usize,
}

impl Librarian {
    async fn fill_shelf(&mut self) -> Option<Shelf> {
        let mut books = Vec::new();
        for _ in 0..self.rng.usize(1..5) {
            books.extend(self.upload().await);
        }
        if books.is_empty() {
            return None;
        }
        let (_, store) = self.world.call(Method::POST, "/v1/vector_stores", Some(&json!({}))).await?;
        let store = store["id"].as_str()?.to_owned();
        let ids: Vec<&str> = books.iter().map(|book| book.id.as_str()).collect();
        let path = format!("/v1/vector_stores/{store}/file_batches");
        // A repeated request adds no file twice.
        let (status, batch) = self.world.call(Method::POST, &path, Some(&json!({"file_ids": ids}))).await?;
        if status != 200 {
            self.world.violation(format!("{store}: a batch was rejected with {status}: {batch}"));
            return None;
        }
        self.world.count("file batches");
        let mut shelf = Shelf { store, books };
        wait_until_processed(&self.world, &shelf).await;
        for book in &shelf.books {
            check_search(&self.world, &shelf.store, book).await;
        }
        if self.rng.u8(..3) == 0 {
            let index = self.rng.usize(..shelf.books.len());
            self.delete(&mut shelf, index).await;
        }
        Some(shelf)
    }

    /// Uploads a file. Returns `None` without a response: it is not known whether it was stored.
    async fn upload(&mut self) -> Option<Book> {
        self.words += 1;
        let word = format!("w{}x{}", self.number, self.words);
        let mut text = format!("The word is {word}.\n");
        for line in 0..self.rng.usize(1..400) {
            let _ = writeln!(text, "Line {line} of the file of {word} says nothing.");
        }
        let replica = self.rng.usize(..);
        let Some(file) = self.world.upload(replica, &format!("{word}.txt"), &text).await else {
            self.world.count("uploads without a response");
            return None;
        };
        Some(Book { id: file["id"].as_str()?.to_owned(), word, text, is_deleted: false })
    }

    /// Deletes a file, from the vector store alone or altogether, and checks that it is not found again.
    async fn delete(&mut self, shelf: &mut Shelf, index: usize) {
        let book = &mut shelf.books[index];
        let path = if self.rng.bool() {
            format!("/v1/files/{}", book.id)
        } else {
            format!("/v1/vector_stores/{}/files/{}", shelf.store, book.id)
        };
        // 404: an earlier request, whose response was lost, has deleted it.
        if let Some((200 | 404, _)) = self.world.call(Method::DELETE, &path, None).await {
            book.is_deleted = true;
            self.world.count("files deleted");
            check_search(&self.world, &shelf.store, &shelf.books[index]).await;
        }
    }
}

async fn wait_until_processed(world: &World, shelf: &Shelf) {
    let path = format!("/v1/vector_stores/{}", shelf.store);
    let began = Instant::now();
    while began.elapsed() < PROCESSING_TIMEOUT {
        let Some((_, store)) = world.call(Method::GET, &path, None).await else { return };
        if store["status"] == "completed" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.violation(format!("{path}: its files are still being processed"));
}

/// Searches for the word of a file, which must be found, unless it was deleted.
async fn check_search(world: &World, store: &str, book: &Book) {
    let path = format!("/v1/vector_stores/{store}/search");
    let body = json!({"query": book.word, "max_num_results": 1});
    let Some((status, found)) = world.call(Method::POST, &path, Some(&body)).await else { return };
    let first = &found["data"][0];
    let text = first["content"][0]["text"].as_str().unwrap_or_default();
    let is_found = first["file_id"] == book.id.as_str() && text.contains(&book.word);
    if status != 200 || is_found == book.is_deleted {
        world.violation(format!("{path}: {status} for {book_word}: {first}", book_word = book.word));
    }
}

/// Checks all vector stores. The servers must be running, without further faults.
pub async fn check_all(world: &World, shelves: &[Shelf]) {
    for shelf in shelves {
        wait_until_processed(world, shelf).await;
        let path = format!("/v1/vector_stores/{}", shelf.store);
        let Some((_, store)) = world.call(Method::GET, &path, None).await else { continue };
        let kept = shelf.books.iter().filter(|book| !book.is_deleted).count();
        let counts = &store["file_counts"];
        if counts["total"] != kept || counts["completed"] != kept {
            world.violation(format!("{path}: {counts} for {kept} files"));
        }
        for book in &shelf.books {
            check_search(world, &shelf.store, book).await;
            if !book.is_deleted {
                check_content(world, &path, book).await;
            }
        }
    }
}

/// Checks that the stored text of a file is the uploaded one, each character once.
async fn check_content(world: &World, store: &str, book: &Book) {
    let path = format!("{store}/files/{}/content", book.id);
    let Some((status, content)) = world.call(Method::GET, &path, None).await else { return };
    let parts = content["data"].as_array().map_or(&[][..], Vec::as_slice);
    let text: String = parts.iter().filter_map(|part: &Value| part["text"].as_str()).collect();
    if status != 200 || text.trim() != book.text.trim() {
        world.violation(format!("{path}: {} characters instead of {}", text.len(), book.text.len()));
    }
}
