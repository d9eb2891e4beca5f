//! Model servers: routing by model name, retries, and the handling of their errors.

use std::sync::Arc;

use assistd::llm::{Found, NotFound};
use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Runs an assistant with this model; returns the run when it has ended.
async fn finished_run(server: &Server, model: &str) -> Value {
    let client = &server.client;
    let assistant = client.post("/v1/assistants", json!({"model": model})).await["id"].as_str().unwrap().to_owned();
    let run = client.create_run(&assistant, &client.create_thread("Hi").await).await;
    loop {
        let now = client.get(&run).await;
        if !["queued", "in_progress"].contains(&now["status"].as_str().unwrap()) {
            return now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

both_stores!(a_rate_limited_request_is_retried_after_the_requested_delay, async |database: Database| {
    let busy = Answer::Status(429, vec![("retry-after-ms", "1")], json!({"error": {"message": "slow down"}}));
    let upstream = Upstream::scripted([busy]).await;
    let server = Server::start(&database, &upstream).await;

    assert_eq!(finished_run(&server, "m").await["status"], "completed");
    assert_eq!(upstream.requests().len(), 2);
});

both_stores!(a_run_fails_as_rate_limited_when_retries_are_exhausted, async |database: Database| {
    let busy = || Answer::Status(429, vec![("retry-after-ms", "1")], json!({"error": {"message": "slow down"}}));
    let upstream = Upstream::scripted([busy(), busy()]).await;
    let server = Server::start(&database, &upstream).await;

    let run = finished_run(&server, "m").await;

    assert_eq!((&run["status"], &run["last_error"]["code"]), (&json!("failed"), &json!("rate_limit_exceeded")));
    assert!(run["last_error"]["message"].as_str().unwrap().ends_with("answered 429: slow down"), "{run:#}");
    assert!(run["failed_at"].is_i64());
});

both_stores!(a_bad_request_error_is_not_retried, async |database: Database| {
    let upstream =
        Upstream::scripted([Answer::Status(400, vec![], json!({"error": {"message": "no such model"}}))]).await;
    let server = Server::start(&database, &upstream).await;

    let run = finished_run(&server, "m").await;

    assert_eq!(run["last_error"]["code"], "server_error");
    assert!(run["last_error"]["message"].as_str().unwrap().ends_with("answered 400: no such model"));
    assert_eq!(upstream.requests().len(), 1);
});

both_stores!(a_stream_that_has_started_is_not_retried, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Disconnect(vec!["Hal"])]).await;
    let server = Server::start(&database, &upstream).await;

    assert_eq!(finished_run(&server, "m").await["status"], "failed");
    assert_eq!(upstream.requests().len(), 1);
});

both_stores!(an_unreachable_model_server_is_named_with_a_hint, async |database: Database| {
    let mut upstream = Upstream::start().await;
    // A port on which nothing listens.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    upstream.url = format!("http://{gone}/v1");
    let server = Server::start(&database, &upstream).await;

    let run = finished_run(&server, "m").await;

    let message = run["last_error"]["message"].as_str().unwrap();
    assert!(message.starts_with("Sorry, something went wrong. The model server cannot be reached"), "{message}");
    assert!(message.contains("Check that it runs"), "{message}");
    assert!(!message.contains(&gone.port().to_string()), "clients do not see the address: {message}");
});

both_stores!(malformed_and_stalled_streams_fail_the_run, async |database: Database| {
    let upstream = Upstream::scripted([
        Answer::Raw("data: {not json\n\n"),
        Answer::Raw("data: {\"error\": {\"message\": \"out of memory\"}}\n\n"),
        Answer::Raw("data: {\"choices\": []}\n\n"),
        Answer::Pause(vec!["Hm"]),
    ])
    .await;
    let server = Server::with(&database, &upstream, &[("UPSTREAM_IDLE_TIMEOUT_S", "1")]).await;

    for expected in ["not a completion chunk", "out of memory", "sent no answer", "sent nothing more for 1 s"] {
        let run = finished_run(&server, "m").await;
        let message = run["last_error"]["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
        assert_eq!((&run["status"], &run["last_error"]["code"]), (&json!("failed"), &json!("server_error")));
    }
});

both_stores!(a_reply_that_is_not_streamed_is_accepted, async |database: Database| {
    let body = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}});
    let upstream = Upstream::scripted([Answer::Status(200, vec![], body)]).await;
    let server = Server::start(&database, &upstream).await;

    let run = finished_run(&server, "m").await;

    assert_eq!((&run["status"], &run["usage"]["total_tokens"]), (&json!("completed"), &json!(3)));
});

both_stores!(model_names_are_mapped_by_the_settings, async |database: Database| {
    let upstream = Upstream::start().await;
    let settings = [("MODEL_ALIASES", "gpt-4o=small"), ("DEFAULT_MODEL", "org/large")];
    let server = Server::with(&database, &upstream, &settings).await;

    for name in ["gpt-4o", "small", "unheard-of"] {
        assert_eq!(finished_run(&server, name).await["model"], name, "the run shows the requested model name");
    }

    let requested: Vec<Value> = upstream.requests().into_iter().map(|request| request["model"].clone()).collect();
    assert_eq!(requested, [json!("small"), json!("small"), json!("org/large")]);
});

both_stores!(models_are_listed_with_the_configured_aliases, async |database: Database| {
    let server = Server::with(&database, &Upstream::start().await, &[("MODEL_ALIASES", "gpt-4o=small")]).await;
    let client = &server.client;

    let list = client.get("/v1/models").await;

    let names: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, [&json!("small"), &json!("org/large"), &json!("gpt-4o")]);
    assert_eq!(
        client.get("/v1/models/org/large").await,
        json!({"id": "org/large", "object": "model", "created": 2, "owned_by": "us"})
    );
    let (status, error) = client.send_rejected(Method::GET, "/v1/models/fake_id", None).await;
    assert_eq!((status, &error["message"]), (404, &json!("The model 'fake_id' does not exist")));
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
});

#[tokio::test]
async fn discovery_selects_the_first_server_that_lists_a_model() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let settings = assistd::config::Settings::load(None, std::iter::empty()).unwrap().llm();
    let unreachable = ("unreachable", "http://127.0.0.1:9/v1");
    let candidates = [unreachable, ("first", first.url.as_str()), ("second", second.url.as_str())];

    let Found { name, model, .. } = assistd::llm::find(&settings, &Arc::default(), &candidates).await.unwrap();

    assert_eq!((name, model.as_str()), ("first", "small"));
    let not_found = async |candidates: &[(&'static str, &str)]| {
        assistd::llm::find(&settings, &Arc::default(), candidates).await.unwrap_err()
    };
    assert_eq!(not_found(&[unreachable]).await, NotFound::Server);
    first.set_models(json!([{"id": "nomic-embed-text:latest"}]));
    let text = not_found(&[unreachable, ("Ollama", first.url.as_str())]).await.to_string();
    assert_eq!(text, "Ollama, found on this machine, has no chat model (run `ollama pull qwen3:8b` and start again)");
}

both_stores!(the_first_chat_model_answers_for_names_that_its_server_does_not_list, async |database: Database| {
    let upstream = Upstream::start().await;
    upstream.set_models(json!([{"id": "bge-m3"}, {"id": "qwen3:latest"}, {"id": "other"}]));
    let server = Server::with(&database, &upstream, &[("MODEL_ALIASES", "mine=unlisted")]).await;

    for name in ["gpt-4o", "other", "qwen3", "mine", "bge-m3"] {
        assert_eq!(finished_run(&server, name).await["model"], name);
    }
    let body = json!({"model": "text-embedding-3-small", "input": "Hi"});
    server.client.request(Method::POST, "/v1/embeddings").json(&body).send().await.unwrap();

    let requested: Vec<Value> = upstream.requests().into_iter().map(|request| request["model"].clone()).collect();
    assert_eq!(requested, ["qwen3:latest", "other", "qwen3", "unlisted", "bge-m3", "text-embedding-3-small"]);
});

both_stores!(requests_are_routed_by_model_name, async |database: Database| {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    first.set_models(json!([{"id": "small"}, {"id": "plain"}]));
    second.set_models(json!([{"id": "plain"}, {"id": "listed"}]));
    let folder = crate::support::database::Folder::new();
    let file = folder.0.join("assistd.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndatabase_url = \"{}\"\nupstream_url = \"{}\"\n\
         [[upstreams]]\nurl = \"{}\"\napi_key = \"sk-second\"\nmodels = [\"special\"]\n",
        database.url, first.url, second.url
    );
    std::fs::write(&file, text).unwrap();
    let settings = assistd::config::Settings::load(Some(&file), std::iter::empty()).unwrap();
    let clock = std::sync::Arc::new(assistd::clock::Clock::system());
    let server = assistd::server::Server::start(&settings, clock).await.unwrap();
    let client = crate::support::client::Client::new(server.address);

    for model in ["special", "plain", "listed"] {
        let assistant = client.post("/v1/assistants", json!({"model": model})).await["id"].as_str().unwrap().to_owned();
        let run = client.create_run(&assistant, &client.create_thread("Hi").await).await;
        client.wait_for_status(&run, "completed").await;
    }

    assert_eq!(first.requests()[0]["model"], "plain");
    assert_eq!(second.requests()[0]["model"], "special");
    assert_eq!(second.requests()[1]["model"], "listed");
    assert_eq!((first.keys()[0].as_deref(), second.keys()[0].as_deref()), (None, Some("Bearer sk-second")));
});

both_stores!(parameters_that_a_server_rejects_are_omitted_on_retry, async |database: Database| {
    let bad_request = |message: &str| Answer::Status(400, vec![], json!({"error": {"message": message}}));
    let upstream = Upstream::scripted([
        bad_request("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."),
        bad_request("stream_options: Extra inputs are not permitted"),
        Answer::Tokens(vec!["Hello"]),
        Answer::Tokens(vec!["Hello"]),
        bad_request("max_completion_tokens is too large"),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let assistant = client.create_assistant().await;
    let run = async || {
        let runs = format!("/v1/threads/{}/runs", client.create_thread("Hi").await);
        let run = client.post(&runs, json!({"assistant_id": assistant, "max_completion_tokens": 500})).await;
        format!("{runs}/{}", run["id"].as_str().unwrap())
    };

    client.wait_for_status(&run().await, "completed").await;
    client.wait_for_status(&run().await, "completed").await;
    let failed = client.wait_for_status(&run().await, "failed").await;

    let sent = |request: &Value| {
        ["max_tokens", "max_completion_tokens", "stream_options"].map(|member| request.get(member).is_some())
    };
    let requested: Vec<[bool; 3]> = upstream.requests().iter().map(sent).collect();
    let learned = [false, true, false];
    assert_eq!(requested, [[true; 3], [false, true, true], learned, learned, learned]);
    assert!(
        failed["last_error"]["message"].as_str().unwrap().contains("too large"),
        "the token limit is never omitted"
    );
});

#[tokio::test]
async fn invalid_entries_and_members_in_a_list_of_models_are_ignored() {
    let upstream = Upstream::start().await;
    upstream.set_models(json!([
        {"id": "a", "created": null, "context_length": "8192"},
        {"object": "model", "created": 1},
        {"id": "b", "created": 1.5e9, "owned_by": []},
        null,
    ]));
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;

    let list = server.client.get("/v1/models").await;

    let listed: Vec<(&str, i64)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["id"].as_str().unwrap(), model["created"].as_i64().unwrap()))
        .collect();
    assert_eq!(listed, [("a", 0), ("b", 1_500_000_000)]);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Upstream::start().await;
    let location: &'static str = format!("{}/chat/completions", elsewhere.url).leak();
    let redirect = || Answer::Status(307, vec![("location", location)], json!({}));
    let upstream = Upstream::scripted([redirect(), redirect()]).await;
    let database = Database::sqlite();
    let server = Server::start(&database, &upstream).await;

    let run = finished_run(&server, "m").await;
    let proxied = server.client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"}));
    let proxied = crate::support::client::Client::read(proxied.send().await.unwrap()).await;

    let message = run["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("answered 307: a redirect, which is not followed"), "{message}");
    assert_eq!((proxied.status, elsewhere.requests().len()), (502, 0));
}

#[tokio::test]
async fn a_server_is_named_in_errors_and_its_key_and_address_are_masked() {
    let upstream = Upstream::start().await;
    let address = upstream.url.trim_start_matches("http://").trim_end_matches("/v1").to_owned();
    let text: &'static str = format!("the key sk-secret is unknown at {}", upstream.url).leak();
    let body = || Answer::Status(401, vec![], json!({"error": {"message": text}}));
    let scripted = Upstream::scripted([body(), body()]).await;
    let folder = crate::support::database::Folder::new();
    let file = folder.0.join("assistd.toml");
    let url = scripted.url.replace("http://", "http://user:pa55@");
    let settings = format!(
        "listen = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n[[upstreams]]\nname = \"gpu\"\nurl = \"{url}\"\napi_key = \"sk-secret\"\n",
        folder.0.display()
    );
    std::fs::write(&file, settings).unwrap();
    let settings = assistd::config::Settings::load(Some(&file), std::iter::empty()).unwrap();
    let clock = std::sync::Arc::new(assistd::clock::Clock::system());
    let server = assistd::server::Server::start(&settings, clock).await.unwrap();
    let client = crate::support::client::Client::new(server.address);

    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    let failed = client.wait_for_status(&run, "failed").await;
    let proxied =
        client.request(Method::POST, "/v1/chat/completions").json(&json!({"model": "m"})).send().await.unwrap();

    let message = failed["last_error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("The model server \"gpu\" answered 401: the key *** is unknown"), "{message}");
    let proxied = proxied.text().await.unwrap();
    assert!(proxied.contains("the key *** is unknown"), "{proxied}");
    for shown in [message, proxied, format!("{settings:?}"), format!("{server:?}"), settings.masked().unwrap()] {
        assert!(!shown.contains("sk-secret") && !shown.contains("pa55"), "{shown}");
    }
    assert!(!format!("{server:?}").contains(&address));
}
