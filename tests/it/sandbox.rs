//! Python in WebAssembly: what code can do, and how it ends. Needs the runtime of the code interpreter.

use std::time::Duration;

use assistd::tools::code_interpreter::sandbox::End;
use tokio_util::sync::CancellationToken;

use crate::support::code::Python;

#[test]
fn variables_are_kept_and_the_last_expression_is_shown() {
    let Some(mut python) = Python::start() else { return };

    assert_eq!(python.print("x = 20\nprint('é', x)"), "é 20\n");
    assert_eq!(python.print("x + 1"), "21\n");
    assert_eq!(python.print("None"), "");
    let (end, output) = python.run("1 / 0");
    assert_eq!(end, End::Raised);
    assert!(output.contains("ZeroDivisionError"), "{output}");
    let (end, output) = python.run("def f(:");
    assert!(end == End::Raised && output.contains("SyntaxError"), "{output}");
    assert_eq!(python.print("import sys; print(x, file=sys.stderr)"), "20\n");
    assert_eq!(python.print("import numpy as np\nint(np.arange(5).sum())"), "10\n");
}

#[test]
fn files_are_written_below_mnt_data() {
    let Some(mut python) = Python::start() else { return };
    std::fs::write(python.folder.join("in.csv"), "a,b\n1,2\n").unwrap();

    let output = python.print(
        "import os, pandas as pd\nd = pd.read_csv('/mnt/data/in.csv')\nos.makedirs('/mnt/data/sub', exist_ok=True)\n\
         d.to_csv('/mnt/data/sub/out.csv', index=False)\nprint(sorted(os.listdir('/mnt/data')), os.getcwd())",
    );

    assert!(output.contains("['in.csv', 'sub']"), "{output}");
    assert_eq!(std::fs::read_to_string(python.folder.join("sub/out.csv")).unwrap(), "a,b\n1,2\n");
    assert_eq!(
        python.print(
            "import shutil, tempfile\nwith tempfile.TemporaryDirectory() as t:\n    open(t + '/x', 'w').write('y')\n\
             os.rename('/mnt/data/sub/out.csv', '/mnt/data/moved.csv')\nshutil.rmtree('/mnt/data/sub')\n\
             with open('/mnt/data/log', 'a') as f: f.write('1'); f.write('2')\n\
             with open('/mnt/data/log', 'r+') as f: f.seek(1); f.write('3')\n\
             print(open('/mnt/data/log').read(), os.path.getsize('/mnt/data/log'), os.path.exists('/mnt/data/sub'))"
        ),
        "13 2 False\n"
    );
    assert!(python.folder.join("moved.csv").exists());
}

#[test]
fn a_plot_is_written_as_an_image() {
    let Some(mut python) = Python::start() else { return };
    python.limits.disk_bytes = 10_000_000;

    python.print(
        "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt\nplt.plot([1, 2, 4])\n\
         plt.savefig('/mnt/data/p.png')",
    );

    assert!(std::fs::read(python.folder.join("p.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn originals_are_read_only_and_their_other_names_are_copied_when_they_are_written() {
    let Some(mut python) = Python::start() else { return };
    let (original, named) = (python.folder.join("file-1"), python.folder.join("a.txt"));
    std::fs::write(&original, "one").unwrap();
    std::fs::hard_link(&original, &named).unwrap();
    python.session.set_originals(std::slice::from_ref(&original));

    for code in [
        "open('/mnt/data/file-1', 'w')",
        "open('/mnt/data/./x/../file-1', 'a')",
        "import os; os.remove('/mnt/data/file-1')",
        "import os; os.rename('/mnt/data/file-1', '/mnt/data/b')",
        "import os; os.rename('/mnt/data/a.txt', '/mnt/data/file-1')",
    ] {
        let (end, output) = python.run(code);
        assert_eq!(end, End::Raised, "{code}: {output}");
    }
    assert_eq!(
        python.print("open('/mnt/data/a.txt', 'a').write(' two')\nprint(open('/mnt/data/a.txt').read(), open('/mnt/data/file-1').read())"),
        "one two one\n"
    );
    assert_eq!(std::fs::read_to_string(&original).unwrap(), "one");
}

#[test]
fn every_limit_ends_the_code_and_not_the_server() {
    let Some(mut python) = Python::start() else { return };
    python.limits.time = Duration::from_secs(2);

    for (code, expected) in [
        ("b = 'a' * (10**9)", "MemoryError"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("open('/mnt/data/big', 'wb').write(b'0' * 2_000_000)", "No space left on device"),
        ("open('/mnt/data/big', 'wb').truncate(2_000_000)", "No space left on device"),
        ("for n in range(100): open(f'/mnt/data/{n}', 'w').close()", "No space left on device"),
        ("import os\nos.symlink('/etc/passwd', '/mnt/data/s')", "Error"),
        ("import os\nos.link('/mnt/data/0', '/mnt/data/s')", "Error"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "Error"),
        ("import subprocess\nsubprocess.run(['ls'])", "Error"),
        ("import os\nos.fork()", "Error"),
        ("open('/etc/passwd').read()", "Error"),
        ("open('/mnt/data/../../etc/passwd').read()", "Error"),
        ("open('/usr/local/lib/x', 'w')", "Error"),
    ] {
        let (end, output) = python.run(code);
        assert_eq!(end, End::Raised, "{code}: {output}");
        assert!(output.contains(expected), "{code}: {output}");
    }
    assert_eq!(python.print("1 + 1"), "2\n", "the session lives");
    let flood = python.session.run("while True: print('x' * 1000)", &python.limits, &CancellationToken::new());
    assert_eq!((flood.end, flood.is_truncated, flood.output.len()), (End::TimedOut, true, 100_000));
}

#[test]
fn code_that_does_not_end_is_stopped() {
    for code in ["while True: pass", "import time\ntime.sleep(3600)", "import re\nre.match('(a+)+$', 'a' * 40 + 'b')"] {
        let Some(mut python) = Python::start() else { return };
        python.limits.time = Duration::from_millis(500);
        let (end, _) = python.run(code);
        assert_eq!(end, End::TimedOut, "{code}");
    }
    let Some(mut python) = Python::start() else { return };
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        stopping.cancel();
    });
    let ran = python.session.run("while True: pass", &python.limits, &stop);
    thread.join().unwrap();
    assert_eq!(ran.end, End::Stopped);
    let Some(mut python) = Python::start() else { return };
    assert_eq!(python.run("import os\nos._exit(3)").0, End::Exited);
}
