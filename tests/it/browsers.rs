//! Scripts of web pages, and callers that ask too often.

use reqwest::Method;
use serde_json::json;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const PAGE: &str = "https://app.example";

both_stores!(pages_of_the_origins_in_the_settings_may_ask, async |database: Database| {
    let settings = [("CORS_ORIGINS", PAGE), ("API_KEYS", "sk-one")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let ask = async |method: Method, origin: &'static str| {
        let asks = server.client.request(method, "/v1/assistants").header("origin", origin);
        let asks = asks.header("access-control-request-method", "GET");
        let asks = asks.header("access-control-request-headers", "authorization,x-stainless-lang");
        let reply = asks.header("authorization", "Bearer sk-one").send().await.unwrap();
        let allowed = reply.headers().get("access-control-allow-origin").cloned();
        (reply.status().as_u16(), allowed.map(|value| value.to_str().unwrap().to_owned()), reply.headers().clone())
    };

    // The browser asks first, without a key.
    let question = server.client.request(Method::OPTIONS, "/v1/assistants").header("origin", PAGE);
    let answer = question.header("access-control-request-method", "POST").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["access-control-allow-methods"], "POST");
    let (status, allowed, headers) = ask(Method::GET, PAGE).await;
    assert_eq!((status, allowed.as_deref()), (200, Some(PAGE)));
    assert!(headers["access-control-expose-headers"].to_str().unwrap().contains("x-request-id"));
    assert_eq!(ask(Method::GET, "https://evil.example").await.1, None);
});

both_stores!(without_keys_the_pages_in_the_settings_may_ask_and_others_may_not, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("CORS_ORIGINS", PAGE)]).await;
    let ask = async |origin: &'static str| {
        let reply = server.client.request(Method::GET, "/v1/assistants").header("origin", origin).send().await;
        reply.unwrap().status().as_u16()
    };

    assert_eq!(ask(PAGE).await, 200);
    assert_eq!(ask("https://evil.example").await, 403);
});

both_stores!(a_key_that_asks_too_often_is_told_when_to_come_back, async |database: Database| {
    let settings = [("REQUESTS_PER_MINUTE", "3"), ("API_KEYS", "sk-one,sk-two")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let ask = async |key: &'static str| {
        let request = server.client.request(Method::GET, "/v1/assistants").header("api-key", key);
        Client::read(request.send().await.unwrap()).await
    };

    for left in ["2", "1", "0"] {
        let reply = ask("sk-one").await;
        assert_eq!((reply.status, &reply.headers["x-ratelimit-remaining-requests"]), (200, &left.parse().unwrap()));
        assert_eq!(reply.headers["x-ratelimit-limit-requests"], "3");
    }
    let refused = ask("sk-one").await;
    contract::check_error(&refused.body);
    let error = &refused.body["error"];
    assert_eq!((refused.status, &error["type"]), (429, &json!("requests")));
    assert_eq!(error["code"], "rate_limit_exceeded");
    assert!(error["message"].as_str().unwrap().starts_with("Rate limit reached for requests."), "{error}");
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=21).contains(&wait), "{wait}");
    assert!(refused.headers["retry-after-ms"].to_str().unwrap().parse::<u64>().unwrap() <= 20_001);
    assert_eq!(ask("sk-two").await.status, 200, "each key has its own");
});
