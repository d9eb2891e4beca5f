//! The configuration of the WebAssembly engine. A module is compiled and loaded with the same one.

use wasmtime::{Collector, Config, Engine, OptLevel};

/// Maximum stack of the guest, in bytes. Python ends deep recursion with `RecursionError` before it is reached.
pub const GUEST_STACK_BYTES: usize = 4 * 1024 * 1024;
/// Stack of asynchronous calls, in bytes. There are none, but the engine requires it to be larger than the guest's.
const ASYNC_STACK_BYTES: usize = 2 * GUEST_STACK_BYTES;

/// Creates an engine that loads compiled modules, and compiles for this machine's processor.
///
/// # Errors
/// If the platform is not supported.
pub fn engine() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// Creates an engine that compiles for every processor of this architecture. [`engine`] loads its modules as well. Computations
/// with vectors are several times slower.
///
/// # Errors
/// If the platform is not supported.
pub fn portable_engine() -> wasmtime::Result<Engine> {
    let mut config = config();
    // With a target, the features of this machine's processor are not used.
    config.target(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH))?;
    Engine::new(&config)
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .parallel_compilation(true)
        // Python's C and C++ libraries throw exceptions, which are objects of the garbage collector. A session can throw any
        // number of them, so they must be collected.
        .wasm_exceptions(true)
        .collector(Collector::Copying)
        // Stops code at its time limit.
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES)
        // Sessions share the pages of the initial memory until they write to them.
        .memory_init_cow(true)
        // For backtraces and profilers, which nobody reads. Without them the compiled module is smaller.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty module.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    #[test]
    fn modules_of_both_engines_are_accepted() {
        let engine = engine().unwrap();

        for compiler in [engine.clone(), portable_engine().unwrap()] {
            let compiled = compiler.precompile_module(MODULE).unwrap();
            assert!(Engine::detect_precompiled(&compiled).is_some());
        }
        assert!(engine.precompile_module(b"\0asm").is_err());
    }
}
