//! The limits of projects, for all servers together.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::{Client, Reply};
use crate::support::database::Database;
use crate::support::projects::{ADMIN_KEY, administer};
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

/// Sends concurrent requests to the servers in turn; returns how many were accepted, and an error of a rejected one.
async fn accepted(servers: &[Server], count: usize) -> (usize, Option<serde_json::Value>) {
    let requests = (0..count).map(|number| {
        let client = servers[number % servers.len()].client.clone();
        tokio::spawn(async move {
            let response = client.request(Method::GET, "/v1/assistants").send().await.unwrap();
            Client::read(response).await
        })
    });
    let replies = futures_util::future::join_all(requests).await;
    let mut accepted = 0;
    let mut rejected = None;
    for reply in replies {
        let reply = reply.unwrap();
        match reply.status {
            200 => accepted += 1,
            429 => {
                assert!(reply.headers.contains_key("retry-after"), "{:?}", reply.headers);
                assert_eq!(reply.headers["x-ratelimit-remaining-requests"], "0");
                rejected = Some(reply.body["error"].clone());
            }
            status => panic!("{status}: {}", reply.body),
        }
    }
    (accepted, rejected)
}

both_stores!(servers_share_the_requests_per_minute_of_a_project, async |database: Database| {
    let upstream = Upstream::start().await;
    // Only Postgres can have several servers.
    let count = if database.url.starts_with("postgres") { 3 } else { 1 };
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::with_manual_clock(&database, &upstream, &[("REQUESTS_PER_MINUTE", "40")]).await);
    }

    let (first, rejected) = accepted(&servers, 120).await;
    assert!((40 - 2 * count..=40).contains(&first), "{first} of 40 requests were accepted");
    let error = rejected.unwrap();
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    let (second, _) = accepted(&servers, 60).await;
    assert!(first + second <= 40, "{first} and {second} requests were accepted in one minute");

    for server in &servers {
        server.clock.advance(61);
    }
    let (third, _) = accepted(&servers, 60).await;
    assert!((40 - 2 * count..=40).contains(&third), "{third} of 40 requests were accepted in the next minute");
});

both_stores!(concurrent_runs_of_a_project_are_limited, async |database: Database| {
    let upstream = Upstream::scripted((0..2).map(|_| Answer::Held(Box::new(Answer::Tokens(vec!["Hello"]))))).await;
    let server = Server::with(&database, &upstream, &[("ACTIVE_RUNS_MAX", "2")]).await;
    let assistant = server.client.create_assistant().await;
    let create = async || {
        let body = json!({"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}]}});
        server.client.send(Method::POST, "/v1/threads/runs", Some(&body)).await
    };

    let replies = futures_util::future::join_all((0..8).map(|_| create())).await;

    let (created, rejected): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
    assert_eq!(created.len(), 2);
    for reply in &rejected {
        assert_eq!((reply.status, &reply.body["error"]["code"]), (429, &json!("rate_limit_exceeded")));
        assert!(reply.body["error"]["message"].as_str().unwrap().contains("active runs"), "{}", reply.body);
        assert_eq!(reply.headers["retry-after"], "1");
    }
    upstream.wait_for_requests(2).await;
    upstream.resume();
    upstream.resume();
    for run in created {
        let path = format!(
            "/v1/threads/{}/runs/{}",
            run.body["thread_id"].as_str().unwrap(),
            run.body["id"].as_str().unwrap()
        );
        server.client.wait_for_status(&path, "completed").await;
    }
    assert_eq!(create().await.status, 200, "a run that has ended does not count");
});

/// Creates a thread and a run on it; returns the response.
async fn create_run(client: &Client, assistant: &str) -> Reply {
    let body = json!({"assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}]}});
    client.send(Method::POST, "/v1/threads/runs", Some(&body)).await
}

/// Waits until a run has ended; returns it.
async fn ended(client: &Client, run: &Value) -> Value {
    let path = format!("/v1/threads/{}/runs/{}", run["thread_id"].as_str().unwrap(), run["id"].as_str().unwrap());
    loop {
        let run = client.get(&path).await;
        if ["completed", "failed"].contains(&run["status"].as_str().unwrap()) {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

both_stores!(
    concurrent_runs_on_all_servers_exceed_a_limit_of_tokens_by_at_most_one_turn,
    async |database: Database| {
        let upstream = Upstream::start().await;
        let count = if database.url.starts_with("postgres") { 3 } else { 1 };
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(Server::with(&database, &upstream, &[("TOKENS_PER_DAY", "100")]).await);
        }
        let assistant = servers[0].client.create_assistant().await;

        let (mut used, mut completed, mut failed, mut rejected) = (0, 0, 0, 0);
        // The model server reports 8 tokens for each answer.
        for _ in 0..4 {
            let creations = (0..9).map(|number| create_run(&servers[number % count].client, &assistant));
            for (number, reply) in futures_util::future::join_all(creations).await.into_iter().enumerate() {
                if reply.status == 429 {
                    assert_eq!(reply.body["error"]["code"], "insufficient_quota", "{}", reply.body);
                    assert_eq!(reply.body["error"]["type"], "insufficient_quota");
                    assert!(
                        reply.body["error"]["message"].as_str().unwrap().contains("Limit 100, Used 104"),
                        "{}",
                        reply.body
                    );
                    assert!(reply.headers.contains_key("retry-after"));
                    rejected += 1;
                    continue;
                }
                let run = ended(&servers[number % count].client, &reply.body).await;
                used += run["usage"]["total_tokens"].as_u64().unwrap();
                if run["status"] == "completed" {
                    completed += 1;
                } else {
                    assert_eq!(run["last_error"]["code"], "rate_limit_exceeded", "{run:#}");
                    assert!(run["last_error"]["message"].as_str().unwrap().contains("tokens per day"), "{run:#}");
                    failed += 1;
                }
            }
        }

        assert_eq!((used, completed), (104, 13), "{failed} runs failed, and {rejected} were rejected");
        assert_eq!(completed + failed + rejected, 36);
        assert_eq!(upstream.requests().len(), 13, "no call is made above the limit");
    }
);

both_stores!(a_run_that_meets_its_limit_between_two_turns_fails_and_names_it, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Calls(vec![], vec![("f", "{}")])]).await;
    let server = Server::with(&database, &upstream, &[("TOKENS_PER_MINUTE", "5")]).await;
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let assistant = server.client.post("/v1/assistants", json!({"model": "m", "tools": [tool]})).await;
    let run = create_run(&server.client, assistant["id"].as_str().unwrap()).await.body;
    let path = format!("/v1/threads/{}/runs/{}", run["thread_id"].as_str().unwrap(), run["id"].as_str().unwrap());
    let waiting = server.client.wait_for_status(&path, "requires_action").await;
    let call = &waiting["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"];

    let outputs = json!({"tool_outputs": [{"tool_call_id": call, "output": "x"}]});
    server.client.post(&format!("{path}/submit_tool_outputs"), outputs).await;

    let failed = ended(&server.client, &run).await;
    assert_eq!(failed["last_error"]["code"], "rate_limit_exceeded");
    let message = failed["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("tokens per min (TPM) of the project: Limit 5, Used 30"), "{message}");
    let (status, error) = server
        .client
        .send_rejected(
            Method::POST,
            "/v1/threads/runs",
            Some(json!({
                "assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "Hi"}]}
            })),
        )
        .await;
    assert_eq!((status, &error["type"], &error["code"]), (429, &json!("tokens"), &json!("rate_limit_exceeded")));
});

both_stores!(forwarded_requests_count_towards_the_limits_of_tokens, async |database: Database| {
    let upstream = Upstream::start().await;
    let server = Server::with(&database, &upstream, &[("TOKENS_PER_DAY", "20")]).await;
    let send = async || {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true});
        let request = server.client.request(Method::POST, "/v1/chat/completions").json(&body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap())
    };

    // The model server reports 8 tokens for each answer.
    let replies = futures_util::future::join_all((0..9).map(|_| send())).await;

    let accepted = replies.iter().filter(|(status, _)| *status == 200).count();
    let (_, rejected) = replies.iter().find(|(status, _)| *status == 429).expect("the limit is reached");
    assert!(rejected.contains("insufficient_quota") && rejected.contains("Limit 20, Used 24"), "{rejected}");
    assert_eq!((accepted, upstream.requests().len()), (3, 3));
    let assistant = server.client.create_assistant().await;
    assert_eq!(create_run(&server.client, &assistant).await.status, 429, "runs share the limit");
});

both_stores!(calls_that_are_larger_than_earlier_ones_exceed_a_limit_by_at_most_one, async |database: Database| {
    let large = r#"data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":900,"completion_tokens":100,"total_tokens":1000}}

data: [DONE]

"#;
    let answers = std::iter::once(Answer::Tokens(vec!["Hello"])).chain((0..40).map(|_| Answer::Raw(large)));
    let upstream = Upstream::scripted(answers).await;
    let server = Server::with(&database, &upstream, &[("TOKENS_PER_DAY", "3000")]).await;
    let assistant = server.client.create_assistant().await;
    ended(&server.client, &create_run(&server.client, &assistant).await.body).await;

    let creations = (0..12).map(|_| create_run(&server.client, &assistant));
    for reply in futures_util::future::join_all(creations).await {
        if reply.status == 200 {
            ended(&server.client, &reply.body).await;
        }
    }

    assert_eq!(upstream.requests().len(), 4, "a call of 8 tokens, and 3 calls of 1,000");
});

both_stores!(a_deleted_run_releases_its_tokens_and_is_counted, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Pause(vec!["one ", "two "])]).await;
    let server = Server::with(&database, &upstream, &[("TOKENS_PER_DAY", "1000")]).await;
    let assistant = server.client.create_assistant().await;
    let run = create_run(&server.client, &assistant).await.body;
    let thread = format!("/v1/threads/{}", run["thread_id"].as_str().unwrap());
    while server.client.get(&format!("{thread}/messages?run_id={}", run["id"].as_str().unwrap())).await["data"]
        .as_array()
        .unwrap()
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    server.client.delete(&thread).await;

    let next = create_run(&server.client, &assistant).await.body;
    assert_eq!(ended(&server.client, &next).await["status"], "completed", "it does not wait for the deleted run");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - 60;
    let used = server.client.get(&format!("/v1/usage?start_time={now}&bucket_width=1d")).await;
    let requests: u64 = used["data"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|bucket| bucket["results"].as_array().unwrap())
        .map(|result| result["num_model_requests"].as_u64().unwrap())
        .sum();
    assert_eq!(requests, 2, "{used:#}");
});

both_stores!(an_administrator_can_raise_a_limit_that_is_reached, async |database: Database| {
    let settings = [("REQUESTS_PER_MINUTE", "1"), ("API_KEYS", "sk-member"), ("ADMIN_KEYS", ADMIN_KEY)];
    let server = Server::with(&database, &Upstream::start().await, &settings).await;
    let send = async || {
        let request = server.client.request(Method::GET, "/v1/assistants").bearer_auth("sk-member");
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((send().await, send().await), (200, 429));

    let limit = "/v1/organization/projects/proj_default/rate_limits/rl_all";
    for number in [2, 3] {
        let body = json!({"max_requests_per_1_minute": number});
        assert_eq!(administer(&server.client, Method::POST, limit, Some(&body)).await.status, 200);
    }

    assert_eq!((send().await, send().await, send().await), (200, 200, 429), "one request was counted before");
});
