//! The API description: it matches the served routes.

use std::collections::{BTreeSet, HashSet};

use reqwest::Method;
use serde_json::Value;

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::Upstream;

const METHODS: [&str; 5] = ["get", "post", "delete", "put", "patch"];

/// Collects the references in a document.
fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(target) if name == "$ref" => vec![target.as_str()],
                value => references(value),
            })
            .collect(),
        Value::Array(elements) => elements.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_description_lists_exactly_the_served_routes() {
    let database = Database::sqlite();
    let server = Server::start(&database, &Upstream::start().await).await;
    let description = server.client.send(Method::GET, "/openapi.json", None).await;
    assert_eq!(description.headers["content-type"], "application/json");
    let paths = description.body["paths"].as_object().unwrap();

    let described: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone())))
        .collect();
    let served: BTreeSet<(String, String)> = assistd::http::operations()
        .into_iter()
        .map(|operation| (operation.path, operation.method.to_owned()))
        .collect();
    assert_eq!(described, served);

    // The server serves exactly these methods of each path.
    for path in paths.keys() {
        let filled: String = path
            .split('/')
            .map(|part| match part {
                "{assistant_id}" => "asst_x",
                "{thread_id}" => "thread_x",
                "{message_id}" => "msg_x",
                "{run_id}" => "run_x",
                "{step_id}" => "step_x",
                "{project_id}" => "proj_x",
                "{service_account_id}" => "svc_acct_x",
                "{api_key_id}" => "key_x",
                "{rate_limit_id}" => "rl_x",
                "{file_id}" => "file-x",
                "{upload_id}" => "upload_x",
                "{vector_store_id}" => "vs_x",
                "{batch_id}" => "vsfb_x",
                "{model}" => "model",
                literal => literal,
            })
            .collect::<Vec<_>>()
            .join("/");
        for method in METHODS {
            let request = server.client.request(method.to_uppercase().parse().unwrap(), &filled);
            let is_served = request.send().await.unwrap().status().as_u16() != 405;
            assert_eq!(is_served, described.contains(&(path.clone(), method.to_owned())), "{method} {path}");
        }
    }
}

#[test]
fn the_api_description_has_no_dangling_references_or_duplicate_ids() {
    let description = assistd::http::description();

    let schemas = &description["components"]["schemas"];
    for reference in references(&description) {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas.get(name).is_some(), "{reference}");
    }
    let operations = assistd::http::operations();
    let ids: HashSet<&str> = operations.iter().map(|operation| operation.id).collect();
    assert_eq!(ids.len(), operations.len(), "operation IDs are unique");
}
