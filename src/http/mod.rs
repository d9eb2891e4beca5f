//! The HTTP API: routes and middleware.

mod assistants;
mod drain;
mod error;
mod exporter;
mod extract;
mod files;
mod layers;
mod messages;
mod models;
mod multipart;
mod openapi;
mod ops;
mod organization;
mod proxy;
mod reply;
mod routes;
mod run_steps;
mod runs;
mod sse;
mod state;
mod threads;
mod uploads;
mod vector_stores;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;

use routes::{BASE_PATHS, DEPLOYMENT_PATH, Routes};

pub use drain::Drain;
pub use error::overloaded;
pub use exporter::Exporter;
pub use openapi::description;
pub use routes::Operation;
pub use state::{App, ClientAddress, Settings, Shared};

fn groups() -> [Routes; 11] {
    [
        assistants::routes(),
        threads::routes(),
        messages::routes(),
        runs::routes(),
        run_steps::routes(),
        files::routes(),
        uploads::routes(),
        vector_stores::routes(),
        models::routes(),
        proxy::routes(),
        organization::project_usage_routes(),
    ]
}

/// Returns all operations, in the order of the API reference.
#[must_use]
pub fn operations() -> Vec<Operation> {
    groups().into_iter().chain(organization::routes()).flat_map(|routes| routes.into_parts().1).collect()
}

fn merged(groups: impl IntoIterator<Item = Routes>) -> Router<App> {
    groups.into_iter().fold(Router::new(), |router, routes| router.merge(routes.into_parts().0))
}

/// Returns the router of the listener that serves only the metrics.
pub fn metrics_router(exporter: Exporter) -> Router {
    ops::metrics_route().with_state(exporter)
}

/// Returns whether a text is an origin as browsers send it: `https://app.example`, without a path.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    layers::cors::is_origin(text)
}

/// Returns the router of the whole server.
pub fn router(app: App) -> Router {
    let members = |routes: Router<App>| {
        routes
            .route_layer(from_fn_with_state(app.clone(), layers::limit::check_rate_limit))
            .route_layer(from_fn(layers::auth::require_member))
    };
    let administration =
        merged(organization::routes()).route_layer(from_fn_with_state(app.clone(), layers::auth::require_admin));
    let api_routes = members(merged(groups())).merge(administration);
    let deployments = members(merged([proxy::routes()]));
    let api = BASE_PATHS
        .iter()
        .fold(Router::new(), |api, base| api.nest(base, api_routes.clone()))
        .nest(DEPLOYMENT_PATH, deployments)
        .fallback(error::no_such_url)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(from_fn_with_state(app.clone(), layers::auth::authenticate));
    let metrics = if app.settings.serves_metrics {
        ops::metrics_route()
            .route_layer(from_fn_with_state(app.clone(), layers::auth::require_admin))
            .route_layer(from_fn_with_state(app.clone(), layers::auth::authenticate))
    } else {
        Router::new()
    };
    let cors = layers::cors::layer(&app.settings.cors_origins);
    let origins = layers::cors::Origins::new(&app.settings.cors_origins);
    let all = Router::new()
        .merge(ops::routes())
        .merge(metrics)
        .merge(openapi::routes())
        .merge(api)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn_with_state(app.clone(), layers::trace::request))
        .with_state(app);
    let all = match cors {
        Some(cors) => all.layer(cors),
        None => all,
    };
    let all = all.layer(from_fn_with_state(origins, layers::cors::report_origin));
    all.layer(from_fn(layers::body::finish_body))
}
