//! List endpoints: pagination parameters and cursors, over HTTP.

use reqwest::Method;
use serde_json::{Value, json};

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

both_stores!(an_empty_list_has_null_first_and_last_ids, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let thread = server.client.post("/v1/threads", json!({})).await["id"].as_str().unwrap().to_owned();

    for path in
        ["/v1/assistants".to_owned(), format!("/v1/threads/{thread}/messages"), format!("/v1/threads/{thread}/runs")]
    {
        let list = server.client.get(&format!("{path}?limit=&order=&after=&before=&run_id=")).await;
        let expected = json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false});
        assert_eq!(list, expected, "{path}");
    }
});

both_stores!(invalid_limits_orders_and_cursors_are_rejected, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    let rejected = async |query: &str| {
        let (status, error) = server.client.send_rejected(Method::GET, &format!("/v1/assistants?{query}"), None).await;
        (status, error["message"].as_str().unwrap().to_owned(), error["param"].clone())
    };

    let (status, message, param) = rejected("limit=101").await;
    assert_eq!((status, param), (400, json!("limit")));
    assert_eq!(message, "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.");
    assert_eq!(rejected("limit=0").await.0, 400);
    assert_eq!(rejected("limit=ten").await.0, 400);
    assert_eq!(rejected("order=up").await.1, "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.");
    assert_eq!(rejected("after=asst_x").await.1, "No assistant found with id 'asst_x'.");
});

both_stores!(paging_through_a_list_returns_each_element_once, async |database: Database| {
    let server = Server::start(&database, &Upstream::start().await).await;
    for number in 0..25 {
        server.client.post("/v1/assistants", json!({"model": "m", "name": number.to_string()})).await;
    }

    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let page = server.client.get(&format!("/v1/assistants?limit=10{after}")).await;
        names.extend(
            page["data"].as_array().unwrap().iter().map(|element| element["name"].as_str().unwrap().to_owned()),
        );
        if page["has_more"] == Value::Bool(false) {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }

    let expected: Vec<String> = (0..25).rev().map(|number| number.to_string()).collect();
    assert_eq!(names, expected);
});
