//! The log, through the binary itself: each line is JSON.

use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::support::client::Client;
use crate::support::database::{Database, Folder};
use crate::support::process::{Log, assistd, piped, serve, start, without_model};
use crate::support::skip;
use crate::support::upstream::{Answer, Upstream};

/// Words of a user, which model servers repeat.
const WORDS: &str = "Grandmother's recipe";

/// A server process with its log.
struct Served {
    child: Child,
    client: Client,
    log: Log,
}

async fn served(settings: &[(&str, &str)]) -> Served {
    let (mut child, address, _out) = serve(settings).await;
    let log = Log::follow(&mut child);
    Served { child, client: Client::new(address.parse().unwrap()), log }
}

/// Starts a server whose model server cannot be reached, with more settings.
async fn served_with(folder: &Folder, more: &[(&'static str, &'static str)]) -> Served {
    served(&[&without_model(&folder.0), more].concat()).await
}

#[tokio::test]
async fn the_cause_of_a_failed_run_is_logged_without_the_words_of_its_user() {
    let folder = Folder::new();
    let repeated = format!("cannot answer \"{WORDS}\"");
    let upstream = Upstream::scripted([
        Answer::Status(400, vec![], json!({"error": {"message": repeated, "code": "invalid_prompt"}})),
        Answer::Status(401, vec![], json!({"error": {"message": repeated, "code": WORDS}})),
        Answer::Status(429, vec![], json!({"error": {"message": repeated, "type": "rate_limit_error"}})),
        Answer::Raw("data: {\"error\": {\"message\": \"Grandmother's recipe\", \"code\": 500}}\n\n"),
        Answer::Raw("data: Grandmother's recipe\n\n"),
        Answer::Raw("data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"error: Grandmother's recipe\"}]}\n\n"),
        Answer::Body("text/html", format!("<p>{WORDS}</p>")),
        Answer::Calls(vec![], vec![("Grandmother's recipe", "{}")]),
        Answer::Disconnect(vec![]),
    ])
    .await;
    let file = folder.0.join("settings.toml");
    std::fs::write(&file, format!("[[upstreams]]\nname = \"gpu\"\nurl = \"{}\"\n", upstream.url)).unwrap();
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("UPSTREAM_RETRIES", "0"),
        ("LOG", "debug"),
    ];
    let mut command = assistd(&settings);
    let (mut child, address, _out) = start(command.arg("--config").arg(&file)).await;
    let log = Log::follow(&mut child);
    let client = Client::new(address.parse().unwrap());
    let assistant = client.create_assistant().await;

    for (number, (code, status, cause)) in [
        ("server_error", json!(400), "The model server \"gpu\" answered 400 (invalid_prompt)"),
        ("server_error", json!(401), "The model server \"gpu\" answered 401"),
        ("rate_limit_exceeded", json!(429), "The model server \"gpu\" answered 429 (rate_limit_error)"),
        ("server_error", json!(500), "The model server \"gpu\" failed during its answer"),
        ("server_error", Value::Null, "The model server \"gpu\" sent an event that is not a completion chunk."),
        ("server_error", Value::Null, "The model server \"gpu\" ended its answer with the finish reason \"…\"."),
        ("server_error", Value::Null, "The model server \"gpu\" sent something other than an answer."),
        ("server_error", Value::Null, "The model called a function that the run does not have."),
        ("server_error", Value::Null, "The model server \"gpu\" closed the connection during its answer"),
    ]
    .into_iter()
    .enumerate()
    {
        let thread = client.create_thread(WORDS).await;
        let path = client.create_run(&assistant, &thread).await;
        let run = client.wait_for_status(&path, "failed").await;

        let line = log.wait_for("run failed", number).await;
        assert_eq!(line["level"], "WARN", "{line}");
        assert_eq!((&line["code"], &line["status"]), (&json!(code), &status), "{line}");
        assert_eq!((&line["upstream"], &line["model"]), (&json!("gpu"), &json!("small")), "{line}");
        assert_eq!((&line["span"]["run.id"], &line["span"]["thread.id"]), (&run["id"], &json!(thread)), "{line}");
        assert!(line["cause"].as_str().unwrap().starts_with(cause), "{line}");
        assert_eq!(run["last_error"]["code"], code);
    }

    child.kill().await.unwrap();
    for line in log.all().await {
        assert!(!line.to_string().contains("Grandmother"), "{line}");
    }
}

#[tokio::test]
async fn the_end_of_a_run_that_no_server_works_on_is_logged() {
    let folder = Folder::new();
    let data = folder.0.to_str().unwrap();
    let upstream = Upstream::scripted([Answer::Calls(vec![], vec![("f", "{}")])]).await;
    let Served { child: _child, client, log } =
        served(&[("LISTEN", "127.0.0.1:0"), ("DATA_DIR", data), ("UPSTREAM_URL", &upstream.url)]).await;
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let assistant = client.post("/v1/assistants", json!({"model": "m", "tools": tools})).await;
    let run = client.create_run(assistant["id"].as_str().unwrap(), &client.create_thread("Hi").await).await;
    let id = client.wait_for_status(&run, "requires_action").await["id"].clone();

    client.post(&format!("{run}/cancel"), json!({})).await;

    let line = log.wait_for("run ended", 0).await;
    assert_eq!((&line["status"], &line["span"]["run.id"]), (&json!("cancelled"), &id), "{line}");
}

#[tokio::test]
async fn rejected_keys_and_exceeded_limits_are_logged_once_with_a_part_of_the_key() {
    let folder = Folder::new();
    let Served { mut child, client, log } =
        served_with(&folder, &[("API_KEYS", "sk-right-0123456789"), ("REQUESTS_PER_MINUTE", "1")]).await;
    let status = async |key: &str| {
        let request = client.request(Method::GET, "/v1/assistants");
        let request = if key.is_empty() { request } else { request.bearer_auth(key) };
        request.send().await.unwrap().status().as_u16()
    };

    for _ in 0..5 {
        assert_eq!(status("sk-wrong-9876543210").await, 401);
        assert_eq!(status("").await, 401);
    }
    assert_eq!((status("sk-right-0123456789").await, status("sk-right-0123456789").await), (200, 429));
    assert_eq!(status("sk-right-0123456789").await, 429);

    child.kill().await.unwrap();
    let lines = log.all().await;
    let rejected: Vec<Value> = lines
        .iter()
        .filter(|line| line["message"] == "request rejected")
        .map(|line| {
            assert_eq!((&line["level"], &line["address"]), (&json!("WARN"), &json!("127.0.0.1")), "{line}");
            assert!(line["span"]["request.id"].as_str().unwrap().starts_with("req_"), "{line}");
            json!([line["status"], line["code"], line["key"], line["project.id"], line["route"]])
        })
        .collect();
    let expected = [
        json!([401, "invalid_api_key", "sk-wr***10", null, "/v1/assistants"]),
        json!([401, null, null, null, "/v1/assistants"]),
        json!([429, "rate_limit_exceeded", "sk-ri***89", "proj_default", "/v1/assistants"]),
    ];
    assert_eq!(rejected, expected, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.to_string().contains("0123456789")), "{lines:#?}");
}

#[tokio::test]
async fn the_start_names_the_version_and_the_store() {
    let folder = Folder::new();
    let mut child = piped(&without_model(&folder.0)).spawn().unwrap();
    let log = Log::follow(&mut child);

    let line = log.wait_for("listening", 0).await;

    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(line["store"], format!("sqlite://{}", folder.0.join("assistd.db").display()));
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "", "everything is on one stream");
    assert!(log.all().await.iter().all(Value::is_object));
}

#[tokio::test]
async fn a_run_that_is_taken_over_is_logged() {
    let (database, upstream) = (Database::sqlite(), Upstream::scripted([Answer::Hang("data: \n\n")]).await);
    let settings =
        [("LISTEN", "127.0.0.1:0"), ("DATABASE_URL", database.url.as_str()), ("UPSTREAM_URL", upstream.url.as_str())];
    let Served { mut child, client, .. } = served(&settings).await;
    let (assistant, thread) = (client.create_assistant().await, client.create_thread("Hi").await);
    client.create_run(&assistant, &thread).await;
    upstream.wait_for_requests(1).await;

    child.kill().await.unwrap();
    let mut child = assistd(&settings).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::follow(&mut child);

    let line = log.wait_for("run taken over from a server that was lost or has stopped", 0).await;
    assert_eq!((&line["level"], &line["span"]["thread.id"]), (&json!("WARN"), &json!(thread)), "{line}");
}

/// Forwards connections to a database until it is cut off.
struct Proxy {
    url: String,
    open: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn start(database: &str) -> Self {
        let server = database.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = database.replace(&server, &listener.local_addr().unwrap().to_string());
        let (open, state) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (server, mut state) = (server.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = state.wait_for(|is_open| !is_open) => {}
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Self { url, open }
    }
}

#[tokio::test]
async fn an_outage_of_the_database_is_logged_once_and_so_is_its_end() {
    let Some(database) = Database::postgres().await else { return };
    let (folder, proxy) = (Folder::new(), Proxy::start(&database.url).await);
    let Served { child: _child, client, log } = served(&[
        ("LISTEN", "127.0.0.1:0"),
        ("DATABASE_URL", &proxy.url),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1"),
    ])
    .await;
    client.create_assistant().await;

    proxy.open.send(false).unwrap();
    let began = log.wait_for("the database is unavailable; retrying", 0).await;
    for _ in 0..20 {
        let created = client.request(Method::POST, "/v1/threads").json(&json!({})).send().await.unwrap();
        assert_eq!(created.status(), 503);
    }
    proxy.open.send(true).unwrap();
    let ended = log.wait_for("the database is back", 0).await;

    assert_eq!((&began["level"], &ended["level"]), (&json!("WARN"), &json!("INFO")));
    assert!(began["database"].as_str().unwrap().starts_with("postgres://127.0.0.1:"), "{began}");
    assert!(ended["failures"].as_u64().unwrap() > 20, "{ended}");
    let lines = log.lines();
    let problems: Vec<&Value> =
        lines.iter().filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect();
    let of_outage = problems.iter().filter(|line| !line["message"].as_str().unwrap().starts_with("files are stored"));
    assert_eq!(of_outage.count(), 1, "{problems:#?}");
}

#[tokio::test]
async fn a_web_page_that_the_browser_blocks_is_logged_once_with_the_setting() {
    let folder = Folder::new();
    let Served { mut child, client, log } = served_with(&folder, &[("API_KEYS", "sk-right-0123456789")]).await;
    let send = async |method: Method, origin: &str| {
        let request = client.request(method, "/v1/assistants").header("origin", origin);
        request.header("access-control-request-method", "POST").send().await.unwrap().status().as_u16()
    };

    for origin in ["https://app.example", "null", "https://app.example"] {
        assert_eq!((send(Method::OPTIONS, origin).await, send(Method::GET, origin).await), (403, 401));
    }
    let same = client.base_url.clone();
    assert_eq!(send(Method::GET, &same).await, 401);

    child.kill().await.unwrap();
    let lines = log.all().await;
    let blocked: Vec<Value> = lines
        .iter()
        .filter(|line| line["message"].as_str().unwrap().starts_with("the browser blocks"))
        .map(|line| json!([line["level"], line["origin"], line["setting"], line["add"]]))
        .collect();
    let expected = [
        json!(["WARN", "https://app.example", "cors_origins", "https://app.example"]),
        json!(["WARN", "null", "cors_origins", "*"]),
    ];
    assert_eq!(blocked, expected, "{lines:#?}");
}

#[tokio::test]
async fn a_server_that_does_not_start_logs_the_cause_in_the_format_of_the_log() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let settings = [
        ("LISTEN", listen.as_str()),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1"),
    ];

    let output = assistd(&settings).output().await.unwrap();

    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
    let log = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON in each line")).collect();
    let [model_server, line] = lines.as_slice() else { panic!("{log}") };
    assert_eq!(model_server["server"], "upstream_url");
    assert_eq!((&line["level"], &line["message"]), (&json!("ERROR"), &json!("the server does not start")));
    assert!(line["error"].as_str().unwrap().starts_with(&format!("cannot listen on {listen}")), "{line}");
}

#[tokio::test]
async fn an_invalid_setting_is_one_line_and_the_exit_status_is_2() {
    for (settings, expected) in [
        (("LOG", "verbose"), "assistd: ASSISTD_LOG: log is \"verbose\"; expected off, error, warn"),
        (("LOG_FORMAT", "yaml"), "assistd: ASSISTD_LOG_FORMAT: log_format is \"yaml\"; expected one of"),
        (("MAX_ATTEMPTS", "0"), "assistd: ASSISTD_MAX_ATTEMPTS: max_attempts is 0; it must be at least 1"),
        (("LISTN", "x"), "assistd: ASSISTD_LISTN: unknown setting \"listn\""),
    ] {
        let output = assistd(&[settings]).output().await.unwrap();

        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with(expected) && text.lines().count() == 1, "{settings:?}: {text}");
        assert_eq!(output.status.code(), Some(2), "{settings:?}");
    }
}

#[tokio::test]
async fn text_has_colors_only_on_a_terminal() {
    let folder = Folder::new();
    let mut command = piped(&without_model(&folder.0));
    let mut child = command.env("ASSISTD_LOG_FORMAT", "text").env_remove("NO_COLOR").spawn().unwrap();
    let mut log = child.stderr.take().unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\n") || !String::from_utf8_lossy(&text).contains("listening") {
        text.push(log.read_u8().await.unwrap());
    }
    child.kill().await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("INFO listening") && !text.contains('\u{1b}'), "{text:?}");

    let binary = env!("CARGO_BIN_EXE_assistd");
    let mut terminal = Command::new("script");
    terminal.args([
        "--quiet",
        "--return",
        "--flush",
        "--command",
        &format!("{binary} --config settings.toml"),
        "/dev/null",
    ]);
    let file = "listen = \"127.0.0.1:0\"\ndata_dir = \"terminal\"\nupstream_url = \"http://127.0.0.1:9/v1\"\n";
    std::fs::write(folder.0.join("settings.toml"), file).unwrap();
    terminal.current_dir(&folder.0).env("TERM", "xterm").env_remove("NO_COLOR");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ASSISTD_")) {
        terminal.env_remove(name);
    }
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let Ok(mut child) = terminal.spawn() else { return skip("script (util-linux)") };
    let mut shown = child.stdout.take().unwrap();
    let mut text = String::new();
    while !text.contains("curl -sN") {
        text.push(char::from(shown.read_u8().await.expect("the server shows the banner")));
    }
    assert!(text.contains("\u{1b}[32m INFO") && text.contains("listening"), "{text:?}");
}

#[tokio::test]
async fn a_closed_standard_output_does_not_end_the_server() {
    let folder = Folder::new();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = address.to_string();
    let settings = [
        ("LISTEN", listen.as_str()),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1"),
        ("LOG_FORMAT", "text"),
    ];
    let mut child = assistd(&settings).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut log = child.stderr.take().unwrap();
    let mut text = String::new();
    while !text.contains("failed to write to standard output") {
        let byte = log.read_u8().await.expect("the server keeps running");
        text.push(char::from(byte));
    }
    drop(log);

    Client::new(address).create_assistant().await;
    assert!(child.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn the_start_warns_about_model_servers_that_will_not_answer() {
    let upstream = Upstream::start().await;
    let warnings = async |settings: &[(&str, &str)]| -> Vec<String> {
        let folder = Folder::new();
        let more = [("LISTEN", "127.0.0.1:0"), ("DATA_DIR", folder.0.to_str().unwrap())];
        let line = {
            let mut child = piped(&[&more, settings].concat()).spawn().unwrap();
            let log = Log::follow(&mut child);
            log.wait_for("listening", 0).await;
            child.kill().await.unwrap();
            log.all().await
        };
        let warnings = line.iter().filter(|line| line["level"] == "WARN");
        warnings.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    };
    let without_v1 = upstream.url.trim_end_matches("/v1");
    let corrected = "The model server lists its models at a URL that ends in /v1. Change its URL in the settings.";

    assert_eq!(warnings(&[("UPSTREAM_URL", &upstream.url)]).await, Vec::<String>::new());
    assert_eq!(warnings(&[("UPSTREAM_URL", without_v1)]).await, [corrected]);
    assert_eq!(
        warnings(&[("UPSTREAM_URL", &upstream.url), ("DEFAULT_MODEL", "absent"), ("EMBEDDING_MODEL", "none")]).await,
        [
            "default_model is \"absent\", which no model server lists (2 models: small, org/large).",
            "embedding_model is \"none\", which no model server lists (2 models: small, org/large).",
        ]
    );
    let nowhere = "http://127.0.0.1:9/v1";
    let down = warnings(&[("UPSTREAM_URL", nowhere), ("EMBEDDING_URL", nowhere), ("EMBEDDING_MODEL", "none")]).await;
    assert!(
        down[0].starts_with("The model server cannot be reached: ") && down[0].contains("Check that it runs"),
        "{down:?}"
    );
    assert!(down[1].starts_with("The model server \"embedding_url\" cannot be reached"), "{down:?}");
    let rejecting = Upstream::start().await;
    rejecting.reject_listing(401);
    let rejected = warnings(&[("UPSTREAM_URL", &rejecting.url)]).await;
    assert_eq!(rejected, ["The model server answered 401. Check its API key in the settings."]);
    rejecting.reject_listing(500);
    let failed = warnings(&[("UPSTREAM_URL", &rejecting.url)]).await;
    assert_eq!(failed, ["The model server answered 500. Check that its URL in the settings is correct."]);
    upstream.set_models(json!([{"id": "nomic-embed-text:latest", "owned_by": "library"}]));
    let ollama = warnings(&[("UPSTREAM_URL", &upstream.url)]).await;
    assert_eq!(ollama, ["The model server is Ollama, and has no chat model. Run `ollama pull qwen3:8b`."]);
    let ollama = warnings(&[("UPSTREAM_URL", &upstream.url), ("DEFAULT_MODEL", "qwen3:4b")]).await;
    assert!(ollama[1].ends_with("Run `ollama pull qwen3:4b`, or change default_model."), "{ollama:?}");
}
