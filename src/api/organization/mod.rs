//! The organization: projects, which isolate teams from each other, and what belongs to them.

pub mod api_key;
pub mod audit_log;
pub mod project;
pub mod rate_limit;
pub mod service_account;
pub mod usage;

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::api::error::Error;
use crate::api::rule::{At, Rule, string};

pub use api_key::{ApiKey, NewKey, ProjectApiKey};
pub use audit_log::{Actor, AuditLog, Change, Event};
pub use project::{Project, Scope};
pub use rate_limit::{Limits, ProjectLimits};
pub use service_account::ServiceAccount;

/// The user that owns the API keys without a service account. There are no other users.
pub const OPERATOR_ID: &str = "user-operator";
/// The name of that user.
pub const OPERATOR_NAME: &str = "operator";

/// Maximum length of a name, in characters. The service documents none; this limits the stored size.
const NAME_CHARS_MAX: usize = 256;

/// A text of 1 to [`NAME_CHARS_MAX`] characters that is stored in a column of its own.
#[derive(Debug, Clone, Copy)]
struct Name;

/// The rule for names.
fn name() -> Name {
    Name
}

impl Rule for Name {
    type Out = String;

    fn plural(&self) -> &'static str {
        "strings"
    }

    fn read(&self, value: Value, at: &At<'_>) -> Result<String, Error> {
        let text = string(1, NAME_CHARS_MAX).read(value, at)?;
        if text.contains('\0') {
            return Err(Error::invalid(format!("Invalid '{at}': the string contains a NUL character."))
                .at(at.to_string())
                .code("invalid_value"));
        }
        Ok(text)
    }

    fn schema(&self, schemas: &mut SchemaGenerator) -> Value {
        let mut schema = string(1, NAME_CHARS_MAX).schema(schemas);
        schema["pattern"] = json!("^[^\\u0000]*$");
        schema
    }
}
