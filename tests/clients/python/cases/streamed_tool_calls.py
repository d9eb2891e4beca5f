"""Function calls of streamed runs."""

from cases.collector import Collector
from cases.common import (
    CALL_STARTED,
    DELTA,
    MESSAGE_STARTED,
    QUICK,
    REQUIRES_ACTION,
    RESUMED,
    RUN_COMPLETED,
    RUN_STARTED,
    TEXT_STARTED,
    TIME_ARGUMENTS,
    WEATHER_ARGUMENTS,
    Case,
    function_assistant,
    names_in,
    outputs_for,
    recorder,
    text_of,
    texts_of,
    thread_with,
    threads,
)


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
            waiting = stream.get_final_run()

        self.assertEqual(
            handler.events,
            ["thread.created"] + RUN_STARTED + CALL_STARTED + 4 * ["thread.run.step.delta"] + REQUIRES_ACTION,
        )
        self.assertEqual(names_in(recorder.exchanges[-1])[-1], "done")
        self.assertEqual([step.type for step in stream.get_final_run_steps()], ["tool_calls"])

        with threads.runs.submit_tool_outputs_stream(
            run_id=waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs_for(waiting)
        ) as stream:
            text = "".join(stream.text_deltas)
            run = stream.get_final_run()

        self.assertEqual((run.status, text), ("completed", "The tools say: sunny"))
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", "The tools say: sunny")])

    def test_outputs_are_submitted_and_polled_after_the_stream(self):
        with threads.runs.stream(thread_id=thread_with("Hi"), assistant_id=function_assistant("talk")) as stream:
            waiting = stream.get_final_run()

        run = threads.runs.submit_tool_outputs_and_poll(
            run_id=waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs_for(waiting), **QUICK
        )

        self.assertEqual(run.status, "completed")
        self.assertEqual(texts_of(run.thread_id)[-1][1], "Let me see.\n\nThe tools say: sunny")

    def test_completes_when_its_client_disconnects_after_submitting(self):
        waiting = threads.runs.create_and_poll(thread_id=thread_with("Hi"), assistant_id=function_assistant("talk"), **QUICK)

        stream = threads.runs.submit_tool_outputs(
            waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs_for(waiting), stream=True
        )
        self.assertEqual(next(iter(stream)).event, "thread.run.step.completed")
        stream.close()
        run = threads.runs.poll(waiting.id, thread_id=waiting.thread_id, **QUICK)

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
                waiting = threads.runs.create_and_poll(
                    thread_id=thread_with("Hi"), assistant_id=function_assistant("talk-slow"), **QUICK
                )
                answers = []

                def cancel(event):
                    if event.event == moment and not answers:
                        answers.append(threads.runs.cancel(waiting.id, thread_id=waiting.thread_id))

                handler = Collector(cancel)
                with threads.runs.submit_tool_outputs_stream(
                    run_id=waiting.id,
                    thread_id=waiting.thread_id,
                    tool_outputs=outputs_for(waiting),
                    event_handler=handler,
                ) as stream:
                    stream.until_done()

                self.assertEqual(
                    handler.events[-3:],
                    ["thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled"],
                )
                self.assertIn("thread.run.cancelling", handler.events)
                newest = threads.messages.list(waiting.thread_id).data[0]
                self.assertEqual((newest.status, newest.incomplete_details.reason), ("incomplete", "run_cancelled"))
                self.assertEqual(text_of(newest)[: len(begins)], begins)
                self.assertEqual([text_of(message) for message in stream.get_final_messages()], [text_of(newest)])
                steps = threads.runs.steps.list(waiting.id, thread_id=waiting.thread_id, order="asc").data
                self.assertEqual([step.status for step in steps], ["cancelled", "completed"])

    def test_with_text_sends_the_message_step_on_every_stream(self):
        for handler in self.streamed("talk-twice"):
            self.assertEqual([step.type for step in handler.get_final_run_steps()], ["message_creation"])
