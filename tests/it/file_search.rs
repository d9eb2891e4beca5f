//! The file search in runs: the model searches, reads passages, and cites them.

use serde_json::{Value, json};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::form::Form;
use crate::support::server::Server;
use crate::support::sse::{Event, RUN_STARTED, names, text};
use crate::support::upstream::{Answer, Upstream};

const FOODS: &str = "The favorite food of several people:\n- Summanus Ferdinand: tacos\n- Tekakwitha Effie: pizza\n- Filip \
                     Carola: cake";
const SEARCH_STARTED: [&str; 3] = ["run.step.created", "run.step.in_progress", "run.step.delta"];
const TEXT_STARTED: [&str; 4] = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress"];
const RUN_COMPLETED: [&str; 4] = ["message.completed", "run.step.completed", "run.completed", "done"];
const WITH_CONTENT: &str = "include[]=step_details.tool_calls%5B*%5D.file_search.results%5B*%5D.content";

async fn upload(client: &Client, name: &str, text: &str) -> String {
    let form = Form::default().text("purpose", "assistants").file("file", name, text.as_bytes());
    let reply = form.send(client, "/v1/files").await;
    assert_eq!(reply.status, 200, "{:#}", reply.body);
    reply.body["id"].as_str().unwrap().to_owned()
}

/// Creates a vector store with these files, and waits until they are processed.
async fn vector_store(client: &Client, files: &[(&str, &str)]) -> String {
    let mut ids = Vec::new();
    for (name, text) in files {
        ids.push(upload(client, name, text).await);
    }
    let store = client.post("/v1/vector_stores", json!({"file_ids": ids})).await;
    let id = store["id"].as_str().unwrap().to_owned();
    wait_until_processed(client, &id).await;
    id
}

async fn wait_until_processed(client: &Client, store: &str) {
    for _ in 0..3_000 {
        let now = client.get(&format!("/v1/vector_stores/{store}")).await;
        if now["status"] == "completed" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the files of {store} are not processed");
}

/// Creates an assistant that searches these stores, and has these tools as well.
async fn assistant(client: &Client, store: Option<&str>, tools: &[Value]) -> String {
    let mut all = vec![json!({"type": "file_search"})];
    all.extend_from_slice(tools);
    let stores: Vec<&str> = store.into_iter().collect();
    let resources = json!({"file_search": {"vector_store_ids": stores}});
    let body = json!({"model": "m", "tools": all, "tool_resources": resources});
    client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned()
}

/// Creates a streamed run on a new thread; returns its path and its events.
async fn stream_run(client: &Client, assistant: &str, question: &str) -> (String, Vec<Event>) {
    let thread = client.create_thread(question).await;
    let path = format!("/v1/threads/{thread}/runs?{WITH_CONTENT}");
    let events = client.stream(&path, json!({"assistant_id": assistant, "stream": true})).await;
    (format!("/v1/threads/{thread}/runs/{}", events[0].data["id"].as_str().unwrap()), events)
}

async fn newest_text(client: &Client, run: &str) -> Value {
    let thread = run.split("/runs/").next().unwrap();
    client.get(&format!("{thread}/messages")).await["data"][0]["content"][0]["text"].clone()
}

fn search(query: &'static str) -> Answer {
    Answer::Calls(vec![], vec![("file_search", query)])
}

both_stores!(a_run_searches_files_and_cites_them_as_recorded, async |database: Database| {
    let upstream = Upstream::scripted([
        search("{\"query\":\"favorite food of Filip\"}"),
        Answer::Tokens(vec!["Filip", "'s favorite food is cake", "[", "1", "]", "."]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("favorite_foods.txt", FOODS)]).await;
    let assistant = assistant(client, Some(&store), &[]).await;

    let (run, events) = stream_run(client, &assistant, "What is Filip's favorite food?").await;

    let deltas = ["message.delta"; 4];
    assert_eq!(
        names(&events),
        [&RUN_STARTED[..], &SEARCH_STARTED, &["run.step.completed"], &TEXT_STARTED, &deltas, &RUN_COMPLETED].concat()
    );
    let delta = &events[5].data["delta"]["step_details"]["tool_calls"][0];
    assert_eq!((&delta["type"], &delta["file_search"]["results"]), (&json!("file_search"), &json!([])));
    let call = &events[6].data["step_details"]["tool_calls"][0];
    assert_eq!(call["id"], delta["id"]);
    assert_eq!(call["file_search"]["ranking_options"], json!({"ranker": "default_2024_08_21", "score_threshold": 0.0}));
    let result = &call["file_search"]["results"][0];
    let members: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(members, ["file_id", "file_name", "score", "attributes", "content"]);
    assert_eq!(result["content"], json!([{"type": "text", "text": FOODS}]));
    let score = result["score"].as_f64().unwrap();
    assert!(score > 0.0 && score <= 1.0, "{score}");
    assert_eq!(events[6].data["usage"]["total_tokens"], 30);

    let mark = "【4:0†favorite_foods.txt】";
    assert_eq!(text(&events), format!("Filip's favorite food is cake{mark}."));
    let annotation =
        &events.iter().find(|event| event.data["delta"]["content"][0]["text"]["value"] == mark).unwrap().data["delta"]
            ["content"][0]["text"]["annotations"][0];
    assert_eq!(
        annotation,
        &json!({"index": 0, "type": "file_citation", "text": mark, "start_index": 29, "end_index": 53,
            "file_citation": {"file_id": result["file_id"], "quote": FOODS}})
    );
    let stored = newest_text(client, &run).await;
    assert_eq!(stored["annotations"][0]["file_citation"]["file_id"], result["file_id"]);
    assert_eq!(
        (&stored["annotations"][0]["start_index"], &stored["annotations"][0]["index"]),
        (&json!(29), &Value::Null)
    );

    // The text of results is returned only on request.
    let steps = client.get(&format!("{run}/steps?order=asc")).await["data"].clone();
    assert_eq!(steps[0]["step_details"]["tool_calls"][0]["file_search"]["results"][0].get("content"), None);
    let with_content = client.get(&format!("{run}/steps/{}?{WITH_CONTENT}", steps[0]["id"].as_str().unwrap())).await;
    assert_eq!(with_content["step_details"]["tool_calls"][0]["file_search"]["results"][0], *result);
    let (status, error) =
        client.send_rejected(reqwest::Method::GET, &format!("{run}/steps?include[]=everything"), None).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_value")));

    // The model has read numbered passages.
    let requests = upstream.requests();
    assert_eq!(requests[0]["tools"][0]["function"]["name"], "file_search");
    let output = requests[1]["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(output["tool_call_id"], "up_0");
    assert!(output["content"].as_str().unwrap().contains("[1] favorite_foods.txt\nThe favorite food"), "{output}");

    // The marks are not in the prompts of later runs.
    let thread = run.split("/runs/").next().unwrap();
    client.post(&format!("{thread}/messages"), json!({"role": "user", "content": "Sure?"})).await;
    client.stream(&format!("{thread}/runs"), json!({"assistant_id": assistant, "stream": true})).await;
    let messages = upstream.requests()[2]["messages"].clone();
    assert!(messages.to_string().contains("food is cake."), "{messages}");
});

both_stores!(a_run_searches_several_times_and_numbers_go_on, async |database: Database| {
    let two = vec![("file_search", "{\"query\":\"tacos\"}"), ("file_search", "{\"query\":\"kilometres\"}")];
    let upstream = Upstream::scripted([
        Answer::Calls(vec![], two),
        search("{\"query\":\"pizza\"}"),
        Answer::Tokens(vec!["ä [1], [2] and 【3】, not [9]."]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("foods.txt", FOODS), ("ways.txt", "A way of four kilometres.")]).await;
    let assistant = assistant(client, Some(&store), &[]).await;

    let (run, events) = stream_run(client, &assistant, "Where and what?").await;

    let search = |deltas: usize| {
        let mut names = vec!["run.step.created", "run.step.in_progress"];
        names.extend(vec!["run.step.delta"; deltas]);
        names.push("run.step.completed");
        names
    };
    let message = ["message.delta"; 7];
    assert_eq!(
        names(&events),
        [&RUN_STARTED[..], &search(2), &search(1), &TEXT_STARTED, &message, &RUN_COMPLETED].concat()
    );
    let stored = newest_text(client, &run).await;
    assert_eq!(stored["value"], "ä 【4:0†foods.txt】, 【5:0†ways.txt】 and 【6:0†foods.txt】, not [9].");
    let value: Vec<char> = stored["value"].as_str().unwrap().chars().collect();
    for annotation in stored["annotations"].as_array().unwrap() {
        let index = |name: &str| usize::try_from(annotation[name].as_u64().unwrap()).unwrap();
        let range = index("start_index")..index("end_index");
        assert_eq!(value[range].iter().collect::<String>(), annotation["text"]);
    }
    assert_eq!(client.get(&run).await["usage"]["total_tokens"], 68);
});

both_stores!(functions_beside_a_search_are_required_after_it, async |database: Database| {
    let calls = vec![("weather", "{\"in\":\"Rome\"}"), ("file_search", "{\"query\":\"tacos\"}")];
    let upstream = Upstream::scripted([Answer::Calls(vec![], calls), Answer::Tokens(vec!["Sunny", " [1]"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("foods.txt", FOODS)]).await;
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"in": {"type": "string"}}}}});
    let assistant = assistant(client, Some(&store), &[weather]).await;

    let (run, events) = stream_run(client, &assistant, "Weather and food?").await;

    let function =
        ["run.step.created", "run.step.in_progress", "run.step.delta", "run.step.delta", "run.requires_action"];
    assert_eq!(
        names(&events),
        [&RUN_STARTED[..], &SEARCH_STARTED, &["run.step.completed"], &function, &["done"]].concat()
    );
    let stored = client.get(&run).await;
    let required = &stored["required_action"]["submit_tool_outputs"]["tool_calls"];
    assert_eq!((required.as_array().unwrap().len(), &required[0]["function"]["name"]), (1, &json!("weather")));
    let outputs = json!({"tool_outputs": [{"tool_call_id": required[0]["id"], "output": "sun"}], "stream": true});
    let answered = client.stream(&format!("{run}/submit_tool_outputs"), outputs).await;
    assert_eq!(text(&answered), "Sunny 【4:0†foods.txt】");

    // The turn is sent to the model as it was written: both calls in one message, in order.
    let messages = upstream.requests()[1]["messages"].clone();
    let made = messages[1]["tool_calls"].as_array().unwrap();
    assert_eq!(made.iter().map(|call| &call["function"]["name"]).collect::<Vec<_>>(), ["weather", "file_search"]);
    assert_eq!((&messages[2]["tool_call_id"], &messages[2]["content"]), (&json!("up_0"), &json!("sun")));
    assert_eq!(messages[3]["tool_call_id"], "up_1");
    let steps = client.get(&format!("{run}/steps?order=asc")).await["data"].clone();
    let kinds: Vec<&Value> =
        steps.as_array().unwrap().iter().map(|step| &step["step_details"]["tool_calls"][0]["type"]).collect();
    assert_eq!(kinds, [&json!("file_search"), &json!("function"), &Value::Null]);
});

both_stores!(a_search_after_text_is_shown_when_the_message_has_ended, async |database: Database| {
    let calls = vec![("file_search", "{\"query\":\"tacos\"}")];
    let upstream =
        Upstream::scripted([Answer::Calls(vec!["Let me look."], calls), Answer::Tokens(vec!["Tacos [1]"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("foods.txt", FOODS)]).await;
    let assistant = assistant(client, Some(&store), &[]).await;

    let (run, events) = stream_run(client, &assistant, "Food?").await;

    let end = ["message.completed", "run.step.completed"];
    let last = ["run.step.completed", "run.completed", "done"];
    assert_eq!(
        names(&events),
        [&RUN_STARTED[..], &TEXT_STARTED, &["message.delta"; 3], &end, &SEARCH_STARTED, &last].concat()
    );
    assert_eq!(newest_text(client, &run).await["value"], "Let me look.\n\nTacos 【4:0†foods.txt】");
});

both_stores!(a_run_without_files_is_answered_and_unusual_arguments_are_read, async |database: Database| {
    let upstream = Upstream::scripted([
        search("{}"),
        search("not json"),
        Answer::Tokens(vec!["Nothing [1]"]),
        search("{\"queries\":[\"tacos\",\"pizza\"]}"),
        Answer::Tokens(vec!["`a[1]` [Source 1]"]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("foods.txt", FOODS)]).await;

    let without = assistant(client, None, &[]).await;
    let (run, events) = stream_run(client, &without, "Food?").await;
    assert_eq!(text(&events), "Nothing [1]");
    assert_eq!(client.get(&run).await["status"], "completed");

    let with = assistant(client, Some(&store), &[]).await;
    assert_eq!(text(&stream_run(client, &with, "Food?").await.1), "`a[1]` 【4:0†foods.txt】");
});

both_stores!(citations_are_names_or_removed_by_a_setting, async |database: Database| {
    for (style, expected, annotations) in [("names", "Tacos [foods.txt].", 1), ("off", "Tacos.", 0)] {
        let upstream =
            Upstream::scripted([search("{\"query\":\"tacos\"}"), Answer::Tokens(vec!["Tacos [", "1]."])]).await;
        let settings = [("citations", style), ("citation_quotes", "false")];
        let server = Server::with(&database, &upstream, &settings).await;
        let client = &server.client;
        let store = vector_store(client, &[("foods.txt", FOODS)]).await;
        let assistant = assistant(client, Some(&store), &[]).await;

        let (run, events) = stream_run(client, &assistant, "Food?").await;

        assert_eq!(text(&events), expected);
        let stored = newest_text(client, &run).await;
        assert_eq!(
            (&stored["value"], stored["annotations"].as_array().unwrap().len()),
            (&json!(expected), annotations)
        );
        for annotation in stored["annotations"].as_array().unwrap() {
            assert_eq!(annotation["file_citation"].get("quote"), None, "as recorded");
        }
        server.stop().await;
    }
});

both_stores!(text_that_could_become_a_citation_is_kept_if_the_model_fails, async |database: Database| {
    for (tokens, expected) in [
        (vec!["Tacos", " [", "1"], "Tacos [1"),
        (vec!["Tacos", " [1]"], "Tacos 【4:0†foods.txt】"),
        (vec!["【4:0†foo"], "【4:0†foo"),
    ] {
        let upstream = Upstream::scripted([search("{\"query\":\"tacos\"}"), Answer::Disconnect(tokens)]).await;
        let server = Server::start(&database, &upstream).await;
        let client = &server.client;
        let store = vector_store(client, &[("foods.txt", FOODS)]).await;
        let assistant = assistant(client, Some(&store), &[]).await;

        let (run, events) = stream_run(client, &assistant, "Food?").await;

        assert_eq!(text(&events), expected);
        assert_eq!(newest_text(client, &run).await["value"], expected);
        assert_eq!(client.get(&run).await["status"], "failed");
        server.stop().await;
    }
});

both_stores!(text_that_could_become_a_citation_is_kept_if_the_run_is_cancelled, async |database: Database| {
    let upstream = Upstream::scripted([search("{\"query\":\"tacos\"}"), Answer::Pause(vec!["Tacos [1"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = &server.client;
    let store = vector_store(client, &[("foods.txt", FOODS)]).await;
    let assistant = assistant(client, Some(&store), &[]).await;
    let thread = client.create_thread("Food?").await;
    let run = client.create_run(&assistant, &thread).await;
    let messages = format!("/v1/threads/{thread}/messages");
    // The message is created when the model has written the token, of which the end is held back.
    while client.get(&messages).await["data"][0]["role"] != "assistant" {}

    client.post(&format!("{run}/cancel"), json!({})).await;
    client.wait_for_status(&run, "cancelled").await;

    assert_eq!(newest_text(client, &run).await["value"], "Tacos [1");
});
