//! The HTTP face: the API's paths, and what surrounds every request.

mod assistants;
mod auth;
mod chat;
mod cors;
mod drain;
mod error;
mod extract;
mod health;
mod limit;
mod messages;
mod models;
mod openapi;
mod reply;
mod routes;
mod run_steps;
mod runs;
mod sse;
mod state;
mod threads;
mod trace;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;

use routes::{HOME, Routes};

pub use auth::Keys;
pub use drain::Drain;
pub use error::overloaded;
pub use limit::Limits;
pub use openapi::description;
pub use routes::Operation;
pub use state::{App, Settings};

/// Where the API is found: at home, where Azure OpenAI has it (older and newer clients), and where Azure AI Foundry has
/// the classic agents and OpenAI's own clients.
const PLACES: [&str; 6] = [
    HOME,
    "/openai",
    "/openai/v1",
    "/api/projects/{project}",
    "/api/projects/{project}/openai",
    "/api/projects/{project}/openai/v1",
];

fn groups() -> [Routes; 7] {
    [
        assistants::routes(),
        threads::routes(),
        messages::routes(),
        runs::routes(),
        run_steps::routes(),
        models::routes(),
        chat::routes(),
    ]
}

/// Every operation that is served, in the order of the API reference.
#[must_use]
pub fn operations() -> Vec<Operation> {
    groups().into_iter().flat_map(|routes| routes.into_parts().1).collect()
}

/// The whole server as one service.
pub fn router(app: App) -> Router {
    let at_home = groups().into_iter().fold(Router::new(), |routers, routes| routers.merge(routes.into_parts().0));
    let api = PLACES
        .iter()
        .fold(Router::new(), |api, place| api.nest(place, at_home.clone()))
        .nest("/openai/deployments/{deployment}", chat::routes().into_parts().0)
        .fallback(error::no_such_url)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(from_fn_with_state(app.clone(), limit::require_room))
        .layer(from_fn_with_state(app.clone(), auth::require_key));
    let cors = cors::layer(&app.settings.cors_origins);
    let all = Router::new()
        .merge(health::routes())
        .merge(openapi::routes())
        .merge(api)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn(trace::request))
        .with_state(app);
    match cors {
        Some(cors) => all.layer(cors),
        None => all,
    }
}
