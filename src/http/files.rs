//! `POST /v1/files`\
//! `GET /v1/files`\
//! `GET /v1/files/{file_id}`\
//! `DELETE /v1/files/{file_id}`\
//! `GET /v1/files/{file_id}/content`

use std::ops::Range;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::error::{Error, error_response_with};
use super::extract::{Params, Query};
use super::layers::auth::Caller;
use super::multipart::Multipart;
use super::reply::{list, object};
use super::routes::{Routes, operation};
use super::state::App;
use crate::api::error::Kind;
use crate::api::file::{
    DeletedFile, FILES_LIMIT_MAX, File, FileForm, FileObject, Purpose, file_too_large, missing_field, no_such_file,
    parse_id, unexpected_field,
};
use crate::api::{self, FileId, PageQuery};
use crate::files::service::Received;
use crate::{files, store};

pub(super) fn routes() -> Routes {
    let collection = "/v1/files";
    let item = "/v1/files/{file_id}";
    let content = "/v1/files/{file_id}/content";
    let create = operation("createFile", "Uploads a file.").form(FileForm::schema).response::<FileObject>();
    let retrieve = operation("retrieveFile", "Retrieves a file.").response::<FileObject>();
    let list = operation("listFiles", "Lists files.")
        .paginated::<FileObject>()
        .limit(FILES_LIMIT_MAX)
        .query("purpose", |_| json!({"type": "string"}));
    Routes::of("Files")
        .post(collection, create, create_file)
        .get(collection, list, list_files)
        .get(item, retrieve, retrieve_file)
        .delete(item, operation("deleteFile", "Deletes a file.").response::<DeletedFile>(), delete_file)
        .get(content, operation("downloadFile", "Downloads a file.").bytes(), download_file)
}

/// An error of these routes. It has the sibling `detail` of the recorded responses.
pub(super) struct FileError(Error);

impl<E: Into<Error>> From<E> for FileError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for FileError {
    fn into_response(self) -> Response {
        let error = match self.0 {
            Error::Public(error) => error,
            error @ Error::Internal(_) => return error.into_response(),
        };
        let detail = json!({"message": error.message, "code": null});
        error_response_with(&error, Some(detail))
    }
}

/// The file ID in a path. A text that is not an ID is an unknown file.
struct Id(FileId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = FileError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, FileError> {
        let params = Params::from_request_parts(parts, state).await?;
        Ok(Self(parse_id(params.get("file_id").unwrap_or_default())?))
    }
}

async fn create_file(State(app): State<App>, caller: Caller, request: Request) -> Result<Response, FileError> {
    let _open = app.drain.register();
    let max = app.settings.file_bytes_max;
    let too_large = file_too_large(max, "file_bytes_max");
    let mut form = Multipart::new(request, max, app.settings.body_idle_timeout, too_large.clone())?;
    let mut fields = FileForm::default();
    let mut file: Option<(Received, String)> = None;
    let outcome = async {
        while let Some(field) = form.next_field().await? {
            match (field.name.as_str(), field.filename) {
                ("file", Some(name)) if file.is_none() => {
                    check_filename(&name)?;
                    if let Some(purpose) = fields.purpose() {
                        purpose.check_filename(&name)?;
                    }
                    let content = limited(&mut form, max, too_large.clone(), Then::MoreFields);
                    file = Some((app.files.receive_file(&caller.scope, content).await?, name));
                }
                (name, Some(_)) => return Err(unexpected_field(name).into()),
                (name, None) => fields.add(name, &form.text(name).await?)?,
            }
        }
        let request = fields.finish()?;
        if file.is_none() {
            return Err(missing_field("file").into());
        }
        Ok::<_, files::Error>(request)
    }
    .await;
    match (outcome, file) {
        (Ok(request), Some((received, name))) => {
            Ok(object(&FileObject::from(&received.finish_file(name, &request).await?)))
        }
        (Ok(_), None) => Err(missing_field("file").into()),
        (Err(error), received) => {
            if let Some((received, _)) = received {
                received.discard().await;
            }
            Err(error.into())
        }
    }
}

/// Rejects a file name that is too long, or that a file cannot have.
fn check_filename(name: &str) -> Result<(), api::Error> {
    let at = api::rule::At::Member(&api::rule::At::Root, "file");
    api::rule::Rule::read(&api::rule::string(1, api::file::FILENAME_CHARS_MAX), Value::String(name.to_owned()), &at)?;
    Ok(())
}

/// What follows the bytes of a file in a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Other fields may follow.
    MoreFields,
    /// The form ends. Another field is an error.
    End,
}

/// Returns the bytes of the current part. More than `max` bytes are an error.
pub(super) fn limited(
    form: &mut Multipart,
    max: u64,
    too_large: api::Error,
    then: Then,
) -> impl Stream<Item = Result<Bytes, files::Error>> + Send {
    futures_util::stream::try_unfold((form, 0_u64), move |(form, before)| {
        let too_large = too_large.clone();
        async move {
            let Some(chunk) = form.chunk().await? else {
                let next = if then == Then::End { form.next_field().await? } else { None };
                return next.map_or(Ok(None), |field| Err(unexpected_field(&field.name).into()));
            };
            let bytes = before + chunk.len() as u64;
            if bytes > max { Err(too_large.into()) } else { Ok(Some((chunk, (form, bytes)))) }
        }
    })
}

async fn list_files(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, FileError> {
    let page = PageQuery { limit: FILES_LIMIT_MAX, ..PageQuery::default() };
    let page = page.parse_with_limit(FILES_LIMIT_MAX, query.names_and_values())?;
    let purpose = query.get("purpose").map(Purpose::parse_filter).transpose()?;
    let files = app.store.list_files(&caller.scope, purpose, &page).await.map_err(map_cursor)?;
    Ok(list(&files, |file| file.id.as_str(), FileObject::from))
}

fn map_cursor(error: store::Error) -> Error {
    match error {
        store::Error::NoCursor(id) => no_such_file(&id).into(),
        error => error.into(),
    }
}

async fn find(app: &App, caller: &Caller, id: &FileId) -> Result<File, FileError> {
    Ok(app.store.file(&caller.scope, id).await?.ok_or_else(|| no_such_file(id.as_str()))?)
}

async fn retrieve_file(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Response, FileError> {
    Ok(object(&FileObject::from(&find(&app, &caller, &id).await?)))
}

async fn delete_file(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Response, FileError> {
    app.files.delete_file(&caller.scope, &id).await?;
    Ok(object(&DeletedFile::new(&id)))
}

async fn download_file(
    State(app): State<App>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, FileError> {
    let file = find(&app, &caller, &id).await?;
    file.check_download()?;
    let range = requested_range(&headers, file.bytes)?;
    let content = app.files.open_range(&caller.scope, &file, range.clone()).await?;
    let open_response = app.drain.register();
    let content = content.map(move |chunk| {
        let _ = &open_response;
        chunk
    });
    let mut response = Response::new(Body::from_stream(content));
    let length = range.as_ref().map_or(file.bytes, |range| range.end - range.start);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CONTENT_DISPOSITION, disposition(&file.filename));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(range) = range {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, file.bytes);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&text).expect("numbers are ASCII"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Returns the range that a request asks for. `None`: the whole file, also for several ranges and for a condition, which a
/// server may ignore.
fn requested_range(headers: &HeaderMap, length: u64) -> Result<Option<Range<u64>>, api::Error> {
    let value = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let ranges = value.and_then(|value| value.strip_prefix("bytes="));
    let Some((first, last)) = ranges.and_then(|ranges| ranges.split_once('-')) else { return Ok(None) };
    if headers.contains_key(header::IF_RANGE) || last.contains(',') {
        return Ok(None);
    }
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..length,
        (Err(_), Ok(suffix)) if first.trim().is_empty() => length.saturating_sub(suffix)..length,
        _ => return Ok(None),
    };
    if range.is_empty() {
        let text = format!("The requested range is outside of the file, which has {length} bytes.");
        return Err(api::Error::new(Kind::RangeNotSatisfiable, text));
    }
    Ok(Some(range))
}

/// Characters that are encoded in `filename*`.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~');

/// Returns `attachment; filename="NAME"`, as recorded. For a name with other characters than printable ASCII, adds
/// `filename*`, and replaces them in `filename`.
fn disposition(name: &str) -> HeaderValue {
    let is_plain = |character: char| matches!(character, ' '..='~') && !matches!(character, '"' | '\\');
    let plain: String = name.chars().map(|character| if is_plain(character) { character } else { '_' }).collect();
    let mut text = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        text = format!("{text}; filename*=UTF-8''{}", utf8_percent_encode(name, &ENCODED));
    }
    HeaderValue::from_str(&text).expect("the name is encoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_sent_in_a_header_that_all_clients_read() {
        assert_eq!(disposition("a b.txt"), "attachment; filename=\"a b.txt\"");
        assert_eq!(
            disposition("\"你\r\n.txt"),
            "attachment; filename=\"____.txt\"; filename*=UTF-8''%22%E4%BD%A0%0D%0A.txt"
        );
    }

    #[test]
    fn one_range_of_a_file_can_be_requested() {
        let range = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, value.parse().unwrap());
            requested_range(&headers, 10).map_err(|error| error.kind)
        };

        assert_eq!(range("bytes=0-0"), Ok(Some(0..1)));
        assert_eq!(range("bytes=2-99"), Ok(Some(2..10)));
        assert_eq!(range("bytes=2-"), Ok(Some(2..10)));
        assert_eq!(range("bytes=-3"), Ok(Some(7..10)));
        assert_eq!(range("bytes=-99"), Ok(Some(0..10)));
        for ignored in ["bytes=3-2", "bytes=0-1,3-4", "lines=0-1", "bytes=x-y", "bytes=-"] {
            assert_eq!(range(ignored), Ok(None), "{ignored}");
        }
        for outside in ["bytes=10-", "bytes=-0"] {
            assert_eq!(range(outside), Err(Kind::RangeNotSatisfiable), "{outside}");
        }
    }
}
