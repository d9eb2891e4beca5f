"""Tests a running assistd with Azure's clients: AzureOpenAI of openai-python, and azure-ai-agents. The model server is
../upstream.py.

    OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key azure_clients.py [TEST...]

The server must have API keys configured.
"""

import asyncio
import os
import sys
import time
import unittest
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

from azure.ai.agents import AgentsClient  # noqa: E402
from azure.ai.agents.aio import AgentsClient as AsyncAgentsClient  # noqa: E402
from azure.ai.agents.models import (  # noqa: E402
    AgentEventHandler,
    CodeInterpreterTool,
    FilePurpose,
    FileSearchTool,
    FunctionTool,
    MessageRole,
    ToolSet,
)
from azure.core.credentials import AccessToken  # noqa: E402
from azure.core.exceptions import ResourceNotFoundError  # noqa: E402
from azure.core.pipeline.policies import SansIOHTTPPolicy  # noqa: E402
import openai  # noqa: E402

import suite  # noqa: E402

SERVER = os.environ["OPENAI_BASE_URL"].removesuffix("/v1")
PROJECT = f"{SERVER}/api/projects/my-project"
KEY = os.environ["OPENAI_API_KEY"]
ANSWER = "Hello! How can I help?"
QUICK = {"poll_interval_ms": 50}


def get_location(city: str) -> str:
    """Returns the location of a city.

    :param city: The city.
    """
    return f"{city} is here"


def azure(**members):
    settings = {"azure_endpoint": SERVER, "api_key": KEY, "api_version": "2024-05-01-preview", "max_retries": 0}
    return openai.AzureOpenAI(**{**settings, **members})


class AzureOpenAiClient(unittest.TestCase):
    def test_creates_and_polls_a_run(self):
        client = azure()
        assistant = client.beta.assistants.create(model="words", name="n")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "Hi"}])
        run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, **QUICK)
        self.assertEqual(run.status, "completed")
        newest = client.beta.threads.messages.list(thread.id, limit=1).data[0]
        self.assertEqual(newest.content[0].text.value, ANSWER)
        self.assertTrue(client.beta.assistants.delete(assistant.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client.beta.assistants.retrieve(assistant.id)

    def test_streams_a_run_and_submits_tool_outputs(self):
        client = azure()
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        function = {"name": "get_location", "description": "d", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        assistant = client.beta.assistants.create(model="tool", tools=tools)
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "Hi"}])
        runs = client.beta.threads.runs
        with runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
            stream.until_done()
        run = stream.current_run
        self.assertEqual(run.status, "requires_action")
        calls = run.required_action.submit_tool_outputs.tool_calls
        outputs = [{"tool_call_id": call.id, "output": "here"} for call in calls]
        with runs.submit_tool_outputs_stream(run_id=run.id, thread_id=thread.id, tool_outputs=outputs) as stream:
            stream.until_done()
        self.assertEqual(stream.current_run.status, "completed")

    def test_a_deployment_overrides_the_model_of_the_request(self):
        messages = [{"role": "user", "content": "Hi"}]
        for client, model in [(azure(), "words"), (azure(azure_deployment="words"), "another")]:
            completion = client.chat.completions.create(model=model, messages=messages)
            self.assertEqual(completion.choices[0].message.content, ANSWER)

    def test_a_wrong_key_is_rejected(self):
        with self.assertRaises(openai.AuthenticationError):
            azure(api_key="sk-wrong").beta.assistants.list()
        self.assertIsNotNone(azure(api_key=None, azure_ad_token=KEY).beta.assistants.list(limit=1))


class Token:
    def get_token(self, *_scopes, **_options):
        return AccessToken(KEY, int(time.time()) + 3600)


class AsyncToken:
    async def get_token(self, *scopes, **options):
        return Token().get_token(*scopes, **options)


class AllowHttp(SansIOHTTPPolicy):
    """Lets the client send a token over plain HTTP, which it otherwise rejects even on loopback."""

    def on_request(self, request):
        request.context.options["enforce_https"] = False


class Handler(AgentEventHandler):
    def __init__(self):
        super().__init__()
        self.states, self.unexpected, self.is_done = [], [], False

    def on_thread_run(self, run):
        self.states.append(run.status)

    def on_error(self, data):
        self.unexpected.append(data)

    def on_unhandled_event(self, event_type, event_data):
        self.unexpected.append((event_type, event_data))

    def on_done(self):
        self.is_done = True


class AgentsClientTest(unittest.TestCase):
    def setUp(self):
        self.client = AgentsClient(PROJECT, Token(), per_call_policies=[AllowHttp()])
        self.addCleanup(self.client.close)

    def test_creates_a_run_with_automatic_function_calls(self):
        tools = ToolSet()
        tools.add(FunctionTool({get_location}))
        self.client.enable_auto_function_calls(tools)
        agent = self.client.create_agent(model="tool", name="n", toolset=tools)
        self.assertEqual(self.client.get_agent(agent.id).as_dict(), agent.as_dict())
        thread = self.client.threads.create(metadata={"k": "v"})
        self.client.messages.create(thread_id=thread.id, role="user", content="Hi")
        process = self.client.runs.create_and_process
        run = process(thread_id=thread.id, agent_id=agent.id, polling_interval=0.05)
        self.assertEqual(run.status, "completed", run)
        steps = list(self.client.run_steps.list(thread_id=thread.id, run_id=run.id))
        self.assertEqual(sorted(step.type for step in steps), ["message_creation", "tool_calls"])
        answer = self.client.messages.get_last_message_by_role(thread_id=thread.id, role=MessageRole.AGENT)
        self.assertEqual(answer.run_id, run.id)
        self.client.threads.delete(thread.id)
        self.client.delete_agent(agent.id)
        with self.assertRaises(ResourceNotFoundError):
            self.client.get_agent(agent.id)

    def test_streams_a_run(self):
        agent = self.client.create_agent(model="words", name="n")
        thread = self.client.threads.create()
        self.client.messages.create(thread_id=thread.id, role="user", content="Hi")
        handler = Handler()
        with self.client.runs.stream(thread_id=thread.id, agent_id=agent.id, event_handler=handler) as stream:
            stream.until_done()
        self.assertEqual((handler.states[-1], handler.unexpected, handler.is_done), ("completed", [], True))
        self.assertEqual(len(list(self.client.runs.list(thread_id=thread.id))), 1)

    def test_searches_files(self):
        foods = "The favorite food of several people:\n- Ferdinand: tacos\n- Effie: pizza\n- Filip: cake"
        file = self.client.files.upload_and_poll(
            file=("foods.txt", foods.encode()), purpose=FilePurpose.AGENTS, polling_interval=0.05
        )
        store = self.client.vector_stores.create_and_poll(file_ids=[file.id], name="Foods", polling_interval=0.05)
        self.assertEqual((store.status, store.file_counts.completed), ("completed", 1))
        tool = FileSearchTool(vector_store_ids=[store.id])
        agent = self.client.create_agent(
            model="search", name="n", tools=tool.definitions, tool_resources=tool.resources
        )
        thread = self.client.threads.create()
        self.client.messages.create(thread_id=thread.id, role="user", content="What does Filip like? cake")
        process = self.client.runs.create_and_process
        run = process(thread_id=thread.id, agent_id=agent.id, polling_interval=0.05)
        self.assertEqual(run.status, "completed", run)
        steps = list(self.client.run_steps.list(thread_id=thread.id, run_id=run.id))
        (call,) = [call for step in steps if step.type == "tool_calls" for call in step.step_details.tool_calls]
        self.assertEqual(call.type, "file_search")
        self.assertEqual([result.file_name for result in call.file_search.results], ["foods.txt"])
        answer = self.client.messages.get_last_message_by_role(thread_id=thread.id, role=MessageRole.AGENT)
        (annotation,) = answer.file_citation_annotations
        self.assertEqual(annotation.file_citation.file_id, file.id)
        handler = Handler()
        with self.client.runs.stream(thread_id=thread.id, agent_id=agent.id, event_handler=handler) as stream:
            stream.until_done()
        self.assertEqual((handler.states[-1], handler.unexpected, handler.is_done), ("completed", [], True))
        self.client.vector_stores.delete(store.id)
        self.client.files.delete(file.id)
        with self.assertRaises(ResourceNotFoundError):
            self.client.files.get(file.id)

    @unittest.skipUnless(os.environ.get("ASSISTD_CODE_INTERPRETER_DIR"), "the runtime is not installed")
    def test_runs_code(self):
        file = self.client.files.upload_and_poll(
            file=("numbers.csv", b"n\n20\n22\n"), purpose=FilePurpose.AGENTS, polling_interval=0.05
        )
        tool = CodeInterpreterTool(file_ids=[file.id])
        agent = self.client.create_agent(
            model="code", name="n", tools=tool.definitions, tool_resources=tool.resources
        )
        thread = self.client.threads.create()
        code = (
            "import csv\nrows = list(csv.DictReader(open('/mnt/data/numbers.csv')))\n"
            "open('/mnt/data/out.csv', 'w').write('x')\nsum(int(row['n']) for row in rows)"
        )
        self.client.messages.create(thread_id=thread.id, role="user", content=code)
        run = self.client.runs.create_and_process(thread_id=thread.id, agent_id=agent.id, polling_interval=0.05)
        self.assertEqual(run.status, "completed", run)
        steps = list(self.client.run_steps.list(thread_id=thread.id, run_id=run.id))
        (call,) = [call for step in steps if step.type == "tool_calls" for call in step.step_details.tool_calls]
        self.assertEqual((call.code_interpreter.input, call.code_interpreter.outputs[0].logs), (code, "42\n"))
        answer = self.client.messages.get_last_message_by_role(thread_id=thread.id, role=MessageRole.AGENT)
        (annotation,) = answer.file_path_annotations
        self.assertEqual(b"".join(self.client.files.get_content(annotation.file_path.file_id)), b"x")
        handler = Handler()
        with self.client.runs.stream(thread_id=thread.id, agent_id=agent.id, event_handler=handler) as stream:
            stream.until_done()
        self.assertEqual((handler.states[-1], handler.unexpected, handler.is_done), ("completed", [], True))

    def test_creates_a_run_asynchronously(self):
        async def flow():
            async with AsyncAgentsClient(PROJECT, AsyncToken(), per_call_policies=[AllowHttp()]) as client:
                agent = await client.create_agent(model="words", name="n")
                thread = await client.threads.create()
                await client.messages.create(thread_id=thread.id, role="user", content="Hi")
                process = client.runs.create_and_process
                run = await process(thread_id=thread.id, agent_id=agent.id, polling_interval=0.05)
                return run.status, len([message async for message in client.messages.list(thread_id=thread.id)])

        self.assertEqual(asyncio.run(flow()), ("completed", 2))


sys.exit(suite.run(sys.modules[__name__]))
