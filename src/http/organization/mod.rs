//! `/v1/organization`: the administration, for administrators only.

mod admin_keys;
mod api_keys;
mod audit_logs;
mod projects;
mod rate_limits;
mod service_accounts;
mod usage;

pub(super) use usage::project_routes as project_usage_routes;

use super::error::Error;
use super::routes::Routes;
use super::state::App;
use crate::access::keys::random_bytes;
use crate::api::ProjectId;
use crate::api::id::Id as _;
use crate::api::organization::api_key::{KeyHolder, NewKey};

/// Returns the routes of the administration.
pub(super) fn routes() -> [Routes; 7] {
    [
        projects::routes(),
        service_accounts::routes(),
        api_keys::routes(),
        rate_limits::routes(),
        admin_keys::routes(),
        usage::routes(),
        audit_logs::routes(),
    ]
}

/// Fails with 404 if there is no such project.
async fn check_project(app: &App, id: &ProjectId) -> Result<(), Error> {
    if app.database.project(id).await?.is_some() { Ok(()) } else { Err(id.not_found().into()) }
}

/// Generates a key.
fn generate_key(holder: &KeyHolder) -> Result<NewKey, Error> {
    let random = random_bytes().map_err(|error| Error::Internal(std::sync::Arc::new(error)))?;
    Ok(NewKey::generate(holder.kind(), &random))
}
