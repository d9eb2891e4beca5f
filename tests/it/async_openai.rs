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
use crate::support::server::Server;
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
