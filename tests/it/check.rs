//! `assistd check`: what it finds, and that it changes nothing.

use std::path::Path;

use serde_json::Value;

use crate::both_stores;
use crate::support::client::Client;
use crate::support::database::{Database, Folder};
use crate::support::form::files_in;
use crate::support::process::{assistd, serve};
use crate::support::upstream::Upstream;

/// Runs the check; returns its exit code and its report.
async fn check(settings: &[(&str, &str)], arguments: &[&str]) -> (i32, Value) {
    let output = assistd(settings).args(arguments).args(["check", "--json"]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(report["can_serve"], output.status.success());
    (output.status.code().unwrap(), report)
}

/// Returns the level and the text of the first finding in an area.
fn finding<'r>(report: &'r Value, area: &str) -> (&'r str, &'r str) {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["area"] == area);
    let found = found.unwrap_or_else(|| panic!("no finding about {area}: {report:#}"));
    (found["level"].as_str().unwrap(), found["text"].as_str().unwrap())
}

/// Returns the paths of all files below a folder with their bytes, in the order of the paths.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let paths = files_in(folder);
    let mut contents: Vec<_> =
        paths.iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect();
    contents.sort();
    contents
}

#[tokio::test]
async fn a_check_before_the_first_start_finds_no_problem_and_creates_nothing() {
    let (folder, upstream) = (Folder::new(), Upstream::start().await);
    let data = folder.0.join("data");
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", data.to_str().unwrap()),
        ("UPSTREAM_URL", &upstream.url),
        ("DEFAULT_MODEL", "absent"),
    ];

    let (code, report) = check(&settings, &[]).await;

    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(finding(&report, "database"), ("ok", "the file does not exist; the server creates it"));
    assert_eq!(finding(&report, "settings"), ("ok", "valid (no file)"));
    let (level, text) = finding(&report, "model server upstream_url");
    assert!(level == "ok" && text.ends_with("2 models: small, org/large"), "{text}");
    let text = "default_model is \"absent\", which no model server lists (2 models: small, org/large).";
    assert_eq!(finding(&report, "default_model"), ("warning", text));
    assert!(finding(&report, "disk").1.ends_with("MB free"));
    assert!(!data.exists());
    let page = assistd(&settings).arg("check").output().await.unwrap();
    let page = String::from_utf8(page.stdout).unwrap();
    assert!(page.starts_with("RESULT   AREA") && page.contains("\nok       version "), "{page}");
}

#[tokio::test]
async fn what_prevents_a_server_from_serving_is_a_problem() {
    let (folder, upstream) = (Folder::new(), Upstream::start().await);
    let (data, file) = (folder.0.join("data"), folder.0.join("settings.toml"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(&file, "\nmax_attempts = 0").unwrap();
    let used = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = used.local_addr().unwrap().to_string();
    let of = |more: &[(&'static str, String)]| {
        let mut settings = vec![
            ("LISTEN", "127.0.0.1:0".to_owned()),
            ("DATA_DIR", data.display().to_string()),
            ("UPSTREAM_URL", upstream.url.clone()),
        ];
        settings.extend_from_slice(more);
        settings
    };
    let empty = folder.0.join("empty.db");
    std::fs::write(&empty, "").unwrap();
    let cases = [
        (
            of(&[("UPSTREAM_URL", "http://user:7331@127.0.0.1:9/v1".to_owned())]),
            "model server upstream_url",
            "127.0.0.1:9",
        ),
        (of(&[("LISTEN", "0.0.0.0:0".to_owned())]), "address", "no API keys are configured"),
        (of(&[("LISTEN", address)]), "address", "cannot listen on"),
        (of(&[("DATABASE_URL", format!("sqlite://{}", empty.display()))]), "database", "it is empty"),
        (of(&[("DATABASE_URL", "postgres://u:7331@127.0.0.1:9/x".to_owned())]), "database", "failed to connect to"),
        (of(&[("LISTN", "x".to_owned())]), "settings", "ASSISTD_LISTN: unknown setting"),
    ];

    for (settings, area, expected) in &cases {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (code, report) = check(&settings, &[]).await;
        let (level, text) = finding(&report, area);
        assert!(code == 1 && level == "problem" && text.contains(expected), "{area}: {report:#}");
        assert!(!report.to_string().contains("7331"), "{report:#}");
    }
    let (code, report) = check(&[], &["--config", file.to_str().unwrap()]).await;
    let expected = format!("{}:2: max_attempts is 0; it must be at least 1", file.display());
    assert_eq!((code, finding(&report, "settings")), (1, ("problem", expected.as_str())));
    drop(used);
}

#[tokio::test]
async fn a_check_beside_a_server_and_after_its_end_changes_nothing() {
    let (folder, upstream) = (Folder::new(), Upstream::start().await);
    let data = folder.0.to_str().unwrap();
    let (mut child, address, _out) =
        serve(&[("LISTEN", "127.0.0.1:0"), ("DATA_DIR", data), ("UPSTREAM_URL", &upstream.url)]).await;
    let settings = [("LISTEN", address.as_str()), ("DATA_DIR", data), ("UPSTREAM_URL", &upstream.url)];
    let client = Client::new(address.parse().unwrap());
    let run = client.create_run(&client.create_assistant().await, &client.create_thread("Hi").await).await;
    client.wait_for_status(&run, "completed").await;

    let (code, report) = check(&settings, &[]).await;
    assert_eq!(code, 0, "{report:#}");
    assert!(finding(&report, "database").1.ends_with("in use by a server"), "{report:#}");
    assert_eq!(finding(&report, "address"), ("ok", format!("a server responds at {address}").as_str()));
    client.create_assistant().await;

    child.kill().await.unwrap();
    let without_shared_memory = |contents: Vec<(String, Vec<u8>)>| -> Vec<(String, Vec<u8>)> {
        contents.into_iter().filter(|(path, _)| !path.ends_with("-shm")).collect()
    };
    let before = without_shared_memory(contents(&folder.0));
    assert!(before.iter().any(|(path, bytes)| path.ends_with("-wal") && !bytes.is_empty()), "it was killed");
    let (code, report) = check(&settings, &[]).await;
    assert_eq!((code, finding(&report, "database").0), (0, "ok"), "{report:#}");
    assert!(before == without_shared_memory(contents(&folder.0)), "the files of a killed server were changed");

    let (mut child, ..) = serve(&settings).await;
    let pid = child.id().unwrap().to_string();
    assert!(tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    child.wait().await.unwrap();
    let before = contents(&folder.0);
    let (code, report) = check(&settings, &[]).await;
    assert_eq!((code, finding(&report, "database").0), (0, "ok"), "{report:#}");
    assert!(before == contents(&folder.0), "the files of a stopped server were changed");
}

both_stores!(a_check_finds_the_version_of_a_database_and_does_not_migrate_it, async |database: Database| {
    let (folder, upstream) = (Folder::new(), Upstream::start().await);
    let settings = [
        ("LISTEN", "127.0.0.1:0"),
        ("DATA_DIR", folder.0.to_str().unwrap()),
        ("DATABASE_URL", database.url.as_str()),
        ("UPSTREAM_URL", upstream.url.as_str()),
    ];
    if !database.url.starts_with("sqlite:") {
        let (code, report) = check(&settings, &[]).await;
        let text = finding(&report, "database").1;
        assert!(code == 0 && text.contains("schema 0; the server migrates it to schema"), "{report:#}");
        assert_eq!(database.text("select count(*)::text from pg_tables where tablename = 'runs'").await, "0");
    }
    database.open().await.close().await;

    let (code, report) = check(&settings, &[]).await;
    assert_eq!(code, 0, "{report:#}");
    let text = finding(&report, "database").1;
    assert!(text.contains("SQLite 3.") || text.contains("Postgres "), "{text}");
    database.execute("delete from _sqlx_migrations where version > 13").await;
    let (_, report) = check(&settings, &[]).await;
    assert!(finding(&report, "database").1.contains("schema 13; the server migrates it"), "{report:#}");
    database.execute("update schema_support set oldest_migration = 9999, written_by = '9.9.9'").await;
    let (code, report) = check(&settings, &[]).await;
    let (level, text) = finding(&report, "database");
    assert!(code == 1 && level == "problem" && text.contains("migrated by assistd 9.9.9"), "{report:#}");
});
