//! Retrieval: finds the chunks of files that answer a question.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`chunk`] | divides a text into chunks by tokens |
//! | [`lexical`] | turns texts into terms |
//! | [`index`] | the chunks of a vector store in memory: inverted lists and vectors |
//! | [`rank`] | fuses lexical and vector scores into one order |

pub mod chunk;
pub mod index;
pub mod lexical;
pub mod rank;
