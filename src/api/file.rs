//! Files that clients upload.

use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{Error, Kind};
use super::id::{FileId, Id as _};
use super::rule::{At, Rule, large_integer, one_of};
use super::time::Timestamp;
use crate::request;

/// Maximum length of a file name, in characters. The service documents none; this limits the stored size.
pub const FILENAME_CHARS_MAX: usize = 1_024;
/// Maximum and default number of elements of a page of files.
pub const FILES_LIMIT_MAX: u32 = 10_000;
/// Minimum and maximum of `expires_after.seconds`.
const EXPIRES_AFTER_S: (u64, u64) = (3_600, 2_592_000);
/// When files with the purpose `batch` expire by default, in seconds after their creation.
const BATCH_EXPIRES_AFTER_S: u64 = 2_592_000;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Fine-tuning. The file must be JSON lines.
    #[serde(rename = "fine-tune")]
    FineTune,
    /// Tools of assistants, and messages.
    #[serde(rename = "assistants")]
    Assistants,
    /// The Batch API. The file must be JSON lines; it expires.
    #[serde(rename = "batch")]
    Batch,
    /// Any purpose.
    #[serde(rename = "user_data")]
    UserData,
    /// Images.
    #[serde(rename = "vision")]
    Vision,
    /// Evaluations.
    #[serde(rename = "evals")]
    Evals,
    /// What the code interpreter has written. Clients cannot upload such files.
    #[serde(rename = "assistants_output")]
    AssistantsOutput,
}

/// The purposes of uploaded files, in the order of the service's error text.
const PURPOSES: [(&str, Purpose); 6] = [
    ("fine-tune", Purpose::FineTune),
    ("assistants", Purpose::Assistants),
    ("batch", Purpose::Batch),
    ("user_data", Purpose::UserData),
    ("vision", Purpose::Vision),
    ("evals", Purpose::Evals),
];

/// Media types of JSON lines that clients send.
const JSONL_TYPES: [&str; 6] = [
    "text/jsonl",
    "application/jsonl",
    "application/x-jsonlines",
    "application/x-ndjson",
    "application/json",
    "application/octet-stream",
];

impl Purpose {
    /// Parses the purpose in a form.
    ///
    /// # Errors
    /// 400 with the supported purposes.
    ///
    /// Source: a recorded 400 of the service.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some((_, purpose)) = PURPOSES.iter().find(|(name, _)| *name == text) {
            return Ok(*purpose);
        }
        let names: Vec<String> = PURPOSES.iter().map(|(name, _)| format!("'{name}'")).collect();
        Err(Error::invalid(format!("'{text}' is not one of [{}] - 'purpose'", names.join(", "))).at("purpose"))
    }

    /// Parses the purpose by which files are listed.
    ///
    /// # Errors
    /// Like [`Purpose::parse`].
    pub fn parse_filter(text: &str) -> Result<Self, Error> {
        if text == Self::AssistantsOutput.name() { Ok(Self::AssistantsOutput) } else { Self::parse(text) }
    }

    /// Returns the name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FineTune => "fine-tune",
            Self::Assistants => "assistants",
            Self::Batch => "batch",
            Self::UserData => "user_data",
            Self::Vision => "vision",
            Self::Evals => "evals",
            Self::AssistantsOutput => "assistants_output",
        }
    }

    /// Checks that a file with this name can have the purpose.
    ///
    /// # Errors
    /// 400 if the purpose needs JSON lines and the file has another extension.
    ///
    /// Source: quoted 400 responses of the service.
    pub fn check_filename(self, filename: &str) -> Result<(), Error> {
        let api = match self {
            Self::FineTune => "Fine-Tuning API",
            Self::Batch => "Batch API",
            Self::Assistants | Self::UserData | Self::Vision | Self::Evals | Self::AssistantsOutput => {
                return Ok(());
            }
        };
        let is_jsonl = filename.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("jsonl"));
        if is_jsonl { Ok(()) } else { Err(Error::invalid(format!("Invalid file format for {api}. Must be .jsonl"))) }
    }

    /// Checks that a file with this media type can have the purpose. The type of files for assistants, user data and
    /// evaluations can be any.
    ///
    /// # Errors
    /// 400 that names `mime_type`.
    pub fn check_mime_type(self, mime_type: &str) -> Result<(), Error> {
        let essence = mime_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let fits = match self {
            Self::FineTune | Self::Batch => JSONL_TYPES.contains(&essence.as_str()),
            Self::Vision => essence.starts_with("image/"),
            Self::Assistants | Self::UserData | Self::Evals | Self::AssistantsOutput => true,
        };
        if fits {
            return Ok(());
        }
        let purpose = self.name();
        Err(Error::invalid(format!("Invalid 'mime_type': '{mime_type}' is not supported for the purpose '{purpose}'."))
            .at("mime_type")
            .code("invalid_value"))
    }

    /// Returns whether clients may download files with this purpose.
    fn is_downloadable(self) -> bool {
        match self {
            Self::FineTune | Self::Batch | Self::Vision | Self::Evals | Self::AssistantsOutput => true,
            Self::Assistants | Self::UserData => false,
        }
    }
}

/// The rule for `purpose` in a JSON body.
pub(super) fn purpose() -> impl Rule<Out = Purpose> {
    one_of(&PURPOSES)
}

/// The rule for a file name: 1 to [`FILENAME_CHARS_MAX`] characters.
pub(super) fn filename() -> impl Rule<Out = String> {
    super::rule::string(1, FILENAME_CHARS_MAX)
}

request! {
    /// The `expires_after` of a file.
    pub struct ExpiresAfter {
        required anchor: &'static str = one_of(&[("created_at", "created_at")]);
        required seconds: u64 = large_integer(EXPIRES_AFTER_S.0, EXPIRES_AFTER_S.1);
    }
}

/// Returns when a file expires that is created now: as requested, or by the default of its purpose.
#[must_use]
pub fn expiry(purpose: Purpose, expires_after: Option<&ExpiresAfter>, created_at: Timestamp) -> Option<Timestamp> {
    match (expires_after, purpose) {
        (Some(expires_after), _) => Some(created_at.plus(expires_after.seconds)),
        (None, Purpose::Batch) => Some(created_at.plus(BATCH_EXPIRES_AFTER_S)),
        (None, _) => None,
    }
}

/// A file. Its bytes are stored separately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// The file ID.
    pub id: FileId,
    /// When it was created.
    pub created_at: Timestamp,
    /// What it is for.
    pub purpose: Purpose,
    /// The name that the client sent, at most [`FILENAME_CHARS_MAX`] characters. It can have any characters, also slashes.
    pub filename: String,
    /// The size, in bytes.
    pub bytes: u64,
    /// When it expires. `None`: never.
    pub expires_at: Option<Timestamp>,
}

impl File {
    /// Checks that clients may download the file.
    ///
    /// # Errors
    /// 400 for the purposes `assistants` and `user_data`.
    ///
    /// Source: recorded 400 responses of the service.
    pub fn check_download(&self) -> Result<(), Error> {
        if self.purpose.is_downloadable() {
            return Ok(());
        }
        Err(Error::invalid(format!("Not allowed to download files of purpose: {}", self.purpose.name())))
    }
}

/// The wire form of a [`File`], with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FileObject<'a> {
    object: &'static str,
    id: &'a FileId,
    purpose: &'static str,
    filename: &'a str,
    bytes: u64,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    status: &'static str,
    status_details: Option<&'a str>,
}

impl<'a> From<&'a File> for FileObject<'a> {
    fn from(file: &'a File) -> Self {
        Self {
            object: "file",
            id: &file.id,
            purpose: file.purpose.name(),
            filename: &file.filename,
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_at,
            status: "processed",
            status_details: None,
        }
    }
}

/// The wire form of a deleted file, with its properties in the recorded order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedFile<'a> {
    object: &'static str,
    deleted: bool,
    id: &'a FileId,
}

impl<'a> DeletedFile<'a> {
    /// Creates the response for a deleted file.
    #[must_use]
    pub fn new(id: &'a FileId) -> Self {
        Self { object: "file", deleted: true, id }
    }
}

/// Returns 404 `No such File object: file-x`.
///
/// Source: recorded 404 responses of the service, also for a text that is not an ID.
#[must_use]
pub fn no_such_file(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("No such File object: {id}")).at("id")
}

/// Parses the ID of a file in a path.
///
/// # Errors
/// 404, also for a text that is not an ID.
pub fn parse_id(text: &str) -> Result<FileId, Error> {
    FileId::parse(text, FileId::PARAM).map_err(|_| no_such_file(text))
}

/// Returns 400 `'file' is a required property`.
///
/// Source: quoted 400 responses of the service.
#[must_use]
pub fn missing_field(name: &str) -> Error {
    Error::invalid(format!("'{name}' is a required property"))
}

/// Returns 400 for a form field that the operation does not have.
#[must_use]
pub fn unexpected_field(name: &str) -> Error {
    Error::invalid(format!("Additional properties are not allowed ('{name}' was unexpected)"))
}

/// Returns 400 for a file without bytes.
#[must_use]
pub fn empty_file(field: &str) -> Error {
    Error::invalid("File is empty.").at(field)
}

/// Returns 413 for a file with more than `max` bytes, the value of `setting`.
#[must_use]
pub fn file_too_large(max: u64, setting: &str) -> Error {
    Error::new(Kind::TooLarge, format!("The file is larger than {max} bytes, the maximum of this server ({setting})."))
}

/// The text fields of the form of `POST /files`. They can come before and after the file.
#[derive(Debug, Default)]
pub struct FileForm {
    purpose: Option<Purpose>,
    expires_after: Map<String, Value>,
}

/// What a client says about a file that it uploads.
#[derive(Debug, Clone)]
pub struct CreateFile {
    /// What the file is for.
    pub purpose: Purpose,
    /// When it expires.
    pub expires_after: Option<ExpiresAfter>,
}

impl FileForm {
    /// Adds a text field.
    ///
    /// # Errors
    /// 400 if the field is unknown or has an invalid value.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let member = name.strip_prefix("expires_after[").and_then(|rest| rest.strip_suffix(']'));
        match (name, member) {
            ("purpose", _) => self.purpose = Some(Purpose::parse(text)?),
            ("file", _) => return Err(missing_field("file")),
            (_, Some(member)) => {
                // Forms have no numbers.
                let value = text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
                self.expires_after.insert(member.to_owned(), value);
            }
            _ => return Err(unexpected_field(name)),
        }
        Ok(())
    }

    /// Returns the purpose, if it was added.
    #[must_use]
    pub fn purpose(&self) -> Option<Purpose> {
        self.purpose
    }

    /// Returns what the fields say.
    ///
    /// # Errors
    /// 400 if a field is missing or has an invalid value.
    pub fn finish(self) -> Result<CreateFile, Error> {
        let purpose = self.purpose.ok_or_else(|| missing_field("purpose"))?;
        let at = At::Member(&At::Root, "expires_after");
        let expires_after = (!self.expires_after.is_empty())
            .then(|| super::rule::object::<ExpiresAfter>().read(Value::Object(self.expires_after), &at))
            .transpose()?;
        Ok(CreateFile { purpose, expires_after })
    }

    /// Returns the JSON schema of the form.
    #[must_use]
    pub fn schema(schemas: &mut SchemaGenerator) -> Value {
        json!({
            "type": "object",
            "required": ["file", "purpose"],
            "additionalProperties": false,
            "properties": {
                "file": {"type": "string", "format": "binary"},
                "purpose": purpose().schema(schemas),
                "expires_after": super::rule::object::<ExpiresAfter>().schema(schemas),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(fields: &[(&str, &str)]) -> Result<CreateFile, String> {
        let mut form = FileForm::default();
        fields
            .iter()
            .try_for_each(|(name, text)| form.add(name, text))
            .and_then(|()| form.finish())
            .map_err(|error| error.message)
    }

    #[test]
    fn the_fields_of_a_form_are_checked() {
        let anchored = ("expires_after[anchor]", "created_at");
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[], "'purpose' is a required property"),
            (&[("purpose", "batch"), ("x", "y")], "Additional properties are not allowed ('x' was unexpected)"),
            (&[("file", "text")], "'file' is a required property"),
            (&[("purpose", "batch"), anchored], "Missing required parameter: 'expires_after.seconds'."),
            (
                &[("purpose", "batch"), anchored, ("expires_after[seconds]", "3599")],
                "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 3599 \
                 instead.",
            ),
            (
                &[("purpose", "batch"), anchored, ("expires_after[seconds]", "soon")],
                "Invalid type for 'expires_after.seconds': expected an integer, but got a string instead.",
            ),
        ];
        for (fields, message) in cases {
            assert_eq!(form(fields).map(|_| ()), Err(message.to_owned()), "{fields:?}");
        }
        let parsed = form(&[anchored, ("expires_after[seconds]", "3600"), ("purpose", "vision")]).unwrap();
        assert_eq!((parsed.purpose, parsed.expires_after.unwrap().seconds), (Purpose::Vision, 3_600));
    }

    #[test]
    fn files_for_batches_expire_after_thirty_days_by_default() {
        let created_at = Timestamp(1_000);
        let expires_after = ExpiresAfter { anchor: "created_at", seconds: 3_600 };

        assert_eq!(expiry(Purpose::Assistants, None, created_at), None);
        assert_eq!(expiry(Purpose::Batch, None, created_at), Some(Timestamp(2_593_000)));
        assert_eq!(expiry(Purpose::Batch, Some(&expires_after), created_at), Some(Timestamp(4_600)));
    }

    #[test]
    fn purposes_restrict_extensions_and_media_types() {
        assert!(Purpose::FineTune.check_filename("a.JSONL").is_ok());
        assert_eq!(
            Purpose::Batch.check_filename("jsonl").unwrap_err().message,
            "Invalid file format for Batch API. Must be .jsonl"
        );
        assert!(Purpose::Assistants.check_filename("text/csv").is_ok());
        assert!(Purpose::FineTune.check_mime_type("text/jsonl").is_ok());
        assert!(Purpose::Vision.check_mime_type("text/plain").is_err());
        assert!(Purpose::Vision.check_mime_type("image/png").is_ok());
    }
}
