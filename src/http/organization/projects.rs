//! `GET /v1/organization/projects`\
//! `POST /v1/organization/projects`\
//! `GET /v1/organization/projects/{project_id}`\
//! `POST /v1/organization/projects/{project_id}`\
//! `POST /v1/organization/projects/{project_id}/archive`

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::api::ProjectId;
use crate::api::id::Id as _;
use crate::api::organization::Project;
use crate::api::organization::project::{CreateProject, DEFAULT_PROJECT, ModifyProject, ProjectObject};
use crate::http::error::Error;
use crate::http::extract::{AnyIds, Json, Query};
use crate::http::layers::auth::Admin;
use crate::http::reply::{list, map_cursor, object};
use crate::http::routes::{Routes, operation};
use crate::http::state::App;

pub(super) fn routes() -> Routes {
    let collection = "/v1/organization/projects";
    let item = "/v1/organization/projects/{project_id}";
    let archive = "/v1/organization/projects/{project_id}/archive";
    let lists = operation("listProjects", "Lists projects.")
        .paginated::<ProjectObject>()
        .query("include_archived", |_| json!({"type": "boolean", "default": false}));
    let create = operation("createProject", "Creates a project.").request::<CreateProject>();
    let modify = operation("modifyProject", "Modifies a project.").request::<ModifyProject>();
    let archives = operation("archiveProject", "Archives a project. Its API keys are rejected from then on.");
    Routes::of("Projects")
        .get(collection, lists, list_projects)
        .post(collection, create.response::<ProjectObject>(), create_project)
        .get(item, operation("getProject", "Retrieves a project.").response::<ProjectObject>(), get_project)
        .post(item, modify.response::<ProjectObject>(), modify_project)
        .post(archive, archives.response::<ProjectObject>(), archive_project)
}

async fn list_projects(State(app): State<App>, query: Query) -> Result<Response, Error> {
    let (page, include_archived) = (query.page()?, query.flag("include_archived")?);
    let page = app.database.list_projects(include_archived, &page).await.map_err(map_cursor::<ProjectId>)?;
    Ok(list(&page, |project| project.id.as_str(), ProjectObject::from))
}

async fn create_project(
    State(app): State<App>,
    admin: Admin,
    Json(request): Json<CreateProject>,
) -> Result<Response, Error> {
    let now = app.clock.now();
    let project = request.into_project(app.ids.generate(), now);
    app.database.create_project(&project, &admin.change(now)).await?;
    Ok(object(&ProjectObject::from(&project)))
}

async fn get_project(State(app): State<App>, AnyIds((id,)): AnyIds<(ProjectId,)>) -> Result<Response, Error> {
    let project = app.database.project(&id).await?.ok_or_else(|| id.not_found())?;
    Ok(object(&ProjectObject::from(&project)))
}

async fn modify_project(
    State(app): State<App>,
    admin: Admin,
    AnyIds((id,)): AnyIds<(ProjectId,)>,
    Json(request): Json<ModifyProject>,
) -> Result<Response, Error> {
    let project = app.database.modify_project(&id, &request, &admin.change(app.clock.now())).await?;
    Ok(object(&ProjectObject::from(&project)))
}

async fn archive_project(
    State(app): State<App>,
    admin: Admin,
    AnyIds((id,)): AnyIds<(ProjectId,)>,
) -> Result<Response, Error> {
    if id.as_str() == DEFAULT_PROJECT {
        return Err(Project::default_project_error().into());
    }
    let project = app.database.archive_project(&id, &admin.change(app.clock.now())).await?;
    Ok(object(&ProjectObject::from(&project)))
}
