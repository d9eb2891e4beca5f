//! A test collection in the form of BEIR: documents, queries, and which documents answer which query.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::Result;

/// Width of the embeddings of the collection.
pub const DIMENSIONS: usize = 384;
/// Number of results that are judged.
const JUDGED: usize = 10;

/// A test collection.
pub struct Collection {
    pub documents: Vec<Document>,
    pub queries: Vec<Query>,
    /// For each query ID, the IDs of the documents that answer it.
    relevant: HashMap<String, HashSet<String>>,
    /// The embeddings of the documents, then of the queries: little-endian 16-bit floats.
    embeddings: Vec<u8>,
}

#[derive(Deserialize)]
pub struct Document {
    #[serde(rename = "_id")]
    pub id: String,
    pub title: String,
    pub text: String,
}

#[derive(Deserialize)]
pub struct Query {
    #[serde(rename = "_id")]
    pub id: String,
    pub text: String,
}

impl Collection {
    /// Reads the collection. Decompresses with gzip, so that the benchmark needs no library for it.
    pub fn load(folder: &Path) -> Result<Self> {
        let corpus = Command::new("gzip").arg("-dc").arg(folder.join("corpus.jsonl.gz")).output()?;
        if !corpus.status.success() {
            return Err(format!("gzip failed: {}", String::from_utf8_lossy(&corpus.stderr)).into());
        }
        let documents = lines(&String::from_utf8(corpus.stdout)?)?;
        let queries = lines(&std::fs::read_to_string(folder.join("queries.jsonl"))?)?;
        let mut relevant: HashMap<String, HashSet<String>> = HashMap::new();
        for line in std::fs::read_to_string(folder.join("qrels.tsv"))?.lines().skip(1) {
            let mut fields = line.split('\t');
            if let (Some(query), Some(document)) = (fields.next(), fields.next()) {
                relevant.entry(query.to_owned()).or_default().insert(document.to_owned());
            }
        }
        let embeddings = std::fs::read(folder.join("minilm.f16"))?;
        Ok(Self { documents, queries, relevant, embeddings })
    }

    /// Returns the texts that have a known embedding, with it.
    pub fn embedded(&self) -> impl Iterator<Item = (String, &[u8])> {
        let documents = self.documents.iter().map(|document| format!("{} {}", document.title, document.text));
        let texts = documents.chain(self.queries.iter().map(|query| query.text.clone()));
        texts.zip(self.embeddings.chunks_exact(2 * DIMENSIONS))
    }

    /// Judges the documents that were found for a query, the best first: nDCG@10 and recall@10.
    pub fn judge(&self, query: &Query, found: &[String]) -> Option<(f64, f64)> {
        let relevant = self.relevant.get(&query.id)?;
        let gain = |rank: usize| 1.0 / f64::from(u32::try_from(rank + 2).unwrap_or(u32::MAX)).log2();
        let mut seen = HashSet::new();
        let files: Vec<&String> = found.iter().filter(|id| seen.insert(*id)).take(JUDGED).collect();
        let hits = files.iter().enumerate().filter(|(_, id)| relevant.contains(**id));
        let (count, gained) = hits.fold((0_u32, 0.0), |(count, sum), (rank, _)| (count + 1, sum + gain(rank)));
        let ideal: f64 = (0..relevant.len().min(JUDGED)).map(gain).sum();
        Some((gained / ideal, f64::from(count) / f64::from(u32::try_from(relevant.len()).unwrap_or(u32::MAX))))
    }
}

fn lines<T: for<'a> Deserialize<'a>>(text: &str) -> Result<Vec<T>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
