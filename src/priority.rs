//! The priority of work that must not slow down requests.

/// How much such work yields to others.
const NICENESS: i32 = 10;

/// Lowers the priority of this thread, where threads have one.
pub fn lower_thread() {
    // Elsewhere, the priority is that of the whole process.
    #[cfg(target_os = "linux")]
    lower_process();
}

/// Lowers the priority of a process that has one thread. An improvement only: failures are ignored.
pub fn lower_process() {
    let _ = rustix::process::nice(NICENESS);
}
