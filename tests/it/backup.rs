//! Backups: made while runs go on, restored byte for byte; and copies that are not whole, which no server starts on.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use assistd::api::{FileId, Scope};
use assistd::clock::Clock;
use assistd::store::{self, DatabaseCopy};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::{Database, Folder};
use crate::support::disk::Disk;
use crate::support::form::{Form, files_in};
use crate::support::process::{Log, assistd, piped, serve, without_model};
use crate::support::skip;
use crate::support::upstream::{Answer, Upstream};

/// A server as a process, with its data folder.
struct Served {
    child: Child,
    client: Client,
    /// Reads the log, so that the server can write it.
    _log: Log,
}

/// Starts a server; its database is in the data folder, unless a URL is given.
async fn start(data: &Path, database: &str, upstream: &Upstream) -> Served {
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", data.to_str().unwrap()),
        ("DATABASE_URL", database),
        ("UPSTREAM_URL", &upstream.url),
    ];
    let (mut child, address, _out) = serve(&settings).await;
    let log = Log::follow(&mut child);
    Served { child, _log: log, client: Client::new(address.parse().unwrap()) }
}

/// Runs a command; returns whether it succeeded, its output and its errors.
async fn run(command: &mut Command) -> (bool, String, String) {
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

async fn back_up(data: &Path, arguments: &[&str]) -> (bool, String, String) {
    let settings = [("DATA_DIR", data.to_str().unwrap())];
    run(assistd(&settings).arg("backup").args(arguments)).await
}

/// Tries to start a server, which must not start; returns its error.
async fn refused(data: &Path) -> String {
    let mut command = assistd(&without_model(data));
    let refused = tokio::time::timeout(std::time::Duration::from_mins(1), run(&mut command)).await;
    let (ok, out, err) = refused.expect("the server started");
    assert!(!ok, "{out}{err}");
    err
}

/// Returns the names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o777
}

/// Copies a folder, without the files that are being received: those that end in `#1`.
fn copy_folder(from: &Path, to: &Path) {
    for path in files_in(from).into_iter().filter(|path| !path.to_string_lossy().ends_with("#1")) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(path, target).unwrap();
    }
}

/// Objects that do not change any more: their paths, to compare the bodies before and after.
async fn finished_objects(client: &Client) -> Vec<String> {
    let assistant = client.create_assistant().await;
    let mut paths = vec![format!("/v1/assistants/{assistant}"), "/v1/vector_stores".to_owned()];
    for text in ["Hi", "Good evening", "\u{1f600} ü"] {
        let thread = client.create_thread(text).await;
        let run = client.create_run(&assistant, &thread).await;
        client.wait_for_status(&run, "completed").await;
        paths.push(format!("/v1/threads/{thread}"));
        paths.push(format!("/v1/threads/{thread}/messages"));
        paths.push(run.clone());
        paths.push(format!("{run}/steps"));
    }
    for index in 1..=12_usize {
        let bytes: Vec<u8> = (0..index * 70_000).map(|at| u8::try_from((at * (index + 3)) % 251).unwrap()).collect();
        let form = Form::default().text("purpose", "vision").file("file", &format!("{index}.bin"), &bytes);
        let reply = form.send(client, "/v1/files").await;
        assert_eq!(reply.status, 200, "{:#}", reply.body);
        let path = format!("/v1/files/{}", reply.body["id"].as_str().unwrap());
        paths.push(format!("{path}/content"));
        paths.push(path);
    }
    client.create_vector_store().await;
    paths
}

async fn bodies(client: &Client, paths: &[String]) -> Vec<(String, Vec<u8>)> {
    let mut bodies = Vec::new();
    for path in paths {
        let response = client.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        bodies.push((path.clone(), response.bytes().await.unwrap().to_vec()));
    }
    bodies
}

/// A server that has finished objects, and that runs are created on.
struct BusyServer {
    server: Served,
    before: Before,
    creating: Vec<tokio::task::JoinHandle<()>>,
}

/// What a busy server had before a backup was made.
struct Before {
    /// Paths and bodies of objects that do not change any more.
    finished: Vec<(String, Vec<u8>)>,
    /// The path of a run in progress.
    paused: String,
}

impl BusyServer {
    async fn start(data: &Path, database: &str) -> Self {
        let upstream = Upstream::start().await;
        let server = start(data, database, &upstream).await;
        let client = &server.client;
        let finished = bodies(client, &finished_objects(client).await).await;
        upstream.then([Answer::Pause(vec!["Hel"])]);
        let assistant = client.create_assistant().await;
        let paused = client.create_run(&assistant, &client.create_thread("Hi").await).await;
        client.wait_for_status(&paused, "in_progress").await;
        upstream.wait_for_requests(4).await;
        let creating = (0..2).map(|_| tokio::spawn(create_runs(client.clone()))).collect();
        Self { server, before: Before { finished, paused }, creating }
    }

    async fn kill(mut self) -> Before {
        self.server.child.kill().await.unwrap();
        self.creating.iter().for_each(tokio::task::JoinHandle::abort);
        self.before
    }
}

/// Creates runs on new threads, each after the one before has ended, until it is aborted.
async fn create_runs(client: Client) {
    let assistant = client.create_assistant().await;
    loop {
        let thread = client.create_thread("More").await;
        let run = client.create_run(&assistant, &thread).await;
        client.wait_until_ended(&run).await;
        client.upload().await;
    }
}

/// Returns the paths of the runs of all threads, with their statuses.
async fn statuses(client: &Client) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let threads = client.get("/v1/threads?limit=100").await;
    for thread in threads["data"].as_array().unwrap() {
        let id = thread["id"].as_str().unwrap();
        for run in client.get(&format!("/v1/threads/{id}/runs")).await["data"].as_array().unwrap() {
            let path = format!("/v1/threads/{id}/runs/{}", run["id"].as_str().unwrap());
            found.push((path, run["status"].as_str().unwrap().to_owned()));
        }
    }
    found
}

/// Checks that a restored server has what was finished, that it finishes the other runs, and that each file has its bytes.
async fn check_restored(client: &Client, data: &Path, finished: &[(String, Vec<u8>)], paused: &str) {
    let paths: Vec<String> = finished.iter().map(|(path, _)| path.clone()).collect();
    for ((path, before), (_, after)) in finished.iter().zip(bodies(client, &paths).await) {
        assert!(*before == after, "{path} differs");
    }
    client.wait_for_status(paused, "completed").await;
    for (run, _) in statuses(client).await {
        client.wait_for_status(&run, "completed").await;
    }
    let sizes: HashMap<String, u64> = files_in(&data.join("files"))
        .into_iter()
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path.metadata().unwrap().len()))
        .collect();
    let files = client.get("/v1/files").await;
    let files = files["data"].as_array().unwrap();
    assert!(files.len() >= 12, "{}", files.len());
    for file in files {
        assert_eq!(sizes.get(file["id"].as_str().unwrap()).copied(), file["bytes"].as_u64(), "{file:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_made_while_runs_go_on_is_restored_byte_for_byte() {
    let (data, restored, backups) = (Folder::new(), Folder::new(), Folder::new());
    let server = BusyServer::start(&data.0, "").await;

    let file = backups.0.join("a b?.db");
    let (ok, out, err) = back_up(&data.0, &[file.to_str().unwrap(), "--json"]).await;

    assert!(ok, "{out}{err}");
    let printed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(printed["path"], file.to_str().unwrap());
    let count = usize::try_from(printed["files"]["count"].as_u64().unwrap()).unwrap();
    assert!(count >= 12, "{printed:#}");
    assert_eq!(names(&backups.0), ["a b?.db", "a b?.db.files"]);
    let copied = files_in(&backups.0.join("a b?.db.files"));
    assert_eq!(copied.len(), count);
    for path in copied.iter().chain([&file]) {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
    assert_eq!(mode(&backups.0.join("a b?.db.files")), 0o700);
    let Before { finished, paused } = server.kill().await;
    std::fs::copy(&file, restored.0.join("assistd.db")).unwrap();
    copy_folder(&backups.0.join("a b?.db.files"), &restored.0.join("files"));
    let mut server = start(&restored.0, "", &Upstream::start().await).await;
    check_restored(&server.client, &restored.0, &finished, &paused).await;
    server.child.kill().await.unwrap();
}

/// As in `docs/backup.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_of_postgres_that_is_made_while_runs_go_on_is_restored_byte_for_byte() {
    let (Some(database), Some(target)) = (Database::postgres().await, Database::postgres().await) else { return };
    if std::process::Command::new("pg_dump").arg("--version").output().is_err() {
        return skip("pg_dump");
    }
    let (data, restored, backups) = (Folder::new(), Folder::new(), Folder::new());
    let server = BusyServer::start(&data.0, &database.url).await;

    let dump = backups.0.join("assistd.dump");
    let mut command = Command::new("pg_dump");
    command.arg("--format=custom").arg("--file").arg(&dump).arg(&database.url);
    let (ok, _, err) = run(&mut command).await;
    assert!(ok, "{err}");
    copy_folder(&data.0.join("files"), &restored.0.join("files"));

    let Before { finished, paused } = server.kill().await;
    let mut command = Command::new("pg_restore");
    command.args(["--no-owner", "--exit-on-error", "--single-transaction", "--dbname", &target.url]).arg(&dump);
    let (ok, _, err) = run(&mut command).await;
    assert!(ok, "{err}");
    let mut server = start(&restored.0, &target.url, &Upstream::start().await).await;
    check_restored(&server.client, &restored.0, &finished, &paused).await;
    server.child.kill().await.unwrap();
}

#[tokio::test]
async fn a_backup_that_fails_leaves_nothing_and_replaces_nothing() {
    let (data, backups) = (Folder::new(), Folder::new());
    let missing = back_up(&data.0, &[backups.0.join("b.db").to_str().unwrap()]).await.2;
    assert!(missing.contains("failed to open the database") && missing.contains("No such file"), "{missing}");
    assert_eq!(names(&data.0), Vec::<String>::new(), "a backup creates no database");
    let mut server = start(&data.0, "", &Upstream::start().await).await;
    server.client.upload().await;
    let taken = backups.0.join("taken.db");
    std::fs::write(&taken, "mine").unwrap();
    std::fs::create_dir(backups.0.join("c.db.files")).unwrap();
    let file = |name: &str| backups.0.join(name).display().to_string();

    for (target, expected) in [
        (file("taken.db"), "taken.db exists; a backup does not replace anything"),
        (file("c.db"), "c.db.files exists"),
        (file("none/b.db"), "failed to write"),
        ("/".to_owned(), "does not name a file"),
    ] {
        let (ok, _, err) = back_up(&data.0, &[&target]).await;
        assert!(!ok && err.contains(expected), "{target}: {err}");
    }
    let postgres = [("DATABASE_URL", "postgres://127.0.0.1:9/x"), ("DATA_DIR", data.0.to_str().unwrap())];
    let (ok, _, err) = run(assistd(&postgres).args(["backup", &file("p.db")])).await;
    assert!(!ok && err.contains("pg_dump"), "{err}");
    let lost = files_in(&data.0.join("files")).remove(0);
    std::fs::rename(&lost, data.0.join("moved")).unwrap();
    let (ok, _, err) = back_up(&data.0, &[&file("b.db")]).await;
    assert!(!ok && err.contains("1 files have no bytes in file://"), "{err}");

    assert_eq!(names(&backups.0), ["c.db.files", "taken.db"]);
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "mine");
    let (ok, out, err) = back_up(&data.0, &[&file("b.db"), "--without-files"]).await;
    assert!(ok && err.contains("the bytes of 1 files are in file://"), "{out}{err}");
    assert_eq!(names(&backups.0), ["b.db", "c.db.files", "taken.db"]);
    server.child.kill().await.unwrap();
}

#[tokio::test]
async fn a_backup_to_a_full_disk_fails_and_leaves_nothing() {
    let Some(disk) = Disk::mount("1m") else { return skip("permission to mount a small disk") };
    let data = Folder::new();
    let mut server = start(&data.0, "", &Upstream::start().await).await;
    let form = Form::default().text("purpose", "user_data").file("file", "a", &vec![7; 2_000_000]);
    assert_eq!(form.send(&server.client, "/v1/files").await.status, 200);

    let (ok, _, err) = back_up(&data.0, &[disk.0.join("b.db").to_str().unwrap()]).await;

    assert!(!ok && err.contains("failed to copy the bytes of file-"), "{err}");
    assert_eq!(names(&disk.0), Vec::<String>::new());
    server.child.kill().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_deleted_while_it_is_copied_is_not_in_the_restored_database() {
    let (data, database) = (Folder::new(), Database::sqlite());
    let mut server = start(&data.0, &database.url, &Upstream::start().await).await;
    let (kept, deleted) = (server.client.upload().await, server.client.upload().await);
    let target = Database::sqlite();
    let path = PathBuf::from(target.url.trim_start_matches("sqlite://"));

    let mut copy = DatabaseCopy::create(&database.settings(), &path).await.unwrap();
    server.client.delete(&format!("/v1/files/{deleted}")).await;
    let blobs = copy.blobs().await.unwrap();
    assert_eq!(blobs.len(), 2);
    for blob in &blobs {
        let exists = copy.still_exists(blob).await.unwrap();
        assert_eq!(exists, blob.id == kept);
        if !exists {
            copy.expire(blob).await.unwrap();
        }
    }
    copy.finish().await.unwrap();

    server.child.kill().await.unwrap();
    let store = target.open().await;
    let file = async |id: &str| {
        let id = <FileId as assistd::api::id::Id>::parse(id, "file").unwrap();
        store.file(&Scope::default_project(), &id).await.unwrap().is_some()
    };
    assert!(file(&kept).await && !file(&deleted).await);
    store.close().await;
}

/// A database with an assistant, and the folder of a server that was killed.
async fn killed_server() -> (Folder, Value) {
    let data = Folder::new();
    let mut server = start(&data.0, "", &Upstream::start().await).await;
    let assistant = server.client.create_assistant().await;
    let assistant = server.client.get(&format!("/v1/assistants/{assistant}")).await;
    for _ in 0..40 {
        server.client.post("/v1/assistants", json!({"model": "m", "instructions": "x".repeat(4_000)})).await;
    }
    server.child.kill().await.unwrap();
    (data, assistant)
}

#[tokio::test]
async fn a_copy_that_is_not_a_whole_database_is_refused_at_start_and_not_changed() {
    let (source, _) = killed_server().await;
    let whole = Folder::new();
    let (ok, out, err) = back_up(&source.0, &[whole.0.join("b.db").to_str().unwrap()]).await;
    assert!(ok, "{out}{err}");
    let whole = std::fs::read(whole.0.join("b.db")).unwrap();
    let mut torn = whole.clone();
    for page in torn.chunks_mut(4096).skip(3).step_by(5) {
        page.fill(0);
    }
    let other = Database::sqlite();
    other.open().await.close().await;
    other.execute("drop table _sqlx_migrations").await;
    let other = std::fs::read(other.url.trim_start_matches("sqlite://")).unwrap();
    let cases = [
        (Vec::new(), "it is empty"),
        (b"a text that is longer than the header of a SQLite file, which has one hundred bytes at its beginning, as this"
            .to_vec(), "it is not a SQLite file"),
        (whole[..50].to_vec(), "it is not a SQLite file"),
        (whole[..whole.len() / 2].to_vec(), "malformed"),
        (torn, "is not a whole database"),
        (other, "it has no tables of assistd"),
    ];

    for (bytes, expected) in cases {
        let data = Folder::new();
        let path = data.0.join("assistd.db");
        std::fs::write(&path, &bytes).unwrap();

        // A supervisor starts it again.
        for _ in 0..2 {
            let error = refused(&data.0).await;
            assert!(error.contains(expected) && error.contains("Restore a backup"), "{expected}: {error}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "{expected}: the file was changed");
        let (ok, _, err) = back_up(&data.0, &[data.0.join("b.db").to_str().unwrap()]).await;
        assert!(!ok && err.contains("is not a whole database"), "{expected}: {err}");
    }
}

#[tokio::test]
async fn a_database_is_refused_without_its_log_or_with_the_log_of_another() {
    let (source, assistant) = killed_server().await;
    let backups = Folder::new();
    let log = source.0.join("assistd.db-wal");
    assert!(log.metadata().unwrap().len() > 0, "the server was killed");
    let beside = |data: &Folder| data.0.join("assistd.db-wal");

    // The log alone: its database is lost.
    let lost = Folder::new();
    std::fs::copy(&log, beside(&lost)).unwrap();
    let error = refused(&lost.0).await;
    assert!(error.contains("the file is missing") && error.contains("assistd.db-wal"), "{error}");

    // A backup that was restored beside the log of the database before.
    let (ok, out, err) = back_up(&source.0, &[backups.0.join("b.db").to_str().unwrap()]).await;
    assert!(ok, "{out}{err}");
    let (other, _) = killed_server().await;
    std::fs::copy(backups.0.join("b.db"), other.0.join("assistd.db")).unwrap();
    let error = refused(&other.0).await;
    assert!(error.contains("assistd.db-wal has the changes of another database"), "{error}");

    // Without it, the backup is served.
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(other.0.join(format!("assistd.db{suffix}"))).unwrap();
    }
    let mut server = start(&other.0, "", &Upstream::start().await).await;
    let path = format!("/v1/assistants/{}", assistant["id"].as_str().unwrap());
    assert_eq!(server.client.get(&path).await, assistant);
    server.child.kill().await.unwrap();
}

both_stores!(a_database_that_only_newer_releases_can_use_is_refused_with_both_versions, async |database: Database| {
    database.open().await.close().await;
    let recorded = database.text("select written_by from schema_support").await;
    assert_eq!(recorded, env!("CARGO_PKG_VERSION"));
    database.execute("update schema_support set oldest_migration = 9999, written_by = '9.9.9'").await;

    let clock = Arc::new(Clock::system());
    let error = store::open(&database.settings(), clock, Arc::default()).await.unwrap_err().to_string();

    let expected = ["assistd 9.9.9", concat!("assistd ", env!("CARGO_PKG_VERSION")), "restore a backup"];
    assert!(expected.iter().all(|text| error.contains(text)), "{error}");
    assert_eq!(database.text("select written_by from schema_support").await, "9.9.9");
});

#[tokio::test]
async fn the_bytes_of_another_database_are_not_deleted() {
    let data = Folder::new();
    let serve_until = async |message: Option<&str>, uploads: usize| {
        // From the first line: files are looked for as soon as the server starts.
        let mut child = piped(&without_model(&data.0)).spawn().unwrap();
        let log = Log::follow(&mut child);
        let address = log.wait_for("listening", 0).await["address"].as_str().unwrap().parse().unwrap();
        let client = Client::new(address);
        for _ in 0..uploads {
            client.upload().await;
        }
        if let Some(message) = message {
            log.wait_for(message, 0).await;
        }
        child
    };
    let stored = || files_in(&data.0.join("files"));
    let age = |path: &Path| {
        let old = std::time::SystemTime::now() - std::time::Duration::from_hours(72);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    };
    serve_until(None, 3).await.kill().await.unwrap();
    for path in stored() {
        age(&path);
    }
    let moved = data.0.join("moved");
    std::fs::create_dir(&moved).unwrap();
    let database = ["assistd.db", "assistd.db-wal", "assistd.db-shm"];
    let present = database.map(|name| data.0.join(name)).into_iter().filter(|path| path.exists());
    for path in present.collect::<Vec<_>>() {
        std::fs::rename(&path, moved.join(path.file_name().unwrap())).unwrap();
    }

    let warning = "most files in the storage are not in the database; they are not deleted: check that database_url and \
                   files_url belong together";
    serve_until(Some(warning), 0).await.kill().await.unwrap();
    assert_eq!(stored().len(), 3);

    for name in database {
        let _ = std::fs::remove_file(data.0.join(name));
        let _ = std::fs::rename(moved.join(name), data.0.join(name));
    }
    let unnamed = stored()[0].to_str().unwrap().to_owned();
    let last = if unnamed.ends_with('0') { '1' } else { '0' };
    let unnamed = std::path::PathBuf::from(format!("{}{last}", &unnamed[..unnamed.len() - 1]));
    std::fs::copy(&stored()[0], &unnamed).unwrap();
    age(&unnamed);
    let mut child = serve_until(Some("deleting bytes that no file in the database has"), 0).await;
    while unnamed.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(stored().len(), 3);
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_link_to_the_file_of_a_database_is_the_same_database() {
    let (data, other) = (Folder::new(), Folder::new());
    let (mut child, address, _out) = serve(&without_model(&data.0)).await;
    let _log = Log::follow(&mut child);
    let client = Client::new(address.parse().unwrap());
    client.create_assistant().await;
    std::os::unix::fs::symlink(data.0.join("assistd.db"), other.0.join("assistd.db")).unwrap();

    assert!(refused(&other.0).await.contains("another server is using it"));
    child.kill().await.unwrap();
    std::fs::remove_file(data.0.join("assistd.db")).unwrap();
    assert!(refused(&other.0).await.contains("No such file"), "a link without a target is not replaced");
}
