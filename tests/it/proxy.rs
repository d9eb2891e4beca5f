//! Requests that are forwarded to the model server.

use reqwest::Method;
use serde_json::json;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

both_stores!(chat_completions_are_proxied_unchanged_except_for_the_model_name, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["Hello"]), Answer::Tokens(vec!["Hel", "lo"])]).await;
    let server = Server::with(&database, &upstream, &[("MODEL_ALIASES", "gpt-4o=small")]).await;
    let client = &server.client;
    let body = |stream: bool| json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "seed": 7, "stream": stream});

    let plain = client.post("/v1/chat/completions", body(false)).await;
    let streamed = client.request(Method::POST, "/v1/chat/completions").json(&body(true)).send().await.unwrap();

    assert_eq!(plain["choices"][0]["message"]["content"], "Hello");
    assert_eq!(
        upstream.requests()[0],
        json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}], "seed": 7, "stream": false})
    );
    assert!(streamed.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let text = streamed.text().await.unwrap();
    assert!(text.contains("\"content\":\"Hel\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
});

both_stores!(an_error_response_of_the_model_server_is_proxied_unchanged, async |database: Database| {
    let body = json!({"error": {"message": "bad", "type": "invalid_request_error", "param": null, "code": null}});
    let upstream = Upstream::scripted([Answer::Status(422, vec![], body.clone())]).await;
    let server = Server::start(&database, &upstream).await;

    let reply =
        server.client.send(Method::POST, "/v1/chat/completions", Some(&json!({"model": "m", "messages": []}))).await;

    assert_eq!((reply.status, reply.body), (422, body));
});

both_stores!(a_missing_model_and_an_unreachable_server_return_errors, async |database: Database| {
    let mut upstream = Upstream::start().await;
    upstream.url = "http://127.0.0.1:9/v1".to_owned();
    let server = Server::with(&database, &upstream, &[("UPSTREAM_RETRIES", "0")]).await;

    let complaint = server.client.post_rejected("/v1/chat/completions", json!({"messages": []})).await;
    let unreachable =
        server.client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"})).send().await;

    assert_eq!(complaint, "Missing required parameter: 'model'.");
    let reply = Client::read(unreachable.unwrap()).await;
    assert_eq!((reply.status, &reply.body["error"]["type"]), (502, &json!("server_error")));
});

both_stores!(embeddings_are_forwarded_with_the_same_routing, async |database: Database| {
    let reply = json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "model": "nomic", "usage": {"prompt_tokens": 2, "total_tokens": 2}});
    let upstream =
        Upstream::scripted([Answer::Status(200, vec![], reply.clone()), Answer::Status(200, vec![], reply.clone())])
            .await;
    let server = Server::with(&database, &upstream, &[("MODEL_ALIASES", "text-embedding-3-small=nomic")]).await;
    let body = json!({"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 3});

    let embedded = server.client.post("/v1/embeddings", body).await;
    let azure = "/openai/deployments/text-embedding-3-small/embeddings?api-version=2024-05-01-preview";
    server.client.post(azure, json!({"input": "a"})).await;

    assert_eq!(embedded, reply);
    let requests = upstream.requests();
    assert_eq!(requests[0], json!({"model": "nomic", "input": ["a", "b"], "dimensions": 3}));
    assert_eq!(requests[1], json!({"input": "a", "model": "nomic"}));
    assert_eq!(
        server.client.post_rejected("/v1/embeddings", json!({"input": "a"})).await,
        "Missing required parameter: 'model'."
    );
});

#[tokio::test]
async fn a_forwarded_request_is_retried_like_a_run() {
    let busy = Answer::Status(503, vec![("retry-after-ms", "1")], json!({"error": {"message": "loading"}}));
    let upstream = Upstream::scripted([busy, Answer::Tokens(vec!["Hello"])]).await;
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;

    let reply = server.client.post("/v1/chat/completions", json!({"model": "m", "messages": []})).await;

    assert_eq!((&reply["choices"][0]["message"]["content"], upstream.requests().len()), (&json!("Hello"), 2));
}

#[tokio::test]
async fn a_forwarded_stream_that_stalls_or_breaks_ends_with_an_error() {
    let upstream = Upstream::scripted([Answer::Pause(vec!["Hm"]), Answer::Disconnect(vec!["Hm"])]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("UPSTREAM_IDLE_TIMEOUT_S", "1")]).await;

    for expected in ["sent nothing more for 1 s", "closed the connection during its answer"] {
        let body = json!({"model": "m", "messages": [], "stream": true});
        let stream = server.client.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        let text = stream.text().await.unwrap();
        let last = text.trim_end().rsplit("\n\n").nth(1).unwrap();
        assert!(last.contains("\"error\"") && last.contains(expected), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}

#[tokio::test]
async fn a_forwarded_stream_ends_with_done_though_the_connection_stays_open() {
    let upstream = Upstream::scripted([Answer::Hang("data: {\"choices\":[]}\n\ndata: [DONE]\n\n")]).await;
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;
    let body = json!({"model": "m", "messages": [], "stream": true});

    let stream = server.client.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();

    assert_eq!(stream.text().await.unwrap(), "data: {\"choices\":[]}\n\ndata: [DONE]\n\n");
    upstream.wait_for_disconnect().await;
}

#[tokio::test]
async fn the_end_of_a_forwarded_stream_is_judged_like_that_of_a_run() {
    let half = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";
    let finish = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let whole: &'static str = format!("{half}{finish}").leak();
    let upstream = Upstream::scripted([
        Answer::Raw(half),
        Answer::Hang(whole),
        Answer::Body("application/json", format!("{whole}data: [DONE]\n\n")),
    ])
    .await;
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;
    let body = json!({"model": "m", "messages": [], "stream": true});
    let forwarded = async || {
        let stream = server.client.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        stream.text().await.unwrap()
    };

    let broken = forwarded().await;
    assert!(broken.starts_with(half) && broken.contains("closed the connection during its answer"), "{broken}");
    assert_eq!(forwarded().await, whole, "the connection stays open after the finish reason");
    assert_eq!(forwarded().await, format!("{whole}data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_key_in_a_forwarded_answer_is_masked() {
    let text = "{\"error\":{\"message\":\"bad key sk-secret\"}}";
    let upstream = Upstream::scripted([Answer::Body("application/json", text.to_owned())]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("UPSTREAM_API_KEY", "sk-secret")]).await;

    let reply =
        server.client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"})).send().await.unwrap();

    assert_eq!(reply.text().await.unwrap(), text.replace("sk-secret", "***"));
}

#[tokio::test]
async fn the_last_rate_limit_of_a_forwarded_request_says_when_to_retry() {
    let busy = || Answer::Status(429, vec![("retry-after", "0")], json!({"error": {"message": "slow down"}}));
    let upstream = Upstream::scripted([busy(), busy()]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("UPSTREAM_RETRIES", "1")]).await;

    let reply =
        server.client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"})).send().await.unwrap();

    assert_eq!((reply.status().as_u16(), reply.headers()["retry-after"].to_str().unwrap()), (429, "0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_request_without_an_answer_is_rejected_when_the_server_stops() {
    let upstream = Upstream::scripted([Answer::Held(Box::new(Answer::Tokens(vec!["Hello"])))]).await;
    let database = Database::sqlite();
    let server = Server::with(&database, &upstream, &[("SHUTDOWN_GRACE_S", "0")]).await;
    let request = server.client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"})).send();
    let request = tokio::spawn(request);
    upstream.wait_for_requests(1).await;

    let (reply, ()) = tokio::join!(request, server.stop());

    assert_eq!(reply.unwrap().unwrap().status().as_u16(), 503);
}

#[tokio::test]
async fn the_echo_model_answers_chat_completions() {
    use assistd::llm::{ChatModel as _, Echo, Endpoint};
    use futures_util::StreamExt as _;
    let mut members = serde_json::Map::new();
    members.insert("messages".into(), json!([{"role": "user", "content": "Hi"}]));

    let proxied = Echo.proxy(Endpoint::ChatCompletions, members.clone()).await.unwrap();
    let bytes: Vec<_> = proxied.body.map(|bytes| bytes.unwrap()).collect().await;
    let whole: serde_json::Value = serde_json::from_slice(&bytes.concat()).unwrap();
    assert!(whole["choices"][0]["message"]["content"].as_str().unwrap().ends_with("You said: Hi"));

    let embeddings = Echo.proxy(Endpoint::Embeddings, members.clone()).await.unwrap();
    assert_eq!(embeddings.status, 404);
    members.insert("stream".into(), json!(true));
    let proxied = Echo.proxy(Endpoint::ChatCompletions, members).await.unwrap();
    let bytes: Vec<_> = proxied.body.map(|bytes| bytes.unwrap()).collect().await;
    assert!(String::from_utf8(bytes.concat()).unwrap().ends_with("data: [DONE]\n\n"));
}
