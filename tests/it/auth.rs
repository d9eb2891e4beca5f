//! API keys, and the endpoints that do not require one.

use reqwest::Method;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

both_stores!(api_keys_are_required_except_for_health_checks, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("API_KEYS", "sk-one,sk-two-0123456789")]).await;
    let send = async |path: &str, name: &'static str, value: &'static str| {
        let reply =
            Client::read(server.client.request(Method::GET, path).header(name, value).send().await.unwrap()).await;
        if reply.status != 200 {
            contract::check_error(&reply.body);
        }
        (
            reply.status,
            reply.body["error"]["message"].as_str().unwrap_or_default().to_owned(),
            reply.body["error"]["code"].clone(),
        )
    };

    assert_eq!(send("/v1/assistants", "authorization", "Bearer sk-one").await.0, 200);
    assert_eq!(send("/v1/assistants", "api-key", "sk-two-0123456789").await.0, 200);
    let (status, message, code) = send("/v1/assistants", "authorization", "Bearer sk-wrong-0123456789").await;
    assert_eq!((status, code), (401, "invalid_api_key".into()));
    assert!(message.starts_with("Incorrect API key provided: sk-wr***89."), "{message}");
    let (status, message, _) = send("/v1/xyz", "accept", "*/*").await;
    assert_eq!(status, 401);
    assert!(message.starts_with("You didn't provide an API key."), "{message}");
    assert_eq!(send("/health", "accept", "*/*").await.0, 200);
    assert_eq!(send("/ready", "accept", "*/*").await.0, 200);
});
