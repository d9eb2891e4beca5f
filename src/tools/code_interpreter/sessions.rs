//! The sessions of threads: opens, uses and closes them, and exchanges files with the storage.
//!
//! A thread has one session, on one server. The server that runs the next code of the thread uses its own session only if it
//! is still the newest of the thread; otherwise, it opens another one, which has the files and not the variables.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::folder::{self, Found, ServerFolder, Stamp};
use super::sandbox::{self, End, Execution, Folder, Limits, Sandbox, Session};
use crate::api::file::{CreateFile, Purpose};
use crate::api::tool::{CodeOutput, OutputImage, WrittenFile};
use crate::api::{CodeSessionId, File, FileId, Ids, Scope, ThreadId};
use crate::files;
use crate::files::service::FileService;
use crate::retrieval::extract::{self, Extractor};
use crate::store::{self, Store};

/// Code that runs first in each session.
const PRELUDE: &str = include_str!("prelude.py");
/// Code that runs after each call: writes the figures that are left.
const FIGURES: &str = "'assistd_figures' in __import__('sys').modules and __import__('assistd_figures').show() or None";
/// Limit of the time of our own code: importing matplotlib takes about a second.
const OWN_TIME: Duration = Duration::from_secs(20);
/// Maximum number of files that one call gives to users.
const WRITTEN_MAX: usize = 50;
/// The limits of rendering an SVG image.
pub const RENDER_LIMITS: extract::Limits = extract::Limits {
    memory_bytes: 512 * 1024 * 1024,
    cpu: Duration::from_secs(10),
    duration: Duration::from_secs(30),
};
/// Maximum size of an SVG image that is rendered, in bytes.
const SVG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The name of a file that is being loaded, in the folder of a session.
const LOADING: &str = "loading";
/// How often idle sessions are searched.
const IDLE_POLL: Duration = Duration::from_secs(30);

/// The settings of sessions.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the folders of sessions.
    pub folder: PathBuf,
    /// How long a session is kept that is not used.
    pub idle: Duration,
    /// Limits of one call.
    pub limits: Limits,
    /// Maximum number of sessions of this server.
    pub sessions_max: usize,
    /// Maximum memory of all sessions, in bytes.
    pub memory_max: u64,
    /// Maximum number of calls that run at the same time.
    pub calls_max: usize,
}

/// Code that a model has written.
#[derive(Debug)]
pub struct Call<'a> {
    /// The project of the thread.
    pub scope: &'a Scope,
    /// The thread.
    pub thread: &'a ThreadId,
    /// The files that the code can read.
    pub files: &'a [FileId],
    /// The code.
    pub code: &'a str,
}

/// What code has produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What users see.
    pub outputs: Vec<CodeOutput>,
    /// What the model reads.
    pub result: String,
    /// The files that the code has written.
    pub files: Vec<WrittenFile>,
}

/// Why code cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime is not installed, or cannot be used.
    #[error("{0}")]
    Unavailable(String),
    /// A session cannot be opened.
    #[error("the code interpreter cannot open a session")]
    Sandbox(#[from] sandbox::Error),
    /// The database is unavailable.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The folder of the session cannot be written.
    #[error("the code interpreter cannot write the folder of a session")]
    Folder(#[from] std::io::Error),
}

/// Runs the code of threads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Interpreter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What runs code, or why there is nothing.
    sandbox: Result<Arc<dyn Sandbox>, String>,
    settings: Settings,
    store: Arc<dyn Store>,
    files: FileService,
    ids: Arc<Ids>,
    /// Renders SVG images.
    renderer: Extractor,
    /// Made for the first session.
    folder: tokio::sync::OnceCell<ServerFolder>,
    sessions: Mutex<HashMap<ThreadId, Arc<Slot>>>,
    calls: Semaphore,
}

/// The place of a thread's session.
#[derive(Debug, Default)]
struct Slot {
    open: Arc<tokio::sync::Mutex<Option<Open>>>,
    /// What is known of it while it is used.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used_at: Instant,
    memory: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { used_at: Instant::now(), memory: 0 }
    }
}

/// An open session.
struct Open {
    id: CodeSessionId,
    /// `None` while code runs, and after it is lost.
    session: Option<Box<dyn Session>>,
    folder: Folder,
    /// How many bytes can be loaded into the folder.
    room: u64,
    /// The versions of the files that users have.
    seen: HashMap<String, Stamp>,
    /// The input files that are in the folder.
    inputs: HashSet<FileId>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("id", &self.id).field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (session, folder) = (self.session.take(), self.folder.clone());
        let close = move || {
            drop(session);
            if let Err(error) = std::fs::remove_dir_all(&folder.path) {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to remove the folder of a session");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(close)),
            Err(_) => close(),
        }
    }
}

impl Interpreter {
    /// Creates the interpreter. `sandbox` is what runs code, or why there is nothing.
    #[must_use]
    pub fn new(
        sandbox: Result<Arc<dyn Sandbox>, String>,
        settings: Settings,
        store: Arc<dyn Store>,
        files: FileService,
        ids: Arc<Ids>,
        renderer: Extractor,
    ) -> Self {
        let calls = Semaphore::new(settings.calls_max.clamp(1, Semaphore::MAX_PERMITS));
        let (folder, sessions) = (tokio::sync::OnceCell::new(), Mutex::default());
        Self { inner: Arc::new(Inner { sandbox, settings, store, files, ids, renderer, folder, sessions, calls }) }
    }

    /// Runs code, and returns what it has produced. Errors of the code are in the result. If `stop` is cancelled, or the
    /// future is dropped, the code is stopped, and its session is lost.
    ///
    /// # Errors
    /// If code cannot run at all.
    pub async fn run(&self, call: Call<'_>, stop: &CancellationToken) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let sandbox = inner.sandbox.as_ref().map_err(|reason| Error::Unavailable(reason.clone()))?;
        let slot = self.slot(call.thread);
        let mut open = slot.open.clone().lock_owned().await;
        // The semaphore is never closed.
        let _permit = inner.calls.acquire().await.ok();
        // Dropped with this future.
        let stop = stop.child_token();
        let _stop = stop.clone().drop_guard();

        let mut notes = Vec::new();
        self.prepare(sandbox, &mut open, &call, &stop, &mut notes).await?;
        let Some(session) = open.as_mut() else { return Err(sandbox::Error("it is lost".to_owned()).into()) };
        self.load_inputs(session, &call, &mut notes).await?;
        let ran = self.execute(session, call.code, &stop).await?;
        let memory = session.session.as_ref().map_or(0, |session| session.memory_bytes());
        *lock(&slot.state) = State { used_at: Instant::now(), memory };
        inner.store.record_code_call(&session.id, ran.duration).await?;
        let produced = self.collect(session, &call, &mut notes).await?;
        drop(open);
        self.close_excess(call.thread);
        Ok(outcome(&ran, produced, notes, inner.settings.limits.time))
    }

    /// Closes the sessions that are idle, without end.
    pub async fn close_idle(self) {
        loop {
            tokio::time::sleep(IDLE_POLL.min(self.inner.settings.idle)).await;
            for (thread, slot) in self.slots() {
                if lock(&slot.state).used_at.elapsed() >= self.inner.settings.idle {
                    self.close(&thread, &slot);
                }
            }
        }
    }

    /// Closes all sessions.
    pub fn close_all(&self) {
        lock(&self.inner.sessions).clear();
    }

    fn slot(&self, thread: &ThreadId) -> Arc<Slot> {
        lock(&self.inner.sessions).entry(thread.clone()).or_default().clone()
    }

    fn slots(&self) -> Vec<(ThreadId, Arc<Slot>)> {
        lock(&self.inner.sessions).iter().map(|(thread, slot)| (thread.clone(), slot.clone())).collect()
    }

    /// Closes a session, unless it is used.
    fn close(&self, thread: &ThreadId, slot: &Slot) {
        let Ok(open) = slot.open.clone().try_lock_owned() else { return };
        lock(&self.inner.sessions).remove(thread);
        drop(open);
    }

    /// Closes the sessions that were not used for the longest time, until the others are within the limits.
    fn close_excess(&self, in_use: &ThreadId) {
        let mut slots = self.slots();
        slots.sort_by_key(|(_, slot)| std::cmp::Reverse(lock(&slot.state).used_at));
        let (mut count, mut memory) = (0, 0);
        for (thread, slot) in slots {
            count += 1;
            memory += lock(&slot.state).memory;
            let is_excess = count > self.inner.settings.sessions_max || memory > self.inner.settings.memory_max;
            if is_excess && thread != *in_use {
                self.close(&thread, &slot);
            }
        }
    }

    /// Opens a session if there is none, or if another server has a newer one.
    async fn prepare(
        &self,
        sandbox: &Arc<dyn Sandbox>,
        open: &mut OwnedMutexGuard<Option<Open>>,
        call: &Call<'_>,
        stop: &CancellationToken,
        notes: &mut Vec<String>,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let newest = inner.store.newest_code_session(call.scope, call.thread).await?;
        let is_usable = |open: &Open| open.session.is_some() && Some(&open.id) == newest.as_ref();
        if open.as_ref().is_some_and(is_usable) {
            return Ok(());
        }
        **open = None;
        let id: CodeSessionId = inner.ids.generate();
        let path = inner.folder.get_or_try_init(|| self.server_folder()).await?.of_session(id.as_str());
        folder::create_private(&path)?;
        let (folder, room) = (Folder { path }, inner.settings.limits.disk_bytes);
        // Removes the folder if anything fails.
        let mut new =
            Open { id, session: None, folder: folder.clone(), room, seen: HashMap::new(), inputs: HashSet::new() };
        let sandbox = sandbox.clone();
        let (limits, stop) = (Limits { time: OWN_TIME, ..inner.settings.limits }, stop.clone());
        let opened = in_background(move || {
            let mut session = sandbox.open(&folder)?;
            let prelude = session.run(PRELUDE, &limits, &stop);
            if prelude.end != End::Completed {
                return Err(sandbox::Error(format!("the prelude ended with {:?}: {}", prelude.end, prelude.output)));
            }
            Ok(session)
        });
        new.session = Some(opened.await??);
        inner.store.open_code_session(call.scope, call.thread, &new.id).await?;
        if newest.is_some() {
            notes.push(LOST.to_owned());
        }
        self.restore(&mut new, call, notes).await?;
        **open = Some(new);
        Ok(())
    }

    async fn server_folder(&self) -> Result<ServerFolder, Error> {
        let (all, name) = (self.inner.settings.folder.clone(), self.inner.ids.generate::<CodeSessionId>());
        Ok(in_background(move || ServerFolder::create(&all, name.as_str())).await??)
    }

    /// Loads the files that earlier sessions of the thread have written.
    async fn restore(&self, open: &mut Open, call: &Call<'_>, notes: &mut Vec<String>) -> Result<(), Error> {
        for written in self.inner.store.code_files(call.scope, call.thread).await? {
            let Some(file) = self.inner.store.file(call.scope, &written.file_id).await? else { continue };
            let path = open.folder.data().join(&written.path);
            if let Some(parent) = path.parent() {
                folder::create_private(parent)?;
            }
            self.load(open, call.scope, &file, &path, notes).await;
        }
        open.see(files_in(&open.folder).await?);
        Ok(())
    }

    /// Loads the input files that are not yet in the folder: under their IDs, and under their names.
    async fn load_inputs(&self, open: &mut Open, call: &Call<'_>, notes: &mut Vec<String>) -> Result<(), Error> {
        let new: Vec<&FileId> = call.files.iter().filter(|id| !open.inputs.contains(*id)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let (data, tmp) = (open.folder.data(), open.folder.tmp());
        let used = in_background(move || Ok::<_, std::io::Error>(folder::size(&data)? + folder::size(&tmp)?)).await??;
        open.room = self.inner.settings.limits.disk_bytes.saturating_sub(used.bytes);
        let data = open.folder.data();
        let mut added = Vec::new();
        for id in new {
            // It was deleted.
            let Some(file) = self.inner.store.file(call.scope, id).await? else { continue };
            let path = data.join(id.as_str());
            if !self.load(open, call.scope, &file, &path, notes).await {
                continue;
            }
            let name = file_name(&file.filename);
            match std::fs::hard_link(&path, data.join(&name)) {
                Ok(()) => added.push(format!("/mnt/data/{name} (also /mnt/data/{id})")),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    added.push(format!("/mnt/data/{id} ({name}; another file has this name)"));
                }
                Err(error) => return Err(error.into()),
            }
            open.inputs.insert(id.clone());
        }
        if !added.is_empty() {
            let originals: Vec<PathBuf> = open.inputs.iter().map(|id| data.join(id.as_str())).collect();
            if let Some(session) = &mut open.session {
                session.set_originals(&originals);
            }
            let mut new = files_in(&open.folder).await?;
            new.retain(|file| !open.seen.contains_key(&file.path));
            open.see(new);
            notes.push(format!("Files of the user: {}.", added.join(", ")));
        }
        Ok(())
    }

    /// Writes the bytes of a file to a path below the folder of a session. If that fails, the notes say so.
    async fn load(&self, open: &mut Open, scope: &Scope, file: &File, path: &Path, notes: &mut Vec<String>) -> bool {
        let (id, name) = (&file.id, &file.filename);
        if file.bytes > open.room {
            let (bytes, room) = (file.bytes, open.room);
            notes.push(format!("The file {id} ({name}) has {bytes} bytes; the session has room for {room} bytes."));
            return false;
        }
        // Written elsewhere first, so that it is there as a whole or not at all.
        let partial = open.folder.path.join(LOADING);
        let unreadable = |error| files::Error::Blobs(files::blobs::unreadable(error));
        let loaded = async {
            let mut bytes = self.inner.files.open_range(scope, file, None).await?;
            let mut target = tokio::fs::File::create(&partial).await.map_err(unreadable)?;
            while let Some(bytes) = bytes.next().await {
                target.write_all(&bytes.map_err(unreadable)?).await.map_err(unreadable)?;
            }
            target.flush().await.map_err(unreadable)?;
            tokio::fs::rename(&partial, path).await.map_err(unreadable)
        };
        let loaded: Result<(), files::Error> = loaded.await;
        match loaded {
            Ok(()) => open.room -= file.bytes,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, file.id = %id, "failed to load a file for the code interpreter");
                notes.push(format!("The file {id} ({name}) cannot be read now."));
                return false;
            }
        }
        true
    }

    /// Runs code, and then writes the figures that it has left.
    async fn execute(&self, open: &mut Open, code: &str, stop: &CancellationToken) -> Result<Execution, Error> {
        // The session is removed while code runs: if this future is dropped, it is lost.
        let Some(mut session) = open.session.take() else { return Err(sandbox::Error("it is lost".to_owned()).into()) };
        let (code, limits, stop) = (code.to_owned(), self.inner.settings.limits, stop.clone());
        let ran = in_background(move || {
            let ran = session.run(&code, &limits, &stop);
            if ran.end.is_lost() {
                return (None, ran);
            }
            let limits = Limits { time: OWN_TIME, output_bytes: 0, ..limits };
            let is_lost = session.run(FIGURES, &limits, &stop).end.is_lost();
            ((!is_lost).then_some(session), ran)
        });
        let (session, ran) = ran.await?;
        open.session = session;
        Ok(ran)
    }

    /// Stores what code has written as files. Returns the images and the files.
    async fn collect(&self, open: &mut Open, call: &Call<'_>, notes: &mut Vec<String>) -> Result<Produced, Error> {
        let data = open.folder.data();
        let all = files_in(&open.folder).await?;
        let mut new = folder::changed(all.clone(), &open.seen);
        new.retain(|file| !open.inputs.iter().any(|input| input.as_str() == file.path));
        let figures = {
            let data = data.clone();
            in_background(move || folder::figures(&data)).await??
        };
        let dropped = new.len().saturating_sub(WRITTEN_MAX);
        new.truncate(WRITTEN_MAX);
        if dropped > 0 {
            notes.push(format!("{dropped} more files were written; only {WRITTEN_MAX} are stored for the user."));
        }
        let mut produced = Produced::default();
        for figure in figures.iter().take(WRITTEN_MAX) {
            if let Some(id) = self.keep(call.scope, figure, "figure.png", notes).await {
                produced.images.push(id);
            }
        }
        for path in figures {
            tokio::fs::remove_file(path).await?;
        }
        for Found { path, bytes, .. } in &new {
            let name = path.rsplit('/').next().unwrap_or(path);
            if *bytes == 0 {
                continue;
            }
            let Some(file_id) = self.keep(call.scope, &data.join(path), name, notes).await else { continue };
            if is_image(name) {
                produced.images.push(file_id.clone());
            } else if is_svg(name) && *bytes <= SVG_BYTES_MAX {
                produced.images.extend(self.keep_rendered(call.scope, &data.join(path), name).await);
            }
            produced.files.push(WrittenFile { path: path.clone(), file_id });
        }
        if !produced.files.is_empty() {
            self.inner.store.set_code_files(call.scope, call.thread, &open.id, &produced.files).await?;
        }
        open.see(all);
        Ok(produced)
    }

    /// Stores a file of the folder. If that fails, adds a note for the model.
    async fn keep(&self, scope: &Scope, path: &Path, name: &str, notes: &mut Vec<String>) -> Option<FileId> {
        let unreadable = |error| files::Error::Blobs(files::blobs::unreadable(error));
        let stored = async {
            let file = folder::open(path).map_err(unreadable)?;
            let content = ReaderStream::new(tokio::fs::File::from_std(file)).map_err(unreadable);
            self.store(scope, name, content).await
        };
        match stored.await {
            Ok(id) => Some(id),
            Err(error) => {
                warn_not_stored(&error);
                notes.push(format!("The file {name} could not be stored for the user. Write it again."));
                None
            }
        }
    }

    /// Renders an SVG image and stores it, if it is one that can be rendered.
    async fn keep_rendered(&self, scope: &Scope, path: &Path, name: &str) -> Option<FileId> {
        let rendered = match read(path).await {
            Ok(svg) => self.inner.renderer.render_svg(svg.into()).await,
            Err(error) => {
                warn_not_stored(&error);
                return None;
            }
        };
        let png = match rendered {
            Ok(rendered) => rendered.ok()?,
            Err(error) => {
                warn_not_stored(&error);
                return None;
            }
        };
        let stored = self.store(scope, &format!("{name}.png"), stream::iter([Ok(png.into())])).await;
        stored.inspect_err(|error| warn_not_stored(error)).ok()
    }

    async fn store(
        &self,
        scope: &Scope,
        name: &str,
        content: impl Stream<Item = Result<Bytes, files::Error>> + Send,
    ) -> Result<FileId, files::Error> {
        let request = CreateFile { purpose: Purpose::AssistantsOutput, expires_after: None };
        let received = self.inner.files.receive_file(scope, content).await?;
        Ok(received.finish_file(name.to_owned(), &request).await?.id)
    }
}

/// Reads a file of the folder.
async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::fs::File::from_std(folder::open(path)?).take(SVG_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn warn_not_stored(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(error, "failed to store a file that code has written");
}

/// What the model reads if variables are lost.
const LOST: &str = "This is a new Python session: variables and imports of earlier code in this conversation are lost. The \
                    files in /mnt/data are still there.";

#[derive(Debug, Default)]
struct Produced {
    images: Vec<FileId>,
    files: Vec<WrittenFile>,
}

impl Open {
    /// Notes the versions of files that users have, or that cannot be given to them.
    fn see(&mut self, files: Vec<Found>) {
        self.seen.extend(files.into_iter().map(|file| (file.path, file.stamp)));
    }
}

/// Returns what users and the model see of a call.
fn outcome(ran: &Execution, produced: Produced, notes: Vec<String>, time: Duration) -> Outcome {
    let mut outputs = Vec::new();
    let mut result = notes;
    let printed = ran.output.trim_end_matches('\n');
    if printed.is_empty() {
        result.push("The code has printed nothing.".to_owned());
    } else {
        outputs.push(CodeOutput::Logs { logs: ran.output.clone() });
        result.push(printed.to_owned());
    }
    if ran.is_truncated {
        result.push("[The rest of the output was dropped, because it is too long.]".to_owned());
    }
    let end = match &ran.end {
        End::Completed | End::Raised => None,
        End::Exited => Some("The code has ended the Python session.".to_owned()),
        End::TimedOut => Some(format!("The code was stopped after the time limit of {} s.", time.as_secs())),
        End::Stopped => Some("The code was stopped.".to_owned()),
        End::Crashed(reason) => Some(format!("The Python session has crashed: {reason}.")),
    };
    result.extend(end.map(|end| format!("[{end} Its variables are lost; the files in /mnt/data are still there.]")));
    if !produced.files.is_empty() {
        let paths: Vec<String> = produced.files.iter().map(|file| format!("sandbox:/mnt/data/{}", file.path)).collect();
        result.push(format!("[The user can download the files: {}]", paths.join(", ")));
    }
    if !produced.images.is_empty() {
        result.push(format!("[The user sees the images that the code has made: {}]", produced.images.len()));
    }
    let image = |file_id| CodeOutput::Image { image: OutputImage { file_id } };
    outputs.extend(produced.images.into_iter().map(image));
    Outcome { outputs, result: result.join("\n"), files: produced.files }
}

fn is_image(name: &str) -> bool {
    ["png", "jpg", "jpeg"].iter().any(|extension| has_extension(name, extension))
}

fn is_svg(name: &str) -> bool {
    has_extension(name, "svg")
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case(extension))
}

/// Returns the last part of a file's name, as the name of a file in the folder.
fn file_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or("file");
    let clean: String = last.chars().filter(|character| !character.is_control()).collect();
    let clean = clean.trim_start_matches('.');
    let end = clean.floor_char_boundary(200);
    if clean.is_empty() { "file".to_owned() } else { clean[..end].to_owned() }
}

/// Returns the files that code has in `/mnt/data`.
async fn files_in(folder: &Folder) -> Result<Vec<Found>, Error> {
    let data = folder.data();
    Ok(in_background(move || folder::files(&data)).await??)
}

/// Runs blocking work on the threads for it.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, sandbox::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| sandbox::Error(format!("a session has failed: {error}")))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
