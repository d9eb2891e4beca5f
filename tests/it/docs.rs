//! The documentation: its links resolve, the settings and versions that it names exist, and its diagram of a run matches
//! the state machine. `tests/clients/python/examples.py` runs its examples.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use assistd::config::EXAMPLE;

/// Folders without documentation of ours.
const SKIPPED: [&str; 4] = ["target", "node_modules", ".venv", "data"];
/// Environment variables with our prefix that are not settings: their names, or how they begin.
const NOT_SETTINGS: [&str; 4] = ["ASSISTD_CONFIG", "ASSISTD_TEST_", "ASSISTD_SERVICE_", "ASSISTD_PORT"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files below a folder that have one of these extensions, with their text.
fn files(folder: &Path, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            if !SKIPPED.contains(&name.as_str()) && name != ".git" {
                found.extend(files(&path, extensions));
            }
        } else if path.extension().is_some_and(|extension| extensions.contains(&extension.to_str().unwrap())) {
            found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

fn pages() -> Vec<(PathBuf, String)> {
    let pages = files(&root(), &["md"]);
    assert!(pages.iter().any(|(path, _)| path.ends_with("README.md")));
    pages
}

/// Returns a page without its code blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// Returns the texts between `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split_once(close)).map(|(inner, _)| inner).collect()
}

/// Returns the anchors of a page: those that GitHub makes of its headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page);
    let headings =
        headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_between_pages_resolve() {
    let mut broken = Vec::new();
    for (path, page) in pages() {
        for link in between(&prose(&page), "](", ')') {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let has_anchor = || {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                anchor.is_empty() || anchors(&text).contains(anchor)
            };
            if !target.exists() || !has_anchor() {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }

    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn settings_in_the_documentation_exist() {
    let settings: toml::Table = EXAMPLE.parse().unwrap();
    let mut unknown = Vec::new();
    for (path, text) in files(&root(), &["md", "toml", "yaml", "env"]) {
        let is_name = |character: char| character.is_ascii_uppercase() || character == '_';
        let variables = text.match_indices("ASSISTD_").map(|(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|character| !is_name(character)).unwrap_or(rest.len())]
        });
        for name in variables.filter(|name| *name != "ASSISTD_") {
            let key = name.trim_start_matches("ASSISTD_").to_lowercase();
            // With this suffix, a variable names a file with the value.
            let key = key.strip_suffix("_file").unwrap_or(&key);
            if !settings.contains_key(key) && !NOT_SETTINGS.iter().any(|known| name.starts_with(known)) {
                unknown.push(format!("{}: {name}", path.display()));
            }
        }
        // Names of settings without the prefix are recognized by their units.
        for name in between(&text, "`", '`') {
            let is_setting = name.ends_with("_s") || name.ends_with("_bytes_max") || name.ends_with("_connections_max");
            let is_word = name.chars().all(|character| character.is_ascii_lowercase() || character == '_');
            if is_setting && is_word && !settings.contains_key(name) {
                unknown.push(format!("{}: {name}", path.display()));
            }
        }
    }

    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn the_readme_names_the_tested_versions_of_the_sdks() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let readme = read("README.md").replace('\n', " ");
    let python = read("tests/clients/python/requirements.txt");
    let node: serde_json::Value = serde_json::from_str(&read("tests/clients/node/package.json")).unwrap();
    let rust: toml::Table = read("Cargo.toml").parse().unwrap();
    let pinned = |name: &str| python.lines().find_map(|line| line.strip_prefix(&format!("{name}=="))).unwrap();

    for client in [
        format!("openai-python {}", pinned("openai")),
        format!("azure-ai-agents {}", pinned("azure-ai-agents")),
        format!("openai-node {}", node["dependencies"]["openai"].as_str().unwrap()),
        format!(
            "async-openai {}",
            rust["dev-dependencies"]["async-openai"]["version"].as_str().unwrap().trim_matches('=')
        ),
    ] {
        assert!(readme.contains(&client), "the README does not name {client}");
    }
}

/// The moves of a run: (state before, input, state after).
type Moves = BTreeSet<(String, String, String)>;

/// Returns the moves in the table at the head of `machine.rs`.
fn moves_of_the_machine() -> Moves {
    let source = std::fs::read_to_string(root().join("src/runs/machine.rs")).unwrap();
    let rows: Vec<Vec<String>> = source
        .lines()
        .skip_while(|line| !line.starts_with("//! | input"))
        .take_while(|line| line.starts_with("//! |"))
        .map(|line| line.split('|').skip(1).map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    let state = |text: &str| text.trim().replace(' ', "_");
    let mut moves = Moves::new();
    for row in rows.iter().skip(2) {
        for (before, cell) in rows[0].iter().zip(row).skip(1).filter(|(before, _)| !before.is_empty()) {
            for after in cell.split(',').map(state).filter(|after| after != "–") {
                moves.insert((state(before), row[0].clone(), after));
            }
        }
    }
    moves
}

/// Returns the moves in the diagram of `docs/architecture.md`.
fn moves_of_the_diagram() -> Moves {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut moves = Moves::new();
    for (edge, inputs) in page.lines().filter(|line| line.contains("-->")).filter_map(|line| line.split_once(": ")) {
        let (before, after) = edge.split_once("-->").unwrap();
        for input in inputs.split(", ") {
            moves.insert((before.trim().to_owned(), input.to_owned(), after.trim().to_owned()));
        }
    }
    moves
}

#[test]
fn the_diagram_of_a_run_matches_the_state_machine() {
    let moves = moves_of_the_machine();

    assert_eq!(moves, moves_of_the_diagram());
    let inputs: BTreeSet<&String> = moves.iter().map(|(_, input, _)| input).collect();
    assert!(inputs.len() >= 10, "inputs of the table: {inputs:?}");
}

/// The image is built without the sources of tests and benchmarks, which Cargo requires.
#[test]
fn the_image_has_a_file_for_each_target() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let image = std::fs::read_to_string(root().join("docker/Dockerfile")).unwrap();
    let targets = |kind: &str| manifest[kind].as_array().unwrap().clone();
    let path = |folder: &str, target: &toml::Value| match target.get("path") {
        Some(path) => path.as_str().unwrap().to_owned(),
        None => format!("{folder}/{}.rs", target["name"].as_str().unwrap()),
    };
    let tests = targets("test").into_iter().map(|target| path("tests", &target));
    let benches = targets("bench").into_iter().map(|target| path("benches", &target));
    for path in tests.chain(benches) {
        assert!(image.contains(&path), "docker/Dockerfile does not create {path}");
    }
}
