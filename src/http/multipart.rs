//! Reads `multipart/form-data` bodies as a stream, in constant memory.
//!
//! The `multer` crate, which axum uses, reads into its buffer whatever has arrived, without a limit: a client that is
//! faster than the disk fills the memory. This reader reads on when its caller asks for more, and its buffer has at most
//! one frame of the body, the head of a part, and a delimiter.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use memchr::memmem;
use percent_encoding::percent_decode_str;

use crate::api::Error;
use crate::api::error::Kind;

/// Maximum size of the headers of a part, in bytes. A file name of 1,024 characters needs at most 12,288.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Maximum size of a text field, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// Maximum size of all fields other than the file, with their headers and delimiters, in bytes.
const OTHER_BYTES_MAX: u64 = 128 * 1024;
/// Maximum length of a boundary, in bytes. The standard says 70.
const BOUNDARY_BYTES_MAX: usize = 256;

/// A form that is being read.
pub(super) struct Multipart {
    body: Body,
    /// A line break, two dashes and the boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    idle_timeout: Duration,
    /// How many bytes the body may still have.
    bytes_left: u64,
    /// The error for a body that has more.
    too_large: Error,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the text before the first part, or in the bytes of a part.
    InPart,
    /// After a delimiter.
    AfterDelimiter,
    /// After the last delimiter.
    Ended,
}

/// The head of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// The name of the field.
    pub name: String,
    /// The name of the file. `None` for a text field.
    pub filename: Option<String>,
}

impl Multipart {
    /// Starts to read the form of a request, whose file has at most `file_bytes_max` bytes. A body that is larger is
    /// rejected with `too_large`.
    ///
    /// # Errors
    /// 415 if the body is not a form; `too_large` if its announced size is too large.
    pub fn new(request: Request, file_bytes_max: u64, idle_timeout: Duration, too_large: Error) -> Result<Self, Error> {
        let value = request.headers().get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let content_type = value.as_deref().unwrap_or_default();
        let boundary = boundary(content_type).ok_or_else(|| unsupported(content_type))?;
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let bytes_left = file_bytes_max.saturating_add(OTHER_BYTES_MAX);
        let body = request.into_body();
        // Before the first read, which sends 100: a client that waits for 100 does not send a body that is too large.
        if body.size_hint().lower() > bytes_left {
            return Err(too_large);
        }
        // The first delimiter has no line break before it if it is at the start.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { body, delimiter, buffer, idle_timeout, bytes_left, too_large, state: State::InPart })
    }

    /// Returns the head of the next part, after skipping what is left of the current one; `None` at the end.
    ///
    /// # Errors
    /// 400 if the form is invalid or incomplete, 408 if the client stops sending.
    pub async fn next_field(&mut self) -> Result<Option<Field>, Error> {
        while self.state == State::InPart {
            self.chunk().await?;
        }
        if self.state == State::Ended {
            return Ok(None);
        }
        self.fill(2).await?;
        if self.buffer.starts_with(b"--") {
            self.state = State::Ended;
            self.read_to_end().await?;
            return Ok(None);
        }
        let head = self.head().await?;
        self.state = State::InPart;
        parse_head(&head).map(Some).ok_or_else(|| invalid("a part has no name"))
    }

    /// Returns the next bytes of the current part; `None` at its end.
    ///
    /// # Errors
    /// 400 if the body is incomplete, 408 if the client stops sending.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.state != State::InPart {
            return Ok(None);
        }
        loop {
            match memmem::find(&self.buffer, &self.delimiter) {
                Some(0) => {
                    self.buffer.advance(self.delimiter.len());
                    self.state = State::AfterDelimiter;
                    return Ok(None);
                }
                Some(end) => return Ok(Some(self.buffer.split_to(end).freeze())),
                None => {}
            }
            // The end of the buffer can be the start of a delimiter.
            let certain = (self.buffer.len() + 1).saturating_sub(self.delimiter.len());
            if certain > 0 {
                return Ok(Some(self.buffer.split_to(certain).freeze()));
            }
            self.read().await?;
        }
    }

    /// Returns the text of the current part.
    ///
    /// # Errors
    /// 400 if it is longer than [`TEXT_BYTES_MAX`] or not UTF-8, or for the reasons of [`Multipart::chunk`].
    pub async fn text(&mut self, name: &str) -> Result<String, Error> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            text.extend_from_slice(&chunk);
            if text.len() > TEXT_BYTES_MAX {
                return Err(invalid(&format!("the field '{name}' is longer than {TEXT_BYTES_MAX} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| invalid(&format!("the field '{name}' is not UTF-8")))
    }

    /// Returns the headers of a part. The position is after its delimiter, whose line can end with spaces.
    async fn head(&mut self) -> Result<Bytes, Error> {
        loop {
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(end).freeze();
                self.buffer.advance(4);
                return Ok(head);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(invalid(&format!("the headers of a part are longer than {HEAD_BYTES_MAX} bytes")));
            }
            self.read().await?;
        }
    }

    /// Reads until the buffer has this many bytes.
    async fn fill(&mut self, bytes: usize) -> Result<(), Error> {
        while self.buffer.len() < bytes {
            self.read().await?;
        }
        Ok(())
    }

    /// Reads one frame of the body into the buffer.
    async fn read(&mut self) -> Result<(), Error> {
        match self.frame().await? {
            Some(data) => self.buffer.extend_from_slice(&data),
            None => return Err(invalid("it is incomplete")),
        }
        Ok(())
    }

    /// Discards what follows the last delimiter, so that the connection can be used again.
    async fn read_to_end(&mut self) -> Result<(), Error> {
        self.buffer.clear();
        while self.frame().await?.is_some() {}
        Ok(())
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Ok(frame) = tokio::time::timeout(self.idle_timeout, self.body.frame()).await else {
                let seconds = self.idle_timeout.as_secs();
                let text = format!("No part of the request body arrived within {seconds} s (body_idle_timeout_s).");
                return Err(Error::new(Kind::Timeout, text));
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| Error::invalid("The request body is incomplete."))?;
            let Ok(data) = frame.into_data() else { continue };
            let Some(bytes_left) = self.bytes_left.checked_sub(data.len() as u64) else {
                return Err(self.too_large.clone());
            };
            self.bytes_left = bytes_left;
            return Ok(Some(data));
        }
    }
}

fn invalid(reason: &str) -> Error {
    Error::invalid(format!("We could not parse the multipart form of your request: {reason}."))
}

fn unsupported(content_type: &str) -> Error {
    Error::new(
        Kind::UnsupportedMedia,
        format!(
            "Unsupported content type: '{content_type}'. This API method only accepts 'multipart/form-data' requests with a \
             boundary, but you specified the header 'Content-Type: {content_type}'. Please try again with a supported \
             content type."
        ),
    )
    .code("unsupported_content_type")
}

/// Returns the boundary of a form.
fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameters_of(parameters).find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?.1;
    (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()).then_some(boundary)
}

/// Parses the headers of a part. Returns `None` if there is no name.
fn parse_head(head: &[u8]) -> Option<Field> {
    let text = String::from_utf8_lossy(head);
    let disposition = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (_, parameters) = disposition.split_once(';')?;
    let (mut field_name, mut filename, mut encoded) = (None, None, None);
    for (name, value) in parameters_of(parameters) {
        match name.to_ascii_lowercase().as_str() {
            "name" => field_name = Some(value),
            "filename" => filename = Some(value),
            "filename*" => encoded = decode_extended(&value),
            _ => {}
        }
    }
    // .NET sends names that are not ASCII correctly only in `filename*`.
    Some(Field { name: field_name?, filename: encoded.or(filename) })
}

/// Decodes a value like `utf-8''na%C3%AFve.txt`. Returns `None` for other character sets.
fn decode_extended(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, text) = (parts.next()?, parts.next()?, parts.next()?);
    let is_utf8 = charset.eq_ignore_ascii_case("utf-8");
    is_utf8.then(|| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)).flatten()
}

/// Returns the parameters of a header: `name=value` and `name="value"`, separated by semicolons.
fn parameters_of(text: &str) -> impl Iterator<Item = (String, String)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (name, value) = rest.split_once('=')?;
        let name = name.trim_matches([';', ' ', '\t']).to_owned();
        let value = value.trim_start();
        if let Some(quoted) = value.strip_prefix('"') {
            let (value, after) = unquote(quoted);
            rest = after;
            return Some((name, value));
        }
        let (value, after) = value.split_once(';').unwrap_or((value, ""));
        rest = after;
        Some((name, value.trim().to_owned()))
    })
}

/// Returns a quoted text up to its closing quote, and what follows. A backslash escapes a quote or a backslash; elsewhere
/// it is part of a path.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => match characters.peek() {
                Some((_, escaped @ ('"' | '\\'))) => {
                    value.push(*escaped);
                    characters.next();
                }
                _ => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const IDLE: Duration = Duration::from_mins(1);

    fn form(chunks: Vec<Vec<u8>>, max: u64) -> Multipart {
        let body = Body::from_stream(futures_util::stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)));
        let request = Request::builder().header("content-type", "multipart/form-data; boundary=\"b b\"").body(body);
        Multipart::new(request.unwrap(), max, IDLE, Error::invalid("too large")).unwrap()
    }

    async fn read(mut form: Multipart) -> Result<Vec<(String, Option<String>, Vec<u8>)>, String> {
        let mut fields = Vec::new();
        while let Some(field) = form.next_field().await.map_err(|error| error.message)? {
            let mut bytes = Vec::new();
            while let Some(chunk) = form.chunk().await.map_err(|error| error.message)? {
                bytes.extend_from_slice(&chunk);
            }
            fields.push((field.name, field.filename, bytes));
        }
        Ok(fields)
    }

    const TEXT: &str = "preamble\r\n--b b  \r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b b\r\n\
        content-type: text/plain\r\nCONTENT-DISPOSITION:form-data;filename=\"a\\\"b;c\\d.txt\" ; name=file\r\n\r\n\
        \r\n--b \r\n-\r\n--b b\r\ncontent-disposition: form-data; name=\"empty\"\r\n\r\n\r\n--b b--\r\nepilogue";

    #[tokio::test]
    async fn a_form_is_read_however_it_is_split() {
        let expected = vec![
            ("purpose".to_owned(), None, b"batch".to_vec()),
            ("file".to_owned(), Some("a\"b;c\\d.txt".to_owned()), b"\r\n--b \r\n-".to_vec()),
            ("empty".to_owned(), None, Vec::new()),
        ];
        for size in [1, 2, 3, 5, 7, 11, TEXT.len()] {
            let chunks = TEXT.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(read(form(chunks, 1_000)).await.as_ref(), Ok(&expected), "pieces of {size} bytes");
        }
    }

    #[tokio::test]
    async fn an_incomplete_form_is_rejected_wherever_it_ends() {
        let end = TEXT.len() - "--\r\nepilogue".len();
        for length in 0..=end + 1 {
            let outcome = read(form(vec![TEXT.as_bytes()[..length].to_vec()], 1_000)).await;
            let message = "We could not parse the multipart form of your request: it is incomplete.";
            assert_eq!(outcome, Err(message.to_owned()), "{length} bytes");
        }
    }

    #[tokio::test]
    async fn forms_and_heads_that_are_too_large_are_rejected() {
        let head = b"--b b\r\ncontent-disposition: form-data; name=file\r\n\r\n".to_vec();
        let pieces = std::iter::once(head).chain(std::iter::repeat_n(vec![0; 100_000], 3)).collect();
        assert_eq!(read(form(pieces, 100_000)).await, Err("too large".to_owned()));

        let pieces = std::iter::once(b"--b b\r\n".to_vec()).chain(std::iter::repeat_n(vec![b'x'; 10_000], 9)).collect();
        assert!(read(form(pieces, 1_000_000)).await.unwrap_err().contains("headers of a part are longer"));
    }

    #[test]
    fn names_are_read_in_the_forms_of_all_clients() {
        let parse = |value: &str| parse_head(format!("Content-Disposition: form-data; {value}").as_bytes());
        let field = |filename: &str| Some(Field { name: "file".to_owned(), filename: Some(filename.to_owned()) });

        assert_eq!(parse("name=\"file\"; filename=\"你好.txt\""), field("你好.txt"));
        // .NET
        assert_eq!(
            parse("name=file; filename=\"=?utf-8?B?5L2g5aW9LnR4dA==?=\"; filename*=utf-8''%E4%BD%A0%E5%A5%BD.txt"),
            field("你好.txt")
        );
        assert_eq!(parse("name=file; filename=x; filename*=iso-8859-1''y"), field("x"));
        assert_eq!(parse("filename=\"x\""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_may_take_long_but_not_pause_for_long() {
        let slow = |pause: u64| {
            let pieces = TEXT.as_bytes().chunks(20).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let stream = futures_util::StreamExt::then(futures_util::stream::iter(pieces), move |piece| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                Ok::<_, Infallible>(piece)
            });
            let mut form = form(Vec::new(), 1_000);
            form.body = Body::from_stream(stream);
            form
        };

        assert_eq!(read(slow(59)).await.unwrap().len(), 3);
        assert!(read(slow(61)).await.unwrap_err().contains("body_idle_timeout_s"));
    }
}
