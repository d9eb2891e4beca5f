//! Processor time and memory of processes, from `/proc`. Returns `None` on systems other than Linux.

use std::fs;
use std::time::Duration;

/// Linux reports processor time in hundredths of a second, independently of the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// Number of open files that the benchmark needs in addition to its streams.
const OTHER_FILES: usize = 400;

/// Returns the processor time of a process.
pub fn cpu(pid: u32) -> Option<Duration> {
    Stat::read(pid).map(|stat| stat.own)
}

/// Returns the processor time of a process and all its children, including those that have exited.
pub fn cpu_with_children(pid: u32) -> Option<Duration> {
    let parent = Stat::read(pid)?;
    let children = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Stat::read)
        .filter(|stat| stat.parent == pid);
    Some(parent.own + parent.ended_children + children.map(|child| child.own).sum::<Duration>())
}

/// Returns the postmaster of a Postgres backend process.
pub fn postmaster_of(backend: u32) -> Option<u32> {
    let stat = Stat::read(backend).filter(|stat| stat.name.starts_with("postgres"))?;
    Stat::read(stat.parent).filter(|parent| parent.name.starts_with("postgres"))?;
    Some(stat.parent)
}

/// Returns the resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> Option<f64> {
    kib(pid, "VmRSS:")
}

/// Returns the peak of a process's resident memory since the last call, in KiB.
pub fn take_peak_kib(pid: u32) -> Option<f64> {
    let peak = kib(pid, "VmHWM:");
    // Resets the peak; see proc(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").ok()?;
    peak
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
fn kib(pid: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib as f64)
}

/// Returns the number of streams that the limit on open files allows, at most `wanted`. Each stream uses two files in the
/// server, to the client and to the model server, and two in this process.
pub fn streams_allowed(wanted: usize) -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files: Option<usize> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok());
    let allowed = files.map_or(wanted, |files| files.saturating_sub(OTHER_FILES) / 2);
    if allowed < wanted {
        eprintln!(
            "load: the limit on open files allows {allowed} streams instead of {wanted}; raise it with ulimit -n"
        );
    }
    wanted.min(allowed)
}

/// Returns a one-line description of the machine.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or_else(String::new, |(_, name)| format!(" ({name})"));
    format!("Machine: {cores} cores{model}, shared by clients, model server, servers and database.")
}

/// The used fields of `/proc/PID/stat`.
struct Stat {
    name: String,
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may contain spaces. The state, the parent and numbers follow.
        let (before, after) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks = |n: usize| fields.get(n)?.parse::<u32>().ok().map(|ticks| TICK * ticks);
        Some(Self {
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            ended_children: ticks(13)? + ticks(14)?,
        })
    }
}
