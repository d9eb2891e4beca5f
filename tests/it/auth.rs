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
    assert!(message.contains("operator of this server") && !message.contains("http"), "{message}");
    assert_eq!(send("/health", "accept", "*/*").await.0, 200);
    assert_eq!(send("/ready", "accept", "*/*").await.0, 200);
});

both_stores!(an_address_that_tries_many_wrong_keys_must_wait, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("API_KEYS", "sk-one,sk-two")]).await;
    let from = |address: &str| {
        let client =
            reqwest::Client::builder().no_proxy().local_address(Some(address.parse().unwrap())).build().unwrap();
        let url = format!("{}/v1/assistants", server.client.base_url);
        async move |key: &str| client.get(&url).bearer_auth(key).send().await.unwrap()
    };
    let (guesses, other) = (from("127.0.0.1"), from("127.0.0.2"));
    assert_eq!(guesses("sk-one").await.status(), 200);

    let mut limited = None;
    for guess in 0..60 {
        let reply = guesses(&format!("guess-{guess}")).await;
        if reply.status() == 429 {
            limited = Some(Client::read(reply).await);
            break;
        }
        assert_eq!(reply.status(), 401);
    }

    let limited = limited.expect("wrong keys are limited");
    contract::check_error(&limited.body);
    assert_eq!(limited.headers["retry-after"], "3");
    let message = limited.body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("Too many requests with wrong API keys from this address."), "{message}");
    assert_eq!(guesses("sk-one").await.status(), 200, "a key that was used before is accepted");
    assert_eq!(guesses("sk-two").await.status(), 200, "another right key is accepted, too");
    assert_eq!(other("guess").await.status(), 401, "another address is not limited");
});
