//! Layers around the routes, outermost first: `body` (request bodies that were not read), `cors`, `trace` (request ids
//! and the log), `auth` (keys, foreign hosts and origins), `limit` (requests per minute).

pub(super) mod auth;
pub(super) mod body;
pub(super) mod cors;
pub(super) mod limit;
pub(super) mod trace;
