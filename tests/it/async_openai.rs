//! async-openai, the strictest client: it parses every event and every response with closed enums. Its streams end at
//! `[DONE]` without returning it.

#![expect(deprecated, reason = "the crate deprecates all of the Assistants API, which is what assistd serves")]

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::InputSource;
use async_openai::types::assistants::{
    AssistantStreamEvent, CreateAssistantRequestArgs, CreateMessageRequestArgs, CreateRunRequestArgs,
    CreateThreadRequestArgs, MessageAttachment, MessageAttachmentTool, MessageContent, MessageContentTextAnnotations,
    MessageDeltaContent, MessageRole, RunStatus, RunStepDetailsToolCalls, StepDetails,
};
use async_openai::types::files::{CreateFileRequestArgs, FileInput, FilePurpose};
use async_openai::types::vectorstores::{
    CreateVectorStoreRequestArgs, VectorStoreSearchRequestArgs, VectorStoreStatus,
};
use futures_util::StreamExt;

use crate::both_stores;
use crate::support::code::installed;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::upstream::{Answer, Upstream};

fn client(server: &Server) -> Client<OpenAIConfig> {
    let base_url = format!("{}/v1", server.client.base_url);
    Client::with_config(OpenAIConfig::new().with_api_base(base_url).with_api_key("any"))
}

both_stores!(async_openai_streams_and_polls_a_run, async |database: Database| {
    let upstream = Upstream::scripted([Answer::Tokens(vec!["Hello", "!"]), Answer::Tokens(vec!["Bye"])]).await;
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

both_stores!(async_openai_parses_every_terminal_event, async |database: Database| {
    let failing = Answer::Status(400, vec![], serde_json::json!({"error": {"message": "no"}}));
    let upstream = Upstream::scripted([
        failing,
        Answer::Disconnect(vec!["Hal"]),
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

/// Every event type of the crate, and a case that sends it. Its streams do not return `Done`.
const EVENTS: [(&str, &str); 24] = [
    ("ThreadCreated", "a thread created with its run"),
    ("ThreadRunCreated", "any run"),
    ("ThreadRunQueued", "any run"),
    ("ThreadRunInProgress", "any run"),
    ("ThreadRunRequiresAction", "a function call"),
    ("ThreadRunCompleted", "an answer"),
    ("ThreadRunIncomplete", "an answer that reaches a token limit"),
    ("ThreadRunFailed", "a model that disconnects"),
    ("ThreadRunCancelling", "a cancellation during an answer"),
    ("ThreadRunCancelled", "a cancellation during an answer"),
    ("ThreadRunExpired", "a deadline during an answer"),
    ("ThreadRunStepCreated", "an answer"),
    ("ThreadRunStepInProgress", "an answer"),
    ("ThreadRunStepDelta", "a function call"),
    ("ThreadRunStepCompleted", "an answer"),
    ("ThreadRunStepFailed", "a model that disconnects"),
    ("ThreadRunStepCancelled", "a cancellation during an answer"),
    ("ThreadRunStepExpired", "a deadline during an answer"),
    ("ThreadMessageCreated", "an answer"),
    ("ThreadMessageInProgress", "an answer"),
    ("ThreadMessageDelta", "an answer"),
    ("ThreadMessageCompleted", "an answer"),
    ("ThreadMessageIncomplete", "a model that disconnects"),
    ("ErrorEvent", "a server shutdown"),
];

both_stores!(async_openai_parses_every_event_type, async |database: Database| {
    let pause = || Answer::Pause(vec!["Hm"]);
    let upstream = Upstream::scripted([
        Answer::Tokens(vec!["Hello"]),
        Answer::Calls(vec![], vec![("f", "{}")]),
        Answer::Disconnect(vec!["Hal"]),
        Answer::Finish(vec!["Hal"], "length"),
        pause(),
        pause(),
        pause(),
    ])
    .await;
    let settings = [("SHUTDOWN_GRACE_S", "0")];
    let server = Server::with_manual_clock(&database, &upstream, &settings).await;
    let client = client(&server);
    let body = serde_json::json!({"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}]});
    let assistant = server.client.post("/v1/assistants", body).await["id"].as_str().unwrap().to_owned();
    let clock = server.clock.clone();
    let mut server = Some(server);
    let mut seen = std::collections::BTreeSet::new();

    for path in ["answer", "call", "disconnect", "length", "cancel", "deadline", "stop"] {
        let request = serde_json::from_value(serde_json::json!({
            "assistant_id": assistant, "thread": {"messages": [{"role": "user", "content": "Hi"}]}
        }));
        let mut stream = client.threads().create_and_run_stream(request.unwrap()).await.unwrap();
        let mut created = None;
        while let Some(event) = stream.next().await {
            let event = event.unwrap();
            if let AssistantStreamEvent::ThreadRunCreated(run) = &event {
                created = Some((run.thread_id.clone(), run.id.clone()));
            }
            if let AssistantStreamEvent::ThreadMessageDelta(_) = &event {
                match path {
                    "cancel" => {
                        let (thread, run) = created.take().unwrap();
                        client.threads().runs(&thread).cancel(&run).await.unwrap();
                    }
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

both_stores!(async_openai_searches_files, async |database: Database| {
    let foods = "The favorite food of several people: Ferdinand: tacos; Effie: pizza; Filip: cake";
    let search = || Answer::Calls(vec![], vec![("file_search", r#"{"query": "favorite food of Filip"}"#)]);
    let answer = || Answer::Tokens(vec!["It is cake ", "[", "1", "]."]);
    let upstream = Upstream::scripted([search(), answer(), search(), answer()]).await;
    let server = Server::start(&database, &upstream).await;
    let client = client(&server);
    let file = CreateFileRequestArgs::default()
        .file(FileInput {
            source: InputSource::VecU8 { filename: "foods.txt".to_owned(), vec: foods.as_bytes().to_vec() },
        })
        .purpose(FilePurpose::Assistants)
        .build()
        .unwrap();
    let file = client.files().create(file).await.unwrap();
    let request = CreateVectorStoreRequestArgs::default().file_ids(vec![file.id.clone()]).build().unwrap();
    let mut store = client.vector_stores().create(request).await.unwrap();
    while store.status != VectorStoreStatus::Completed {
        store = client.vector_stores().retrieve(&store.id).await.unwrap();
    }
    assert_eq!((store.name, store.file_counts.completed), (None, 1));
    let request = VectorStoreSearchRequestArgs::default().query("cake").max_num_results(5_u8).build().unwrap();
    let found = client.vector_stores().search(&store.id, request).await.unwrap();
    assert_eq!(found.data[0].filename, "foods.txt");

    let assistant = serde_json::json!({
        "model": "m", "tools": [{"type": "file_search"}],
        "tool_resources": {"file_search": {"vector_store_ids": [store.id]}},
    });
    let assistant = client.assistants().create(serde_json::from_value(assistant).unwrap()).await.unwrap();
    let thread = client.threads().create(CreateThreadRequestArgs::default().build().unwrap()).await.unwrap();
    let question = CreateMessageRequestArgs::default()
        .role(MessageRole::User)
        .content("What does Filip like?")
        .attachments(vec![MessageAttachment {
            file_id: file.id.clone(),
            tools: vec![MessageAttachmentTool::FileSearch],
        }])
        .build()
        .unwrap();
    client.threads().messages(&thread.id).create(question).await.unwrap();
    let request = CreateRunRequestArgs::default().assistant_id(&assistant.id).build().unwrap();

    let mut stream = client.threads().runs(&thread.id).create_stream(request.clone()).await.unwrap();
    let mut text = String::new();
    while let Some(event) = stream.next().await {
        if let AssistantStreamEvent::ThreadMessageDelta(delta) = event.unwrap() {
            for part in delta.delta.content.into_iter().flatten() {
                if let MessageDeltaContent::Text(part) = part {
                    text += part.text.unwrap().value.as_deref().unwrap_or_default();
                }
            }
        }
    }
    assert_eq!(text, "It is cake \u{3010}4:0\u{2020}foods.txt\u{3011}.");

    let mut run = client.threads().runs(&thread.id).create(request).await.unwrap();
    while run.status != RunStatus::Completed {
        assert!(matches!(run.status, RunStatus::Queued | RunStatus::InProgress), "{run:?}");
        run = client.threads().runs(&thread.id).retrieve(&run.id).await.unwrap();
    }
    let steps = client.threads().runs(&thread.id).steps(&run.id).list().await.unwrap().data;
    let searched = steps.iter().find_map(|step| match &step.step_details {
        StepDetails::ToolCalls(calls) => match calls.tool_calls.as_slice() {
            [RunStepDetailsToolCalls::FileSearch(call)] => call.file_search.results.clone(),
            _ => None,
        },
        StepDetails::MessageCreation(_) => None,
    });
    let found = searched.unwrap();
    let names: Vec<&str> = found.iter().map(|result| result.file_name.as_str()).collect();
    assert_eq!(names, ["foods.txt", "foods.txt"], "the stores of the assistant and of the thread have it");
    let messages = client.threads().messages(&thread.id).list().await.unwrap().data;
    let MessageContent::Text(part) = &messages[0].content[0] else { panic!("{:?}", messages[0].content) };
    let MessageContentTextAnnotations::FileCitation(citation) = &part.text.annotations[0] else {
        panic!("{:?}", part.text.annotations)
    };
    assert_eq!(citation.file_citation.file_id, file.id);
});

both_stores!(async_openai_runs_code, async |database: Database| {
    let Some(runtime) = installed() else { return };
    let code = r#"{"code": "print('hi')\nopen('/mnt/data/a.txt', 'w').write('a')\nfrom PIL import Image\nImage.new('RGB', (9, 9)).save('/mnt/data/i.png')"}"#;
    let upstream = Upstream::scripted([
        Answer::Calls(vec![], vec![("python", code)]),
        Answer::Tokens(vec!["See ", "sandbox:/mnt/data/a.txt", "."]),
    ])
    .await;
    let server = Server::with(&database, &upstream, &[("CODE_INTERPRETER_DIR", &runtime)]).await;
    let client = client(&server);
    let assistant =
        serde_json::json!({"model": "m", "instructions": "Calculate.", "tools": [{"type": "code_interpreter"}]});
    let assistant = client.assistants().create(serde_json::from_value(assistant).unwrap()).await.unwrap();
    let thread = client.threads().create(CreateThreadRequestArgs::default().build().unwrap()).await.unwrap();
    let request = CreateRunRequestArgs::default().assistant_id(&assistant.id).build().unwrap();

    let mut stream = client.threads().runs(&thread.id).create_stream(request).await.unwrap();
    let (mut kinds, mut run) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            AssistantStreamEvent::ThreadMessageDelta(delta) => {
                for part in delta.delta.content.into_iter().flatten() {
                    kinds.push(match part {
                        MessageDeltaContent::ImageFile(_) => "image",
                        MessageDeltaContent::Text(_) => "text",
                        other => panic!("{other:?}"),
                    });
                }
            }
            AssistantStreamEvent::ThreadRunCompleted(completed) => run = Some(completed.id),
            _ => {}
        }
    }
    kinds.dedup();
    assert_eq!(kinds, ["image", "text"]);

    let steps = client.threads().runs(&thread.id).steps(&run.unwrap()).list().await.unwrap().data;
    let called = steps.iter().find_map(|step| match &step.step_details {
        StepDetails::ToolCalls(calls) => match calls.tool_calls.as_slice() {
            [RunStepDetailsToolCalls::CodeInterpreter(call)] => Some(call.code_interpreter.clone()),
            _ => None,
        },
        StepDetails::MessageCreation(_) => None,
    });
    assert_eq!(called.unwrap().outputs.len(), 2);
    let messages = client.threads().messages(&thread.id).list().await.unwrap().data;
    let [MessageContent::ImageFile(_), MessageContent::Text(part)] = messages[0].content.as_slice() else {
        panic!("{:?}", messages[0].content)
    };
    let MessageContentTextAnnotations::FilePath(path) = &part.text.annotations[0] else {
        panic!("{:?}", part.text.annotations)
    };
    assert_eq!(client.files().content(&path.file_path.file_id).await.unwrap(), "a".as_bytes());
});
