"""Function calls of polled runs."""

import openai

from cases.common import (
    FUNCTIONS,
    QUICK,
    TIME_ARGUMENTS,
    WEATHER_ARGUMENTS,
    Case,
    assistant_of,
    calls_of,
    function_assistant,
    outputs_for,
    text_of,
    texts_of,
    thread_with,
    threads,
)


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
        waiting = self.run_requiring_action("tool")
        steps = threads.runs.steps.list(waiting.id, thread_id=waiting.thread_id).data

        self.assertEqual(calls_of(waiting), [("weather", WEATHER_ARGUMENTS)])
        self.assertEqual([(step.type, step.status, step.usage) for step in steps], [("tool_calls", "in_progress", None)])
        call = steps[0].step_details.tool_calls[0]
        self.assertEqual((call.type, call.function.output), ("function", None))
        self.assertEqual(call.id, waiting.required_action.submit_tool_outputs.tool_calls[0].id)
        self.assertEqual(texts_of(waiting.thread_id), [("user", "Hi")])

        run = self.submit_outputs(waiting)

        self.assertEqual((run.id, run.status, run.required_action), (waiting.id, "completed", None))
        self.assertEqual(texts_of(run.thread_id), [("user", "Hi"), ("assistant", "The tools say: sunny")])
        self.assertEqual((run.usage.prompt_tokens, run.usage.completion_tokens, run.usage.total_tokens), (22, 7, 29))
        self.assert_steps(run, [("weather", "sunny")], "message")

    def test_parallel_calls_accept_outputs_in_any_order(self):
        waiting = self.run_requiring_action("tools")

        self.assertEqual(calls_of(waiting), [("weather", WEATHER_ARGUMENTS), ("time", TIME_ARGUMENTS)])

        run = self.submit_outputs(waiting, outputs_for(waiting)[::-1])

        self.assertEqual((run.status, run.usage.total_tokens), ("completed", 32))
        self.assertEqual(texts_of(run.thread_id)[-1], ("assistant", "The tools say: sunny, noon"))
        self.assert_steps(run, [("weather", "sunny"), ("time", "noon")], "message")

    def test_with_text_creates_one_message(self):
        waiting = self.run_requiring_action("talk")
        partial = threads.messages.list(waiting.thread_id).data[0]

        self.assertEqual(calls_of(waiting), [("weather", WEATHER_ARGUMENTS)])
        self.assertEqual((partial.status, text_of(partial)), ("in_progress", "Let me see."))

        run = self.submit_outputs(waiting)

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
        waiting = self.run_requiring_action("tools")
        weather, clock = outputs_for(waiting)
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
                        waiting.id,
                        thread_id=waiting.thread_id,
                        tool_outputs=outputs,
                    )
        self.assertEqual(threads.runs.retrieve(waiting.id, thread_id=waiting.thread_id), waiting)

        self.assertEqual(self.submit_outputs(waiting).status, "completed")

    @staticmethod
    def submit_streamed(run_id, **params):
        with threads.runs.submit_tool_outputs_stream(run_id=run_id, **params) as stream:
            stream.until_done()

    def test_accepts_outputs_once(self):
        waiting = self.run_requiring_action("tool")
        outputs = outputs_for(waiting)
        queued = threads.runs.submit_tool_outputs(waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs)

        self.assertEqual((queued.status, queued.required_action), ("queued", None))
        run = threads.runs.poll(waiting.id, thread_id=waiting.thread_id, **QUICK)
        self.assertEqual(run.status, "completed")
        for submit in (threads.runs.submit_tool_outputs, self.submit_streamed):
            self.assert_rejected(
                openai.BadRequestError,
                'Runs in status "completed" do not accept tool outputs.',
                submit,
                waiting.id,
                thread_id=waiting.thread_id,
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
                waiting = self.run_requiring_action(model)
                thread_id = waiting.thread_id

                self.assert_rejected(
                    openai.BadRequestError,
                    f"Can't add messages to {thread_id} while a run {waiting.id} is active.",
                    threads.messages.create,
                    thread_id,
                    role="user",
                    content="Wait",
                )
                cancelling = threads.runs.cancel(waiting.id, thread_id=thread_id)
                run = threads.runs.poll(waiting.id, thread_id=thread_id, **QUICK)
                steps = threads.runs.steps.list(waiting.id, thread_id=thread_id).data

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
                    waiting.id,
                    thread_id=thread_id,
                    tool_outputs=outputs_for(waiting),
                )
                self.assert_rejected(
                    openai.BadRequestError,
                    "Cannot cancel run with status 'cancelled'.",
                    threads.runs.cancel,
                    waiting.id,
                    thread_id=thread_id,
                )
                threads.messages.create(thread_id, role="user", content="Go on")
