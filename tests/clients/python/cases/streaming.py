"""Runs that are streamed."""

import time

from cases.collector import Collector
from cases.common import (
    ANSWER,
    DELTA,
    QUICK,
    RUN_COMPLETED,
    RUN_STARTED,
    STEADY,
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
