//! Python in WebAssembly: each session is an instance of one compiled module.
//!
//! The instance has its own memory, which starts as a copy-on-write mapping of the module's, with Python already started. It
//! can call nothing but [`super::wasi`].

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, InstancePre, Linker, Memory, Module, Store, StoreLimitsBuilder, TypedFunc, UpdateDeadline};

use super::folder::create_private;
use super::install::Installation;
use super::sandbox::{End, Error, Execution, Folder, Limits, Sandbox, Session};
use super::wasi::{self, Host, Mount, Stop};
use crate::priority;

/// How often a running guest looks whether it must end.
const TICK: Duration = Duration::from_millis(10);
/// Stack of the threads on which guests run: more than a guest's own.
const STACK_BYTES: usize = 16 * 1024 * 1024;
/// Code that looks whether the interpreter can still print. It uses no name of the session but `__import__`, and leaves none.
const PROBE: &str = concat!("__import__('builtins').exec(r'''", include_str!("probe.py"), "''', {})");
/// What it prints, after what code has left in buffers.
const PROBED: &str = "stdout\nstderr\n";
/// Limit of its time.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// What a session has in memory when it is idle, in bytes, beside what it allocates.
const BASE_BYTES: u64 = 2 * 1024 * 1024;

/// Python in WebAssembly.
pub struct Wasm {
    engine: Engine,
    instance: InstancePre<Host>,
    files: Installation,
    memory_max: usize,
    /// The memory of a new session, in bytes.
    initial_memory: u64,
}

impl std::fmt::Debug for Wasm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wasm").field("files", &self.files).field("memory_max", &self.memory_max).finish_non_exhaustive()
    }
}

impl Wasm {
    /// Loads the runtime. `memory_max` is the maximum memory of a session, in bytes.
    ///
    /// # Errors
    /// If a file is missing or is not of the engine's version.
    pub fn load(engine: Engine, files: Installation, memory_max: usize) -> Result<Self, Error> {
        let module = load_module(&engine, &files.module)?;
        let mut linker = Linker::new(&engine);
        wasi::add_to_linker(&mut linker).map_err(failed("the host's functions cannot be linked"))?;
        let instance = linker.instantiate_pre(&module).map_err(failed("the runtime needs other functions"))?;
        let pages = module.exports().find_map(|export| export.ty().memory().map(wasmtime::MemoryType::minimum));
        let initial_memory = pages.unwrap_or(0) * 64 * 1024;
        Ok(Self { engine, instance, files, memory_max, initial_memory })
    }

    fn open_session(&self, folder: &Folder) -> Result<WasmSession, Error> {
        let io = |error: std::io::Error| Error(format!("the folder of a session cannot be made: {error}"));
        create_private(&folder.data()).map_err(io)?;
        create_private(&folder.tmp()).map_err(io)?;
        let mounts = [
            mount("/usr/local/lib", &self.files.standard_library, false),
            mount("/usr/local/lib/python315.zip/matplotlib/mpl-data", &self.files.mpl_data, false),
            mount("/mnt/data", &folder.data(), true),
            mount("/tmp", &folder.tmp(), true),
        ];
        let limits = StoreLimitsBuilder::new().memory_size(self.memory_max).trap_on_grow_failure(false).build();
        let host = Host::new(&mounts, folder, limits).map_err(io)?;
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        store.epoch_deadline_callback(|store| {
            store.data().check()?;
            Ok(UpdateDeadline::Continue(1))
        });
        store.set_epoch_deadline(1);
        let instance = self.instance.instantiate(&mut store).map_err(failed("a session cannot be made"))?;
        let memory = instance.get_memory(&mut store, "memory").ok_or_else(|| Error("no memory".to_owned()))?;
        let missing = failed("the runtime has other functions");
        let initialize = instance.get_typed_func(&mut store, "_initialize").ok();
        let allocate = instance.get_typed_func(&mut store, "host_alloc").map_err(&missing)?;
        let turn = instance.get_typed_func(&mut store, "turn").map_err(&missing)?;
        let initial_memory = self.initial_memory;
        Ok(WasmSession { store, memory, initialize, allocate, turn, initial_memory })
    }
}

impl Sandbox for Wasm {
    fn open(&self, folder: &Folder) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(self.open_session(folder)?))
    }
}

fn mount(name: &'static str, path: &Path, is_writable: bool) -> Mount {
    Mount { name, path: path.to_owned(), is_writable }
}

fn failed(what: &'static str) -> impl Fn(wasmtime::Error) -> Error {
    move |error| Error(format!("{what}: {error:#}"))
}

/// Loads a compiled module, which is native code.
fn load_module(engine: &Engine, path: &Path) -> Result<Module, Error> {
    // SAFETY: this program has compiled the file, and no other user can write to it: `Installation::find` has checked that.
    // wasmtime checks that its version and configuration are those of this engine.
    #[expect(unsafe_code, reason = "wasmtime has no safe function that loads a compiled module without copying it")]
    let module = unsafe { Module::deserialize_file(engine, path) };
    module.map_err(failed("the compiled module cannot be loaded"))
}

/// A session: an instance of the module.
struct WasmSession {
    store: Store<Host>,
    memory: Memory,
    /// Called once, before everything else.
    initialize: Option<TypedFunc<(), ()>>,
    allocate: TypedFunc<u32, u32>,
    turn: TypedFunc<(u32, u32), i32>,
    initial_memory: u64,
}

impl Session for WasmSession {
    fn run(&mut self, code: &str, limits: &Limits, stop: &CancellationToken) -> Execution {
        let started = Instant::now();
        let engine = self.store.engine().clone();
        let (ended, end) = mpsc::channel();
        std::thread::scope(|scope| {
            // On a thread with enough stack. If there is none, or it panics, the call fails.
            let thread = std::thread::Builder::new().name("code".to_owned()).stack_size(STACK_BYTES);
            let run = || {
                priority::lower_thread();
                ended.send(self.run_here(code, limits, stop))
            };
            if let Err(error) = thread.spawn_scoped(scope, run) {
                return Execution::crashed(format!("no thread can be started: {error}"), started.elapsed());
            }
            loop {
                match end.recv_timeout(TICK) {
                    Ok(execution) => return execution,
                    Err(RecvTimeoutError::Timeout) => engine.increment_epoch(),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Execution::crashed("its host has failed".to_owned(), started.elapsed());
                    }
                }
            }
        })
    }

    fn set_originals(&mut self, paths: &[PathBuf]) {
        self.store.data_mut().set_originals(paths);
    }

    fn memory_bytes(&self) -> u64 {
        BASE_BYTES + (self.memory.data_size(&self.store) as u64).saturating_sub(self.initial_memory)
    }
}

impl WasmSession {
    /// Runs code on this thread.
    fn run_here(&mut self, code: &str, limits: &Limits, stop: &CancellationToken) -> Execution {
        let mut ran = self.run_once(code, limits, stop);
        if ran.end.is_lost() {
            return ran;
        }
        let output_bytes = limits.output_bytes.saturating_add(PROBED.len());
        let probe = self.run_once(PROBE, &Limits { time: PROBE_TIME, output_bytes, ..*limits }, stop);
        match (probe.end, probe.output.strip_suffix(PROBED)) {
            (End::Completed, Some(unflushed)) => {
                let room = limits.output_bytes.saturating_sub(ran.output.len());
                let end = unflushed.floor_char_boundary(room);
                ran.output.push_str(&unflushed[..end]);
                ran.is_truncated |= end < unflushed.len();
            }
            (End::Stopped, _) => ran.end = End::Stopped,
            _ => ran.end = End::Crashed("the code has broken the interpreter".to_owned()),
        }
        ran
    }

    fn run_once(&mut self, code: &str, limits: &Limits, stop: &CancellationToken) -> Execution {
        let started = Instant::now();
        self.store.data_mut().begin(limits, stop);
        self.store.set_epoch_deadline(1);
        let end = self.turn(code);
        let (output, is_truncated) = self.store.data_mut().take_output();
        Execution { output, is_truncated, end, duration: started.elapsed() }
    }

    fn turn(&mut self, code: &str) -> End {
        match self.call(code) {
            Ok(0) => End::Completed,
            Ok(1..=255) => End::Raised,
            Ok(_) => End::Exited,
            Err(error) => match error.downcast_ref::<Stop>() {
                Some(Stop::Exited(_)) => End::Exited,
                Some(Stop::TimedOut) => End::TimedOut,
                Some(Stop::Stopped) => End::Stopped,
                None => End::Crashed(error.root_cause().to_string()),
            },
        }
    }

    fn call(&mut self, code: &str) -> wasmtime::Result<i32> {
        if let Some(initialize) = self.initialize.take() {
            initialize.call(&mut self.store, ())?;
        }
        let bytes = u32::try_from(code.len())?;
        // Without memory for the code, the guest raises a MemoryError.
        let mut at = self.allocate.call(&mut self.store, bytes)?;
        if at != 0 && self.memory.write(&mut self.store, at as usize, code.as_bytes()).is_err() {
            at = 0;
        }
        self.turn.call(&mut self.store, (at, bytes))
    }
}
