//! The limits of projects, for all servers together.

use reqwest::Method;
use serde_json::json;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
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
        server.clock.advance(60);
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
