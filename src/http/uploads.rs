//! `POST /v1/uploads`\
//! `POST /v1/uploads/{upload_id}/parts`\
//! `POST /v1/uploads/{upload_id}/complete`\
//! `POST /v1/uploads/{upload_id}/cancel`

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json;

use super::error::Error;
use super::extract::{Ids, Json};
use super::files::{Then, limited};
use super::layers::auth::Caller;
use super::multipart::Multipart;
use super::reply::object;
use super::routes::{Routes, operation};
use super::state::App;
use crate::api::UploadId;
use crate::api::file::{file_too_large, missing_field, unexpected_field};
use crate::api::rule::{At, out_of_range};
use crate::api::upload::{CompleteUpload, CreateUpload, UploadObject, UploadPartObject};

pub(super) fn routes() -> Routes {
    let create = operation("createUpload", "Creates an upload, to send a file in parts.").request::<CreateUpload>();
    let add = operation("addUploadPart", "Adds a part to an upload.").form(|_| {
        json!({
            "type": "object",
            "required": ["data"],
            "additionalProperties": false,
            "properties": {"data": {"type": "string", "format": "binary"}},
        })
    });
    let complete = operation("completeUpload", "Joins the parts of an upload to a file.").request::<CompleteUpload>();
    Routes::of("Uploads")
        .post("/v1/uploads", create.response::<UploadObject>(), create_upload)
        .post("/v1/uploads/{upload_id}/parts", add.response::<UploadPartObject>(), add_upload_part)
        .post("/v1/uploads/{upload_id}/complete", complete.response::<UploadObject>(), complete_upload)
        .post(
            "/v1/uploads/{upload_id}/cancel",
            operation("cancelUpload", "Cancels an upload.").response::<UploadObject>(),
            cancel_upload,
        )
}

async fn create_upload(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<CreateUpload>,
) -> Result<Response, Error> {
    let max = app.settings.upload_bytes_max;
    if request.bytes > max {
        return Err(out_of_range(&At::Member(&At::Root, "bytes"), "integer", &request.bytes, true, 1, max).into());
    }
    let now = app.clock.now();
    let upload = request.into_upload(app.ids.generate(), now)?;
    app.store.create_upload(&caller.scope, &upload).await?;
    Ok(object(&UploadObject::new(&upload, now)))
}

async fn add_upload_part(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(UploadId,)>,
    request: Request,
) -> Result<Response, Error> {
    let _open = app.drain.register();
    let max = app.settings.upload_part_bytes_max;
    let too_large = file_too_large(max, "upload_part_bytes_max");
    let mut form = Multipart::new(request, max, app.settings.body_idle_timeout, too_large.clone())?;
    let Some(field) = form.next_field().await? else { return Err(missing_field("data").into()) };
    if field.name != "data" {
        return Err(unexpected_field(&field.name).into());
    }
    let content = limited(&mut form, max, too_large, Then::End);
    let part = app.files.add_part(&caller.scope, &id, content).await?;
    Ok(object(&UploadPartObject::from(&part)))
}

async fn complete_upload(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(UploadId,)>,
    Json(request): Json<CompleteUpload>,
) -> Result<Response, Error> {
    let _open = app.drain.register();
    let upload = app.files.complete_upload(&caller.scope, &id, &request).await?;
    Ok(object(&UploadObject::new(&upload, app.clock.now())))
}

async fn cancel_upload(
    State(app): State<App>,
    caller: Caller,
    Ids((id,)): Ids<(UploadId,)>,
) -> Result<Response, Error> {
    let upload = app.files.cancel_upload(&caller.scope, &id).await?;
    Ok(object(&UploadObject::new(&upload, app.clock.now())))
}
