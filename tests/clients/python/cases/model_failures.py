"""Failures of the model server."""

from cases.collector import Collector
from cases.common import (
    DELTA,
    QUICK,
    RUN_STARTED,
    TEXT_STARTED,
    Case,
    assistant_of,
    names_in,
    recorder,
    text_of,
    texts_of,
    thread_with,
    threads,
)


class FailingModelServer(Case):
    def run_of(self, model):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of(model), **QUICK)
        return thread_id, run

    def test_fails_the_run_with_a_server_error(self):
        thread_id, run = self.run_of("fail")

        self.assertEqual((run.status, run.last_error.code), ("failed", "server_error"))
        self.assertIn("scripted failure", run.last_error.message)
        self.assertEqual(texts_of(thread_id), [("user", "Hi")])

        step = self.one_step(thread_id, run.id)

        self.assertEqual((step.status, step.last_error.code), ("failed", "server_error"))

    def test_rate_limit_fails_the_run_with_its_own_code(self):
        _, run = self.run_of("limit")

        self.assertEqual((run.status, run.last_error.code), ("failed", "rate_limit_exceeded"))
        self.assertIn("too many requests", run.last_error.message)

    def test_first_model_answers_for_a_name_that_the_server_does_not_list(self):
        thread_id, run = self.run_of("unknown")

        self.assertEqual((run.status, run.model), ("completed", "unknown"))
        self.assertEqual(len(texts_of(thread_id)), 2)

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
        thread_id, run = self.run_of("cut")
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
