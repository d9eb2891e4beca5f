//! The strictest client there is: async-openai parses every event and every reply with closed enums. Its streams end
//! at `[DONE]` without showing it.

#![expect(deprecated, reason = "the crate marks all of the Assistants API; it is what we are for")]

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::assistants::{
    AssistantStreamEvent, CreateAssistantRequestArgs, CreateMessageRequestArgs, CreateRunRequestArgs,
    CreateThreadRequestArgs, MessageRole, RunStatus,
};
use futures_util::StreamExt;

use crate::both_stores;
use crate::support::database::Database;
use crate::support::server::{Server, Wish};
use crate::support::upstream::{Answer, Upstream};

fn client(server: &Server) -> Client<OpenAIConfig> {
    let base_url = format!("{}/v1", server.client.base_url);
    Client::with_config(OpenAIConfig::new().with_api_base(base_url).with_api_key("any"))
}

both_stores!(async_openai_drives_a_run_streamed_and_polled, async |database: Database| {
    let upstream = Upstream::saying([Answer::Words(vec!["Hello", "!"]), Answer::Words(vec!["Bye"])]).await;
    let server = Server::start(&database, &upstream).await;
    let client = client(&server);
    let request = CreateAssistantRequestArgs::default().model("m").name("n").instructions("be kind").build().unwrap();
    let assistant = client.assistants().create(request).await.unwrap();
    let thread = client.threads().create(CreateThreadRequestArgs::default().build().unwrap()).await.unwrap();
    let hi = CreateMessageRequestArgs::default().role(MessageRole::User).content("Hi").build().unwrap();
    client.threads().messages(&thread.id).create(hi).await.unwrap();

    let request = CreateRunRequestArgs::default().assistant_id(&assistant.id).build().unwrap();
    let mut stream = client.threads().runs(&thread.id).create_stream(request.clone()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = stream.next().await {
        let event = event.unwrap();
        seen.push(format!("{event:?}").split('(').next().unwrap().to_owned());
    }
    assert_eq!(
        seen,
        [
            "ThreadRunCreated",
            "ThreadRunQueued",
            "ThreadRunInProgress",
            "ThreadRunStepCreated",
            "ThreadRunStepInProgress",
            "ThreadMessageCreated",
            "ThreadMessageInProgress",
            "ThreadMessageDelta",
            "ThreadMessageDelta",
            "ThreadMessageCompleted",
            "ThreadRunStepCompleted",
            "ThreadRunCompleted"
        ]
    );

    let mut run = client.threads().runs(&thread.id).create(request).await.unwrap();
    while run.status != RunStatus::Completed {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        run = client.threads().runs(&thread.id).retrieve(&run.id).await.unwrap();
    }
    let steps = client.threads().runs(&thread.id).steps(&run.id).list().await.unwrap();
    assert_eq!(steps.data.len(), 1);
    let messages = client.threads().messages(&thread.id).list().await.unwrap();
    assert_eq!(messages.data.len(), 3);
    let runs = client.threads().runs(&thread.id).list().await.unwrap();
    assert_eq!(runs.data.len(), 2);
});

both_stores!(async_openai_parses_every_way_a_run_can_end, async |database: Database| {
    let failing = Answer::Status(400, vec![], serde_json::json!({"error": {"message": "no"}}));
    let upstream = Upstream::saying([
        failing,
        Answer::Cut(vec!["Hal"]),
        Answer::Finish(vec!["Hal"], "length"),
        Answer::Pause(vec!["Hm"]),
    ])
    .await;
    let server = Server::start(&database, &upstream).await;
    let client = client(&server);
    let request = CreateAssistantRequestArgs::default().model("m").instructions("be kind").build().unwrap();
    let assistant = client.assistants().create(request).await.unwrap();
    let thread = client.threads().create(CreateThreadRequestArgs::default().build().unwrap()).await.unwrap();
    let request = CreateRunRequestArgs::default().assistant_id(&assistant.id).build().unwrap();

    for last in ["ThreadRunFailed", "ThreadRunFailed", "ThreadRunIncomplete", "ThreadRunCancelled"] {
        let mut stream = client.threads().runs(&thread.id).create_stream(request.clone()).await.unwrap();
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            if let (AssistantStreamEvent::ThreadMessageDelta(_), "ThreadRunCancelled") = (&event, last) {
                let run = client.threads().runs(&thread.id).list().await.unwrap().data.remove(0);
                client.threads().runs(&thread.id).cancel(&run.id).await.unwrap();
            }
            seen.push(format!("{event:?}").split('(').next().unwrap().to_owned());
        }
        assert_eq!(seen.last().map(String::as_str), Some(last));
    }
});

/// Every event that the crate knows, by the path that sends it; `Done` is the end that its streams do not show.
const EVENTS: [(&str, &str); 24] = [
    ("ThreadCreated", "a thread made with its run"),
    ("ThreadRunCreated", "any run"),
    ("ThreadRunQueued", "any run"),
    ("ThreadRunInProgress", "any run"),
    ("ThreadRunRequiresAction", "a function call"),
    ("ThreadRunCompleted", "an answer"),
    ("ThreadRunIncomplete", "an answer cut at its limit"),
    ("ThreadRunFailed", "a model that breaks off"),
    ("ThreadRunCancelling", "a cancel in the middle of an answer"),
    ("ThreadRunCancelled", "a cancel in the middle of an answer"),
    ("ThreadRunExpired", "a deadline in the middle of an answer"),
    ("ThreadRunStepCreated", "an answer"),
    ("ThreadRunStepInProgress", "an answer"),
    ("ThreadRunStepDelta", "a function call"),
    ("ThreadRunStepCompleted", "an answer"),
    ("ThreadRunStepFailed", "a model that breaks off"),
    ("ThreadRunStepCancelled", "a cancel in the middle of an answer"),
    ("ThreadRunStepExpired", "a deadline in the middle of an answer"),
    ("ThreadMessageCreated", "an answer"),
    ("ThreadMessageInProgress", "an answer"),
    ("ThreadMessageDelta", "an answer"),
    ("ThreadMessageCompleted", "an answer"),
    ("ThreadMessageIncomplete", "a model that breaks off"),
    ("ErrorEvent", "a server that stops"),
];

both_stores!(async_openai_parses_each_event_that_it_knows, async |database: Database| {
    let pause = || Answer::Pause(vec!["Hm"]);
    let upstream = Upstream::saying([
        Answer::Words(vec!["Hello"]),
        Answer::Calls(vec![], vec![("f", "{}")]),
        Answer::Cut(vec!["Hal"]),
        Answer::Finish(vec!["Hal"], "length"),
        pause(),
        pause(),
        pause(),
    ])
    .await;
    let settings = [("SHUTDOWN_GRACE_S", "0")];
    let server =
        Server::wish(Wish { database: &database, upstream: &upstream, settings: &settings, by_hand: true }).await;
    let client = client(&server);
    let body = serde_json::json!({"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}]});
    let assistant = server.client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned();
    let clock = server.clock.clone();
    let mut server = Some(server);
    let mut seen = std::collections::BTreeSet::new();

    for path in ["answer", "call", "cut", "length", "cancel", "deadline", "stop"] {
        let request = serde_json::from_value(serde_json::json!({
            "assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}]}
        }));
        let mut stream = client.threads().create_and_run_stream(request.unwrap()).await.unwrap();
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            if let AssistantStreamEvent::ThreadRunCreated(run) = &event
                && path == "cancel"
            {
                upstream.asked(5).await;
                client.threads().runs(&run.thread_id).cancel(&run.id).await.unwrap();
            }
            if let AssistantStreamEvent::ThreadMessageDelta(_) = &event {
                match path {
                    "deadline" => clock.advance(600),
                    "stop" => server.take().unwrap().stop().await,
                    _ => {}
                }
            }
            let shown = format!("{event:?}");
            seen.insert(shown.split('(').next().unwrap().to_owned());
        }
    }

    let missing: Vec<_> = EVENTS.iter().filter(|(name, _)| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "not sent or not parsed: {missing:?}; seen: {seen:?}");
    assert_eq!(seen.len(), EVENTS.len());
});
