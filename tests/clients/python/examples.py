"""Runs the examples of README.md, CONTRIBUTING.md and docs/*.md, each in its page's order.

    examples.py ASSISTD [PAGE...]

starts ASSISTD with its default settings on a free port, and again for the pages whose examples need a model that calls
functions, with the scripted model server in ASSISTD_UPSTREAM_URL. In the examples, 127.0.0.1:8484 is replaced by the
server's address. The examples of a page run in one empty folder:

    sh      with `sh -e`. Instead of starting a server, `cargo run --release` and `assistd` check their settings.
            `assistd projects`, `assistd keys` and `assistd backup` work on the database of the server.
    python  with openai-python.
    js      with openai-node.
    toml    as the settings file of `assistd config`. It is stored under the name in its first line, such as
            `# assistd.toml`.
    json    is parsed.
    text, mermaid   are not examples.

Every other language fails, and so does a block without a language. Two comments on the line above a block change this:

    <!-- not run: REASON -->    the block is not run.
    <!-- output -->             the block is what the example before it prints; an ellipsis stands for any text.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
import urllib.request
from pathlib import Path

import suite

ROOT = Path(__file__).resolve().parents[3]
NODE_MODULES = ROOT / "tests/clients/node/node_modules"
ADDRESS = "127.0.0.1:8484"
START_S = 20
EXAMPLE_S = 60
# Pages whose examples need the scripted model server, with the name of the script.
SCRIPTS = {"docs/tools.md": "tool"}
PROSE = ["text", "mermaid"]
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
OUTPUT = "<!-- output -->"

COMMANDS = {
    "assistd": """#!/bin/sh
for argument; do
    case $argument in
        config | migrate | health | check | --help | --version) exec "$EXAMPLES_ASSISTD" "$@" ;;
        projects | keys | backup) ASSISTD_DATA_DIR=$EXAMPLES_DATA_DIR exec "$EXAMPLES_ASSISTD" "$@" ;;
    esac
done
[ "$1" != serve ] || shift
exec "$EXAMPLES_ASSISTD" "$@" config
""",
    "cargo": """#!/bin/sh
if [ "$1 $2" != "run --release" ]; then
    echo "this cargo command is not run by the test: mark the block" >&2
    exit 1
fi
shift 2
[ "$1" != -- ] || shift
exec assistd "$@"
""",
}


class Block:
    """A fenced block of a page."""

    def __init__(self, line, language, mark, text):
        self.line, self.language, self.mark, self.text = line, language, mark, text

    def is_output(self):
        return self.mark == OUTPUT

    def is_run(self):
        return not NOT_RUN.fullmatch(self.mark) and not self.is_output() and self.language not in PROSE


def blocks_of(text):
    """Returns the fenced blocks of a page. Fails for code that is indented or not closed."""
    blocks, block, mark, before = [], None, "", ""
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if block is not None:
            if stripped == "```":
                block.text = "\n".join(block.text) + "\n"
                blocks.append(block)
                block, mark = None, ""
            else:
                block.text.append(line)
        elif stripped.startswith("```"):
            block = Block(number, stripped.removeprefix("```"), mark, [])
        else:
            assert not (line.startswith("    ") and not before), f"line {number}: indented code; use a fenced block"
            mark = stripped or mark
        before = stripped
    assert block is None, f"line {block.line}: the block is not closed"
    return blocks


class Server:
    """A server with default settings, and its address."""

    def __init__(self, assistd, folder, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        names = {"LISTEN": self.address, "DATA_DIR": folder, **settings}
        environment = clean_environment() | {f"ASSISTD_{name}": str(value) for name, value in names.items()}
        self.log = open(Path(folder) / "log", "w+")
        files = {"stdin": subprocess.DEVNULL, "stdout": self.log, "stderr": self.log}
        self.process = subprocess.Popen([assistd], env=environment, **files)
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                self.log.seek(0)
                raise RuntimeError(f"the server did not start: {self.log.read()}")
            time.sleep(0.02)

    def get(self, path):
        return urllib.request.urlopen(f"http://{self.address}{path}", timeout=5)

    def is_ready(self):
        try:
            return self.get("/ready").status == 200
        except OSError:
            return False

    def models(self):
        return [model["id"] for model in json.load(self.get("/v1/models"))["data"]]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def clean_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("ASSISTD_", "OPENAI_"))}


class Page(unittest.TestCase):
    """The examples of one page. Subclasses have a test for each block that is run or is an output."""

    assistd = upstream = path = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="assistd-examples.")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for name in ["server", "bin", "page"]:
            os.mkdir(f"{cls.folder}/{name}")
        for name, script in COMMANDS.items():
            path = Path(cls.folder) / "bin" / name
            path.write_text(script)
            path.chmod(0o755)
        cls.page = Path(cls.folder) / "page"
        (cls.page / "node_modules").symlink_to(NODE_MODULES)
        script = SCRIPTS.get(cls.path)
        settings = {"UPSTREAM_URL": cls.upstream, "DEFAULT_MODEL": script} if script else {}
        cls.server = Server(cls.assistd, f"{cls.folder}/server", **settings)
        cls.addClassCleanup(cls.server.stop)
        # Another model server on this machine may answer instead of the echo model.
        cls.knows_answers = bool(script) or cls.server.models() == ["echo"]
        cls.printed = None

    def check(self, block):
        if block.is_output():
            return self.check_output(block.text)
        type(self).printed = None
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            self.check_settings(block)
        else:
            type(self).printed = self.run_example(block)

    def check_output(self, expected):
        self.assertIsNotNone(self.printed, "no example before this output was run")
        if not self.knows_answers:
            self.skipTest("a model server on this machine answers instead of the echo model")
        pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
        printed = self.printed.replace(self.server.address, ADDRESS).strip()
        self.assertTrue(re.fullmatch(pattern, printed, re.DOTALL), f"the example printed:\n{printed}")

    def check_settings(self, block):
        tomllib.loads(block.text)
        named = re.match(r"# (\S+\.toml)\n", block.text)
        path = self.page / (named[1] if named else f"settings-{block.line}.toml")
        path.write_text(block.text)
        self.run_command([self.assistd, "--config", str(path), "config"], clean_environment())

    def run_example(self, block):
        text = block.text.replace(ADDRESS, self.server.address)
        suffixes = {"sh": "sh", "python": "py", "js": "mjs"}
        self.assertIn(block.language, suffixes, f"cannot run the language '{block.language}': mark the block")
        programs = {"sh": ["sh", "-e"], "python": [sys.executable, "-W", "ignore"], "js": ["node"]}
        path = self.page / f"example-{block.line}.{suffixes[block.language]}"
        path.write_text(text)
        environment = clean_environment()
        environment["PATH"] = f"{self.folder}/bin:{Path(sys.executable).parent}:{environment['PATH']}"
        environment |= {"EXAMPLES_ASSISTD": self.assistd, "NO_PROXY": "127.0.0.1"}
        # `assistd projects` and `assistd keys` work on the database of the server.
        environment["EXAMPLES_DATA_DIR"] = f"{self.folder}/server"
        if block.language == "sh":
            # The address for `assistd health`.
            environment["ASSISTD_LISTEN"] = self.server.address
        return self.run_command([*programs[block.language], path.name], environment)

    def run_command(self, command, environment):
        done = subprocess.run(
            command,
            cwd=self.page,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=EXAMPLE_S,
        )
        self.assertEqual(done.returncode, 0, f"the example failed:\n{done.stdout}{done.stderr}")
        self.assertNotIn('"error":{', done.stdout, "the example printed an error of the API")
        return done.stdout


def add_page(path, module):
    """Adds a class with a test for each block of a page."""
    members = {"path": path}
    for block in blocks_of((ROOT / path).read_text()):
        if block.is_run() or block.is_output():
            kind = "output" if block.is_output() else block.language
            members[f"test_line_{block.line:03}_{kind}"] = lambda self, block=block: self.check(block)
    name = re.sub(r"\W", "_", path)
    module[name] = type(name, (Page,), members)


def main():
    Page.assistd, *paths = sys.argv[1:]
    Page.upstream = os.environ.get("ASSISTD_UPSTREAM_URL")
    pages = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    for path in paths or pages:
        add_page(path, globals())
    sys.argv[1:] = []
    return suite.run(sys.modules["__main__"])


if __name__ == "__main__":
    sys.exit(main())
