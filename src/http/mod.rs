//! The HTTP face: the API's paths, and what surrounds every request.

mod assistants;
mod auth;
mod chat;
mod error;
mod extract;
mod health;
mod messages;
mod models;
mod reply;
mod run_steps;
mod runs;
mod sse;
mod state;
mod threads;
mod trace;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;

pub use auth::Keys;
pub use state::{App, Settings};

/// The whole server as one service.
pub fn router(app: App) -> Router {
    let api = Router::new()
        .merge(assistants::routes())
        .merge(threads::routes())
        .merge(messages::routes())
        .merge(runs::routes())
        .merge(run_steps::routes())
        .merge(models::routes())
        .merge(chat::routes())
        .fallback(error::no_such_url)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(from_fn_with_state(app.clone(), auth::require_key));
    Router::new()
        .merge(health::routes())
        .merge(api)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn(trace::request))
        .with_state(app)
}
