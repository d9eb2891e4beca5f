//! Finds the paths of files that code has written, `sandbox:/mnt/data/NAME`, in the text of a message. Pure.
//!
//! Paths can be percent-encoded. Text is held back only while it can still become a path.

use crate::api::tool::WrittenFile;

/// What stands before the name.
const PREFIX: &str = "sandbox:/mnt/data/";

/// A piece of the text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// A path of a file.
    Path {
        /// The path as the model has written it.
        text: String,
        /// The index of the file.
        file: usize,
    },
}

/// Finds the paths in the text of one turn, which arrives in pieces of any length.
#[derive(Debug, Default)]
pub struct FilePaths {
    /// Text that may be the start of a path.
    held: String,
}

impl FilePaths {
    /// Adds text, and returns the pieces that are certain.
    #[must_use]
    pub fn push(&mut self, text: &str, files: &[WrittenFile]) -> Vec<Piece> {
        self.held.push_str(text);
        self.release(files, false)
    }

    /// Ends the text, and returns the rest.
    #[must_use]
    pub fn finish(&mut self, files: &[WrittenFile]) -> Vec<Piece> {
        self.release(files, true)
    }

    fn release(&mut self, files: &[WrittenFile], is_last: bool) -> Vec<Piece> {
        let text = std::mem::take(&mut self.held);
        let mut pieces = Vec::new();
        let (mut from, mut at) = (0, 0);
        while let Some(start) = start_of_prefix(&text[at..], is_last || files.is_empty()) {
            let start = at + start;
            match path(&text[start..], files, is_last) {
                Found::Incomplete => {
                    push_text(&mut pieces, &text[from..start]);
                    text[start..].clone_into(&mut self.held);
                    return pieces;
                }
                Found::Path { bytes, file } => {
                    push_text(&mut pieces, &text[from..start]);
                    at = start + bytes;
                    from = at;
                    pieces.push(Piece::Path { text: text[start..at].to_owned(), file });
                }
                Found::Nothing => at = start + 1,
            }
        }
        push_text(&mut pieces, &text[from..]);
        pieces
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Returns where the prefix starts in a text; unless `is_last`, also one that the text may continue.
fn start_of_prefix(text: &str, is_last: bool) -> Option<usize> {
    text.find(PREFIX).or_else(|| {
        let longest = text.len().min(PREFIX.len() - 1);
        let start = (1..=longest).rev().find(|length| text.as_bytes().ends_with(&PREFIX.as_bytes()[..*length]));
        start.filter(|_| !is_last).map(|length| text.len() - length)
    })
}

enum Found {
    /// More text may make it a path.
    Incomplete,
    /// The path of a file, of this length.
    Path {
        bytes: usize,
        file: usize,
    },
    Nothing,
}

/// Reads the path that a text begins with.
fn path(text: &str, files: &[WrittenFile], is_last: bool) -> Found {
    let Some(name) = text.strip_prefix(PREFIX) else {
        return if is_last { Found::Nothing } else { Found::Incomplete };
    };
    let mut found = Found::Nothing;
    let mut length = 0;
    for (file, written) in files.iter().enumerate() {
        match bytes_of(name, &written.path) {
            Read::Incomplete if !is_last => return Found::Incomplete,
            Read::Incomplete | Read::Other => {}
            Read::Whole(bytes) => {
                let next = name[bytes..].chars().next();
                if next.is_none() && !is_last {
                    return Found::Incomplete;
                }
                let continues = |next: char| next.is_alphanumeric() || matches!(next, '_' | '-' | '%');
                if bytes > length && !next.is_some_and(continues) {
                    length = bytes;
                    found = Found::Path { bytes: PREFIX.len() + bytes, file };
                }
            }
        }
    }
    found
}

enum Read {
    /// The text ends before the name does.
    Incomplete,
    /// The text begins with the name, in this number of bytes.
    Whole(usize),
    Other,
}

/// Returns whether a text begins with a name, which can be percent-encoded.
fn bytes_of(text: &str, name: &str) -> Read {
    let bytes = text.as_bytes();
    let mut at = 0;
    for wanted in name.bytes() {
        let (byte, length) = match bytes.get(at..) {
            None | Some([]) => return Read::Incomplete,
            Some([b'%', rest @ ..]) if wanted != b'%' => match rest {
                [high, low, ..] => match hex(*high).zip(hex(*low)) {
                    Some((high, low)) => (16 * high + low, 3),
                    None => return Read::Other,
                },
                _ => return Read::Incomplete,
            },
            Some([byte, ..]) => (*byte, 1),
        };
        if byte != wanted {
            return Read::Other;
        }
        at += length;
    }
    if text.is_char_boundary(at) { Read::Whole(at) } else { Read::Other }
}

fn hex(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Ids;

    fn files(paths: &[&str]) -> Vec<WrittenFile> {
        let ids = Ids::counting();
        paths.iter().map(|path| WrittenFile { path: (*path).to_owned(), file_id: ids.generate() }).collect()
    }

    /// Returns the text with each path in brackets and the index of its file, read in pieces of every length.
    fn marked(text: &str, files: &[WrittenFile]) -> String {
        let of_length = |length: usize| {
            let mut state = FilePaths::default();
            let characters: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            for chunk in characters.chunks(length) {
                pieces.extend(state.push(&chunk.iter().collect::<String>(), files));
            }
            pieces.extend(state.finish(files));
            let shown = pieces.into_iter().map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Path { text, file } => format!("<{file}:{text}>"),
            });
            shown.collect::<String>()
        };
        let whole = of_length(1_000);
        for length in 1..8 {
            assert_eq!(of_length(length), whole, "in pieces of {length}");
        }
        whole
    }

    #[test]
    fn the_paths_of_written_files_are_found() {
        let files = files(&["a.csv", "a.csv.gz", "my plot é.png", "sub/b.txt"]);
        for (text, expected) in [
            ("[get](sandbox:/mnt/data/a.csv).", "[get](<0:sandbox:/mnt/data/a.csv>)."),
            ("sandbox:/mnt/data/a.csv.gz", "<1:sandbox:/mnt/data/a.csv.gz>"),
            ("sandbox:/mnt/data/a.csv. Done", "<0:sandbox:/mnt/data/a.csv>. Done"),
            ("(sandbox:/mnt/data/my%20plot%20%C3%A9.png)", "(<2:sandbox:/mnt/data/my%20plot%20%C3%A9.png>)"),
            ("(sandbox:/mnt/data/my plot é.png)", "(<2:sandbox:/mnt/data/my plot é.png>)"),
            ("sandbox:/mnt/data/sub/b.txt", "<3:sandbox:/mnt/data/sub/b.txt>"),
            ("sandbox:/mnt/data/other.csv sandbox", "sandbox:/mnt/data/other.csv sandbox"),
            ("sandbox:/mnt/data/a.csvx", "sandbox:/mnt/data/a.csvx"),
            ("sandsandbox:/mnt/data/a.csv", "sand<0:sandbox:/mnt/data/a.csv>"),
            ("sandbox:/mnt/sandbox:/mnt/data/a.csv", "sandbox:/mnt/<0:sandbox:/mnt/data/a.csv>"),
            ("x sandbox:/mnt/data/a%2", "x sandbox:/mnt/data/a%2"),
            ("日本語 sandbox:/mnt/data/", "日本語 sandbox:/mnt/data/"),
        ] {
            assert_eq!(marked(text, &files), expected);
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_can_become_a_path() {
        let files = files(&["a.csv"]);
        let mut state = FilePaths::default();

        assert_eq!(state.push("as sand", &files), [Piece::Text("as ".into())]);
        assert_eq!(state.push("y", &files), [Piece::Text("sandy".into())]);
        assert_eq!(state.push(" sandbox:/mnt/data/a.csv", &files), [Piece::Text(" ".into())]);
        let path = Piece::Path { text: "sandbox:/mnt/data/a.csv".into(), file: 0 };
        assert_eq!(state.push(")", &files), [path, Piece::Text(")".into())]);
        assert_eq!(state.push("s", &[]), [Piece::Text("s".into())]);
    }
}
