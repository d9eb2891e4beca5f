//! Retrieval: finds the chunks of files that answer a question.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`extract`] | extracts the text of a file, in a child process |
//! | [`ingest`] | processes the files of vector stores in the background |
//! | [`chunk`] | divides a text into chunks by tokens |
//! | [`lexical`] | turns texts into terms |
//! | [`index`] | the chunks of a vector store in memory: inverted lists and vectors |
//! | [`rank`] | fuses lexical and vector scores into one order |
//! | `repeated` | warnings that would repeat while another server is down |
//! | [`search`] | searches vector stores, with their indexes in a cache |

pub mod chunk;
pub mod extract;
pub mod index;
pub mod ingest;
pub mod lexical;
pub mod rank;
mod repeated;
pub mod search;
