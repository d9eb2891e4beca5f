//! Module dependencies, read from the parsed source: no module depends on a module to its left, pure files contain no
//! `async`, and the state machine of runs depends on `api` alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Left to right, as in the docs of `lib.rs`; modules with the same number do not depend on each other.
const ORDER: [(&str, u32); 23] = [
    ("main", 0),
    ("server", 1),
    ("commands", 1),
    ("config", 2),
    ("telemetry", 3),
    ("health", 3),
    ("http", 4),
    ("runs", 5),
    ("tools", 6),
    ("retrieval", 7),
    ("access", 8),
    ("files", 9),
    ("work", 10),
    ("store", 11),
    ("llm", 11),
    ("clock", 12),
    ("traces", 12),
    ("host", 13),
    ("priority", 13),
    ("liveness", 13),
    ("metrics", 13),
    ("api", 13),
    // The macro of `api`, which is exported at the root.
    ("request", 13),
];

/// Files and folders whose code does no I/O and never waits.
const PURE: [&str; 32] = [
    "api",
    "host.rs",
    "retrieval/chunk.rs",
    "retrieval/index",
    "retrieval/lexical",
    "retrieval/rank.rs",
    "runs/citations.rs",
    "runs/code.rs",
    "runs/scaling.rs",
    "runs/file_paths.rs",
    "runs/file_search.rs",
    "runs/machine.rs",
    "runs/turn.rs",
    "runs/prompt",
    "runs/stream/transcript.rs",
    "retrieval/extract/text.rs",
    "retrieval/extract/layout.rs",
    "retrieval/extract/html.rs",
    "retrieval/extract/office.rs",
    "retrieval/extract/doc.rs",
    "retrieval/extract/pdf.rs",
    "llm/forwarded.rs",
    "llm/sse.rs",
    "llm/lenient.rs",
    "llm/members.rs",
    "llm/openai/adapt",
    "llm/openai/answer",
    "llm/openai/chunk.rs",
    "llm/openai/mask.rs",
    "llm/openai/models.rs",
    "llm/openai/report.rs",
    "llm/openai/visible.rs",
];

/// A source file below `src`.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    syntax: syn::File,
}

impl Source {
    /// The path of its module, from the crate's root.
    fn module(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.path.with_extension("").iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if names.last().is_some_and(|name| name == "mod") {
            names.pop();
        }
        names
    }

    fn scan(&self) -> Scan {
        let mut scan = Scan { module: self.module(), ..Scan::default() };
        scan.visit_file(&self.syntax);
        scan
    }
}

fn sources() -> Vec<Source> {
    fn read(folder: &Path, root: &Path, found: &mut Vec<Source>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let syntax = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
                found.push(Source { path: path.strip_prefix(root).unwrap().to_owned(), syntax });
            }
        }
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    read(&root, &root, &mut found);
    found
}

/// What a file depends on, and whether it waits. Code of unit tests does not count.
#[derive(Default)]
struct Scan {
    module: Vec<String>,
    /// Top-level modules of this crate.
    used: BTreeSet<String>,
    is_async: bool,
}

impl Scan {
    /// Adds the module that a path leads to, where it begins in this crate.
    fn add(&mut self, path: &[String]) {
        let mut at = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.module.clone(),
            _ => return,
        };
        for name in path {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => {
                    at.pop();
                }
                name => at.push(name.to_owned()),
            }
        }
        self.used.extend(at.first().cloned());
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.add(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
        }
    }

    /// Finds paths in the tokens of a macro call, which are not parsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == ':' => continue,
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                _ => {}
            }
            if path.len() > 1 && !matches!(path[path.len() - 2].as_str(), "crate" | "super" | "self" | "$") {
                path.drain(..path.len() - 1);
            }
            if path.len() > 1 {
                self.add(&path.clone());
            }
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test")
    })
}

impl<'ast> Visit<'ast> for Scan {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1 {
            self.add(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.is_async |= signature.asyncness.is_some();
        visit::visit_signature(self, signature);
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        self.is_async = true;
        visit::visit_expr_async(self, block);
    }
}

fn rank(module: &str) -> u32 {
    ORDER.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} is not in the order")).1
}

#[test]
fn no_module_depends_on_a_module_to_its_left() {
    let mut checked = 0;
    for source in sources() {
        let module = source.module()[0].clone();
        if module == "lib" {
            continue;
        }
        for used in
            source.scan().used.into_iter().filter(|used| *used != module && (module != "api" || used != "request"))
        {
            checked += 1;
            assert!(rank(&used) > rank(&module), "{} depends on {used}", source.path.display());
        }
    }
    assert!(checked > 50, "only {checked} dependencies were found");
}

#[test]
fn pure_files_contain_no_async_code() {
    let mut checked = 0;
    for source in sources().iter().filter(|source| PURE.iter().any(|pure| source.path.starts_with(pure))) {
        checked += 1;
        assert!(!source.scan().is_async, "{} contains async code", source.path.display());
    }
    assert!(checked > PURE.len(), "only {checked} pure files were found");
    let drive = sources().into_iter().find(|source| source.path.ends_with("runs/drive.rs")).unwrap();
    assert!(drive.scan().is_async, "async code is not recognized");
}

#[test]
fn the_state_machine_of_runs_depends_on_api_alone() {
    let machine = sources().into_iter().find(|source| source.path.ends_with("runs/machine.rs")).unwrap();

    assert_eq!(machine.scan().used, BTreeSet::from(["api".to_owned()]));
}

#[test]
fn dependencies_are_found_in_all_their_forms() {
    let syntax = syn::parse_file(
        "use crate::{api::{Run, id}, store as s};
         use super::super::clock;
         fn f() -> crate::llm::Models { format!(\"{}\", crate::work::NAME); super::x() }
         #[cfg(test)] mod tests { use crate::http::state; }",
    );
    let source = Source { path: PathBuf::from("runs/prompt/fit.rs"), syntax: syntax.unwrap() };

    let used: Vec<String> = source.scan().used.into_iter().collect();
    assert_eq!(used, ["api", "llm", "runs", "store", "work"]);
}
