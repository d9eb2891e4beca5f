//! The command line, through the binary itself.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::client::Client;
use crate::support::database::{Database, Folder};
use crate::support::process::{Log, assistd, piped, serve, start, without_model};
use crate::support::skip;
use crate::support::upstream::Upstream;

/// Returns the exit code, the output and the errors.
async fn exit(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn output(command: &mut Command) -> (bool, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn help_names_each_command() {
    let (ok, out, _) = output(assistd(&[]).arg("--help")).await;

    assert!(ok);
    for word in ["serve", "config", "migrate", "check", "backup", "health", "--config"] {
        assert!(out.contains(word), "{out}");
    }
}

#[tokio::test]
async fn the_settings_in_effect_are_printed_without_secrets() {
    let settings = [("API_KEYS", "sk-hidden"), ("MAX_CONCURRENT_RUNS", "7")];
    let (ok, out, _) = output(assistd(&settings).arg("config")).await;

    assert!(ok);
    assert!(out.contains("max_concurrent_runs = 7") && out.contains("api_keys = [\"***\"]"), "{out}");
    assert!(!out.contains("hidden"));
}

#[tokio::test]
async fn invalid_settings_are_reported_and_the_server_does_not_start() {
    let folder = Folder::new();
    let data_dir = ("DATA_DIR", folder.0.to_str().unwrap());
    let secret = "postgres://user:12/7331@host/name";
    let cases = [
        (vec![("LISTN", "x")], "ASSISTD_LISTN: unknown setting \"listn\""),
        (vec![("LISTEN", "0.0.0.0:0"), data_dir], "Set ASSISTD_API_KEYS"),
        (
            vec![("DATABASE_URL", "mysql://x")],
            "ASSISTD_DATABASE_URL: database_url begins with \"mysql:\"; it must begin with",
        ),
        (vec![("DATABASE_URL", secret)], "ASSISTD_DATABASE_URL: database_url contains a /, ?, # or @"),
        (vec![("DATABASE_URL", "sqlite://a.db?mode=ro")], "ASSISTD_DATABASE_URL: database_url ends in \"?mode=ro\""),
        (vec![("FILES_URL", "ftp://x"), data_dir], "ASSISTD_FILES_URL: files_url is \"ftp://x\""),
        (vec![("LOG", "=,=")], "ASSISTD_LOG: log is \"=,=\""),
    ];

    for (settings, expected) in cases {
        let (code, out, err) = exit(&mut assistd(&settings)).await;
        assert!(code == Some(2) && err.contains(expected), "{settings:?}: {code:?} {err}");
        assert!(err.lines().count() == 1 && out.is_empty() && !err.contains("7331"), "{settings:?}: {err}");
    }
    let unreachable = [("DATABASE_URL", "postgres://user:7331@127.0.0.1:9/x"), ("DATABASE_START_TIMEOUT_S", "0")];
    let (code, _, err) = exit(&mut assistd(&unreachable)).await;
    assert!(code == Some(1) && err.contains("failed to connect to postgres://127.0.0.1:9/x"), "{code:?} {err}");
    assert!(!err.contains("7331"), "{err}");
}

#[tokio::test]
async fn an_error_in_a_settings_file_names_its_line() {
    let folder = Folder::new();
    let file = folder.0.join("settings.toml");
    std::fs::write(&file, "log = \"info\"\n\nmax_attempts = \"five\"\n").unwrap();

    let (code, _, err) = exit(assistd(&[]).arg("--config").arg(&file)).await;

    let expected =
        format!("assistd: {}:3: max_attempts is \"five\"; expected an integer of at least 0\n", file.display());
    assert_eq!((code, err), (Some(2), expected));
}

/// Returns the files and folders below a folder that others than its owner can read or enter.
fn open_paths(folder: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt as _;

    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        if mode != if path.is_dir() { 0o700 } else { 0o600 } {
            found.push(format!("{} {mode:o}", path.display()));
        }
        if path.is_dir() {
            found.extend(open_paths(&path));
        }
    }
    found
}

#[tokio::test]
async fn what_a_server_writes_is_private_and_its_folder_can_have_any_name() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = Folder::new();
    let data = folder.0.join("..").join(folder.0.file_name().unwrap()).join("a?b=c#d%20e f");
    let (mut child, address, _out) = serve(&without_model(&data)).await;
    let client = Client::new(address.parse().unwrap());
    let file = client.upload().await;
    let mut names: Vec<_> =
        std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.starts_with(&["assistd.db".to_owned(), "assistd.db-shm".to_owned()]), "{names:?}");
    assert!(names.contains(&"files".to_owned()), "{names:?}");
    assert_eq!(open_paths(&folder.0), Vec::<String>::new());
    child.kill().await.unwrap();

    for path in ["assistd.db", "assistd.db-wal", "assistd.db.lock"] {
        std::fs::set_permissions(data.join(path), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(data.join("files"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (mut child, address, _out) = serve(&without_model(&data)).await;
    let client = Client::new(address.parse().unwrap());
    client.get(&format!("/v1/files/{file}")).await;
    assert_eq!(open_paths(&folder.0), Vec::<String>::new(), "files of an older release are made private");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn migrate_creates_the_database_and_exits() {
    for database in [Some(Database::sqlite()), Database::postgres().await].into_iter().flatten() {
        let (ok, out, err) = output(assistd(&[("DATABASE_URL", &database.url)]).arg("migrate")).await;

        assert!(ok && out.contains("is up to date"), "{out}{err}");
    }
}

#[tokio::test]
async fn files_that_a_command_of_root_creates_belong_to_the_owner_of_the_folder_and_links_are_left_alone() {
    const USER: u32 = 8484;
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    if chown(&folder.0, Some(USER), Some(USER)).is_err() {
        return skip("permission to change the owner of a file");
    }
    let target = elsewhere.0.join("of root");
    std::fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, folder.0.join("assistd.db.lock")).unwrap();
    let settings = [("DATA_DIR", folder.0.to_str().unwrap())];

    for command in [["projects", "list"], ["keys", "list"]] {
        let (ok, out, err) = output(assistd(&settings).args(command)).await;
        assert!(ok, "{out}{err}");
    }

    let owner = |path: &Path| std::fs::symlink_metadata(path).unwrap().uid();
    assert_eq!(owner(&folder.0.join("assistd.db")), USER);
    assert_eq!(owner(&target), 0, "the owner of the folder could link to any file");
    std::fs::remove_file(folder.0.join("assistd.db.lock")).unwrap();
    assert!(output(assistd(&settings).args(["keys", "list"])).await.0);
    assert_eq!(owner(&folder.0.join("assistd.db.lock")), USER);
}

#[tokio::test]
async fn a_server_that_waits_for_its_database_stops_on_sigterm() {
    let folder = Folder::new();
    let mut settings = without_model(&folder.0);
    settings.push(("DATABASE_URL", "postgres://127.0.0.1:9/none"));
    let mut child = piped(&settings).spawn().unwrap();
    let log = Log::follow(&mut child);
    log.wait_for("waiting for the database", 0).await;

    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());

    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    assert_eq!(log.all().await.last().unwrap()["message"], "stopped before the server had started");
}

#[tokio::test]
async fn the_server_prints_a_banner_on_start_and_stops_on_sigterm() {
    let folder = Folder::new();
    let settings = without_model(&folder.0);
    let mut child = piped(&settings).env("ASSISTD_LOG_FORMAT", "text").spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).await.unwrap();
    let address = line.trim().rsplit("http://").next().unwrap().to_owned();

    let (healthy, ..) = output(assistd(&[("LISTEN", &address)]).arg("health")).await;
    let (elsewhere, ..) = output(assistd(&[("LISTEN", "127.0.0.1:9")]).arg("health")).await;
    assert!(healthy && !elsewhere);
    let (_, _, second) = output(&mut assistd(&settings)).await;
    assert!(second.contains("another server is using it"), "{second}");

    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    let mut banner = String::new();
    out.read_to_string(&mut banner).await.unwrap();
    for expected in [
        "base_url    http://",
        "store       sqlite://",
        "files       file://",
        "model       the model of each request",
        "embeddings  none: files are found by words",
        "curl -sN",
    ] {
        assert!(banner.contains(expected), "{banner}");
    }
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    for (line, expected) in lines.iter().zip([" listening version=", " stopping", " stopped"]) {
        assert!(line.contains(expected), "{log}");
    }
}

#[tokio::test]
async fn model_servers_on_loopback_need_no_proxy_and_the_log_has_no_address_or_key() {
    let (folder, upstream) = (Folder::new(), Upstream::start().await);
    let url = upstream.url.replace("http://", "http://user:pa55@");
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("UPSTREAM_URL", &url),
        ("UPSTREAM_API_KEY", "sk-secret"),
        ("LOG", "trace"),
    ];
    let mut command = assistd(&settings);
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    let (mut child, address, _out) = start(&mut command).await;
    let mut log = child.stderr.take().unwrap();
    let reading = tokio::spawn(async move {
        let mut text = String::new();
        log.read_to_string(&mut text).await.unwrap();
        text
    });
    let client = Client::new(address.parse().unwrap());

    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    client.wait_for_status(&run, "completed").await;
    child.kill().await.unwrap();

    let log = reading.await.unwrap();
    let upstream_address = upstream.url.trim_start_matches("http://").trim_end_matches("/v1");
    for secret in ["sk-secret", "pa55", upstream_address] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
}

#[tokio::test]
async fn a_server_runs_although_its_output_cannot_be_written() {
    let (folder, full) = (Folder::new(), std::path::Path::new("/dev/full"));
    if !full.exists() {
        return crate::support::skip("/dev/full");
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = [
        ("LISTEN", address.to_string()),
        ("DATA_DIR", folder.0.display().to_string()),
        ("LOG", "trace".to_owned()),
        ("UPSTREAM_URL", "http://127.0.0.1:9/v1".to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let file = || std::fs::File::options().write(true).open(full).unwrap();
    let mut server = assistd(&settings).stdout(file()).stderr(file()).spawn().unwrap();
    let client = Client::new(address);

    let mut is_up = false;
    while !is_up {
        assert!(server.try_wait().unwrap().is_none(), "the server exited");
        is_up = client.request(reqwest::Method::GET, "/health").send().await.is_ok();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.create_assistant().await;
}

/// Runs a command on a database; returns its standard output.
async fn run_on(database: &Database, arguments: &[&str]) -> String {
    let (ok, out, err) = output(assistd(&[("DATABASE_URL", &database.url)]).args(arguments)).await;
    assert!(ok, "{arguments:?}: {out}{err}");
    out
}

/// Returns the status of a request with this key.
async fn status_with(client: &Client, path: &str, key: &str) -> u16 {
    client.request(Method::GET, path).bearer_auth(key).send().await.unwrap().status().as_u16()
}

/// Waits until a request with this key has this status. A server notices a change within five seconds.
async fn wait_for_key(client: &Client, key: &str, status: u16) {
    for _ in 0..500 {
        if status_with(client, "/v1/assistants", key).await == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a request with the key does not get {status}");
}

#[tokio::test]
async fn projects_and_keys_are_managed_next_to_a_running_server() {
    for database in [Some(Database::sqlite()), Database::postgres().await].into_iter().flatten() {
        let settings = [("LISTEN", "127.0.0.1:0"), ("DATABASE_URL", database.url.as_str())];
        let (mut child, address, _out) = serve(&settings).await;
        let client = Client::new(address.parse().unwrap());
        assert_eq!(status_with(&client, "/v1/organization/projects", "any").await, 200, "no keys are needed yet");

        let project = run_on(&database, &["projects", "create", "Team A"]).await.trim().to_owned();
        assert!(project.starts_with("proj_"), "{project}");
        let key = run_on(&database, &["keys", "create", "--project", "Team A", "--name", "app"]).await;
        let key = key.trim();
        assert!(key.starts_with("sk-proj-") && key.len() == 51, "{key}");
        wait_for_key(&client, "any", 401).await;
        assert_eq!(status_with(&client, "/v1/assistants", key).await, 200);
        assert_eq!(status_with(&client, "/v1/organization/projects", key).await, 401);
        let admin = run_on(&database, &["keys", "create", "--admin", "--expires-in", "1h", "--json"]).await;
        let admin: serde_json::Value = serde_json::from_str(&admin).unwrap();
        let value = admin["value"].as_str().unwrap();
        assert_eq!(status_with(&client, "/v1/organization/projects", value).await, 200);
        assert_eq!(status_with(&client, "/v1/assistants", value).await, 401);

        let listed = run_on(&database, &["keys", "list", "--project", &project, "--json"]).await;
        assert!(!listed.contains(key), "{listed}");
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        assert_eq!((&listed[0]["name"], &listed[0]["project_id"]), (&"app".into(), &project.as_str().into()));
        let id = listed[0]["id"].as_str().unwrap();
        run_on(&database, &["keys", "revoke", id]).await;
        wait_for_key(&client, key, 401).await;
        let key = run_on(&database, &["keys", "create", "--project", &project]).await;
        let key = key.trim();
        wait_for_key(&client, key, 200).await;
        run_on(&database, &["projects", "archive", "Team A"]).await;
        wait_for_key(&client, key, 401).await;

        let table = run_on(&database, &["projects", "list", "--all"]).await;
        assert!(table.starts_with("ID ") && table.contains("Team A") && table.contains("archived"), "{table}");
        for (arguments, expected) in [
            (vec!["keys", "revoke", id], "there is no key with the ID"),
            (vec!["keys", "create", "--project", "Team Z"], "there is no project with the ID or name \"Team Z\""),
            (vec!["keys", "create", "--expires-in", "1w"], "\"w\" is not a unit of time"),
            (vec!["projects", "archive", "proj_default"], "The default project cannot be archived"),
            (vec!["projects", "create", ""], "Invalid 'name'"),
        ] {
            let (ok, _, err) = output(assistd(&[("DATABASE_URL", &database.url)]).args(&arguments)).await;
            assert!(!ok && err.contains(expected), "{arguments:?}: {err}");
        }
        child.kill().await.unwrap();
    }
}
