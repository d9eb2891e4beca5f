"""The steps of docker/try, which describes them:

    try.py FOLDER NAME PORT CODE

FOLDER has copies of the compose files. NAME is the name of the images and of the project. A scripted model server listens on
PORT. CODE is 1 if the image runs code.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import openai

FOLDER, NAME, PORT, CODE = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "1"
KEY = "sk-try-0123456789abcdef"
PASSWORD = "try0123456789"
# What the model "slow" answers.
SLOW = "".join(f"word{number} " for number in range(200))
# The grace period of the settings, with what Docker needs.
STOP_MAX_S = 38


def free_ports(count):
    """Returns successive ports that are free, because compose publishes a range."""
    for first in range(18484, 30000, 10):
        ports = list(range(first, first + count))
        try:
            for port in ports:
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return ports
    raise RuntimeError("no ports are free")


ALONE, *REPLICAS = free_ports(4)


def say(text):
    print(f"docker/try: {text}", flush=True)


def docker(*arguments, environment=None):
    """Runs docker; returns its standard output."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def compose(*arguments, image="new", files=()):
    names = ["compose.yaml", "try.yaml", *files]
    files = [part for name in names for part in ("--file", str(FOLDER / name))]
    return docker("compose", "--project-name", NAME, *files, *arguments, environment={"TRY_IMAGE": f"{NAME}:{image}"})


def up(*options, **how):
    """The documented command, without the build."""
    compose("up", "--detach", "--wait", *options, **how)


def write_env(replicas=1, key=KEY, password=PASSWORD, **settings):
    values = {
        "ASSISTD_API_KEYS": key,
        "POSTGRES_PASSWORD": password,
        "REPLICAS": replicas,
        "PUBLISH_PORTS": f"{REPLICAS[0]}-{REPLICAS[replicas - 1]}",
        **settings,
    }
    (FOLDER / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=8, timeout=60)


def wait_for(what, check, seconds=90):
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, RuntimeError, openai.OpenAIError):
            if found := check():
                return found
        if time.monotonic() > until:
            raise RuntimeError(f"not within {seconds} s: {what}")
        time.sleep(0.5)


def is_ready(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as response:
        return response.status == 200


def start_with(ports):
    for port in ports:
        wait_for(f"a server on port {port} is ready", lambda port=port: is_ready(port))


def words_of(api, thread):
    message = api.beta.threads.messages.list(thread_id=thread, limit=1).data[0]
    return "".join(part.text.value for part in message.content if part.type == "text")


def expect(condition, text):
    if not condition:
        raise RuntimeError(text)


def drive(port, models):
    """Drives a server with openai-python; returns the paths of what it has created, with their bodies."""
    api = client(port)
    assistant = api.beta.assistants.create(model=models[0], instructions="Be short.")
    run = api.beta.threads.create_and_run_poll(
        assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "Hi"}]}
    )
    expect(run.status == "completed", f"a polled run is {run.status}: {run.last_error}")
    with api.beta.threads.runs.stream(thread_id=run.thread_id, assistant_id=assistant.id) as stream:
        text = "".join(stream.text_deltas)
    expect(text and text == words_of(api, run.thread_id), f"a streamed run has another text than its message: {text}")
    file = api.files.create(file=("números.csv", b"a,b\n1,2\n" * 10_000), purpose="assistants")
    expect(file.bytes == 80_000, f"a file has {file.bytes} bytes")
    objects = [f"/assistants/{assistant.id}", f"/threads/{run.thread_id}/messages", f"/files/{file.id}"]
    if CODE and "code" in models:
        run_code(api)
    return {path: body_of(port, path) for path in objects}


def run_code(api):
    assistant = api.beta.assistants.create(model="code", tools=[{"type": "code_interpreter"}])
    run = api.beta.threads.create_and_run_poll(
        assistant_id=assistant.id,
        thread={"messages": [{"role": "user", "content": "import numpy; print(numpy.arange(5).sum())"}]},
    )
    steps = api.beta.threads.runs.steps.list(thread_id=run.thread_id, run_id=run.id).data
    outputs = [
        output.logs
        for step in steps
        if step.step_details.type == "tool_calls"
        for call in step.step_details.tool_calls
        for output in call.code_interpreter.outputs
    ]
    expect(run.status == "completed" and "10" in "".join(outputs), f"code printed {outputs} in a run that is {run.status}")


def body_of(port, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1{path}", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def check_objects(ports, objects):
    for port in ports:
        for path, body in objects.items():
            expect(body_of(port, path) == body, f"{path} differs on port {port}")


def check_log(container):
    """Checks that a container logged JSON and nothing else, and no error."""
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    expect(not done.stdout, f"{container} wrote to standard output: {done.stdout[:300]}")
    for line in done.stderr.splitlines():
        expect(json.loads(line)["level"] != "ERROR", f"{container} logged an error: {line}")


def stopped(container, began):
    took = time.monotonic() - began
    status = docker("inspect", "--format", "{{.State.ExitCode}}", container)
    expect(status == "0" and took < STOP_MAX_S, f"{container} stopped with {status} after {took:.0f} s")
    return took


def alone():
    """The image alone, with SQLite in a volume, and then in a folder of the host."""
    name = f"{NAME}-alone"
    options = ["--detach", "--name", name, "--env", f"ASSISTD_API_KEYS={KEY}", "--stop-timeout", "40"]
    options += ["--publish", f"127.0.0.1:{ALONE}:8484"]
    docker("run", *options, "--volume", f"{NAME}-data:/data", f"{NAME}:new")
    start_with([ALONE])
    objects = drive(ALONE, ["gpt-4o"])
    wait_for("the container is healthy", lambda: docker("inspect", "-f", "{{.State.Health.Status}}", name) == "healthy")
    user = docker("exec", name, "id", "--user") + ":" + docker("exec", name, "id", "--group")
    expect(user == "8484:8484", f"the server runs as {user}")
    modes = docker("exec", name, "stat", "--format", "%a", "/data/assistd.db", "/data/files").split()
    expect(modes == ["600", "700"], f"the modes of the database and of the files are {modes}")
    began = time.monotonic()
    docker("stop", name)
    took = stopped(name, began)
    check_log(name)
    docker("start", name)
    start_with([ALONE])
    check_objects([ALONE], objects)
    docker("kill", name)
    docker("start", name)
    start_with([ALONE])
    check_objects([ALONE], objects)
    docker("exec", name, "assistd", "backup", "/data/backup.db")
    docker("rm", "--force", name)
    say(f"alone: driven, healthy, as 8484:8484; stopped in {took:.1f} s; killed; the same objects after both; a backup")

    mounted = FOLDER / "mounted"
    mounted.mkdir(mode=0o750)
    try:
        os.chown(mounted, 8484, 8484)
    except PermissionError:
        return say("alone: not tried with a folder of the host, which needs root")
    docker("run", *options, "--volume", f"{mounted}:/data", f"{NAME}:new")
    start_with([ALONE])
    drive(ALONE, ["gpt-4o"])
    docker("rm", "--force", name)
    say("alone: driven with a folder of the host")


def containers():
    return compose("ps", "--all", "--quiet", "assistd").split()


def port_of(container):
    return int(docker("port", container, "8484/tcp").splitlines()[0].rsplit(":", 1)[1])


def kill_during_run(ports):
    """Kills the replica that drives a run, while it streams; another one completes the run."""
    by_port = {port_of(container): container for container in containers()}
    first, other = client(ports[0]), client(ports[1])
    assistant = first.beta.assistants.create(model="slow")
    thread = first.beta.threads.create(messages=[{"role": "user", "content": "Count"}])
    run, deltas = None, 0
    # The stream breaks.
    with contextlib.suppress(Exception):
        for event in first.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True):
            if event.event == "thread.run.created":
                run = event.data.id
            deltas += event.event == "thread.message.delta"
            if deltas == 20:
                docker("kill", by_port[ports[0]])
    expect(run and 20 <= deltas < 200, f"the stream had {deltas} deltas")
    began = time.monotonic()
    ended = other.beta.threads.runs.poll(run, thread_id=thread.id)
    took = time.monotonic() - began
    text = words_of(other, thread.id)
    expect(ended.status == "completed", f"the run is {ended.status} after the kill: {ended.last_error}")
    expect(text == SLOW, f"the run's text is {text[:200]}…")
    say(f"killed the replica of a run after {deltas} deltas: another one completed it in {took:.0f} s, with the whole text")


def keep_running(ports, stop, results):
    """Creates runs, on any server that answers, until it is told to stop."""
    number = 0
    while not stop.is_set():
        number += 1
        api = client(ports[number % len(ports)])
        with contextlib.suppress(openai.OpenAIError):
            assistant = api.beta.assistants.create(model="steady")
            thread = {"messages": [{"role": "user", "content": "Count"}]}
            results.append(api.beta.threads.create_and_run(assistant_id=assistant.id, thread=thread))
        stop.wait(0.3)


def watch(ports, stop, gaps):
    """Notes each time at which no server is ready, until it is told to stop."""
    while not stop.is_set():
        ready = 0
        for port in ports:
            with contextlib.suppress(OSError):
                ready += is_ready(port)
        if not ready:
            gaps.append(time.monotonic())
        stop.wait(0.1)


def replace(ports, what, how):
    """Replaces the replicas while runs are going; returns how often no server was ready."""
    stop, results, gaps = threading.Event(), [], []
    threads = [threading.Thread(target=keep_running, args=(ports, stop, results)) for _ in range(3)]
    threads.append(threading.Thread(target=watch, args=(ports, stop, gaps)))
    for thread in threads:
        thread.start()
    before = set(containers())
    began = time.monotonic()
    try:
        how()
        took = time.monotonic() - began
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    expect(len(containers()) == len(ports) and not before & set(containers()), f"{what}: a container was not replaced")
    expect(results, f"{what}: no run was created meanwhile")
    for run in results:
        ended = client(ports[0]).beta.threads.runs.poll(run.id, thread_id=run.thread_id)
        expect(ended.status == "completed", f"{what}: a run is {ended.status}: {ended.last_error}")
    out = f"for {gaps[-1] - gaps[0]:.0f} s, no server was ready" if gaps else "at any time, a server was ready"
    say(f"{what} in {took:.0f} s: {len(results)} runs were created meanwhile, and all completed; {out}")
    return len(gaps)


def one_by_one():
    """Replaces each container by one of the new image, with the documented commands."""
    for container in containers():
        docker("stop", container)
        docker("rm", container)
        up("--no-recreate")


def stop_during_run(port):
    """Stops all replicas while a run streams; returns the thread. The stream is complete."""
    api = client(port)
    assistant = api.beta.assistants.create(model="slow")
    thread = api.beta.threads.create(messages=[{"role": "user", "content": "Count"}])
    text, stopping, began = "", None, 0
    with api.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        for delta in stream.text_deltas:
            text += delta
            if stopping is None:
                stopping, began = threading.Thread(target=compose, args=("stop",)), time.monotonic()
                stopping.start()
        expect(stream.get_final_run().status == "completed", f"a run is {stream.get_final_run().status} after a stop")
    stopping.join()
    expect(text == SLOW, f"a stream during a stop has the text {text[-200:]}")
    took = max(stopped(container, began) for container in containers())
    for container in containers():
        check_log(container)
    say(f"compose: stopped in {took:.0f} s, after the stream of a run had ended; exit status 0, and a log of JSON")
    return thread.id


def composed():
    """Compose with Postgres: one server, three replicas, a kill, an upgrade, a downgrade, a stop."""
    write_env(key="")
    try:
        up(image="old")
    except RuntimeError as error:
        expect("unhealthy" in str(error) or "exited" in str(error), f"a server without keys fails with {error}")
    else:
        raise RuntimeError("a server without keys starts")
    expect("Set ASSISTD_API_KEYS" in compose("logs", "assistd", image="old"), "the log does not say that keys are missing")

    settings = {
        "ASSISTD_UPSTREAM_URL": f"http://host.docker.internal:{PORT}/v1",
        "ASSISTD_RUN_EXPIRES_AFTER_S": 1234,
        "ASSISTD_RUN_LEASE_S": 10,
        "ASSISTD_DEFAULT_MODEL": "'with $dollar #hash'",
    }
    write_env(**settings)
    up(image="old")
    objects = drive(REPLICAS[0], ["words", "code"])
    settings_in_effect = compose("exec", "-T", "assistd", "assistd", "config", image="old")
    for line in ["run_expires_after_s = 1234", 'default_model = "with $dollar #hash"']:
        expect(line in settings_in_effect, f"a setting in .env does not reach the server: {line}")
    expect(KEY not in settings_in_effect and PASSWORD not in settings_in_effect, "assistd config shows a secret")
    container = containers()[0]
    options = json.loads(docker("inspect", container))[0]["HostConfig"]
    expect(options["ReadonlyRootfs"] and options["CapDrop"] == ["ALL"], f"the container has {options['CapDrop']}")
    say("compose: driven with Postgres; a setting of .env in effect; read-only and without capabilities")

    write_env(replicas=3, **settings)
    up(image="old")
    check_objects(REPLICAS, objects)
    for port in REPLICAS:
        drive(port, ["words"])
    say("compose: three replicas serve the same objects")
    kill_during_run(REPLICAS)
    up(image="old")
    gaps = replace(REPLICAS, "upgraded one by one", one_by_one)
    expect(gaps == 0, "no server was ready during the upgrade")
    check_objects(REPLICAS, objects)
    replace(REPLICAS, "downgraded all at once", lambda: up(image="old"))
    check_objects(REPLICAS, objects)
    up()
    thread = stop_during_run(REPLICAS[0])
    up()
    check_objects(REPLICAS, objects)
    expect(words_of(client(REPLICAS[1]), thread) == SLOW, "the text of a run during a stop is not stored")
    compose("down", "--volumes")
    say("compose: the same objects after the next start")


def secrets():
    """Compose with keys and passwords in files."""
    write_env(key="", password="")
    folder = FOLDER / "secrets"
    folder.mkdir()
    url = f"postgres://assistd:{PASSWORD}@postgres:5432/assistd"
    for name, value in {"api_keys": KEY, "database_url": url, "postgres_password": PASSWORD}.items():
        (folder / name).write_text(value + "\n")
    with_secrets = {"files": ["compose.secrets.yaml"]}
    up(**with_secrets)
    drive(REPLICAS[0], ["gpt-4o"])
    environment = docker("inspect", "--format", "{{.Config.Env}}", containers()[0])
    expect(KEY not in environment and PASSWORD not in environment, "a secret is in the environment of the container")
    compose("down", "--volumes", **with_secrets)
    say("compose: driven with secrets in files")


# The SDK warns with each call that the API is deprecated.
warnings.filterwarnings("ignore", category=DeprecationWarning)
(FOLDER / "try.yaml").write_text("services:\n  assistd:\n    image: ${TRY_IMAGE}\n    build: !reset null\n")
FOLDER.chmod(0o755)
try:
    alone()
    composed()
    secrets()
except Exception:
    for container in docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}-").split():
        logs = subprocess.run(["docker", "logs", "--tail", "20", container], capture_output=True, text=True, check=False)
        name = docker("inspect", "--format", "{{.Name}}", container)
        say(f"the last lines of {name}:\n{logs.stdout}{logs.stderr}")
    raise
