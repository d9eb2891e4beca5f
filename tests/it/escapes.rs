//! What code tries in order to leave the sandbox, or to use more than it may. Each case says what the code must not get.
//!
//! The code can do in Python what it wants, as public escapes of Python sandboxes show: there is nothing to reach. Files of
//! the host have a marker, which no output contains and no code changes.

use std::path::Path;
use std::time::Duration;

use assistd::tools::code_interpreter::sandbox::{End, Folder, Sandbox as _};
use tokio_util::sync::CancellationToken;

use crate::support::code::{Python, runtime};

/// What files of the host contain that code must not read.
const MARKER: &str = "assistd-marker-7f3a";

/// What must happen to code.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// It gets an exception with this text.
    Raises(&'static str),
    /// It prints this.
    Prints(&'static str),
    /// Its session is lost, or it gets an exception.
    Ends,
    /// It may do anything but reach something.
    Anything,
}
use Expected::{Anything, Ends, Prints, Raises};

/// Reading and writing outside of the folder.
const FILES: [(&str, Expected); 24] = [
    ("open('/etc/passwd').read()", Raises("Error")),
    ("open('/mnt/data/../../../etc/passwd').read()", Raises("Error")),
    ("open('../../../../../../../../etc/passwd').read()", Raises("Error")),
    ("open('/proc/self/environ').read()", Raises("Error")),
    ("open('/proc/self/mem', 'rb').read(1)", Raises("Error")),
    ("open('/dev/zero', 'rb').read(10)", Raises("Error")),
    ("import os; os.listdir('/etc')", Raises("Error")),
    ("import os; os.listdir('/mnt')", Anything),
    ("import os; os.listdir('/mnt/data/..')", Anything),
    ("import os; os.chdir('/mnt/data/..'); print(os.listdir('.'))", Anything),
    ("import os; os.symlink('/etc/passwd', '/mnt/data/link')", Raises("Error")),
    ("import os; os.symlink('../..', '/mnt/data/up')", Raises("Error")),
    ("import os; os.link('/etc/passwd', '/mnt/data/hard')", Raises("Error")),
    // Links that the host has put into the folder lead nowhere.
    ("open('/mnt/data/host-link').read()", Raises("Error")),
    ("open('/mnt/data/host-folder/marker').read()", Raises("Error")),
    ("import os; print(os.listdir('/mnt/data/host-folder'))", Raises("Error")),
    ("open('/mnt/data/host-link', 'w').write('x')", Raises("Error")),
    ("open('/usr/local/lib/python315.zip', 'r+b').write(b'x')", Raises("Error")),
    ("open('/usr/local/lib/sitecustomize.py', 'w')", Raises("Error")),
    ("import os; os.remove('/usr/local/lib/python315.zip')", Raises("Error")),
    ("import os; os.rename('/usr/local/lib/python315.zip', '/mnt/data/z')", Raises("Error")),
    ("import os; os.mkfifo('/mnt/data/fifo')", Raises("Error")),
    ("import os; os.mknod('/mnt/data/node')", Raises("Error")),
    ("import glob; print(glob.glob('/**', recursive=True)[:5])", Anything),
];

/// Other ways to the host: network, processes, devices, the environment.
const HOST: [(&str, Expected); 24] = [
    ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", Raises("Error")),
    ("import socket; socket.socket().bind(('', 0))", Raises("Error")),
    ("import socket; socket.getaddrinfo('localhost', 80)", Raises("Error")),
    ("import urllib.request; urllib.request.urlopen('http://127.0.0.1/').read()", Raises("Error")),
    (
        "import asyncio\nasync def f(): await asyncio.open_connection('127.0.0.1', 80)\nasyncio.run(f())",
        Raises("Error"),
    ),
    ("import subprocess; subprocess.run(['/bin/ls'])", Raises("Error")),
    ("import os; os.system('ls')", Raises("Error")),
    ("import os; os.fork()", Raises("Error")),
    ("import os; os.execv('/bin/ls', ['ls'])", Raises("Error")),
    ("import os; os.posix_spawn('/bin/ls', ['ls'], {})", Raises("Error")),
    ("import os; os.kill(1, 9)", Raises("Error")),
    ("import multiprocessing; multiprocessing.Process(target=print).start()", Raises("Error")),
    ("import threading; threading.Thread(target=print).start()", Raises("Error")),
    ("import pty; pty.spawn('sh')", Raises("Error")),
    ("import ctypes; ctypes.CDLL(None)", Raises("Error")),
    ("import mmap; mmap.mmap(-1, 4096)", Anything),
    ("import signal; signal.alarm(1)", Raises("Error")),
    ("import resource; resource.setrlimit(resource.RLIMIT_AS, (1, 1))", Raises("Error")),
    ("import sys; print(sys.stdin.read())", Anything),
    ("print(input())", Raises("EOFError")),
    (
        "import os; print(sorted(os.environ))",
        Prints(
            "['HOME', 'LANG', 'MPLBACKEND', 'MPLCONFIGDIR', 'PWD', 'PYTHONDONTWRITEBYTECODE', 'PYTHONTZPATH', 'TMPDIR']",
        ),
    ),
    ("import platform, getpass; print(platform.node(), platform.system())", Anything),
    ("import time; ticks = {time.perf_counter_ns() % 1_000_000 for _ in range(1000)}; print(ticks)", Prints("{0}")),
    ("import time; ticks = {time.time_ns() % 1_000_000 for _ in range(1000)}; print(ticks)", Prints("{0}")),
];

/// Public escapes of sandboxes that are written in Python: they find the modules that are there anyway.
const PYTHON: [(&str, Expected); 12] = [
    ("print(len(().__class__.__base__.__subclasses__()) > 100)", Prints("True")),
    (
        "for c in ().__class__.__base__.__subclasses__():\n    if c.__name__ == '_wrap_close':\n        \
         c.__init__.__globals__['system']('ls')",
        Anything,
    ),
    ("[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]('ls')", Raises("Error")),
    ("__builtins__.__import__('os').popen('ls').read()", Raises("Error")),
    ("eval(\"__import__('os').system('ls')\")", Raises("Error")),
    ("import pickle; pickle.loads(b\"cos\\nsystem\\n(S'ls'\\ntR.\")", Raises("Error")),
    ("import builtins; builtins.open = None; print(open)", Prints("None")),
    ("exec(compile('import os\\nos.abort()', 'x', 'exec'))", Ends),
    ("import sys; sys._getframe().f_globals['__builtins__']; sys.settrace(lambda *a: None); print(1)", Prints("1")),
    (
        "import types\nc = (lambda: 0).__code__.replace(co_code=b'\\xff' * 64, co_stacksize=1)\n\
         print(types.FunctionType(c, {})())",
        Ends,
    ),
    ("import gc\nfor o in gc.get_objects()[:10000]: repr(type(o))\nprint(1)", Prints("1")),
    ("import sys; sys.modules.clear(); print(1)", Anything),
];

/// Code that uses too much. The session lives on, or is lost and said to be.
const BOMBS: [(&str, Expected); 26] = [
    ("'a' * (10**9)", Raises("MemoryError")),
    ("def f():\n    x = []\n    while True: x.append('a' * 10**6)\nf()", Raises("MemoryError")),
    ("bytearray(2**31 - 1)", Raises("MemoryError")),
    ("import numpy; numpy.ones((10000, 10000))", Raises("MemoryError")),
    ("def f(): f()\nf()", Raises("RecursionError")),
    ("class A:\n    def __repr__(self): return repr(self)\nrepr(A())", Raises("RecursionError")),
    ("eval('(' * 100000 + ')' * 100000)", Raises("Error")),
    ("eval('-' * 100000 + '1')", Ends),
    ("import json; json.loads('[' * 1000000)", Raises("Error")),
    ("int('9' * 10**7)", Raises("ValueError")),
    ("10**10**8", Ends),
    ("while True: pass", Ends),
    ("import time; time.sleep(10**6)", Ends),
    ("import select; select.select([], [], [], 10**6)", Ends),
    ("import re; re.match('(a+)+$', 'a' * 50 + 'b')", Ends),
    ("import numpy\na = numpy.random.rand(3000, 3000)\nwhile True: a @ a", Ends),
    ("sorted(iter(lambda: 1, 2))", Ends),
    ("while True: print('x' * 10**6)", Ends),
    ("open('/mnt/data/big', 'wb').write(bytes(2_000_000))", Raises("No space left on device")),
    ("open('/tmp/big', 'wb').write(bytes(2_000_000))", Raises("No space left on device")),
    ("f = open('/mnt/data/sparse', 'wb'); f.seek(10**12); f.write(b'x'); f.close()", Raises("Error")),
    ("import os; fd = os.open('/mnt/data/t', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 10**12)", Raises("Error")),
    ("for n in range(10**5): open(f'/mnt/data/n{n}', 'w').close()", Raises("No space left on device")),
    ("import os\nos.chdir('/mnt/data')\nfor n in range(10**5):\n    os.mkdir('d'); os.chdir('d')", Raises("Error")),
    ("f = [open('/mnt/data/one', 'a') for _ in range(10**5)]", Raises("Error")),
    (
        "import io, zipfile\nb = io.BytesIO()\nz = zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED)\nz.writestr('a', bytes(10**8))\n\
         z.close()\nzipfile.ZipFile(b).extractall('/mnt/data')",
        Raises("No space left on device"),
    ),
];

/// Odd things that must neither confuse the host nor be taken for success.
const ODD: [(&str, Expected); 18] = [
    ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n'); print('ok')", Prints("ok")),
    ("import sys; o = sys.stdout; sys.stdout = None; print('x'); sys.stdout = o", Anything),
    ("import os; os.close(1); print('still')", Anything),
    ("import os; os.close(0); os.close(2); print('still')", Prints("still")),
    ("import os\nfor n in range(3, 20):\n    try: os.close(n)\n    except OSError: pass\nprint('ok')", Prints("ok")),
    ("import os; print(os.listdir('/mnt/data') != [])", Prints("True")),
    ("import os; os.dup2(1, 5)", Raises("Error")),
    ("open('/mnt/data/' + 'x' * 300, 'w')", Raises("Error")),
    ("open('/mnt/data/a\\0b', 'w')", Raises("ValueError")),
    ("open('/mnt/data/new\\nline', 'w').write('x'); print('ok')", Prints("ok")),
    ("open(b'/mnt/data/\\xff', 'w')", Raises("Error")),
    ("open('/mnt/data/' + 'd/' * 500 + 'x', 'w')", Raises("Error")),
    ("import os; os.rmdir('/mnt/data')", Raises("Error")),
    ("import shutil; shutil.rmtree('/mnt/data', ignore_errors=True); print('ok')", Prints("ok")),
    ("open('/mnt/data/after', 'w').write('1'); print(open('/mnt/data/after').read())", Prints("1")),
    ("import atexit\ndef f():\n    while True: pass\natexit.register(f); print('ok')", Prints("ok")),
    ("class A:\n    def __del__(self):\n        while True: pass\na = A(); print('ok')", Prints("ok")),
    ("import os; os._exit(0)", Ends),
];

/// Returns a session whose folder has links to a folder of the host with a marker.
fn start(outside: &Path) -> Option<Python> {
    let python = Python::start()?;
    std::fs::write(python.folder.join("mine"), "mine").unwrap();
    std::os::unix::fs::symlink(outside.join("marker"), python.folder.join("host-link")).unwrap();
    std::os::unix::fs::symlink(outside, python.folder.join("host-folder")).unwrap();
    Some(python)
}

/// Runs cases in one session after the other; a session that is lost is replaced.
fn try_all(cases: &[(&str, Expected)]) {
    let outside = std::env::temp_dir().join(format!("assistd-test-outside-{}", uuid::Uuid::now_v7()));
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("marker"), MARKER).unwrap();
    let Some(mut python) = start(&outside) else { return };
    let mut failures = Vec::new();
    for (code, expected) in cases {
        // A machine under load is slow; only code that does not end by itself waits for the limit.
        python.limits.time = Duration::from_secs(if matches!(expected, Ends) { 1 } else { 60 });
        let (end, output) = python.run(code);
        let is_met = match expected {
            Raises(text) => end == End::Raised && output.contains(text),
            Prints(text) => end == End::Completed && output.contains(text),
            Ends => end != End::Completed,
            Anything => true,
        };
        let shown: String = output.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
        if !is_met {
            failures.push(format!("{code}\n  expected {expected:?}: {end:?} {shown}"));
        }
        if output.contains(MARKER) || output.contains("root:") {
            failures.push(format!("{code}\n  has read a file of the host: {shown}"));
        }
        if end.is_lost() {
            python = start(&outside).unwrap();
        } else {
            let (end, output) = python.run("print(6 * 7)");
            if end.is_lost() {
                failures.push(format!("{code}\n  the session is lost afterwards: {end:?} {output}"));
                python = start(&outside).unwrap();
            }
        }
    }
    let files: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((files.len(), std::fs::read_to_string(outside.join("marker")).unwrap().as_str()), (1, MARKER));
    std::fs::remove_dir_all(outside).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn code_reads_and_writes_no_file_outside_of_its_folder() {
    try_all(&FILES);
}

#[test]
fn code_reaches_neither_the_network_nor_processes_nor_the_environment() {
    try_all(&HOST);
}

#[test]
fn escapes_of_python_sandboxes_reach_nothing() {
    try_all(&PYTHON);
}

#[test]
fn code_that_uses_too_much_is_stopped() {
    try_all(&BOMBS);
}

#[test]
fn odd_code_does_not_confuse_the_host() {
    try_all(&ODD);
}

#[test]
fn sessions_do_not_see_each_other() {
    let (Some(mut one), Some(mut other)) = (Python::start(), Python::start()) else { return };
    one.print("secret = 'a1b2'\nopen('/mnt/data/f', 'w').write(secret)\nopen('/tmp/t', 'w').write(secret)");

    for code in ["secret", "open('/mnt/data/f')", "open('/tmp/t')", "open(f'/mnt/data/../{0}/f')"] {
        let (end, output) = other.run(code);
        assert_eq!(end, End::Raised, "{code}: {output}");
        assert!(!output.contains("a1b2"), "{output}");
    }
    // A module of the standard library that one has changed is unchanged for the other.
    one.print("import json; json.dumps = lambda _: 'changed'");
    assert_eq!(other.print("import json; print(json.dumps(1))"), "1\n");
    // The memory of a closed session is not seen by the next one.
    one.print("import numpy; b = numpy.frombuffer(b'a1b2' * 1000000, dtype='u1').copy()");
    drop(one);
    let mut next = Python::start().unwrap();
    let (_, output) = next.run("x = bytearray(40_000_000)\nprint(any(x), b'a1b2' in x)");
    assert_eq!(output, "False False\n");
}

#[test]
fn many_sessions_are_used_at_once() {
    let Some(sandbox) = runtime() else { return };
    let folder = std::env::temp_dir().join(format!("assistd-test-many-{}", uuid::Uuid::now_v7()));
    let mut sessions: Vec<_> = (0..50)
        .map(|number| {
            let path = folder.join(number.to_string());
            std::fs::create_dir_all(&path).unwrap();
            sandbox.open(&Folder { path }).unwrap()
        })
        .collect();
    let limits = assistd::tools::code_interpreter::sandbox::Limits {
        time: Duration::from_mins(1),
        output_bytes: 1_000,
        disk_bytes: 1_000_000,
        files: 10,
    };

    let outputs: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(number, session)| {
                let code = format!("x = {number}\nprint(sum(range(100_000)) + x)");
                scope.spawn(move || session.run(&code, &limits, &CancellationToken::new()).output)
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    for (number, output) in outputs.iter().enumerate() {
        assert_eq!(output, &format!("{}\n", 4_999_950_000_u64 + number as u64));
    }
    drop(sessions);
    std::fs::remove_dir_all(folder).unwrap();
}
