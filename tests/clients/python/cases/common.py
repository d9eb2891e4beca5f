"""The client, and what the tests have in common."""

import unittest

import openai

import contract

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
