//! What code tries in order to leave the sandbox, or to use more than it may. Each case says what the code must not get.
//!
//! The code can do in Python what it wants, as public escapes of Python sandboxes show: there is nothing to reach. Files of
//! the host have a marker, which no output contains. Nothing outside of the session's folder is changed or made, and the
//! runtime's files stay as they are.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use assistd::tools::code_interpreter::folder;
use assistd::tools::code_interpreter::sandbox::{End, Folder, Sandbox as _};
use tokio_util::sync::CancellationToken;

use crate::support::code::{Python, installed, runtime};

/// The name and the content of files of the host that code must neither see nor read.
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
    /// Its session is lost.
    Loses,
    /// It does not end by itself, and its session is lost.
    Stops,
    /// It may do anything but reach something.
    Anything,
}
use Expected::{Anything, Ends, Loses, Prints, Raises, Stops};

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
    ("open('/mnt/data/host-folder/plain').read()", Raises("Error")),
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
const PYTHON: [(&str, Expected); 11] = [
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

/// Reading and writing outside of the folder by libraries, archives, open folders, and links that the host has made.
const LIBRARIES: [(&str, Expected); 34] = [
    ("import urllib.request as r; r.urlopen('file:///etc/passwd').read()", Raises("Error")),
    ("import urllib.request as r; r.urlopen('file:///mnt/data/../../etc/passwd').read()", Raises("Error")),
    ("import linecache; print(linecache.getlines('/etc/passwd'))", Prints("[]")),
    ("import fileinput; list(fileinput.input('/etc/passwd'))", Raises("Error")),
    ("import runpy; runpy.run_path('/etc/passwd')", Raises("Error")),
    ("import numpy; numpy.fromfile('/etc/passwd')", Raises("Error")),
    ("import numpy; numpy.memmap('/etc/passwd')", Raises("Error")),
    ("import pandas; pandas.read_csv('/etc/passwd')", Raises("Error")),
    ("import PIL.Image; PIL.Image.open('/proc/self/exe')", Raises("Error")),
    ("import lxml.etree; lxml.etree.parse('/etc/passwd')", Raises("Error")),
    (
        "from lxml import etree\np = etree.XMLParser(resolve_entities=True, no_network=False, load_dtd=True)\n\
         x = '<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><x>&e;</x>'\nprint(etree.fromstring(x, p).text)",
        Prints("None"),
    ),
    ("import sqlite3; sqlite3.connect('/etc/x.db').execute('create table a(b)')", Raises("Error")),
    ("import sqlite3; sqlite3.connect('/mnt/data/s.db').execute(\"attach '/etc/passwd' as p\")", Raises("Error")),
    ("import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)", Raises("Error")),
    ("import zipimport; zipimport.zipimporter('/etc/passwd')", Raises("Error")),
    ("import shutil; shutil.copy('/mnt/data/host-link', '/mnt/data/copy')", Raises("Error")),
    ("import os; print([names for _, _, names in os.walk('/mnt/data', followlinks=True)])", Prints("mine")),
    ("import os; os.stat('/mnt/data/host-link')", Raises("Error")),
    ("import os; print(os.readlink('/mnt/data/host-link'))", Raises("Error")),
    ("import os; os.utime('/mnt/data/host-link', (1, 1))", Raises("Error")),
    ("import os; os.truncate('/mnt/data/host-link', 0)", Raises("Error")),
    ("import os; os.chmod('/mnt/data/host-link', 0)", Anything),
    ("import os; os.rename('/mnt/data/host-link', '/mnt/data/moved'); open('/mnt/data/moved').read()", Raises("Error")),
    ("import os; os.mkdir('/mnt/data/host-folder/new')", Raises("Error")),
    ("import os; os.rename('/mnt/data/mine', '/mnt/data/host-folder/new')", Raises("Error")),
    ("open('/mnt/data/host-new', 'w').write('x')", Raises("Error")),
    ("open('/mnt/data/host-folder/../outside/new', 'w').write('x')", Raises("Error")),
    ("open('/tmp/../../../outside/new', 'w').write('x')", Raises("Error")),
    ("import os; os.open('..', os.O_RDONLY, dir_fd=os.open('/mnt/data', os.O_RDONLY))", Raises("Error")),
    (
        "import os; os.open('../outside/new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('/tmp', os.O_RDONLY))",
        Raises("Error"),
    ),
    ("import os; os.open('/etc/passwd', os.O_RDONLY, dir_fd=os.open('/mnt/data', os.O_RDONLY))", Raises("Error")),
    (
        "import io, tarfile\nb = io.BytesIO(); t = tarfile.open(fileobj=b, mode='w')\n\
         i = tarfile.TarInfo('../../outside/new'); i.size = 1; t.addfile(i, io.BytesIO(b'x')); t.close(); b.seek(0)\n\
         tarfile.open(fileobj=b).extractall('/mnt/data', filter='fully_trusted')",
        Raises("Error"),
    ),
    (
        "import io, tarfile\nb = io.BytesIO(); t = tarfile.open(fileobj=b, mode='w')\n\
         i = tarfile.TarInfo('etc'); i.type = tarfile.SYMTYPE; i.linkname = '/etc'; t.addfile(i); t.close(); b.seek(0)\n\
         try: tarfile.open(fileobj=b).extractall('/mnt/data', filter='fully_trusted')\n\
         finally: print(open('/mnt/data/etc/passwd').read())",
        Raises("Error"),
    ),
    (
        "import io, os, zipfile\nb = io.BytesIO(); z = zipfile.ZipFile(b, 'w'); z.writestr('../../outside/new', 'x'); z.close()\n\
         zipfile.ZipFile(b).extractall('/mnt/data'); print(os.listdir('/mnt/data/outside'))",
        Prints("['new']"),
    ),
];

/// More ways to the host: devices, other processes' files, pools, the runtime's own door, signals, descriptors, clocks.
const DOORS: [(&str, Expected); 42] = [
    ("open('/proc/1/root/etc/passwd').read()", Raises("Error")),
    ("open('/proc/self/fd/3').read()", Raises("Error")),
    ("import os; os.listdir('/proc/self/cwd')", Raises("Error")),
    ("open('/sys/class/dmi/id/product_name').read()", Raises("Error")),
    ("open('/dev/tty', 'w').write('x')", Raises("Error")),
    ("open('/dev/shm/assistd-escape', 'w').write('x')", Raises("Error")),
    ("import os; os.pipe()", Raises("Error")),
    ("import os; os.openpty()", Raises("Error")),
    ("import os; os.memfd_create('x')", Raises("Error")),
    ("import os; os.chroot('/')", Raises("Error")),
    ("import os; os.popen('ls').read()", Raises("Error")),
    ("import os; os.spawnv(os.P_WAIT, '/bin/ls', ['ls'])", Raises("Error")),
    ("import asyncio; asyncio.run(asyncio.create_subprocess_shell('ls'))", Raises("Error")),
    ("import concurrent.futures as c; c.ThreadPoolExecutor().submit(print, 1).result()", Raises("Error")),
    ("import concurrent.futures as c; c.ProcessPoolExecutor().submit(print, 1).result()", Raises("Error")),
    ("import _thread; _thread.start_new_thread(print, ())", Raises("Error")),
    ("import socket; socket.socketpair()", Raises("Error")),
    ("import socket; socket.socket(fileno=3).recv(1)", Raises("Error")),
    ("import http.client; http.client.HTTPConnection('127.0.0.1', 80).request('GET', '/')", Raises("Error")),
    ("import smtplib; smtplib.SMTP('127.0.0.1')", Raises("Error")),
    ("import ssl; ssl.create_default_context()", Raises("Error")),
    ("import webbrowser; print(webbrowser.open('http://127.0.0.1/'))", Prints("False")),
    ("import socket; print(socket.gethostname())", Prints("(none)")),
    ("import os; print(os.uname().nodename, os.getpid())", Prints("(none) 42")),
    ("import getpass; getpass.getuser()", Raises("Error")),
    ("import _host; _host.call(b'')", Raises("ConnectionRefusedError")),
    ("import _host; _host.call(b'x' * 10**7)", Raises("ConnectionRefusedError")),
    ("import js", Raises("Error")),
    ("import _ctypes", Raises("Error")),
    ("import ctypes; ctypes.string_at(0, 10)", Raises("Error")),
    ("import fcntl; fcntl.fcntl(1, 0)", Raises("Error")),
    ("import pip", Raises("Error")),
    ("import mmap; mmap.mmap(-1, 4096)[0] = 1", Raises("Error")),
    ("import signal; signal.raise_signal(signal.SIGINT)", Raises("KeyboardInterrupt")),
    ("import signal; signal.raise_signal(9)", Loses),
    ("import faulthandler; faulthandler._sigsegv()", Loses),
    ("import os; os.dup(1)", Raises("Not supported")),
    ("import os; os.close(3)", Raises("not permitted")),
    ("import os; os.closerange(0, 1000); print(os.path.exists('/mnt/data/mine'), 'still')", Prints("True still")),
    ("import time; print({time.process_time_ns() % 1_000_000 for _ in range(1000)})", Prints("{0}")),
    ("import time; print({time.monotonic_ns() % 1_000_000 for _ in range(1000)})", Prints("{0}")),
    ("import datetime as d; print({d.datetime.now().microsecond % 1000 for _ in range(1000)})", Prints("{0}")),
];

/// More code that uses too much: memory, and the stack.
const MEMORY: [(&str, Expected); 24] = [
    ("'a' * 10**10", Raises("OverflowError")),
    ("[0] * 10**9", Raises("MemoryError")),
    ("'%1000000000d' % 1", Raises("MemoryError")),
    ("'x'.ljust(10**9)", Raises("MemoryError")),
    ("f'{1:>1000000000}'", Raises("MemoryError")),
    ("import itertools; list(itertools.count())", Ends),
    ("import gzip; gzip.decompress(gzip.compress(bytes(10**7)) * 100)", Ends),
    ("import lzma; lzma.decompress(lzma.compress(bytes(10**7)) * 100)", Ends),
    ("import zlib; d = zlib.compress(bytes(10**8)); x = [zlib.decompress(d) for _ in range(20)]", Ends),
    ("import PIL.Image as i; i.MAX_IMAGE_PIXELS = None; i.new('RGB', (60000, 60000))", Raises("MemoryError")),
    (
        "import xml.etree.ElementTree as t\ne = ''.join(f'<!ENTITY l{n} \"' + f'&l{n-1};' * 10 + '\">' for n in range(1, 10))\n\
         t.fromstring('<!DOCTYPE x [<!ENTITY l0 \"lol\">' + e + ']><x>&l9;</x>')",
        Raises("amplification"),
    ),
    (
        "import lxml.etree as t\ne = ''.join(f'<!ENTITY l{n} \"' + f'&l{n-1};' * 10 + '\">' for n in range(1, 10))\n\
         t.fromstring('<!DOCTYPE x [<!ENTITY l0 \"lol\">' + e + ']><x>&l9;</x>')",
        Raises("amplification"),
    ),
    ("import sys\nsys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1)\nf(0)", Ends),
    ("x = []\nfor _ in range(10**5): x = [x]\nimport pickle; pickle.dumps(x)", Raises("RecursionError")),
    ("x = []\nfor _ in range(10**5): x = [x]\nimport copy; copy.deepcopy(x)\nwhile True: pass", Stops),
    ("x = []\nfor _ in range(10**5): x = [x]\nrepr(x)", Raises("RecursionError")),
    ("x = []\nfor _ in range(10**6): x = [x]\ndel x\nwhile True: pass", Stops),
    ("x = ()\nfor _ in range(10**6): x = (x,)\nhash(x)\nwhile True: pass", Stops),
    ("import ast; ast.parse('a' + '.b' * 10**5); compile('a' + '()' * 10**5, 'x', 'eval'); 1 / 0", Ends),
    ("import re; re.compile('(' * 10000 + ')' * 10000)", Raises("RecursionError")),
    // Exceptions of C++ are objects of the engine's garbage collector.
    (
        "import matplotlib._path as p, numpy as np\nn = 0\nfor _ in range(3000):\n    \
         try: p.affine_transform(np.zeros((2, 2)), np.zeros((7, 7)))\n    except ValueError: n += 1\nprint(n)",
        Prints("3000"),
    ),
    // Code that is not Python's: it can destroy the memory of its own interpreter.
    (
        "import types\nc = (lambda: 0).__code__.replace(co_code=bytes([100, 255] * 8 + [35, 0]), co_consts=(), co_stacksize=10)\n\
         types.FunctionType(c, {})()",
        Anything,
    ),
    ("import sys; sys.stdout.write('\\ud800')", Raises("UnicodeEncodeError")),
    ("import sys; sys.stderr.write('x' * 10**6); print('ok')", Anything),
];

/// More code that does not end.
const ENDLESS: [(&str, Expected); 24] = [
    ("sum(range(10**12))", Stops),
    ("pow(3, 10**9)", Stops),
    ("import math; math.factorial(10**7)", Stops),
    ("import numpy as np\na = np.arange(10**6)\nwhile True: np.sort(a[::-1])", Stops),
    ("import collections, itertools as i; collections.deque(i.product(range(100), repeat=8), maxlen=0)", Stops),
    ("any(iter(int, 1))", Stops),
    ("import hashlib\nh = hashlib.sha256()\nwhile True: h.update(bytes(10**6))", Stops),
    (
        "import sqlite3; sqlite3.connect(':memory:').execute('with recursive r(n) as (select 1 union all select n + 1 from r) \
         select count(*) from r').fetchall()",
        Stops,
    ),
    ("import re; re.sub('(x+x+)+y', '', 'x' * 100)", Stops),
    ("import threading; l = threading.Lock(); l.acquire(); l.acquire()", Stops),
    ("import queue; queue.Queue().get()", Stops),
    ("import select; select.select([0], [], [0], 10**6); import time; time.sleep(10**9)", Stops),
    ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", Stops),
    ("import time\nwhile True:\n    try: time.sleep(10)\n    finally: continue", Stops),
    ("class A:\n    def __del__(self):\n        while True: pass\na = A(); del a", Stops),
    ("class A:\n    def __repr__(self):\n        while True: pass\nA()", Stops),
    ("class A(Exception):\n    def __str__(self):\n        while True: pass\nraise A()", Stops),
    ("import atexit; atexit.register(lambda: exec('while True: pass')); atexit._run_exitfuncs()", Stops),
    ("import sys; sys.settrace(lambda *a: any(iter(int, 1)))\ndef f(): pass\nf()", Stops),
    ("import sys; sys.excepthook = lambda *a: any(iter(int, 1)); 1 / 0", Ends),
    (
        "import sys\nclass O:\n    def write(self, text):\n        while True: pass\n    def flush(self): pass\nsys.stdout = O()\n\
         print(1)",
        Stops,
    ),
    ("import signal, sys; signal.signal(2, lambda *a: any(iter(int, 1))); signal.raise_signal(2)", Stops),
    ("import os\nwhile True: os.listdir('/mnt/data')", Stops),
    ("import os\nwhile True: os.urandom(10**6)", Stops),
];

/// More odd files and descriptors.
const DESCRIPTORS: [(&str, Expected); 12] = [
    ("open('/mnt/data/' + 'x' * 255, 'w').write('1'); print('ok')", Prints("ok")),
    ("open('/mnt/data/\\u202e\\u0007 .', 'w').write('1'); print('ok')", Prints("ok")),
    ("import os\nfor _ in range(10**5): os.open('/mnt/data', os.O_RDONLY)", Raises("No file descriptors available")),
    ("import os\nfor n in range(1000):\n    try: os.close(n)\n    except OSError: pass\nprint('ok')", Prints("ok")),
    ("import os; os.rename('/mnt/data', '/tmp/data')", Raises("Error")),
    ("import os; os.rename('/tmp', '/mnt/data/t')", Raises("Error")),
    ("import os; os.rename('/mnt/data/.', '/mnt/data/z')", Raises("Error")),
    ("import os; os.rename('/usr/local/lib', '/mnt/data/lib')", Raises("Error")),
    ("import os; os.mkdir('/usr/local/lib/new')", Raises("Error")),
    ("import os; os.utime('/usr/local/lib/python315.zip', (1, 1))", Raises("Error")),
    (
        "import os; os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('/usr/local/lib', os.O_RDONLY))",
        Raises("Error"),
    ),
    (
        "import os\nf = os.open('/mnt/data/p', os.O_RDWR | os.O_CREAT); large = 2**63 - 1\n\
         for call in (lambda: os.pread(f, 10, large), lambda: os.pwrite(f, b'x', large), lambda: os.lseek(f, large, 0),\n             \
         lambda: os.lseek(f, large, 1), lambda: os.lseek(f, -large, 2), lambda: os.ftruncate(f, large),\n             \
         lambda: os.utime(f, ns=(large, large)), lambda: os.utime(f, ns=(-1, -1))):\n    \
         try: call()\n    except (OSError, OverflowError): pass\nprint('ok', os.fstat(f).st_size)",
        Prints("ok 0"),
    ),
];

/// The part of the host that code must not reach: a folder with the marker, beside the folders of sessions.
struct Surroundings {
    root: PathBuf,
    before: BTreeMap<PathBuf, State>,
}

/// What is compared of a file: its type and mode, its size, and when it was changed. Folders are not: they have more entries.
type State = (u32, u64, Option<(i64, i64)>);

impl Surroundings {
    /// Makes the folder; `None` if the runtime is not installed.
    fn new() -> Option<Self> {
        installed()?;
        let root = std::env::temp_dir().join(format!("assistd-test-outside-{}", uuid::Uuid::now_v7()));
        for folder in ["outside", "sessions/other"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            // The name of one of them is a marker as well; code can name the other one without printing it.
            for name in [MARKER, "plain"] {
                std::fs::write(root.join(folder).join(name), MARKER).unwrap();
            }
        }
        let before = Self::files(&root);
        Some(Self { root, before })
    }

    /// Opens a session whose folder has links to the files with the marker.
    fn open(&self) -> Python {
        let folder = self.root.join("sessions").join(uuid::Uuid::now_v7().to_string());
        let python = Python::start_in(folder).unwrap();
        std::fs::write(python.folder.join("mine"), "mine").unwrap();
        let outside = self.root.join("outside");
        symlink(outside.join(MARKER), python.folder.join("host-link")).unwrap();
        symlink(&outside, python.folder.join("host-folder")).unwrap();
        symlink("../../../outside/new", python.folder.join("host-new")).unwrap();
        python
    }

    /// Returns the files around the sessions, and those of the runtime.
    fn files(root: &Path) -> BTreeMap<PathBuf, State> {
        let mut files = BTreeMap::new();
        let runtime = PathBuf::from(installed().unwrap());
        for folder in [root, &root.join("outside"), &root.join("sessions/other"), &runtime] {
            collect(folder, folder == runtime, &mut files);
        }
        files
    }

    /// Returns what is in an output that code must not know.
    fn leak(&self, output: &str) -> Option<&'static str> {
        let root = self.root.to_str().unwrap();
        [(MARKER, "the marker"), ("root:", "a file of the host"), (root, "a path of the host")]
            .into_iter()
            .find_map(|(text, what)| output.contains(text).then_some(what))
    }

    /// Fails if something was changed, and removes the folder.
    fn finish(self) {
        assert_eq!(Self::files(&self.root), self.before, "code has changed something outside of its folder");
        for folder in ["outside", "sessions/other"] {
            for name in [MARKER, "plain"] {
                assert_eq!(std::fs::read_to_string(self.root.join(folder).join(name)).unwrap(), MARKER);
            }
        }
        assert_eq!(std::fs::read_dir(self.root.join("sessions")).unwrap().count(), 1, "code has made a folder");
        std::fs::remove_dir_all(self.root).unwrap();
    }
}

fn collect(folder: &Path, is_deep: bool, files: &mut BTreeMap<PathBuf, State>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            files.insert(path.clone(), (metadata.mode(), 0, None));
            if is_deep {
                collect(&path, true, files);
            }
        } else {
            // Not the time of the last change of the status, which hard links and backups change as well.
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            files.insert(path, (metadata.mode(), metadata.len(), Some(modified)));
        }
    }
}

/// Runs cases in one session after the other; a session that is lost is replaced.
fn try_all(cases: &[(&str, Expected)]) {
    let Some(surroundings) = Surroundings::new() else { return };
    let mut python = surroundings.open();
    let mut failures = Vec::new();
    for (code, expected) in cases {
        // A machine under load is slow; only code that does not end by itself waits for the limit.
        python.limits.time = Duration::from_secs(if matches!(expected, Ends | Stops) { 1 } else { 60 });
        let (end, output) = python.run(code);
        let is_met = match expected {
            Raises(text) => end == End::Raised && output.contains(text),
            Prints(text) => end == End::Completed && output.contains(text),
            Ends => end != End::Completed,
            Loses | Stops => end.is_lost(),
            Anything => true,
        };
        let shown: String = output.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
        if !is_met {
            failures.push(format!("{code}\n  expected {expected:?}: {end:?} {shown}"));
        }
        if let Some(what) = surroundings.leak(&output) {
            failures.push(format!("{code}\n  has read {what}: {shown}"));
        }
        if end.is_lost() {
            drop(python);
            python = surroundings.open();
        }
        // The session works, or the new one.
        python.limits.time = Duration::from_mins(1);
        let (end, output) = python.run("print(6 * 7)");
        if (&end, output.as_str()) != (&End::Completed, "42\n") {
            failures.push(format!("{code}\n  the session does not work afterwards: {end:?} {output}"));
            drop(python);
            python = surroundings.open();
        }
    }
    drop(python);
    surroundings.finish();
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
fn libraries_archives_and_links_lead_to_no_file_outside_of_the_folder() {
    try_all(&LIBRARIES);
}

#[test]
fn devices_pools_signals_and_descriptors_lead_nowhere() {
    try_all(&DOORS);
}

#[test]
fn code_that_uses_too_much_memory_or_stack_is_stopped() {
    try_all(&MEMORY);
}

#[test]
fn code_that_does_not_end_is_stopped_wherever_it_runs() {
    try_all(&ENDLESS);
}

#[test]
fn odd_files_and_descriptors_do_not_confuse_the_host() {
    try_all(&DESCRIPTORS);
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

#[test]
fn files_that_were_removed_count_as_long_as_they_are_open() {
    let Some(mut python) = Python::start() else { return };
    python.print("import os");

    for remove in ["os.remove('/mnt/data/x')", "os.rename('/mnt/data/y', '/mnt/data/x')"] {
        let (end, output) = python.run(&format!(
            "open_files = []\nfor n in range(20):\n    open('/mnt/data/y', 'w').close()\n    \
             file = open('/mnt/data/x', 'wb', buffering=0); open_files.append(file)\n    \
             file.write(bytes(900_000)); {remove}"
        ));

        // 18 MB, where 1 MB is the limit.
        assert!(end == End::Raised && output.contains("No space left on device"), "{remove}: {end:?} {output}");
        python.print("for file in open_files: file.close()");
    }
}

/// Returns a session with two originals, `file-a` and `file-b`, which are also `a.txt` and `b.txt`.
fn start_with_originals() -> Option<Python> {
    let mut python = Python::start()?;
    let mut originals = Vec::new();
    for (id, name) in [("file-a", "a.txt"), ("file-b", "b.txt")] {
        let original = python.folder.join(id);
        std::fs::write(&original, format!("content of {id}")).unwrap();
        std::fs::hard_link(&original, python.folder.join(name)).unwrap();
        originals.push(original);
    }
    python.session.set_originals(&originals);
    Some(python)
}

#[test]
fn originals_are_neither_changed_nor_replaced_by_detours() {
    let mut failures = Vec::new();
    for code in [
        // Paths below an open folder.
        "os.open('file-a', os.O_WRONLY | os.O_TRUNC, dir_fd=folder)",
        "os.unlink('file-a', dir_fd=folder)",
        "os.rename('file-a', 'moved', src_dir_fd=folder, dst_dir_fd=folder)",
        "open('/mnt/data/new', 'w').close(); os.rename('new', 'file-a', src_dir_fd=folder, dst_dir_fd=folder)",
        // The copy that is made before `a.txt` is written is written over another original.
        "os.rename('/mnt/data/b.txt', '/mnt/data/a.txt.assistd-copy'); open('/mnt/data/a.txt', 'a').write('x')",
        // Times make a file look new, so that it is given to users.
        "os.utime('/mnt/data/a.txt', (1, 1))",
        "os.utime(os.open('/mnt/data/file-b', os.O_RDONLY), (1, 1))",
        "os.utime('file-a', (1, 1), dir_fd=folder)",
        // These are refused.
        "os.chmod('/mnt/data/file-a', 0o777); open('/mnt/data/file-a', 'w')",
        "os.truncate('/mnt/data/file-a', 0)",
        "os.truncate(os.open('/mnt/data/file-a', os.O_RDONLY), 0)",
        "os.write(os.open('/mnt/data/a.txt', os.O_RDONLY), b'x')",
        "import shutil; shutil.rmtree('/mnt/data', ignore_errors=True)",
    ] {
        let Some(mut python) = start_with_originals() else { return };
        let paths = ["file-a", "file-b"].map(|id| python.folder.join(id));
        let states = || {
            let state = |path: &PathBuf| {
                let metadata = std::fs::symlink_metadata(path).ok()?;
                Some((metadata.ino(), metadata.mtime(), std::fs::read_to_string(path).ok()?))
            };
            paths.each_ref().map(state)
        };
        let before = states();
        python.print("import os\nfolder = os.open('/mnt/data', os.O_RDONLY)");

        let (end, output) = python.run(code);

        assert!(!end.is_lost(), "{code}: {end:?} {output}");
        if states() != before {
            failures.push(format!("{code}\n  {before:?}\n  {:?}", states()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn code_cannot_set_the_times_of_the_files_of_the_runtime() {
    let Some(mut python) = Python::start() else { return };

    // The times that it has already: other tests use the file.
    let (end, output) = python.run(
        "import os\npath = '/usr/local/lib/python315.zip'\ns = os.stat(path)\n\
         os.utime(os.open(path, os.O_RDONLY), ns=(s.st_atime_ns, s.st_mtime_ns))",
    );

    assert_eq!(end, End::Raised, "{output}");
}

#[test]
fn output_that_is_not_unicode_is_not_longer_than_the_limit() {
    let Some(mut python) = Python::start() else { return };
    python.limits.output_bytes = 1_000;

    for code in ["b'\\xff' * 5_000", "'€'.encode() * 5_000", "b'a\\xe2\\x82' * 5_000"] {
        let (end, output) = python.run(&format!("import sys; sys.stdout.buffer.write({code}); sys.stdout.flush()"));

        assert_eq!(end, End::Completed, "{code}: {output}");
        assert!(output.len() <= 1_000, "{code}: {} bytes", output.len());
    }
}

#[test]
fn times_of_files_are_as_coarse_as_the_clocks() {
    let Some(mut python) = Python::start() else { return };

    for touch in ["f.write('x'); f.flush()", "os.utime('/mnt/data/t')"] {
        let output = python.print(&format!(
            "import os\nf = open('/mnt/data/t', 'w')\ntimes = set()\nfor _ in range(200):\n    {touch}\n    \
             s = os.stat('/mnt/data/t'); times |= {{t % 1_000_000 for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)}}\n\
             print(len(times))"
        ));

        assert_eq!(output, "1\n", "{touch}: the number of different fractions of a millisecond");
    }
}

#[test]
fn a_session_that_code_has_broken_is_lost_or_works() {
    let mut failures = Vec::new();
    for code in [
        "import sys; sys.modules.clear()",
        "import builtins\nfor name in list(vars(builtins)): vars(builtins).pop(name)",
        "import sys; del sys.modules['__main__']",
        "import sys; sys.stdout = sys.stderr = None",
        "import sys; sys.stdout.close()",
        "import sys; sys.stdout.detach()",
    ] {
        let Some(mut python) = Python::start() else { return };
        let (end, _) = python.run(code);
        if end.is_lost() {
            continue;
        }

        let (end, output) = python.run("print(6 * 7)");

        if !end.is_lost() && output != "42\n" {
            failures.push(format!("{code}\n  afterwards: {end:?} {output}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn folders_whose_paths_are_too_long_for_the_host_do_not_break_the_session() {
    let Some(mut python) = Python::start() else { return };
    // Twice ten folders, one below the other: the path has more than 4,096 bytes.
    python.print(
        "import os\ndef chain(letter):\n    path = '/mnt/data'\n    for _ in range(10):\n        \
         path += '/' + letter * 250; os.mkdir(path)\n    return path\nchain('a'); bottom = chain('b')\n\
         try: os.rename('/mnt/data/' + 'a' * 250, bottom + '/' + 'a' * 250)\nexcept OSError: pass",
    );

    let (end, output) = python.run("open('/mnt/data/small', 'w').write('x')");
    let found = folder::files(&python.folder).map(|files| files.len()).map_err(|error| error.to_string());

    // A small file can be written, and the server finds it.
    assert_eq!((end, found), (End::Completed, Ok(1)), "{output}");
}

#[test]
fn temporary_files_can_be_made_after_code_has_emptied_its_folder() {
    let Some(mut python) = Python::start() else { return };
    python.print("import shutil; shutil.rmtree('/mnt/data', ignore_errors=True)");

    assert_eq!(python.print("import tempfile\nwith tempfile.TemporaryFile() as f: print(f.write(b'x'))"), "1\n");
}

#[test]
fn folders_cannot_be_so_deep_that_they_cannot_be_searched() {
    let Some(mut python) = Python::start() else { return };
    python.limits.files = 1_000;
    // One below the other, without a path: by the open folder above.
    let output = python.print(
        "import errno, os\nfolder = os.open('/mnt/data', os.O_RDONLY)\ntry:\n    for depth in range(900):\n        \
         os.mkdir('d', dir_fd=folder); above, folder = folder, os.open('d', os.O_RDONLY, dir_fd=folder); os.close(above)\n\
         except OSError as error: print(error.errno == errno.ENAMETOOLONG, depth > 64)",
    );
    assert_eq!(output, "True True\n");

    // Or by moving a folder into another one.
    let output = python.print(
        "os.mkdir('/mnt/data/x')\ntry: os.rename('/mnt/data/d', '/mnt/data/x/d'); print('moved')\n\
         except OSError as error: print(error.errno == errno.ENAMETOOLONG)\nopen('/mnt/data/f', 'w').write('x')\n\
         print(sorted(os.listdir('/mnt/data')), os.listdir('/mnt/data/x'))",
    );

    assert_eq!(output, "True\n['d', 'f', 'x'] []\n");
    assert_eq!(folder::files(&python.folder).unwrap().len(), 1);
}

#[test]
fn a_stream_that_code_puts_in_the_place_of_its_output_stays() {
    let Some(mut python) = Python::start() else { return };

    python.print("import io, sys; sys.stdout = io.StringIO()");
    assert_eq!(python.print("print('kept')"), "");

    assert_eq!(python.print("print(sys.stdout.getvalue(), end='', file=sys.__stdout__)"), "kept\n");
    python.print("sys.stdout.close()");
    assert_eq!(
        python.print("print('shown'); print(sorted(n for n in globals() if n[0] != '_'))"),
        "shown\n['io', 'sys']\n"
    );
}

#[test]
fn the_number_of_open_folders_is_limited() {
    let Some(mut python) = Python::start() else { return };

    let output = python.print(
        "import errno, os\ntry:\n    for n in range(200): os.open('/mnt/data', os.O_RDONLY)\n\
         except OSError as error: print(error.errno == errno.EMFILE, n < 64)",
    );

    assert_eq!(output, "True True\n");
}
