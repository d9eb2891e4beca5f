//! What the guest can call of its host: the functions of WASI preview 1 that Python needs, on one folder.
//!
//! The guest cannot use the network, start processes, or read the host's environment. Its files are those of the mounts, below
//! which `cap-std` resolves all paths, so that neither `..` nor a link leads out of them. Our own implementation instead of
//! `wasmtime-wasi`, because the size and number of files are limited exactly, sleeping ends at the time limit, originals are
//! read-only, and clocks are coarse.
//!
//! Source: `wasi_snapshot_preview1.witx` of the WebAssembly WASI repository.

mod disk;
mod memory;
mod open_files;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use wasmtime::{Caller, Linker, StoreLimits};

pub use memory::Errno;
use memory::{Guest, Result, after};
use open_files::{Descriptor, Files};

use super::sandbox::{Folder, Limits};

/// Resolution of the clocks and of the times of files, in nanoseconds: finer ones help attacks that measure time.
const RESOLUTION_NANOSECONDS: u64 = 1_000_000;
/// How long a sleep lasts before it looks whether it must end.
const SLEEP_SLICE: Duration = Duration::from_millis(10);
/// Maximum number of random bytes of one call.
const RANDOM_BYTES_MAX: u32 = 1024 * 1024;
/// Maximum number of events of one call of `poll_oneoff`.
const SUBSCRIPTIONS_MAX: u32 = 1_024;
/// The name of the program, as the guest sees it.
const ARGUMENT: &str = "python";

/// Why the guest was stopped by its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The guest has ended itself, with this exit code.
    #[error("the code has ended the interpreter with exit code {0}")]
    Exited(i32),
    /// The time limit was reached.
    #[error("the time limit was reached")]
    TimedOut,
    /// The call was cancelled.
    #[error("the call was stopped")]
    Stopped,
}

/// A folder of the host that the guest sees.
#[derive(Debug)]
pub struct Mount {
    /// Its path in the guest.
    pub name: &'static str,
    /// Its path on the host.
    pub path: PathBuf,
    /// Whether the guest can write to it.
    pub is_writable: bool,
}

/// The state of a session's host.
pub struct Host {
    files: Files,
    output: Vec<u8>,
    output_max: usize,
    is_truncated: bool,
    deadline: Instant,
    stop: CancellationToken,
    opened_at: Instant,
    /// Limits of the guest's memory.
    pub limits: StoreLimits,
}

impl Host {
    /// Creates the host of a session.
    pub fn new(mounts: &[Mount], folder: &Folder, limits: StoreLimits) -> std::io::Result<Self> {
        Ok(Self {
            files: Files::new(mounts, folder)?,
            output: Vec::new(),
            output_max: 0,
            is_truncated: false,
            deadline: Instant::now(),
            stop: CancellationToken::new(),
            opened_at: Instant::now(),
            limits,
        })
    }

    /// Starts a call with these limits.
    pub fn begin(&mut self, limits: &Limits, stop: &CancellationToken) {
        self.output.clear();
        self.is_truncated = false;
        self.output_max = limits.output_bytes;
        self.deadline = Instant::now() + limits.time;
        self.stop = stop.clone();
        self.files.set_limits(limits.disk_bytes, limits.files);
    }

    /// Returns what the guest has printed in this call, and whether some of it was dropped.
    pub fn take_output(&mut self) -> (String, bool) {
        let bytes = std::mem::take(&mut self.output);
        let mut text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        // What is not Unicode was replaced, and is longer.
        let end = text.floor_char_boundary(self.output_max);
        let is_truncated = self.is_truncated || end < text.len();
        text.truncate(end);
        (text, is_truncated)
    }

    /// Names the files that cannot be changed.
    pub fn set_originals(&mut self, paths: &[PathBuf]) {
        self.files.set_originals(paths);
    }

    /// Fails if the call must end.
    pub fn check(&self) -> std::result::Result<(), Stop> {
        if self.stop.is_cancelled() {
            return Err(Stop::Stopped);
        }
        if Instant::now() >= self.deadline { Err(Stop::TimedOut) } else { Ok(()) }
    }

    fn print(&mut self, bytes: &[u8]) {
        let room = self.output_max.saturating_sub(self.output.len()).min(bytes.len());
        self.output.extend_from_slice(&bytes[..room]);
        self.is_truncated |= room < bytes.len();
    }

    /// Returns the time of a clock, in nanoseconds.
    fn time(&self, clock: i32) -> Result<u64> {
        let time = match clock {
            0 => current_time().duration_since(UNIX_EPOCH).unwrap_or_default(),
            1..=3 => self.opened_at.elapsed(),
            _ => return Err(Errno::INVAL),
        };
        u64::try_from(time.as_nanos()).map(coarse).map_err(|_| Errno::OVERFLOW)
    }
}

/// Rounds a time down to the resolution of the clocks. In nanoseconds.
fn coarse(nanoseconds: u64) -> u64 {
    nanoseconds - nanoseconds % RESOLUTION_NANOSECONDS
}

/// Returns the time of the machine.
#[expect(clippy::disallowed_methods, reason = "the guest sees the time of the machine")]
fn current_time() -> SystemTime {
    SystemTime::now()
}

/// Returns the error number of a function, as WebAssembly has it.
fn number(result: Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => error.number(),
    }
}

/// Adds the functions to a linker.
#[expect(clippy::too_many_lines, reason = "one entry for each function")]
pub fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    const WASI: &str = "wasi_snapshot_preview1";
    type Call<'a> = Caller<'a, Host>;
    macro_rules! functions {
        ($($name:literal = |$guest:ident, $host:ident $(, $parameter:ident: $type:ty)*| $body:expr;)*) => {$(
            linker.func_wrap(WASI, $name, |mut caller: Call<'_> $(, $parameter: $type)*| -> i32 {
                number((|| {
                    let ($guest, $host) = Guest::of(&mut caller)?;
                    #[allow(unused_mut, reason = "not all functions write to the guest")]
                    let mut $guest = $guest;
                    $body
                })())
            })?;
        )*};
    }
    functions! {
        "args_get" = |guest, _host, list: u32, text: u32| {
            guest.write_u32(list, text)?;
            guest.write(text, format!("{ARGUMENT}\0").as_bytes())
        };
        "args_sizes_get" = |guest, _host, count: u32, bytes: u32| {
            guest.write_u32(count, 1)?;
            guest.write_u32(bytes, u32::try_from(ARGUMENT.len() + 1).map_err(|_| Errno::OVERFLOW)?)
        };
        "environ_get" = |guest, _host, list: u32, text: u32| {
            let mut at = text;
            for (variable, index) in ENVIRONMENT.iter().zip(0..) {
                guest.write_u32(after(list, 4 * index)?, at)?;
                guest.write(at, format!("{variable}\0").as_bytes())?;
                at = after(at, variable.len() as u64 + 1)?;
            }
            Ok(())
        };
        "environ_sizes_get" = |guest, _host, count: u32, bytes: u32| {
            let size: usize = ENVIRONMENT.iter().map(|variable| variable.len() + 1).sum();
            guest.write_u32(count, u32::try_from(ENVIRONMENT.len()).map_err(|_| Errno::OVERFLOW)?)?;
            guest.write_u32(bytes, u32::try_from(size).map_err(|_| Errno::OVERFLOW)?)
        };
        "clock_res_get" = |guest, host, clock: i32, out: u32| {
            host.time(clock)?;
            guest.write_u64(out, RESOLUTION_NANOSECONDS)
        };
        "clock_time_get" = |guest, host, clock: i32, _precision: i64, out: u32| {
            let time = host.time(clock)?;
            guest.write_u64(out, time)
        };
        "random_get" = |guest, _host, buffer: u32, bytes: u32| {
            if bytes > RANDOM_BYTES_MAX {
                return Err(Errno::INVAL);
            }
            getrandom::fill(guest.slice_mut(buffer, bytes)?).map_err(|_| Errno::IO)
        };
        "sched_yield" = |_guest, _host| Ok(());
        "fd_advise" = |_guest, host, fd: u32, _offset: i64, _length: i64, _advice: i32| host.files.get(fd).map(drop);
        "fd_close" = |_guest, host, fd: u32| host.files.close(fd);
        "fd_datasync" = |_guest, host, fd: u32| host.files.get(fd).map(drop);
        "fd_sync" = |_guest, host, fd: u32| host.files.get(fd).map(drop);
        "fd_fdstat_get" = |guest, host, fd: u32, out: u32| {
            let stat = host.files.get(fd)?.status();
            guest.write(out, &stat)
        };
        "fd_fdstat_set_flags" = |_guest, host, fd: u32, flags: i32| host.files.set_flags(fd, flags);
        "fd_filestat_get" = |guest, host, fd: u32, out: u32| {
            let stat = host.files.get(fd)?.metadata()?;
            guest.write(out, &stat)
        };
        "fd_filestat_set_size" = |_guest, host, fd: u32, size: u64| host.files.set_size(fd, size);
        "fd_filestat_set_times" = |_guest, host, fd: u32, accessed: u64, modified: u64, flags: i32| {
            host.files.set_times(fd, accessed, modified, flags)
        };
        "fd_pread" = |guest, host, fd: u32, list: u32, count: u32, offset: u64, out: u32| {
            let mut read = 0;
            for (buffer, bytes) in guest.buffers(list, count)? {
                let target = guest.slice_mut(buffer, bytes)?;
                let more = host.files.read_at(fd, target, after(offset, u64::from(read))?)?;
                read = after(read, more.into())?;
                if more < bytes {
                    break;
                }
            }
            guest.write_u32(out, read)
        };
        "fd_read" = |guest, host, fd: u32, list: u32, count: u32, out: u32| {
            let mut read = 0;
            for (buffer, bytes) in guest.buffers(list, count)? {
                let target = guest.slice_mut(buffer, bytes)?;
                let more = host.files.read(fd, target)?;
                read = after(read, more.into())?;
                if more < bytes {
                    break;
                }
            }
            guest.write_u32(out, read)
        };
        "fd_pwrite" = |guest, host, fd: u32, list: u32, count: u32, offset: u64, out: u32| {
            let mut written = 0;
            for (buffer, bytes) in guest.buffers(list, count)? {
                let source = guest.slice(buffer, bytes)?;
                host.files.write_at(fd, source, after(offset, u64::from(written))?)?;
                written = after(written, bytes.into())?;
            }
            guest.write_u32(out, written)
        };
        "fd_write" = |guest, host, fd: u32, list: u32, count: u32, out: u32| {
            let mut written = 0;
            for (buffer, bytes) in guest.buffers(list, count)? {
                let source = guest.slice(buffer, bytes)?;
                if let Descriptor::Output = host.files.get(fd)? {
                    host.print(source);
                } else {
                    host.files.write(fd, source)?;
                }
                written = after(written, bytes.into())?;
            }
            guest.write_u32(out, written)
        };
        "fd_prestat_get" = |guest, host, fd: u32, out: u32| {
            let name = host.files.mount_name(fd)?;
            guest.write_u32(out, 0)?;
            guest.write_u32(after(out, 4)?, u32::try_from(name.len()).map_err(|_| Errno::OVERFLOW)?)
        };
        "fd_prestat_dir_name" = |guest, host, fd: u32, path: u32, bytes: u32| {
            let name = host.files.mount_name(fd)?;
            if name.len() > bytes as usize {
                return Err(Errno::NAMETOOLONG);
            }
            guest.write(path, name.as_bytes())
        };
        "fd_readdir" = |guest, host, fd: u32, buffer: u32, bytes: u32, cookie: u64, out: u32| {
            let entries = host.files.entries(fd, cookie, bytes as usize)?;
            guest.write(buffer, &entries)?;
            guest.write_u32(out, u32::try_from(entries.len()).map_err(|_| Errno::OVERFLOW)?)
        };
        "fd_seek" = |guest, host, fd: u32, offset: i64, whence: i32, out: u32| {
            let position = host.files.seek(fd, offset, whence)?;
            guest.write_u64(out, position)
        };
        "fd_tell" = |guest, host, fd: u32, out: u32| {
            let position = host.files.seek(fd, 0, 1)?;
            guest.write_u64(out, position)
        };
        "path_create_directory" = |guest, host, fd: u32, path: u32, bytes: u32| {
            let path = guest.path(path, bytes)?;
            host.files.create_directory(fd, &path)
        };
        "path_filestat_get" = |guest, host, fd: u32, flags: i32, path: u32, bytes: u32, out: u32| {
            let path = guest.path(path, bytes)?;
            let stat = host.files.path_metadata(fd, &path, flags & 1 == 1)?;
            guest.write(out, &stat)
        };
        "path_filestat_set_times" =
            |guest, host, fd: u32, _flags: i32, path: u32, bytes: u32, accessed: u64, modified: u64, which: i32| {
                let path = guest.path(path, bytes)?;
                host.files.path_set_times(fd, &path, accessed, modified, which)
            };
        "path_link" = |_guest, _host, _a: u32, _b: i32, _c: u32, _d: u32, _e: u32, _f: u32, _g: u32| Err(Errno::PERM);
        "path_symlink" = |_guest, _host, _a: u32, _b: u32, _c: u32, _d: u32, _e: u32| Err(Errno::PERM);
        "path_open" =
            |guest, host, fd: u32, _lookup: i32, path: u32, bytes: u32, how: i32, rights: u64, _inherited: u64, flags: i32,
             out: u32| {
                let path = guest.path(path, bytes)?;
                let opened = host.files.open(fd, &path, &open_files::How { how, rights, flags })?;
                guest.write_u32(out, opened)
            };
        "path_readlink" =
            |guest, host, fd: u32, path: u32, bytes: u32, _buffer: u32, _size: u32, _out: u32| {
                let path = guest.path(path, bytes)?;
                host.files.path_metadata(fd, &path, false)?;
                // The guest cannot make links.
                Err(Errno::INVAL)
            };
        "path_remove_directory" = |guest, host, fd: u32, path: u32, bytes: u32| {
            let path = guest.path(path, bytes)?;
            host.files.remove_directory(fd, &path)
        };
        "path_rename" = |guest, host, fd: u32, path: u32, bytes: u32, to_fd: u32, to: u32, to_bytes: u32| {
            let (path, to) = (guest.path(path, bytes)?, guest.path(to, to_bytes)?);
            host.files.rename(fd, &path, to_fd, &to)
        };
        "path_unlink_file" = |guest, host, fd: u32, path: u32, bytes: u32| {
            let path = guest.path(path, bytes)?;
            host.files.remove_file(fd, &path)
        };
        "sock_accept" = |_guest, _host, _a: u32, _b: i32, _c: u32| Err(Errno::NOTSUP);
        "sock_recv" = |_guest, _host, _a: u32, _b: u32, _c: u32, _d: i32, _e: u32, _f: u32| Err(Errno::NOTSUP);
        "sock_send" = |_guest, _host, _a: u32, _b: u32, _c: u32, _d: i32, _e: u32| Err(Errno::NOTSUP);
        "sock_shutdown" = |_guest, _host, _a: u32, _b: i32| Err(Errno::NOTSUP);
    }
    linker.func_wrap(WASI, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(Stop::Exited(code).into()) })?;
    linker.func_wrap(WASI, "poll_oneoff", poll)?;
    // The runtime's own function, with which programs can offer functions to Python: there are none.
    linker.func_wrap("host", "call", |_: i32, _: i32, _: i32, _: i32| -> i32 { -1 })?;
    Ok(())
}

/// The environment of the guest.
const ENVIRONMENT: [&str; 8] = [
    "HOME=/tmp",
    "TMPDIR=/tmp",
    "MPLCONFIGDIR=/tmp/matplotlib",
    "MPLBACKEND=module://assistd_figures",
    "PYTHONTZPATH=",
    "PYTHONDONTWRITEBYTECODE=1",
    "PWD=/mnt/data",
    "LANG=C.UTF-8",
];

/// Waits for the first of some events. Files are always ready, so that only clocks are waited for.
fn poll(mut caller: Caller<'_, Host>, list: u32, out: u32, count: u32, ready: u32) -> wasmtime::Result<i32> {
    let subscriptions = match Guest::of(&mut caller).and_then(|(guest, host)| subscriptions(&guest, host, list, count))
    {
        Ok(subscriptions) => subscriptions,
        Err(error) => return Ok(error.number()),
    };
    let wait = subscriptions.iter().map(|subscription| subscription.wait).min().unwrap_or_default();
    let until = Instant::now() + wait;
    loop {
        caller.data().check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(SLEEP_SLICE));
    }
    let written = (|| {
        let (mut guest, _) = Guest::of(&mut caller)?;
        let mut number = 0;
        for subscription in subscriptions.iter().filter(|subscription| subscription.wait <= wait) {
            let mut event = [0; 32];
            event[..8].copy_from_slice(&subscription.user_data);
            event[10] = subscription.kind;
            guest.write(after(out, 32 * u64::from(number))?, &event)?;
            number += 1;
        }
        guest.write_u32(ready, number)
    })();
    Ok(number(written))
}

struct Subscription {
    user_data: [u8; 8],
    kind: u8,
    wait: Duration,
}

fn subscriptions(guest: &Guest<'_>, host: &Host, list: u32, count: u32) -> Result<Vec<Subscription>> {
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::INVAL);
    }
    let read = |index: u32| {
        let bytes: &[u8; 48] =
            guest.slice(after(list, 48 * u64::from(index))?, 48)?.try_into().map_err(|_| Errno::FAULT)?;
        let integer = |at: usize| u64::from_le_bytes(std::array::from_fn(|offset| bytes[at + offset]));
        let kind = bytes[8];
        let wait = if kind == 0 {
            let clock = i32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
            let is_absolute = bytes[40] & 1 == 1;
            let now = host.time(clock)?;
            Duration::from_nanos(if is_absolute { integer(24).saturating_sub(now) } else { integer(24) })
        } else {
            Duration::ZERO
        };
        Ok(Subscription { user_data: std::array::from_fn(|at| bytes[at]), kind, wait })
    };
    (0..count).map(read).collect()
}
