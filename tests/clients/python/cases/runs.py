"""Runs that are polled."""

import json
import time
import unittest.mock

import openai

from cases.common import ANSWER, QUICK, Case, assistant_of, texts_of, thread_with, threads


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
        with unittest.mock.patch("openai._resource.time.sleep", wraps=time.sleep) as sleep:
            run = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=assistant_of("steady"))

        self.assertEqual(run.status, "completed")
        pauses = [call.args[0] for call in sleep.call_args_list]
        self.assertTrue(pauses and max(pauses) < 1, f"the SDK's default is one second: {pauses}")

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
        ended = threads.runs.poll(run.id, thread_id=thread_id, **QUICK)

        self.assertEqual((cancelling.status, cancelling.cancelled_at), ("cancelling", None))
        self.assertEqual(ended.status, "cancelled")
        self.assertIsNotNone(ended.cancelled_at)
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
