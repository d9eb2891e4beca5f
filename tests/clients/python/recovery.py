"""Kills and gracefully stops a server during its work, restarts it, and checks that nothing is lost.

    recovery.py ASSISTD PORT

starts and stops ASSISTD on PORT, with the settings of the environment: the store in ASSISTD_DATABASE_URL, the scripted
model server in ASSISTD_UPSTREAM_URL, a short ASSISTD_RUN_LEASE_S and ASSISTD_SHUTDOWN_GRACE_S, one key in
ASSISTD_API_KEYS. The server's log is written to the file SERVER_LOG.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import unittest
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

import httpx2  # noqa: E402
import openai  # noqa: E402

import contract  # noqa: E402
import suite  # noqa: E402

PORT = sys.argv.pop()
ASSISTD = sys.argv.pop()
ADDRESS = f"127.0.0.1:{PORT}"
KEY = os.environ["ASSISTD_API_KEYS"]
LEASE_S = int(os.environ["ASSISTD_RUN_LEASE_S"])
GRACE_S = int(os.environ["ASSISTD_SHUTDOWN_GRACE_S"])
START_S = 20
STEADY = "".join(f"word{number} " for number in range(40))

recorder = contract.Recorder()
client = openai.OpenAI(
    base_url=f"http://{ADDRESS}/v1",
    api_key=KEY,
    max_retries=0,
    http_client=openai.DefaultHttpxClient(transport=recorder),
)
threads = client.beta.threads


class Server:
    """A server process; the next process uses the same store."""

    def __init__(self):
        environment = {**os.environ, "ASSISTD_LISTEN": ADDRESS}
        with open(os.environ["SERVER_LOG"], "ab") as log:
            self.process = subprocess.Popen([ASSISTD], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.02)

    def is_ready(self):
        try:
            return httpx2.get(f"http://{ADDRESS}/ready", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self, signal_number):
        """Sends the signal; returns the exit status and the seconds until the exit."""
        started = time.monotonic()
        self.process.send_signal(signal_number)
        status = self.process.wait(timeout=30)
        return status, time.monotonic() - started


class Stream(threading.Thread):
    """Reads a run's stream as raw text until it ends or the connection is lost."""

    def __init__(self, thread_id, assistant_id):
        super().__init__(daemon=True)
        self.body = {"assistant_id": assistant_id, "stream": True}
        self.url = f"http://{ADDRESS}/v1/threads/{thread_id}/runs"
        self.text = ""
        self.start()

    def run(self):
        headers = {"authorization": f"Bearer {KEY}"}
        try:
            with httpx2.stream("POST", self.url, json=self.body, headers=headers, timeout=60, trust_env=False) as response:
                for part in response.iter_text():
                    self.text += part
        except httpx2.TransportError:
            pass  # the server was killed

    def wait_for_deltas(self, count):
        deadline = time.monotonic() + 20
        while self.text.count("event: thread.message.delta") < count:
            if time.monotonic() > deadline or not self.is_alive():
                raise AssertionError(f"the stream has only\n{self.text}")
            time.sleep(0.01)


class Writer(threading.Thread):
    """Creates messages on a thread until the server is killed; records the acknowledged ones."""

    def __init__(self, thread_id):
        super().__init__(daemon=True)
        self.thread_id = thread_id
        self.acknowledged = []
        self.start()

    def run(self):
        try:
            while True:
                content = f"text {len(self.acknowledged)}"
                message = threads.messages.create(self.thread_id, role="user", content=content)
                self.acknowledged.append(message.id)
        except openai.APIError:
            pass  # the server was killed


class StoppedServer(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.server = Server()
        self.addCleanup(self.stop_for_good)
        self.assistant_id = client.beta.assistants.create(model="steady").id
        self.thread_id = threads.create(messages=[{"role": "user", "content": "Hi"}]).id

    def stop_for_good(self):
        if self.server.process.poll() is None:
            self.server.stop(signal.SIGTERM)

    def completed_run(self, within_s):
        """Returns the thread's only run when it has completed without a further request."""
        run = threads.runs.list(self.thread_id).data[0]
        deadline = time.monotonic() + within_s
        while run.status in ("queued", "in_progress") and time.monotonic() < deadline:
            time.sleep(0.1)
            run = threads.runs.retrieve(run.id, thread_id=self.thread_id)
        self.assertEqual((run.status, run.last_error), ("completed", None))
        return run

    def assert_completed_once(self, run):
        messages = threads.messages.list(self.thread_id, order="asc").data
        steps = threads.runs.steps.list(run.id, thread_id=self.thread_id).data
        texts = [(message.role, message.status, message.content[0].text.value) for message in messages]
        self.assertEqual(texts, [("user", "completed", "Hi"), ("assistant", "completed", STEADY)])
        self.assertEqual([(step.type, step.status) for step in steps], [("message_creation", "completed")])
        self.assertEqual(steps[0].step_details.message_creation.message_id, messages[1].id)
        self.assertEqual(len(threads.runs.list(self.thread_id).data), 1)

    def test_a_killed_server_resumes_its_runs_and_loses_nothing(self):
        writer = Writer(threads.create().id)
        stream = Stream(self.thread_id, self.assistant_id)
        stream.wait_for_deltas(26)

        self.server.stop(signal.SIGKILL)
        stream.join(5)
        writer.join(5)
        self.server = Server()
        run = self.completed_run(within_s=LEASE_S + 10)

        self.assert_completed_once(run)
        stored = [message.id for message in threads.messages.list(writer.thread_id, order="asc", limit=100)]
        self.assertGreater(len(writer.acknowledged), 0)
        self.assertEqual(stored[: len(writer.acknowledged)], writer.acknowledged)
        self.assertLessEqual(len(stored), len(writer.acknowledged) + 1, "one unacknowledged message may be stored")

    def test_a_server_killed_twice_completes_its_run_once(self):
        stream = Stream(self.thread_id, self.assistant_id)
        stream.wait_for_deltas(3)

        for _ in range(2):
            self.server.stop(signal.SIGKILL)
            self.server = Server()
        run = self.completed_run(within_s=2 * LEASE_S + 10)

        self.assert_completed_once(run)

    def run_requiring_action(self, model):
        """Creates a run that requires tool outputs."""
        thread_id = threads.create(messages=[{"role": "user", "content": "Hi"}]).id
        functions = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]
        run = threads.runs.create_and_poll(
            thread_id=thread_id, assistant_id=self.assistant_id, model=model, tools=functions, poll_interval_ms=50
        )
        self.assertEqual(run.status, "requires_action", run.last_error)
        return run

    def submit_outputs(self, run):
        """Submits the required outputs; returns the stream."""
        calls = run.required_action.submit_tool_outputs.tool_calls
        return threads.runs.submit_tool_outputs(
            run.id,
            thread_id=run.thread_id,
            tool_outputs=[{"tool_call_id": call.id, "output": call.function.name} for call in calls],
            stream=True,
        )

    def assert_completed_with_calls(self, run, text, rounds):
        self.assertEqual((run.status, run.last_error), ("completed", None))
        messages = threads.messages.list(run.thread_id, order="asc").data
        self.assertEqual([message.content[0].text.value for message in messages], ["Hi", text])
        steps = threads.runs.steps.list(run.id, thread_id=run.thread_id).data
        self.assertEqual(sorted(step.type for step in steps), ["message_creation"] + rounds * ["tool_calls"])
        self.assertEqual({step.status for step in steps}, {"completed"})

    def test_a_run_that_requires_action_survives_a_killed_server(self):
        for model, text, rounds in [
            ("tools", "The tools say: weather, time", 1),
            ("talk-twice", "Let me see.\n\nAnd once more.\n\nThe tools say: weather, time", 2),
        ]:
            with self.subTest(model=model):
                run = self.run_requiring_action(model)
                for _ in range(rounds):
                    run = threads.runs.retrieve(run.id, thread_id=run.thread_id)
                    self.server.stop(signal.SIGKILL)
                    self.server = Server()

                    self.assertEqual(threads.runs.retrieve(run.id, thread_id=run.thread_id), run)
                    with self.submit_outputs(run) as stream:
                        names = [event.event for event in stream]
                run = threads.runs.retrieve(run.id, thread_id=run.thread_id)

                self.assertEqual(names[-1], "thread.run.completed")
                self.assert_completed_with_calls(run, text, rounds)

    def test_a_run_resumes_from_its_submitted_outputs_after_a_kill(self):
        run = self.run_requiring_action("talk-steady")
        with self.submit_outputs(run) as stream:
            for event in stream:
                if event.event == "thread.message.delta" and "word25" in event.data.delta.content[0].text.value:
                    break
            self.server.stop(signal.SIGKILL)
        self.server = Server()
        deadline = time.monotonic() + LEASE_S + 10
        while run.status not in ("completed", "failed") and time.monotonic() < deadline:
            time.sleep(0.1)
            run = threads.runs.retrieve(run.id, thread_id=run.thread_id)

        self.assert_completed_with_calls(run, "Let me see.\n\n" + STEADY, 1)

    def test_a_graceful_stop_ends_streams_and_runs_resume_after_the_restart(self):
        stream = Stream(self.thread_id, self.assistant_id)
        stream.wait_for_deltas(3)

        status, seconds = self.server.stop(signal.SIGTERM)
        stream.join(5)
        events = [line[7:] for line in stream.text.split("\n") if line.startswith("event: ")]

        self.assertEqual(status, 0)
        self.assertLess(seconds, GRACE_S + 5)
        self.assertEqual(events[-2:], ["error", "done"])
        self.assertTrue(stream.text.endswith(contract.DONE), stream.text[-200:])
        recorder.exchanges.append(contract.Exchange("POST", stream.url, 200, "text/event-stream", stream.text))

        self.server = Server()
        run = self.completed_run(within_s=LEASE_S + 10)

        self.assert_completed_once(run)

    def test_runs_may_finish_within_the_shutdown_grace_period(self):
        stream = Stream(self.thread_id, self.assistant_id)
        stream.wait_for_deltas(32)

        status, _ = self.server.stop(signal.SIGTERM)
        stream.join(5)

        self.assertEqual(status, 0)
        self.assertIn("event: thread.run.completed\n", stream.text)
        self.assertTrue(stream.text.endswith(contract.DONE), stream.text[-200:])

        self.server = Server()
        self.assert_completed_once(self.completed_run(within_s=1))


class ZContract(unittest.TestCase):
    """Checks the recorded responses of all other tests; the name sorts it last."""

    def test_every_response_matches_the_contract(self):
        reason = contract.missing()
        if reason:
            self.skipTest(reason)

        complete = [exchange for exchange in recorder.exchanges if exchange.text]

        self.assertGreater(len(complete), 0)
        self.assertEqual(contract.violations(complete), [])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that cleanups run
    sys.exit(suite.run(sys.modules["__main__"]))
