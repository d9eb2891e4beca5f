//! `GET /health`\
//! `GET /ready`\
//! `GET /metrics`

use axum::extract::{FromRef, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::exporter::Exporter;
use super::state::App;
use crate::metrics::CONTENT_TYPE;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/health", get(health)).route("/ready", get(ready))
}

/// Returns the route of the metrics.
pub(super) fn metrics_route<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Exporter: FromRef<S>,
{
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(exporter): State<Exporter>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exporter.render().await)
}

/// Liveness: returns 200 while the process responds.
async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// Readiness: returns 200 if the store is available and writable, all background loops run, and the server is not stopping.
async fn ready(State(app): State<App>) -> (StatusCode, Json<Value>) {
    if app.runs.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "draining"})));
    }
    let down = app.liveness.down();
    if !down.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "background loops are down", "loops": down})));
    }
    match app.database.check().await {
        Ok(()) => (StatusCode::OK, Json(json!({"status": "ready"}))),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store is unavailable");
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "store unavailable"})))
        }
    }
}
