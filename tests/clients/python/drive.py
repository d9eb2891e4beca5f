"""Drives a served assistd through openai-python, as an app would. The models are those of ../upstream.py.

    OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key drive.py [TEST...]

The server must be served with API keys. Every answer is checked against the contract, where that is present.
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
BEGIN = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
OPEN = ["thread.run.step.created", "thread.run.step.in_progress", "thread.message.created", "thread.message.in_progress"]
DELTA = ["thread.message.delta"]
CLOSE = ["thread.message.completed", "thread.run.step.completed", "thread.run.completed"]

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
    """Role and text of each message, oldest first."""
    return [(message.role, text_of(message)) for message in threads.messages.list(thread_id, order="asc")]


def names_in(exchange):
    """The names of a stream's events, `done` included."""
    return [line[7:] for line in exchange.text.split("\n") if line.startswith("event: ")]


class Case(unittest.TestCase):
    maxDiff = None

    def one_step(self, thread_id, run_id):
        """The run's only step, which makes a message."""
        steps = threads.runs.steps.list(run_id, thread_id=thread_id).data
        self.assertEqual([step.type for step in steps], ["message_creation"])
        return steps[0]

    def refused(self, error_class, text, call, *args, param=None, code=None, **kwargs):
        with self.assertRaises(error_class) as caught:
            call(*args, **kwargs)
        error = caught.exception
        self.assertEqual((error.body["message"], error.param, error.code), (text, param, code))
        self.assertEqual(error.type, "invalid_request_error")
        self.assertTrue(error.request_id.startswith("req_"), error.request_id)


class AnAssistant(Case):
    def test_is_created_read_changed_and_deleted(self):
        made = assistants.create(
            model="words",
            name="Ada",
            description="counts",
            instructions="Count.",
            metadata={"team": "one"},
            temperature=0.5,
            top_p=0.9,
        )

        self.assertEqual((made.name, made.description, made.instructions), ("Ada", "counts", "Count."))
        self.assertEqual((made.temperature, made.top_p, made.metadata), (0.5, 0.9, {"team": "one"}))
        self.assertEqual(assistants.retrieve(made.id), made)

        changed = assistants.update(made.id, name="Bea", metadata={"team": "two"})

        self.assertEqual((changed.name, changed.metadata, changed.instructions), ("Bea", {"team": "two"}, "Count."))
        self.assertEqual(assistants.retrieve(made.id), changed)

        gone = assistants.delete(made.id)

        self.assertEqual((gone.id, gone.deleted, gone.object), (made.id, True, "assistant.deleted"))
        self.refused(
            openai.NotFoundError, f"No assistant found with id '{made.id}'.", assistants.retrieve, made.id
        )

    def test_list_pages_by_itself_in_both_orders(self):
        made = [assistant_of("words", name=f"page {number}") for number in range(5)]

        newest = assistants.list(limit=2)
        listed = [assistant.id for assistant in newest if assistant.id in made]
        oldest = [assistant.id for assistant in assistants.list(limit=2, order="asc") if assistant.id in made]

        self.assertEqual(listed, made[::-1])
        self.assertEqual(oldest, made)
        self.assertTrue(newest.has_more)

        between = assistants.list(order="asc", after=made[0], before=made[4])

        self.assertEqual([assistant.id for assistant in between.data], made[1:4])


class AThread(Case):
    def test_is_created_read_changed_and_deleted(self):
        made = threads.create(messages=[{"role": "user", "content": "Hi"}], metadata={"a": "b"})

        self.assertEqual(made.metadata, {"a": "b"})
        self.assertEqual(threads.retrieve(made.id), made)
        self.assertEqual(texts_of(made.id), [("user", "Hi")])

        changed = threads.update(made.id, metadata={"a": "c"})

        self.assertEqual(changed.metadata, {"a": "c"})

        self.assertTrue(threads.delete(made.id).deleted)
        message = f"No thread found with id '{made.id}'."
        self.refused(openai.NotFoundError, message, threads.retrieve, made.id)
        self.refused(openai.NotFoundError, message, threads.messages.list, made.id)

    def test_list_is_ours_and_pages_by_itself(self):
        made = [threads.create().id for _ in range(5)]

        first = client.get("/threads", cast_to=object, options={"params": {"limit": 2}})
        pages = client.get_api_list(
            "/threads", page=SyncCursorPage[Thread], model=Thread, options={"params": {"limit": 2}}
        )
        listed = [thread.id for thread in pages if thread.id in made]

        self.assertEqual((first["object"], len(first["data"]), first["has_more"]), ("list", 2, True))
        self.assertEqual(first["last_id"], first["data"][-1]["id"])
        self.assertEqual(listed, made[::-1])


class AMessage(Case):
    def test_is_created_read_changed_and_deleted(self):
        thread_id = thread_with()

        made = threads.messages.create(thread_id, role="user", content="Hello", metadata={"a": "b"})

        self.assertEqual((made.role, text_of(made), made.status, made.run_id), ("user", "Hello", "completed", None))
        self.assertEqual(threads.messages.retrieve(made.id, thread_id=thread_id), made)

        changed = threads.messages.update(made.id, thread_id=thread_id, metadata={"a": "c"})

        self.assertEqual((changed.metadata, text_of(changed)), ({"a": "c"}, "Hello"))

        self.assertTrue(threads.messages.delete(made.id, thread_id=thread_id).deleted)
        self.refused(
            openai.NotFoundError,
            f"No message found with id '{made.id}'.",
            threads.messages.retrieve,
            made.id,
            thread_id=thread_id,
        )

    def test_list_keeps_the_order_of_insertion_and_pages_by_itself(self):
        texts = [f"text {number}" for number in range(7)]
        thread_id = thread_with(*texts[:4])
        for text in texts[4:]:
            threads.messages.create(thread_id, role="user", content=text)

        newest = [text_of(message) for message in threads.messages.list(thread_id, limit=3)]

        self.assertEqual(newest, texts[::-1])
        self.assertEqual(texts_of(thread_id), [("user", text) for text in texts])

    def test_keeps_its_content_parts(self):
        thread_id = thread_with()
        parts = [
            {"type": "text", "text": "Ünïcödé 日本語 🙂"},
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        ]

        made = threads.messages.create(thread_id, role="user", content=parts)

        self.assertEqual(made.content[0].text.value, "Ünïcödé 日本語 🙂")
        self.assertEqual(made.content[1].image_url.url, "https://example.com/cat.png")
        self.assertEqual(made.content[1].image_url.detail, "auto")


class APolledRun(Case):
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

    def test_polls_as_fast_as_the_server_says(self):
        began = time.monotonic()

        run = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=assistant_of("words"))

        self.assertEqual(run.status, "completed")
        self.assertLess(time.monotonic() - began, 0.9, "openai-poll-after-ms is below the second of the SDK")

    def test_is_created_together_with_its_thread(self):
        run = threads.create_and_run_poll(
            assistant_id=assistant_of("words"),
            thread={"messages": [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}]},
            metadata={"kind": "both"},
            **QUICK,
        )

        self.assertEqual((run.status, run.metadata), ("completed", {"kind": "both"}))
        self.assertEqual(texts_of(run.thread_id), [("user", "One"), ("user", "Two"), ("assistant", ANSWER)])

    def test_is_listed_read_and_changed(self):
        assistant_id, thread_id = assistant_of("words"), thread_with("Hi")
        runs = [
            threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_id, **QUICK) for _ in range(3)
        ]

        listed = [run.id for run in threads.runs.list(thread_id, limit=2)]
        changed = threads.runs.update(runs[0].id, thread_id=thread_id, metadata={"seen": "yes"})

        self.assertEqual(listed, [run.id for run in runs][::-1])
        self.assertEqual((changed.metadata, changed.status), ({"seen": "yes"}, "completed"))
        self.assertEqual(threads.runs.retrieve(runs[0].id, thread_id=thread_id), changed)

    def test_shows_the_model_the_whole_thread_and_the_instructions(self):
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

    def test_may_override_the_model_and_the_instructions(self):
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

        self.refused(
            openai.BadRequestError,
            f"Can't add messages to {thread_id} while a run {run.id} is active.",
            threads.messages.create,
            thread_id,
            role="user",
            content="Wait",
        )
        self.refused(
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
        self.refused(
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
    """Writes down every callback in order; `act` is called with each event."""

    def __init__(self, act=lambda _: None):
        super().__init__()
        self.calls, self.events, self.deltas, self.act = [], [], [], act

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

    def on_exception(self, exception):
        self.calls.append("exception")

    def on_timeout(self):
        self.calls.append("timeout")

    def on_end(self):
        self.calls.append("end")


class AStreamedRun(Case):
    def test_calls_the_event_handler_in_the_recorded_order(self):
        thread_id = thread_with("Hi")
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_id, assistant_id=assistant_of("words"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(handler.events, BEGIN + OPEN + 8 * DELTA + CLOSE)
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

        self.assertEqual([name for name, _ in events], BEGIN + OPEN + 8 * DELTA + CLOSE)
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

    def test_sends_each_token_when_it_comes(self):
        began = time.monotonic()
        times = []

        with threads.runs.stream(thread_id=thread_with("Hi"), assistant_id=assistant_of("steady")) as stream:
            for _ in stream.text_deltas:
                times.append(time.monotonic() - began)

        self.assertEqual(len(times), 40)
        self.assertLess(times[0], 0.8)
        self.assertGreater(times[-1], 1.9)
        self.assertLess(max(later - sooner for sooner, later in zip(times, times[1:])), 0.5)

    def test_goes_on_when_its_client_leaves(self):
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

    def test_tells_of_its_cancelling_and_keeps_the_partial_text(self):
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
        end = [name for name in handler.events if name not in BEGIN + OPEN + DELTA]
        message = threads.messages.list(thread_id).data[0]

        self.assertEqual(answers[0].status, "cancelling")
        self.assertEqual(
            end,
            ["thread.run.cancelling", "thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled"],
        )
        self.assertEqual((message.status, message.incomplete_details.reason), ("incomplete", "run_cancelled"))
        self.assertEqual(text_of(message), "".join(handler.deltas))
        self.assertEqual(self.one_step(thread_id, answers[0].id).status, "cancelled")


class AFailingUpstream(Case):
    def failed_run(self, model):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of(model), **QUICK)
        return thread_id, run

    def test_fails_the_run_with_a_server_error(self):
        thread_id, run = self.failed_run("fail")

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertIn("the script says no", run.last_error.message)
        self.assertEqual(texts_of(thread_id), [("user", "Hi")])

        step = self.one_step(thread_id, run.id)

        self.assertEqual((step.status, step.last_error.code), ("failed", "server_error"))

    def test_that_limits_the_rate_fails_the_run_with_its_own_code(self):
        _, run = self.failed_run("limit")

        self.assertEqual((run.status, run.last_error.code), ("failed", "rate_limit_exceeded"))
        self.assertIn("too many requests", run.last_error.message)

    def test_that_knows_no_such_model_fails_the_run(self):
        _, run = self.failed_run("nobody")

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertIn("nobody", run.last_error.message)

    def test_is_told_on_the_stream(self):
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_with("Hi"), assistant_id=assistant_of("fail"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(handler.events[:3], BEGIN)
        self.assertEqual(handler.events[-1], "thread.run.failed")
        self.assertEqual(stream.get_final_run().last_error.code, "server_error")
        self.assertEqual(names_in(recorder.exchanges[-1])[-1], "done")

    def test_that_breaks_off_leaves_the_partial_text(self):
        thread_id, run = self.failed_run("cut")
        message = threads.messages.list(thread_id).data[0]

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertEqual((message.status, message.incomplete_details.reason), ("incomplete", "run_failed"))
        self.assertEqual(text_of(message), "Half an")
        self.assertEqual(self.one_step(thread_id, run.id).status, "failed")

    def test_that_breaks_off_is_told_on_the_stream(self):
        handler = Collector()

        with threads.runs.stream(
            thread_id=thread_with("Hi"), assistant_id=assistant_of("cut"), event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual(
            handler.events,
            BEGIN
            + OPEN
            + 2 * DELTA
            + ["thread.message.incomplete", "thread.run.step.failed", "thread.run.failed"],
        )

    def test_at_its_token_limit_makes_the_run_incomplete(self):
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


class ARefusal(Case):
    def test_of_an_unknown_id_is_not_found(self):
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
                self.refused(openai.NotFoundError, text, call, *args, **kwargs)

    def test_of_a_malformed_id_says_what_was_expected(self):
        self.refused(
            openai.BadRequestError,
            "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.",
            threads.retrieve,
            "undefined",
            param="thread_id",
            code="invalid_value",
        )

    def test_of_a_wrong_body_names_the_member(self):
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
                self.refused(openai.BadRequestError, text, assistants.create, param=param, code=code, **members)

    def test_of_a_wrong_limit_says_the_bound(self):
        self.refused(
            openai.BadRequestError,
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            assistants.list,
            limit=101,
            param="limit",
            code="integer_above_max_value",
        )

    def test_of_broken_json_is_readable(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            headers = {"content-type": "application/json"}
            client.post("/threads", cast_to=object, content=b"{", options={"headers": headers})

        self.assertTrue(caught.exception.body["message"].startswith("We could not parse the JSON body of your request."))

    def test_of_a_run_with_nothing_to_answer(self):
        self.refused(
            openai.BadRequestError,
            "Run creation requires a Thread with a user message or an assistant with instructions.",
            threads.runs.create,
            thread_with(),
            assistant_id=assistant_of("words"),
            stream=True,
            code="invalid_thread",
        )

    def test_of_a_cancel_after_the_end(self):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of("words"), **QUICK)

        self.refused(
            openai.BadRequestError,
            "Cannot cancel run with status 'completed'.",
            threads.runs.cancel,
            run.id,
            thread_id=thread_id,
        )

    def test_of_an_unknown_url(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client.post("/nowhere", cast_to=object)

        self.assertEqual(caught.exception.body["message"], "Invalid URL (POST /v1/nowhere)")

    def test_of_a_wrong_key_shows_it_masked(self):
        wrong = client.with_options(api_key="sk-wrong-0123456789")

        with self.assertRaises(openai.AuthenticationError) as caught:
            wrong.beta.assistants.list()

        error = caught.exception
        self.assertEqual((error.status_code, error.code), (401, "invalid_api_key"))
        self.assertTrue(error.body["message"].startswith("Incorrect API key provided: sk-wr***89."), error.body)


class AModel(Case):
    def test_is_listed_and_read(self):
        names = [model.id for model in client.models.list()]

        self.assertLessEqual({"words", "slow"}, set(names))
        self.assertEqual(client.models.retrieve("words").id, "words")
        self.refused(
            openai.NotFoundError,
            "The model 'fake_id' does not exist",
            client.models.retrieve,
            "fake_id",
            param="model",
            code="model_not_found",
        )

    def test_completes_a_chat(self):
        answer = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "Hi"}])

        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.usage.total_tokens, 19)

    def test_streams_a_chat(self):
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

    def test_that_fails_answers_a_chat_with_its_error(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="limit", messages=[{"role": "user", "content": "Hi"}])

        self.assertIsInstance(caught.exception, openai.RateLimitError)


class AsyncCollector(openai.AsyncAssistantEventHandler):
    def __init__(self):
        super().__init__()
        self.deltas = []

    async def on_text_delta(self, delta, snapshot):
        self.deltas.append(delta.value)


class AnAsynchronousClient(Case):
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

    def test_runs_forty_threads_at_once(self):
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


class ZTheContract(Case):
    """Looks at what all the others were answered; its name makes it the last."""

    def test_is_kept_by_every_answer(self):
        reason = contract.absent()
        if reason:
            self.skipTest(reason)

        self.assertGreater(len(recorder.exchanges), 0)
        self.assertEqual(contract.faults(recorder.exchanges), [])


if __name__ == "__main__":
    sys.exit(suite.run(sys.modules["__main__"]))
