//! Module dependencies: no module depends on a module to its left.

use std::path::{Path, PathBuf};

/// Left to right, as in the docs of `lib.rs`; modules with the same number do not depend on each other.
const ORDER: [(&str, u32); 12] = [
    ("main", 0),
    ("server", 1),
    ("config", 2),
    ("telemetry", 3),
    ("health", 3),
    ("http", 4),
    ("runs", 5),
    ("work", 6),
    ("store", 7),
    ("llm", 7),
    ("clock", 8),
    ("liveness", 9),
];

fn rank(module: &str) -> u32 {
    ORDER.iter().find(|(name, _)| *name == module).map_or(10, |(_, rank)| *rank)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Returns the modules that follow `crate::` in a line, including lists in braces.
fn modules_in(line: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let list = rest.strip_prefix('{').and_then(|rest| rest.split('}').next());
        let names: Vec<&str> = list.map_or_else(|| vec![rest], |list| list.split(',').collect());
        for name in names {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            modules.push(name);
        }
    }
    modules
}

#[test]
fn no_module_depends_on_a_module_to_its_left() {
    let src = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut checked = 0;
    for path in all {
        let inside = path.strip_prefix(&src).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in modules_in(line).into_iter().filter(|used| *used != module && used != "request") {
                checked += 1;
                assert!(rank(&used) > rank(&module), "{}: {line}", inside.display());
            }
        }
    }
    assert!(checked > 50, "too few dependencies found: does the parser still match the code?");
}
