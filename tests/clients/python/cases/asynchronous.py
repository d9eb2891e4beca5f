"""The asynchronous client."""

import asyncio

import openai

import contract
from cases.common import (
    ANSWER,
    QUICK,
    TIME_ARGUMENTS,
    WEATHER_ARGUMENTS,
    Case,
    function_assistant,
    outputs_for,
    recorder,
    text_of,
    texts_of,
    thread_with,
)


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
                waiting = await runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_id, **QUICK)
                polled = await runs.submit_tool_outputs_and_poll(
                    run_id=waiting.id, thread_id=thread_id, tool_outputs=outputs_for(waiting), **QUICK
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
