//! CORS, and the request rate limit.

use reqwest::Method;
use serde_json::json;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::contract;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const ORIGIN: &str = "https://app.example";

both_stores!(configured_origins_are_allowed_by_cors, async |database: Database| {
    let settings = [("CORS_ORIGINS", ORIGIN), ("API_KEYS", "sk-one")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let send = async |method: Method, origin: &'static str| {
        let request = server.client.request(method, "/v1/assistants").header("origin", origin);
        let request = request.header("access-control-request-method", "GET");
        let request = request.header("access-control-request-headers", "authorization,x-stainless-lang");
        let reply = request.header("authorization", "Bearer sk-one").send().await.unwrap();
        let allowed = reply.headers().get("access-control-allow-origin").cloned();
        (reply.status().as_u16(), allowed.map(|value| value.to_str().unwrap().to_owned()), reply.headers().clone())
    };

    // A browser sends the preflight request without a key.
    let preflight = server.client.request(Method::OPTIONS, "/v1/assistants").header("origin", ORIGIN);
    let answer = preflight.header("access-control-request-method", "POST").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["access-control-allow-methods"], "POST");
    assert_eq!(answer.headers()["access-control-max-age"], "7200");
    let (status, allowed, headers) = send(Method::GET, ORIGIN).await;
    assert_eq!((status, allowed.as_deref()), (200, Some(ORIGIN)));
    assert!(headers["access-control-expose-headers"].to_str().unwrap().contains("x-request-id"));
    assert_eq!(send(Method::GET, "https://evil.example").await.1, None);
});

both_stores!(
    a_preflight_request_of_another_origin_is_rejected_with_the_name_of_the_setting,
    async |database: Database| {
        for settings in [&[][..], &[("API_KEYS", "sk-one")], &[("CORS_ORIGINS", ORIGIN)]] {
            let server = Server::with(&database, &Upstream::start().await, settings).await;
            let preflight =
                server.client.request(Method::OPTIONS, "/v1/assistants").header("origin", "https://other.example");
            let response = preflight.header("access-control-request-method", "POST").send().await.unwrap();

            let reply = Client::read(response).await;
            contract::check_error(&reply.body);
            let message = reply.body["error"]["message"].as_str().unwrap();
            assert_eq!((reply.status, reply.headers.get("access-control-allow-origin")), (403, None));
            assert!(message.contains("https://other.example") && message.contains("cors_origins"), "{message}");
            server.stop().await;
        }
    }
);

both_stores!(without_api_keys_only_configured_origins_are_allowed, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("CORS_ORIGINS", ORIGIN)]).await;
    let send = async |origin: &'static str| {
        let reply = server.client.request(Method::GET, "/v1/assistants").header("origin", origin).send().await;
        reply.unwrap().status().as_u16()
    };

    assert_eq!(send(ORIGIN).await, 200);
    assert_eq!(send("https://evil.example").await, 403);
});

both_stores!(a_rate_limited_project_receives_a_retry_after_header, async |database: Database| {
    let settings = [("REQUESTS_PER_MINUTE", "3"), ("API_KEYS", "sk-one,sk-two")];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let send = async |key: &'static str| {
        let request = server.client.request(Method::GET, "/v1/assistants").header("api-key", key);
        Client::read(request.send().await.unwrap()).await
    };

    for left in ["2", "1", "0"] {
        let reply = send("sk-one").await;
        assert_eq!((reply.status, &reply.headers["x-ratelimit-remaining-requests"]), (200, &left.parse().unwrap()));
        assert_eq!(reply.headers["x-ratelimit-limit-requests"], "3");
    }
    let limited = send("sk-one").await;
    contract::check_error(&limited.body);
    let error = &limited.body["error"];
    assert_eq!((limited.status, &error["type"]), (429, &json!("requests")));
    assert_eq!(error["code"], "rate_limit_exceeded");
    assert!(
        error["message"].as_str().unwrap().starts_with("Rate limit reached for requests per min (RPM): Limit 3."),
        "{error}"
    );
    let wait: u64 = limited.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    assert!(limited.headers["retry-after-ms"].to_str().unwrap().parse::<u64>().unwrap() <= 61_000);
    assert_eq!(send("sk-two").await.status, 429, "the keys of a project share its limit");
});
