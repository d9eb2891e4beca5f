"""Asks a served assistd what its description allows and what it does not, with schemathesis: nothing may fail on our side,
every reply must be as described, bad requests must be refused and good ones taken. Then the same with the service's own
description, where it is present, as far as that can be asked of us: its schemas know no ids' forms and no refusals.

The server comes from OPENAI_BASE_URL and OPENAI_API_KEY. The cases are the same in each run.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).parent
SLICE = HERE.parents[3] / "shared" / "contract" / "assistants.openapi.json"
BASE = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
# Generated cases for each operation, beside those that cover each bound and each type.
EXAMPLES = 20


def run(name, description, *options):
    """Runs schemathesis on a description; says whether it found nothing."""
    command = [
        pathlib.Path(sys.executable).with_name("st"), "--config-file", HERE / "fuzz.toml",
        "run", description, "--header", f"Authorization: Bearer {KEY}",
        "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none",
        "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color", *options,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n")
    cases = [line.strip() for line in done.stdout.splitlines() if "generated" in line]
    print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {' '.join(cases)}")
    return done.returncode == 0


def served_slice(served):
    """The service's description, cut to the operations that are served."""
    slice = json.loads(SLICE.read_text())
    paths = {}
    for path, item in slice["paths"].items():
        if path.startswith("/chat/"):
            continue  # what its model server answers is not ours
        kept = {method: operation for method, operation in item.items() if (f"/v1{path}", method) in served}
        for operation in kept.values():
            operation["responses"]["default"] = {"description": "refused"}
        if kept:
            paths[path] = kept
    slice["paths"] = paths
    slice.pop("security", None)
    return slice


def main():
    origin = BASE.removesuffix("/v1")
    # Authorization is given, and whether it is checked is tested elsewhere.
    results = [run("our description", f"{origin}/openapi.json", "--exclude-checks", "ignored_auth")]
    if SLICE.exists():
        with urllib.request.urlopen(f"{origin}/openapi.json") as reply:
            ours = json.load(reply)
        served = {(path, method) for path, item in ours["paths"].items() for method in item}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(served_slice(served), file)
            file.flush()
            checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
            results.append(run("the service's description", file.name, "--url", BASE, "--checks", checks))
    else:
        assert os.environ.get("CI") != "true", f"CI must have {SLICE}"
        print(f"skipped: no {SLICE}")
    print(f"{sum(results)} passed, {results.count(False)} failed")
    sys.exit(0 if all(results) else 1)


main()
