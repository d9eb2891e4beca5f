"""Tests a running assistd with openai-python, like an application. The model server is ../upstream.py.

    TEXT_STARTEDAI_BASE_URL=http://127.0.0.1:8484/v1 TEXT_STARTEDAI_API_KEY=key drive.py [TEST...]

The server must have API keys configured. Every response is checked against the contract, if it is present.
"""

import asyncio
import json
import sys
import time
import unittest
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

import openai  # noqa: E402
from openai.pagination import SyncCursorPage  # noqa: E402
from openai.types.beta import Thread  # noqa: E402

import contract  # noqa: E402
import suite  # noqa: E402

ANSWER = "Hello! How can I help?"
STEADY = "".join(f"word{number} " for number in range(40))
RUN_STARTED = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
TEXT_STARTED = [
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
]
DELTA = ["thread.message.delta"]
RUN_COMPLETED = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"]
CALL_STARTED = ["thread.run.step.created", "thread.run.step.in_progress"]
RESUMED = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
MESSAGE_STARTED = ["thread.message.created", "thread.message.in_progress"]
REQUIRES_ACTION = ["thread.run.requires_action"]
WEATHER_ARGUMENTS = '{"city": "Rome"}'
TIME_ARGUMENTS = '{"zone": "CET"}'

recorder = contract.Recorder()
client = openai.OpenAI(max_retries=0, http_client=openai.DefaultHttpxClient(transport=recorder))
assistants = client.beta.assistants
threads = client.beta.threads
QUICK = {"poll_interval_ms": 50}


def assistant_of(model, **members):
    return assistants.create(model=model, **members).id


def thread_with(*texts):
    return threads.create(messages=[{"role": "user", "content": text} for text in texts]).id


def text_of(message):
    return "".join(part.text.value for part in message.content)


def texts_of(thread_id):
    """Returns role and text of each message, oldest first."""
    return [(message.role, text_of(message)) for message in threads.messages.list(thread_id, order="asc")]


def function(name):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "zone": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": f"Gets the {name}.", "parameters": parameters}}


FUNCTIONS = [function("weather"), function("time")]
RESULTS = {"weather": "sunny", "time": "noon"}


def function_assistant(model):
    """Creates an assistant with two functions; returns its ID."""
    return assistant_of(model, tools=FUNCTIONS)


def calls_of(run):
    """Returns the names and arguments of a run's required calls."""
    return [(call.function.name, call.function.arguments) for call in run.required_action.submit_tool_outputs.tool_calls]


def outputs_for(run):
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [{"tool_call_id": call.id, "output": RESULTS[call.function.name]} for call in calls]


def names_in(exchange):
    """Returns the names of a stream's events, including `done`."""
    return [line[7:] for line in exchange.text.split("\n") if line.startswith("event: ")]


class Case(unittest.TestCase):
    maxDiff = None

    def one_step(self, thread_id, run_id):
        """Returns the run's only step, which creates a message."""
        steps = threads.runs.steps.list(run_id, thread_id=thread_id).data
        self.assertEqual([step.type for step in steps], ["message_creation"])
        return steps[0]

    def assert_steps(self, run, *expected):
        """Checks the run's steps, oldest first: `message`, or the outputs of the calls. Checks the sum of their usage."""
        steps = threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
        found = []
        for step in steps:
            self.assertEqual((step.status, step.last_error), ("completed", None))
            details = step.step_details
            if step.type == "tool_calls":
                found.append([(call.function.name, call.function.output) for call in details.tool_calls])
            else:
                answer = threads.messages.list(run.thread_id).data[0]
                self.assertEqual(details.message_creation.message_id, answer.id)
                self.assertEqual((answer.run_id, answer.status), (run.id, "completed"))
                found.append("message")
        self.assertEqual(found, list(expected))
        for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(sum(getattr(step.usage, count) for step in steps), getattr(run.usage, count), count)

    def assert_rejected(self, error_class, text, call, *args, param=None, code=None, **kwargs):
        with self.assertRaises(error_class) as caught:
            call(*args, **kwargs)
        error = caught.exception
        self.assertEqual((error.body["message"], error.param, error.code), (text, param, code))
        self.assertEqual(error.type, "invalid_request_error")
        self.assertTrue(error.request_id.startswith("req_"), error.request_id)


class AssistantTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        created = assistants.create(
            model="words",
            name="Ada",
            description="counts",
            instructions="Count.",
            metadata={"team": "one"},
            temperature=0.5,
            top_p=0.9,
        )

        self.assertEqual((created.name, created.description, created.instructions), ("Ada", "counts", "Count."))
        self.assertEqual((created.temperature, created.top_p, created.metadata), (0.5, 0.9, {"team": "one"}))
        self.assertEqual(assistants.retrieve(created.id), created)

        changed = assistants.update(created.id, name="Bea", metadata={"team": "two"})

        self.assertEqual((changed.name, changed.metadata, changed.instructions), ("Bea", {"team": "two"}, "Count."))
        self.assertEqual(assistants.retrieve(created.id), changed)

        deleted = assistants.delete(created.id)

        self.assertEqual((deleted.id, deleted.deleted, deleted.object), (created.id, True, "assistant.deleted"))
        self.assert_rejected(
            openai.NotFoundError, f"No assistant found with id '{created.id}'.", assistants.retrieve, created.id
        )

    def test_list_pages_automatically_in_both_orders(self):
        created = [assistant_of("words", name=f"page {number}") for number in range(5)]

        newest = assistants.list(limit=2)
        listed = [assistant.id for assistant in newest if assistant.id in created]
        oldest = [assistant.id for assistant in assistants.list(limit=2, order="asc") if assistant.id in created]

        self.assertEqual(listed, created[::-1])
        self.assertEqual(oldest, created)
        self.assertTrue(newest.has_more)

        between = assistants.list(order="asc", after=created[0], before=created[4])

        self.assertEqual([assistant.id for assistant in between.data], created[1:4])


class ThreadTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        created = threads.create(messages=[{"role": "user", "content": "Hi"}], metadata={"a": "b"})

        self.assertEqual(created.metadata, {"a": "b"})
        read = threads.retrieve(created.id)
        self.assertEqual(read.tool_resources.code_interpreter.file_ids, [], "as in the recording")
        read.tool_resources = created.tool_resources
        self.assertEqual(read, created)
        self.assertEqual(texts_of(created.id), [("user", "Hi")])

        changed = threads.update(created.id, metadata={"a": "c"})

        self.assertEqual(changed.metadata, {"a": "c"})

        self.assertTrue(threads.delete(created.id).deleted)
        message = f"No thread found with id '{created.id}'."
        self.assert_rejected(openai.NotFoundError, message, threads.retrieve, created.id)
        self.assert_rejected(openai.NotFoundError, message, threads.messages.list, created.id)

    def test_threads_are_listed_and_paged_automatically(self):
        created = [threads.create().id for _ in range(5)]

        first = client.get("/threads", cast_to=object, options={"params": {"limit": 2}})
        pages = client.get_api_list(
            "/threads", page=SyncCursorPage[Thread], model=Thread, options={"params": {"limit": 2}}
        )
        listed = [thread.id for thread in pages if thread.id in created]

        self.assertEqual((first["object"], len(first["data"]), first["has_more"]), ("list", 2, True))
        self.assertEqual(first["last_id"], first["data"][-1]["id"])
        self.assertEqual(listed, created[::-1])


class MessageTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        thread_id = thread_with()

        created = threads.messages.create(thread_id, role="user", content="Hello", metadata={"a": "b"})

        actual = (created.role, text_of(created), created.status, created.run_id)
        self.assertEqual(actual, ("user", "Hello", "completed", None))
        self.assertEqual(threads.messages.retrieve(created.id, thread_id=thread_id), created)

        changed = threads.messages.update(created.id, thread_id=thread_id, metadata={"a": "c"})

        self.assertEqual((changed.metadata, text_of(changed)), ({"a": "c"}, "Hello"))

        self.assertTrue(threads.messages.delete(created.id, thread_id=thread_id).deleted)
        self.assert_rejected(
            openai.NotFoundError,
            f"No message found with id '{created.id}'.",
            threads.messages.retrieve,
            created.id,
            thread_id=thread_id,
        )

    def test_list_is_in_insertion_order_and_pages_automatically(self):
        texts = [f"text {number}" for number in range(7)]
        thread_id = thread_with(*texts[:4])
        for text in texts[4:]:
            threads.messages.create(thread_id, role="user", content=text)

        newest = [text_of(message) for message in threads.messages.list(thread_id, limit=3)]

        self.assertEqual(newest, texts[::-1])
        self.assertEqual(texts_of(thread_id), [("user", text) for text in texts])

    def test_content_parts_are_stored(self):
        thread_id = thread_with()
        parts = [
            {"type": "text", "text": "Ünïcödé 日本語 🙂"},
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        ]

        created = threads.messages.create(thread_id, role="user", content=parts)

        self.assertEqual(created.content[0].text.value, "Ünïcödé 日本語 🙂")
        self.assertEqual(created.content[1].image_url.url, "https://example.com/cat.png")
        self.assertEqual(created.content[1].image_url.detail, "auto")


class PolledRun(Case):
    def test_completes_with_one_message_and_one_step(self):
        assistant_id, thread_id = assistant_of("words"), thread_with("Hi")

        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_id, **QUICK)

        self.assertEqual((run.status, run.last_error, run.model), ("completed", None, "words"))
        self.assertEqual((run.usage.prompt_tokens, run.usage.completion_tokens, run.usage.total_tokens), (11, 8, 19))
        self.assertEqual(texts_of(thread_id), [("user", "Hi"), ("assistant", ANSWER)])

        step = self.one_step(thread_id, run.id)
        answer = threads.messages.list(thread_id, run_id=run.id).data[0]

        self.assertEqual((step.status, step.usage.total_tokens), ("completed", 19))
        self.assertEqual(step.step_details.message_creation.message_id, answer.id)
        self.assertEqual((answer.assistant_id, answer.run_id, answer.status), (assistant_id, run.id, "completed"))
        self.assertEqual(threads.runs.steps.retrieve(step.id, thread_id=thread_id, run_id=run.id), step)

    def test_polling_follows_the_interval_of_the_server(self):
        started = time.monotonic()

        run = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=assistant_of("words"))

        self.assertEqual(run.status, "completed")
        self.assertLess(time.monotonic() - started, 0.9, "openai-poll-after-ms is below the SDK's default of one second")

    def test_is_created_together_with_its_thread(self):
        run = threads.create_and_run_poll(
            assistant_id=assistant_of("words"),
            thread={"messages": [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]},
            metadata={"kind": "both"},
            **QUICK,
        )

        self.assertEqual((run.status, run.metadata), ("completed", {"kind": "both"}))
        self.assertEqual(texts_of(run.thread_id), [("user", "One"), ("user", "Two"), ("assistant", ANSWER)])

    def test_is_listed_retrieved_and_modified(self):
        assistant_id, thread_id = assistant_of("words"), thread_with("Hi")
        runs = [
            threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_id, **QUICK) for _ in range(3)
        ]

        listed = [run.id for run in threads.runs.list(thread_id, limit=2)]
        changed = threads.runs.update(runs[0].id, thread_id=thread_id, metadata={"seen": "yes"})

        self.assertEqual(listed, [run.id for run in runs][::-1])
        self.assertEqual((changed.metadata, changed.status), ({"seen": "yes"}, "completed"))
        self.assertEqual(threads.runs.retrieve(runs[0].id, thread_id=thread_id), changed)

    def test_model_receives_the_whole_thread_and_the_instructions(self):
        thread_id = thread_with("First")
        threads.messages.create(thread_id, role="assistant", content="Second")

        run = threads.runs.create_and_poll(
            thread_id=thread_id,
            assistant_id=assistant_of("repeat", instructions="Be terse."),
            additional_instructions="Be kind.",
            additional_messages=[{"role": "user", "content": "Third"}],
            **QUICK,
        )
        seen = json.loads(texts_of(thread_id)[-1][1])

        self.assertEqual(run.instructions, "Be terse.\nBe kind.")
        self.assertEqual([message["role"] for message in seen], ["system", "user", "assistant", "user"])
        self.assertEqual(
            [message["content"] for message in seen], ["Be terse.\nBe kind.", "First", "Second", "Third"]
        )

    def test_can_override_the_model_and_the_instructions(self):
        thread_id = thread_with("Hi")

        run = threads.runs.create_and_poll(
            thread_id=thread_id,
            assistant_id=assistant_of("fail", instructions="Old."),
            model="repeat",
            instructions="New.",
            temperature=0.1,
            **QUICK,
        )

        self.assertEqual((run.status, run.model, run.instructions, run.temperature), ("completed", "repeat", "New.", 0.1))
        self.assertEqual(json.loads(texts_of(thread_id)[-1][1])[0]["content"], "New.")

    def test_locks_its_thread_and_can_be_cancelled(self):
        assistant_id, thread_id = assistant_of("slow"), thread_with("Hi")

        run = threads.runs.create(thread_id=thread_id, assistant_id=assistant_id)

        self.assert_rejected(
            openai.BadRequestError,
            f"Can't add messages to {thread_id} while a run {run.id} is active.",
            threads.messages.create,
            thread_id,
            role="user",
            content="Wait",
        )
        self.assert_rejected(
            openai.BadRequestError,
            f"Thread {thread_id} already has an active run {run.id}.",
            threads.runs.create,
            thread_id=thread_id,
            assistant_id=assistant_id,
        )

        cancelling = threads.runs.cancel(run.id, thread_id=thread_id)
        over = threads.runs.poll(run.id, thread_id=thread_id, **QUICK)

        self.assertEqual((cancelling.status, cancelling.cancelled_at), ("cancelling", None))
        self.assertEqual(over.status, "cancelled")
        self.assertIsNotNone(over.cancelled_at)
        self.assert_rejected(
            openai.BadRequestError,
            "Cannot cancel run with status 'cancelled'.",
            threads.runs.cancel,
            run.id,
            thread_id=thread_id,
        )

        again = threads.runs.create_and_poll(
            thread_id=thread_id, assistant_id=assistant_id, model="words", **QUICK
        )

        self.assertEqual(again.status, "completed")


class Collector(openai.AssistantEventHandler):
    """Records every callback in order; calls `act` with each event."""

    def __init__(self, act=lambda _: None):
        super().__init__()
        self.calls, self.events, self.deltas, self.completed_calls, self.act = [], [], [], [], act

    def on_event(self, event):
        self.events.append(event.event)
        self.act(event)

    def on_run_step_created(self, run_step):
        self.calls.append("run_step_created")

    def on_run_step_delta(self, delta, snapshot):
        self.calls.append("run_step_delta")

    def on_run_step_done(self, run_step):
        self.calls.append("run_step_done")

    def on_message_created(self, message):
        self.calls.append("message_created")

    def on_message_delta(self, delta, snapshot):
        self.calls.append("message_delta")

    def on_message_done(self, message):
        self.calls.append("message_done")

    def on_text_created(self, text):
        self.calls.append("text_created")

    def on_text_delta(self, delta, snapshot):
        self.calls.append("text_delta")
        self.deltas.append(delta.value)

    def on_text_done(self, text):
        self.calls.append("text_done")

    def on_tool_call_created(self, tool_call):
        self.calls.append("tool_call_created")

    def on_tool_call_delta(self, delta, snapshot):
        self.calls.append("tool_call_delta")

    def on_tool_call_done(self, tool_call):
        self.calls.append("tool_call_done")
        self.completed_calls.append((tool_call.function.name, tool_call.function.arguments))

    def on_exception(self, exception):
        self.calls.append("exception")

    def on_timeout(self):
        self.calls.append("timeout")

    def on_end(self):
        self.calls.append("end")


class StreamedRun(Case):
    def test_calls_the_event_handler_in_the_recorded_order(self):
        thread_id = thread_with("Hi")
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_id, assistant_id=assistant_of("words"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(handler.events, RUN_STARTED + TEXT_STARTED + 8 * DELTA + RUN_COMPLETED)
        self.assertEqual(
            handler.calls,
            ["run_step_created", "message_created", "text_created"]
            + 8 * ["text_delta", "message_delta"]
            + ["text_done", "message_done", "run_step_done", "end"],
        )
        self.assertEqual(handler.deltas, ["Hello", "!", " How", " can", " I", " hel", "p", "?"])
        self.assertEqual(stream.get_final_run().status, "completed")
        self.assertEqual(stream.get_final_run().usage.total_tokens, 19)
        self.assertEqual([text_of(message) for message in stream.get_final_messages()], [ANSWER])
        self.assertEqual(names_in(recorder.exchanges[-1])[-1], "done")
        step = self.one_step(thread_id, stream.get_final_run().id)
        self.assertEqual([step.id for step in stream.get_final_run_steps()], [step.id])

    def test_can_be_read_event_by_event(self):
        thread_id = thread_with("Hi")

        with threads.runs.create(thread_id=thread_id, assistant_id=assistant_of("words"), stream=True) as stream:
            events = [(event.event, event.data) for event in stream]

        self.assertEqual([name for name, _ in events], RUN_STARTED + TEXT_STARTED + 8 * DELTA + RUN_COMPLETED)
        self.assertEqual(events[0][1], events[1][1])
        self.assertEqual(events[-1][1].status, "completed")
        self.assertEqual(threads.runs.retrieve(events[0][1].id, thread_id=thread_id).status, "completed")

    def test_is_created_together_with_its_thread(self):
        with threads.create_and_run_stream(
            assistant_id=assistant_of("words"), thread={"messages": [{"role": "user", "content": "Hi"}]}
        ) as stream:
            text = "".join(stream.text_deltas)
            run = stream.get_final_run()

        self.assertEqual(text, ANSWER)
        self.assertEqual(names_in(recorder.exchanges[-1])[0], "thread.created")
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", ANSWER)])

    def test_sends_each_token_as_soon_as_it_arrives(self):
        started = time.monotonic()
        times = []

        with threads.runs.stream(thread_id=thread_with("Hi"), assistant_id=assistant_of("steady")) as stream:
            for _ in stream.text_deltas:
                times.append(time.monotonic() - started)

        self.assertEqual(len(times), 40)
        self.assertLess(times[0], 0.8)
        self.assertGreater(times[-1], 1.9)
        self.assertLess(max(later - sooner for sooner, later in zip(times, times[1:])), 0.5)

    def test_completes_when_its_client_disconnects(self):
        thread_id = thread_with("Hi")

        stream = threads.runs.create(thread_id=thread_id, assistant_id=assistant_of("steady"), stream=True)
        for event in stream:
            if event.event == "thread.message.delta":
                break
        stream.close()
        run_id = threads.runs.list(thread_id).data[0].id
        run = threads.runs.poll(run_id, thread_id=thread_id, **QUICK)

        self.assertEqual(run.status, "completed")
        self.assertEqual(texts_of(thread_id), [("user", "Hi"), ("assistant", STEADY)])
        self.one_step(thread_id, run_id)

    def test_cancelling_is_streamed_and_the_partial_text_is_stored(self):
        thread_id = thread_with("Hi")
        answers = []

        def cancel_at_first_word(event):
            if event.event == "thread.message.delta" and not answers:
                run_id = threads.runs.list(thread_id).data[0].id
                answers.append(threads.runs.cancel(run_id, thread_id=thread_id))

        handler = Collector(cancel_at_first_word)

        with threads.runs.stream(
            thread_id=thread_id, assistant_id=assistant_of("slow"), event_handler=handler
        ) as stream:
            stream.until_done()
        end = [name for name in handler.events if name not in RUN_STARTED + TEXT_STARTED + DELTA]
        message = threads.messages.list(thread_id).data[0]

        self.assertEqual(answers[0].status, "cancelling")
        self.assertEqual(
            end,
            ["thread.run.cancelling", "thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled"],
        )
        self.assertEqual((message.status, message.incomplete_details.reason), ("incomplete", "run_cancelled"))
        self.assertEqual(text_of(message), "".join(handler.deltas))
        self.assertEqual(self.one_step(thread_id, answers[0].id).status, "cancelled")


class PolledFunctionCall(Case):
    def run_requiring_action(self, model):
        run = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=function_assistant(model), **QUICK)
        self.assertEqual((run.status, run.required_action.type), ("requires_action", "submit_tool_outputs"), run.last_error)
        self.assertEqual((run.usage, run.completed_at), (None, None))
        return run

    def submit_outputs(self, run, outputs=None):
        return threads.runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs or outputs_for(run), **QUICK
        )

    def test_run_resumes_after_its_output(self):
        asked = self.run_requiring_action("tool")
        steps = threads.runs.steps.list(asked.id, thread_id=asked.thread_id).data

        self.assertEqual(calls_of(asked), [("weather", WEATHER_ARGUMENTS)])
        self.assertEqual([(step.type, step.status, step.usage) for step in steps], [("tool_calls", "in_progress", None)])
        call = steps[0].step_details.tool_calls[0]
        self.assertEqual((call.type, call.function.output), ("function", None))
        self.assertEqual(call.id, asked.required_action.submit_tool_outputs.tool_calls[0].id)
        self.assertEqual(texts_of(asked.thread_id), [("user", "Hi")])

        run = self.submit_outputs(asked)

        self.assertEqual((run.id, run.status, run.required_action), (asked.id, "completed", None))
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", "The tools say: sunny")])
        self.assertEqual((run.usage.prompt_tokens, run.usage.completion_tokens, run.usage.total_tokens), (22, 7, 29))
        self.assert_steps(run, [("weather", "sunny")], "message")

    def test_parallel_calls_accept_outputs_in_any_order(self):
        asked = self.run_requiring_action("tools")

        self.assertEqual(calls_of(asked), [("weather", WEATHER_ARGUMENTS), ("time", TIME_ARGUMENTS)])

        run = self.submit_outputs(asked, outputs_for(asked)[::-1])

        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 32))
        self.assertEqual(texts_of(run.thread_id)[-1], ("assistant", "The tools say: sunny, noon"))
        self.assert_steps(run, [("weather", "sunny"), ("time", "noon")], "message")

    def test_with_text_creates_one_message(self):
        asked = self.run_requiring_action("talk")
        partial = threads.messages.list(asked.thread_id).data[0]

        self.assertEqual(calls_of(asked), [("weather", WEATHER_ARGUMENTS)])
        self.assertEqual((partial.status, text_of(partial)), ("in_progress", "Let me see."))

        run = self.submit_outputs(asked)

        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 32))
        self.assertEqual(
            texts_of(run.thread_id), [("user", "Hi"), ("assistant", "Let me see.\n\nThe tools say: sunny")]
        )
        self.assertEqual(threads.messages.list(run.thread_id).data[0].id, partial.id)
        self.assert_steps(run, "message", [("weather", "sunny")])

    def test_with_text_can_occur_twice(self):
        run = self.run_requiring_action("talk-twice")

        self.assertEqual(calls_of(run), [("weather", WEATHER_ARGUMENTS)])
        run = self.submit_outputs(run)
        self.assertEqual((run.status, calls_of(run)), ("requires_action", [("time", TIME_ARGUMENTS)]))
        run = self.submit_outputs(run)

        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 49))
        whole = "Let me see.\n\nAnd once more.\n\nThe tools say: sunny, noon"
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", whole)])
        self.assert_steps(run, "message", [("weather", "sunny")], [("time", "noon")])

    def test_can_occur_in_several_runs_of_a_thread(self):
        first = threads.create_and_run_poll(
            assistant_id=assistant_of("tool"),
            thread={"messages": [{"role": "user", "content": "Hi"}]},
            tools=FUNCTIONS[1:],
            **QUICK,
        )
        self.assertEqual(calls_of(first), [("time", WEATHER_ARGUMENTS)])
        self.assertEqual(self.submit_outputs(first).status, "completed")

        threads.messages.create(first.thread_id, role="user", content="Again")
        second = threads.runs.create_and_poll(thread_id=first.thread_id, assistant_id=function_assistant("talk"), **QUICK)
        run = self.submit_outputs(second)

        self.assertEqual(run.status, "completed")
        self.assertEqual(
            texts_of(run.thread_id),
            [
                ("user", "Hi"),
                ("assistant", "The tools say: noon"),
                ("user", "Again"),
                ("assistant", "Let me see.\n\nThe tools say: sunny"),
            ],
        )

    def test_rejects_outputs_of_other_calls(self):
        asked = self.run_requiring_action("tools")
        weather, clock = outputs_for(asked)
        ids = f"'{weather['tool_call_id']}', '{clock['tool_call_id']}'"
        unknown = {"tool_call_id": "call_x", "output": "x"}

        for outputs, got in [
            ([weather], f"'{weather['tool_call_id']}'"),
            ([weather, unknown], f"'{weather['tool_call_id']}', 'call_x'"),
            ([weather, clock, unknown], f"{ids}, 'call_x'"),
            ([], ""),
        ]:
            for submit in (threads.runs.submit_tool_outputs, self.submit_streamed):
                with self.subTest(got=got, submit=submit.__name__):
                    self.assert_rejected(
                        openai.BadRequestError,
                        f"Expected tool outputs for call_ids [{ids}], got [{got}]",
                        submit,
                        asked.id,
                        thread_id=asked.thread_id,
                        tool_outputs=outputs,
                    )
        self.assertEqual(threads.runs.retrieve(asked.id, thread_id=asked.thread_id), asked)

        self.assertEqual(self.submit_outputs(asked).status, "completed")

    @staticmethod
    def submit_streamed(run_id, **params):
        with threads.runs.submit_tool_outputs_stream(run_id=run_id, **params) as stream:
            stream.until_done()

    def test_accepts_outputs_once(self):
        asked = self.run_requiring_action("tool")
        outputs = outputs_for(asked)
        queued = threads.runs.submit_tool_outputs(asked.id, thread_id=asked.thread_id, tool_outputs=outputs)

        self.assertEqual((queued.status, queued.required_action), ("queued", None))
        run = threads.runs.poll(asked.id, thread_id=asked.thread_id, **QUICK)
        self.assertEqual(run.status, "completed")
        for submit in (threads.runs.submit_tool_outputs, self.submit_streamed):
            self.assert_rejected(
                openai.BadRequestError,
                'Runs in status "completed" do not accept tool outputs.',
                submit,
                asked.id,
                thread_id=asked.thread_id,
                tool_outputs=outputs,
            )
        self.assertEqual(threads.runs.retrieve(run.id, thread_id=run.thread_id), run)

    def test_unknown_run_is_not_found(self):
        self.assert_rejected(
            openai.NotFoundError,
            "No run found with id 'run_x'.",
            threads.runs.submit_tool_outputs,
            "run_x",
            thread_id=thread_with(),
            tool_outputs=[{"tool_call_id": "call_x", "output": "x"}],
        )

    def test_locks_its_thread_until_it_is_cancelled(self):
        for model, text in [("tool", None), ("talk", "Let me see.")]:
            with self.subTest(model=model):
                asked = self.run_requiring_action(model)
                thread_id = asked.thread_id

                self.assert_rejected(
                    openai.BadRequestError,
                    f"Can't add messages to {thread_id} while a run {asked.id} is active.",
                    threads.messages.create,
                    thread_id,
                    role="user",
                    content="Wait",
                )
                cancelling = threads.runs.cancel(asked.id, thread_id=thread_id)
                run = threads.runs.poll(asked.id, thread_id=thread_id, **QUICK)
                steps = threads.runs.steps.list(asked.id, thread_id=thread_id).data

                self.assertEqual((cancelling.status, run.status), ("cancelling", "cancelled"))
                self.assertEqual(run.required_action, None)
                self.assertEqual({step.status for step in steps}, {"cancelled"})
                self.assertEqual(len(steps), 1 if text is None else 2)
                newest = threads.messages.list(thread_id).data[0]
                if text:
                    self.assertEqual(newest.incomplete_details.reason, "run_cancelled")
                self.assertEqual(text_of(newest), text or "Hi")
                self.assert_rejected(
                    openai.BadRequestError,
                    'Runs in status "cancelled" do not accept tool outputs.',
                    threads.runs.submit_tool_outputs,
                    asked.id,
                    thread_id=thread_id,
                    tool_outputs=outputs_for(asked),
                )
                self.assert_rejected(
                    openai.BadRequestError,
                    "Cannot cancel run with status 'cancelled'.",
                    threads.runs.cancel,
                    asked.id,
                    thread_id=thread_id,
                )
                threads.messages.create(thread_id, role="user", content="Go on")


class Caller(Collector):
    """Submits outputs like OpenAI's guide: in `on_event`, with a new handler for the new stream."""

    def __init__(self, chain):
        super().__init__(self.answer)
        self.chain, self.snapshots = chain, []
        chain.append(self)

    def on_text_delta(self, delta, snapshot):
        super().on_text_delta(delta, snapshot)
        self.snapshots.append(snapshot.value)

    def answer(self, event):
        if event.event == "thread.run.requires_action":
            with threads.runs.submit_tool_outputs_stream(
                thread_id=self.current_run.thread_id,
                run_id=self.current_run.id,
                tool_outputs=outputs_for(event.data),
                event_handler=Caller(self.chain),
            ) as stream:
                for _ in stream.text_deltas:
                    pass


class StreamedFunctionCall(Case):
    def streamed(self, model):
        """Creates a run; returns the handlers of its streams in order."""
        chain = []
        with threads.runs.stream(
            thread_id=thread_with("Hi"), assistant_id=function_assistant(model), event_handler=Caller(chain)
        ) as stream:
            stream.until_done()
        return chain

    def test_outputs_are_submitted_while_the_stream_is_open(self):
        first, second = self.streamed("tool")

        self.assertEqual(first.events, RUN_STARTED + CALL_STARTED + 4 * ["thread.run.step.delta"] + REQUIRES_ACTION)
        self.assertEqual(
            first.calls,
            ["run_step_created", "tool_call_created", "run_step_delta"]
            + 3 * ["tool_call_delta", "run_step_delta"]
            + ["tool_call_done", "end"],
        )
        self.assertEqual(first.completed_calls, [("weather", WEATHER_ARGUMENTS)])
        self.assertEqual(first.get_final_run().status, "requires_action")
        self.assertEqual(second.events, RESUMED + TEXT_STARTED + 4 * DELTA + RUN_COMPLETED)
        self.assertEqual(
            second.calls,
            ["run_step_done", "run_step_created", "message_created", "text_created"]
            + 4 * ["text_delta", "message_delta"]
            + ["text_done", "message_done", "run_step_done", "end"],
        )
        run = second.get_final_run()
        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 29))
        self.assertEqual(second.deltas, ["The", " tools", " say:", " sunny"])
        self.assertEqual([text_of(message) for message in second.get_final_messages()], ["The tools say: sunny"])
        self.assertEqual([step.type for step in second.get_final_run_steps()], ["message_creation"])
        self.assert_steps(run, [("weather", "sunny")], "message")

    def test_parallel_calls_are_streamed(self):
        first, second = self.streamed("tools")

        self.assertEqual(first.events, RUN_STARTED + CALL_STARTED + 8 * ["thread.run.step.delta"] + REQUIRES_ACTION)
        self.assertEqual(first.completed_calls, [("weather", WEATHER_ARGUMENTS), ("time", TIME_ARGUMENTS)])
        self.assertEqual(first.calls.count("tool_call_created"), 2)
        self.assertEqual("".join(second.deltas), "The tools say: sunny, noon")
        self.assert_steps(second.get_final_run(), [("weather", "sunny"), ("time", "noon")], "message")

    def test_outputs_are_submitted_after_a_stream_that_created_the_thread(self):
        handler = Collector()
        with threads.create_and_run_stream(
            assistant_id=function_assistant("tool"),
            thread={"messages": [{"role": "user", "content": "Hi"}]},
            event_handler=handler,
        ) as stream:
            asked = stream.get_final_run()

        self.assertEqual(
            handler.events,
            ["thread.created"] + RUN_STARTED + CALL_STARTED + 4 * ["thread.run.step.delta"] + REQUIRES_ACTION,
        )
        self.assertEqual(names_in(recorder.exchanges[-1])[-1], "done")
        self.assertEqual([step.type for step in stream.get_final_run_steps()], ["tool_calls"])

        with threads.runs.submit_tool_outputs_stream(
            run_id=asked.id, thread_id=asked.thread_id, tool_outputs=outputs_for(asked)
        ) as stream:
            text = "".join(stream.text_deltas)
            run = stream.get_final_run()

        self.assertEqual((run.status, text), ("completed", "The tools say: sunny"))
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", "The tools say: sunny")])

    def test_outputs_are_submitted_and_polled_after_the_stream(self):
        with threads.runs.stream(thread_id=thread_with("Hi"), assistant_id=function_assistant("talk")) as stream:
            asked = stream.get_final_run()

        run = threads.runs.submit_tool_outputs_and_poll(
            run_id=asked.id, thread_id=asked.thread_id, tool_outputs=outputs_for(asked), **QUICK
        )

        self.assertEqual(run.status, "completed")
        self.assertEqual(texts_of(run.thread_id)[-1][1], "Let me see.\n\nThe tools say: sunny")

    def test_completes_when_its_client_disconnects_after_submitting(self):
        asked = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=function_assistant("talk"), **QUICK)

        stream = threads.runs.submit_tool_outputs(
            asked.id, thread_id=asked.thread_id, tool_outputs=outputs_for(asked), stream=True
        )
        self.assertEqual(next(iter(stream)).event, "thread.run.step.completed")
        stream.close()
        run = threads.runs.poll(asked.id, thread_id=asked.thread_id, **QUICK)

        self.assertEqual(run.status, "completed")
        self.assertEqual(texts_of(run.thread_id)[-1][1], "Let me see.\n\nThe tools say: sunny")

    def test_text_after_a_call_continues_the_same_message(self):
        first, second = self.streamed("talk")
        whole = "Let me see.\n\nThe tools say: sunny"

        self.assertEqual([name for name in first.events if name not in DELTA], RUN_STARTED + TEXT_STARTED + REQUIRES_ACTION)
        self.assertEqual("".join(first.deltas), "Let me see.")
        self.assertNotIn("exception", first.calls + second.calls)
        self.assertEqual("".join(second.deltas), "\n\nThe tools say: sunny")
        self.assertEqual(second.snapshots[-1], whole)
        self.assertEqual([text_of(message) for message in second.get_final_messages()], [whole])
        self.assertEqual(second.calls.count("message_created"), 1)
        self.assertEqual(second.calls[-4:], ["text_done", "message_done", "run_step_done", "end"])
        run = second.get_final_run()
        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 32))
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", whole)])
        self.assert_steps(run, "message", [("weather", "sunny")])

    def test_with_text_can_occur_twice(self):
        first, second, third = self.streamed("talk-twice")
        whole = "Let me see.\n\nAnd once more.\n\nThe tools say: sunny, noon"

        self.assertEqual(
            ["".join(handler.deltas) for handler in (first, second, third)],
            ["Let me see.", "\n\nAnd once more.", "\n\nThe tools say: sunny, noon"],
        )
        self.assertNotIn("exception", first.calls + second.calls + third.calls)
        self.assertEqual(second.snapshots[-1], "Let me see.\n\nAnd once more.")
        self.assertEqual(second.events[-1], "thread.run.requires_action")
        self.assertEqual([text_of(message) for message in third.get_final_messages()], [whole])
        run = third.get_final_run()
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", whole)])
        self.assert_steps(run, "message", [("weather", "sunny")], [("time", "noon")])

    def test_calls_with_and_without_text_can_alternate(self):
        whole = "Let me see.\n\nThe tools say: sunny, noon"
        for model, texts, steps in [
            ("talk-call", ["Let me see.", "", "\n\nThe tools say: sunny, noon"], ["message", 0, 1]),
            ("call-talk", ["", "Let me see.", "\n\nThe tools say: sunny, noon"], [0, "message", 1]),
        ]:
            with self.subTest(model=model):
                chain = self.streamed(model)

                self.assertEqual(["".join(handler.deltas) for handler in chain], texts)
                self.assertNotIn("exception", sum((handler.calls for handler in chain), []))
                self.assertEqual([text_of(message) for message in chain[-1].get_final_messages()], [whole])
                run = chain[-1].get_final_run()
                self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", whole)])
                outputs = [[("weather", "sunny")], [("time", "noon")]]
                self.assert_steps(run, *(step if step == "message" else outputs[step] for step in steps))

    def test_calls_without_text_are_sent_on_every_stream(self):
        for model, makers in [("call-talk", [0]), ("talk-call", [1])]:
            chain = self.streamed(model)
            for number in makers:
                with self.subTest(model=model, stream=number):
                    expected = [[("weather", WEATHER_ARGUMENTS)], [("time", TIME_ARGUMENTS)]][number]
                    self.assertEqual(chain[number].completed_calls, expected)

    def test_stream_of_a_run_that_fails_after_a_call_ends_in_order(self):
        failed = ["thread.run.failed"]
        for model, end, kinds in [
            ("tool-fail", failed, ["tool_calls", "message_creation"]),
            (
                "talk-fail",
                MESSAGE_STARTED + ["thread.message.incomplete", "thread.run.step.failed"] + failed,
                ["message_creation", "tool_calls"],
            ),
        ]:
            with self.subTest(model=model):
                _, second = self.streamed(model)

                run = second.get_final_run()
                steps = threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
                self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
                states = [(step.type, "completed" if step.type == "tool_calls" else "failed") for step in steps]
                self.assertEqual([(step.type, step.status) for step in steps], states)
                self.assertEqual([step.type for step in steps], kinds)
                newest = threads.messages.list(run.thread_id).data[0]
                if model == "talk-fail":
                    self.assertEqual((newest.status, text_of(newest)), ("incomplete", "Let me see."))
                    self.assertEqual(newest.incomplete_details.reason, "run_failed")
                else:
                    self.assertEqual(text_of(newest), "Hi")
                events = [name for name in second.events if name not in CALL_STARTED]  # the step events may be sent as well
                self.assertEqual(events, RESUMED + end)

    def test_stream_of_a_run_cancelled_after_a_call_ends_in_order(self):
        for moment, begins in [
            ("thread.run.in_progress", "Let me see."),
            ("thread.message.delta", "Let me see.\n\nword0"),
        ]:
            with self.subTest(moment=moment):
                asked = threads.runs.create_and_poll(
                    thread_id=thread_with("Hi"), assistant_id=function_assistant("talk-slow"), **QUICK
                )
                answers = []

                def cancel(event):
                    if event.event == moment and not answers:
                        answers.append(threads.runs.cancel(asked.id, thread_id=asked.thread_id))

                handler = Collector(cancel)
                with threads.runs.submit_tool_outputs_stream(
                    run_id=asked.id,
                    thread_id=asked.thread_id,
                    tool_outputs=outputs_for(asked),
                    event_handler=handler,
                ) as stream:
                    stream.until_done()

                self.assertEqual(
                    handler.events[-3:],
                    ["thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled"],
                )
                self.assertIn("thread.run.cancelling", handler.events)
                newest = threads.messages.list(asked.thread_id).data[0]
                self.assertEqual((newest.status, newest.incomplete_details.reason), ("incomplete", "run_cancelled"))
                self.assertEqual(text_of(newest)[: len(begins)], begins)
                self.assertEqual([text_of(message) for message in stream.get_final_messages()], [text_of(newest)])
                steps = threads.runs.steps.list(asked.id, thread_id=asked.thread_id, order="asc").data
                self.assertEqual([step.status for step in steps], ["cancelled", "completed"])

    def test_with_text_sends_the_message_step_on_every_stream(self):
        for handler in self.streamed("talk-twice"):
            self.assertEqual([step.type for step in handler.get_final_run_steps()], ["message_creation"])


class FailingModelServer(Case):
    def failed_run(self, model):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of(model), **QUICK)
        return thread_id, run

    def test_fails_the_run_with_a_server_error(self):
        thread_id, run = self.failed_run("fail")

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertIn("scripted failure", run.last_error.message)
        self.assertEqual(texts_of(thread_id), [("user", "Hi")])

        step = self.one_step(thread_id, run.id)

        self.assertEqual((step.status, step.last_error.code), ("failed", "server_error"))

    def test_rate_limit_fails_the_run_with_its_own_code(self):
        _, run = self.failed_run("limit")

        self.assertEqual((run.status, run.last_error.code), ("failed", "rate_limit_exceeded"))
        self.assertIn("too many requests", run.last_error.message)

    def test_unknown_model_fails_the_run(self):
        _, run = self.failed_run("unknown")

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertIn("unknown", run.last_error.message)

    def test_failure_ends_the_stream_with_run_failed(self):
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_with("Hi"), assistant_id=assistant_of("fail"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(handler.events[:3], RUN_STARTED)
        self.assertEqual(handler.events[-1], "thread.run.failed")
        self.assertEqual(stream.get_final_run().last_error.code, "server_error")
        self.assertEqual(names_in(recorder.exchanges[-1])[-1], "done")

    def test_disconnect_leaves_the_partial_text(self):
        thread_id, run = self.failed_run("cut")
        message = threads.messages.list(thread_id).data[0]

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertEqual((message.status, message.incomplete_details.reason), ("incomplete", "run_failed"))
        self.assertEqual(text_of(message), "Half an")
        self.assertEqual(self.one_step(thread_id, run.id).status, "failed")

    def test_disconnect_ends_the_stream_with_run_failed(self):
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_with("Hi"), assistant_id=assistant_of("cut"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(
            handler.events,
            RUN_STARTED
            + TEXT_STARTED
            + 2 * DELTA
            + ["thread.message.incomplete", "thread.run.step.failed", "thread.run.failed"],
        )

    def test_token_limit_makes_the_run_incomplete(self):
        thread_id = thread_with("Hi")
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_id, assistant_id=assistant_of("length"), event_handler=handler
        ) as stream:
            stream.until_done()
        run = stream.get_final_run()
        message = threads.messages.list(thread_id).data[0]

        self.assertEqual(
            handler.events[-3:], ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"]
        )
        self.assertEqual((run.status, run.incomplete_details.reason), ("incomplete", "max_completion_tokens"))
        self.assertEqual((message.status, message.incomplete_details.reason), ("incomplete", "max_tokens"))
        self.assertEqual(text_of(message), "This is long")
        self.assertEqual(threads.runs.retrieve(run.id, thread_id=thread_id).incomplete_details, run.incomplete_details)
        self.assertEqual(self.one_step(thread_id, run.id).status, "completed")


class InvalidRequest(Case):
    def test_unknown_id_is_not_found(self):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of("words"), **QUICK)

        for text, call, args, kwargs in [
            ("No assistant found with id 'asst_x'.", assistants.retrieve, ["asst_x"], {}),
            ("No thread found with id 'thread_x'.", threads.retrieve, ["thread_x"], {}),
            ("No thread found with id 'thread_x'.", threads.messages.list, ["thread_x"], {}),
            ("No thread found with id 'thread_x'.", threads.runs.list, ["thread_x"], {}),
            ("No message found with id 'msg_x'.", threads.messages.retrieve, ["msg_x"], {"thread_id": thread_id}),
            ("No run found with id 'run_x'.", threads.runs.retrieve, ["run_x"], {"thread_id": thread_id}),
            ("No run found with id 'run_x'.", threads.runs.cancel, ["run_x"], {"thread_id": thread_id}),
            (
                "No run step found with id 'step_x'.",
                threads.runs.steps.retrieve,
                ["step_x"],
                {"thread_id": thread_id, "run_id": run.id},
            ),
            ("No assistant found with id 'asst_x'.", threads.runs.create, [thread_id], {"assistant_id": "asst_x"}),
        ]:
            with self.subTest(text=text, call=call.__qualname__):
                self.assert_rejected(openai.NotFoundError, text, call, *args, **kwargs)

    def test_malformed_id_is_rejected_with_the_expected_prefix(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.",
            threads.retrieve,
            "undefined",
            param="thread_id",
            code="invalid_value",
        )

    def test_invalid_body_is_rejected_with_the_parameter_name(self):
        long = "x" * 257
        for text, param, code, members in [
            ("Unknown parameter: 'foo'.", "foo", "unknown_parameter", {"model": "words", "extra_body": {"foo": 1}}),
            ("Missing required parameter: 'model'.", "model", "missing_required_parameter", {"extra_body": {}}),
            (
                "Invalid type for 'metadata.a': expected a string, but got a boolean instead.",
                "metadata.a",
                "invalid_type",
                {"model": "words", "metadata": {"a": True}},
            ),
            (
                "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
                "temperature",
                "decimal_above_max_value",
                {"model": "words", "temperature": 3},
            ),
            (
                "Invalid 'name': string too long. Expected a string with maximum length 256, but got a string with "
                "length 257 instead.",
                "name",
                "string_above_max_length",
                {"model": "words", "name": long},
            ),
            (
                "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
                "object with 17 properties instead.",
                "metadata",
                "object_above_max_properties",
                {"model": "words", "metadata": {str(number): "x" for number in range(17)}},
            ),
        ]:
            with self.subTest(text=text):
                members = {"model": openai.NOT_GIVEN, **members}
                self.assert_rejected(openai.BadRequestError, text, assistants.create, param=param, code=code, **members)

    def test_invalid_limit_is_rejected_with_the_maximum(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            assistants.list,
            limit=101,
            param="limit",
            code="integer_above_max_value",
        )

    def test_malformed_json_is_rejected(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            headers = {"content-type": "application/json"}
            client.post("/threads", cast_to=object, content=b"{", options={"headers": headers})

        self.assertTrue(caught.exception.body["message"].startswith("We could not parse the JSON body of your request."))

    def test_run_without_messages_and_instructions_is_rejected(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Run creation requires a Thread with a user message or an assistant with instructions.",
            threads.runs.create,
            thread_with(),
            assistant_id=assistant_of("words"),
            stream=True,
            code="invalid_thread",
        )

    def test_cancelling_a_finished_run_is_rejected(self):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of("words"), **QUICK)

        self.assert_rejected(
            openai.BadRequestError,
            "Cannot cancel run with status 'completed'.",
            threads.runs.cancel,
            run.id,
            thread_id=thread_id,
        )

    def test_unknown_url_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client.post("/nowhere", cast_to=object)

        self.assertEqual(caught.exception.body["message"], "Invalid URL (POST /v1/nowhere)")

    def test_wrong_key_is_rejected_and_masked(self):
        wrong = client.with_options(api_key="sk-wrong-0123456789")

        with self.assertRaises(openai.AuthenticationError) as caught:
            wrong.beta.assistants.list()

        error = caught.exception
        self.assertEqual((error.status_code, error.code), (401, "invalid_api_key"))
        self.assertTrue(error.body["message"].startswith("Incorrect API key provided: sk-wr***89."), error.body)


class ModelTest(Case):
    def test_is_listed_and_retrieved(self):
        names = [model.id for model in client.models.list()]

        self.assertLessEqual({"words", "slow"}, set(names))
        self.assertEqual(client.models.retrieve("words").id, "words")
        self.assert_rejected(
            openai.NotFoundError,
            "The model 'fake_id' does not exist",
            client.models.retrieve,
            "fake_id",
            param="model",
            code="model_not_found",
        )

    def test_creates_a_chat_completion(self):
        answer = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "Hi"}])

        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.usage.total_tokens, 19)

    def test_streams_a_chat_completion(self):
        stream = client.chat.completions.create(
            model="words",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)

        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, ANSWER)
        self.assertEqual(chunks[-1].usage.total_tokens, 19)

    def test_calls_a_function_in_a_chat_completion(self):
        asked = [{"role": "user", "content": "Hi"}]
        answer = client.chat.completions.create(model="tool", messages=asked, tools=FUNCTIONS)

        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual(answer.choices[0].message.tool_calls[0].function.arguments, WEATHER_ARGUMENTS)

    def test_error_of_a_chat_completion_is_forwarded(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="limit", messages=[{"role": "user", "content": "Hi"}])

        self.assertIsInstance(caught.exception, openai.RateLimitError)


class AsyncCollector(openai.AsyncAssistantEventHandler):
    """Collects the text; with a client, submits outputs in `on_event`."""

    def __init__(self, client=None, deltas=None):
        super().__init__()
        self.client, self.deltas, self.completed_calls = client, [] if deltas is None else deltas, []

    async def on_event(self, event):
        if self.client and event.event == "thread.run.requires_action":
            async with self.client.beta.threads.runs.submit_tool_outputs_stream(
                thread_id=self.current_run.thread_id,
                run_id=self.current_run.id,
                tool_outputs=outputs_for(event.data),
                event_handler=AsyncCollector(self.client, self.deltas),
            ) as stream:
                await stream.until_done()

    async def on_tool_call_done(self, tool_call):
        self.completed_calls.append((tool_call.function.name, tool_call.function.arguments))

    async def on_text_delta(self, delta, snapshot):
        self.deltas.append(delta.value)


class AsynchronousClient(Case):
    def test_polls_and_streams(self):
        async def flow():
            transport = contract.AsyncRecorder(recorder)
            http_client = openai.DefaultAsyncHttpxClient(transport=transport)
            async with openai.AsyncOpenAI(max_retries=0, http_client=http_client) as client:
                beta = client.beta
                assistant = await beta.assistants.create(model="words")
                thread = await beta.threads.create(messages=[{"role": "user", "content": "Hi"}])
                run = await beta.threads.runs.create_and_poll(
                    thread_id=thread.id, assistant_id=assistant.id, **QUICK
                )
                handler = AsyncCollector()
                async with beta.threads.runs.stream(
                    thread_id=thread.id, assistant_id=assistant.id, event_handler=handler
                ) as stream:
                    await stream.until_done()
                listed = [message async for message in beta.threads.messages.list(thread.id, limit=1)]
                return run, handler.deltas, [text_of(message) for message in listed]

        run, deltas, listed = asyncio.run(flow())

        self.assertEqual(run.status, "completed")
        self.assertEqual("".join(deltas), ANSWER)
        self.assertEqual(listed, [ANSWER, ANSWER, "Hi"])

    def test_submits_tool_outputs(self):
        async def flow(model):
            transport = contract.AsyncRecorder(recorder)
            http_client = openai.DefaultAsyncHttpxClient(transport=transport)
            async with openai.AsyncOpenAI(max_retries=0, http_client=http_client) as client:
                runs = client.beta.threads.runs
                assistant_id, thread_id = function_assistant(model), thread_with("Hi")
                asked = await runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_id, **QUICK)
                polled = await runs.submit_tool_outputs_and_poll(
                    run_id=asked.id, thread_id=thread_id, tool_outputs=outputs_for(asked), **QUICK
                )
                handler = AsyncCollector(client)
                async with runs.stream(
                    thread_id=thread_id, assistant_id=assistant_id, event_handler=handler
                ) as stream:
                    await stream.until_done()
                return polled.status, "".join(handler.deltas), handler.completed_calls, texts_of(thread_id)

        for model, text in [("tools", ""), ("talk", "Let me see.\n\n")]:
            with self.subTest(model=model):
                text += "The tools say: sunny" + ", noon" * (model == "tools")

                status, streamed, completed_calls, stored = asyncio.run(flow(model))

                self.assertEqual((status, streamed), ("completed", text))
                if model == "tools":
                    self.assertEqual(completed_calls, [("weather", WEATHER_ARGUMENTS), ("time", TIME_ARGUMENTS)])
                self.assertEqual(stored, [("user", "Hi"), ("assistant", text), ("assistant", text)])

    def test_runs_forty_threads_concurrently(self):
        async def one(client, assistant_id):
            run = await client.beta.threads.create_and_run_poll(
                assistant_id=assistant_id, thread={"messages": [{"role": "user", "content": "Hi"}]}, **QUICK
            )
            steps = await client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
            return run.status, len(steps.data)

        async def flow():
            async with openai.AsyncOpenAI(max_retries=0) as client:
                assistant = await client.beta.assistants.create(model="words")
                return await asyncio.gather(*(one(client, assistant.id) for _ in range(40)))

        self.assertEqual(asyncio.run(flow()), 40 * [("completed", 1)])


class ZContract(Case):
    """Checks the recorded responses of all other tests; the name sorts it last."""

    def test_every_response_matches_the_contract(self):
        reason = contract.missing()
        if reason:
            self.skipTest(reason)

        self.assertGreater(len(recorder.exchanges), 0)
        self.assertEqual(contract.violations(recorder.exchanges), [])


if __name__ == "__main__":
    sys.exit(suite.run(sys.modules["__main__"]))
