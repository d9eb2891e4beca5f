"""The code interpreter of runs: the flow of OpenAI's guide, polled and with the stream helpers."""

import os
import unittest

from openai import AssistantEventHandler

from cases.common import QUICK, Case, client, thread_with, threads

CODE = """import pandas as pd
import matplotlib.pyplot as plt
sales = pd.read_csv('/mnt/data/sales.csv')
sales['total'] = sales.price * sales.number
print('total', int(sales.total.sum()))
sales.to_csv('/mnt/data/out.csv', index=False)
plt.bar(sales.name, sales.total)
plt.show()"""
ANSWER = "Here it is: [out](sandbox:/mnt/data/out.csv)."


class Handler(AssistantEventHandler):
    def __init__(self):
        super().__init__()
        self.code, self.logs, self.images, self.text, self.shown = "", "", [], "", []

    def on_tool_call_delta(self, delta, snapshot):
        self.code += delta.code_interpreter.input or ""
        for output in delta.code_interpreter.outputs or []:
            self.logs += output.logs if output.type == "logs" else ""
            self.images += [output.image.file_id] if output.type == "image" else []

    def on_image_file_done(self, image_file):
        self.shown.append(image_file.file_id)

    def on_text_delta(self, delta, snapshot):
        self.text += delta.value or ""


@unittest.skipUnless(os.environ.get("ASSISTD_CODE_INTERPRETER_DIR"), "the runtime is not installed")
class CodeInterpreter(Case):
    def setUp(self):
        super().setUp()
        data = b"name,price,number\na,2,3\nb,5,1\n"
        self.file = client.files.create(file=("sales.csv", data), purpose="assistants").id
        resources = {"code_interpreter": {"file_ids": [self.file]}}
        self.assistant = client.beta.assistants.create(
            model="code", tools=[{"type": "code_interpreter"}], tool_resources=resources
        ).id
        self.thread = thread_with(CODE)

    def check_message(self, image):
        (message,) = threads.messages.list(self.thread, order="desc", limit=1).data
        picture, text = message.content
        self.assertEqual((picture.type, picture.image_file.file_id), ("image_file", image))
        self.assertTrue(client.files.content(image).read().startswith(b"\x89PNG"))
        self.assertEqual(text.text.value, ANSWER)
        (annotation,) = text.text.annotations
        self.assertEqual(annotation.type, "file_path")
        self.assertEqual(ANSWER[annotation.start_index : annotation.end_index], "sandbox:/mnt/data/out.csv")
        written = client.files.content(annotation.file_path.file_id).read()
        self.assertEqual(written, b"name,price,number,total\na,2,3,6\nb,5,1,5\n")
        self.assertEqual(client.files.retrieve(annotation.file_path.file_id).purpose, "assistants_output")

    def test_gives_files_and_plots_to_a_polled_run(self):
        run = threads.runs.create_and_poll(thread_id=self.thread, assistant_id=self.assistant, **QUICK)

        self.assertEqual(run.status, "completed", run.last_error)
        steps = threads.runs.steps.list(run.id, thread_id=self.thread, order="asc").data
        (call,) = steps[0].step_details.tool_calls
        logs, image = call.code_interpreter.outputs
        self.assertEqual((call.code_interpreter.input, logs.logs), (CODE, "total 11\n"))
        self.check_message(image.image.file_id)

    def test_streams_code_outputs_and_images(self):
        handler = Handler()
        with threads.runs.stream(
            thread_id=self.thread, assistant_id=self.assistant, event_handler=handler
        ) as stream:
            stream.until_done()

        self.assertEqual((handler.code, handler.logs, handler.text), (CODE, "total 11\n", ANSWER))
        self.assertEqual((len(handler.images), handler.shown), (1, handler.images))
        self.check_message(handler.images[0])

    def test_keeps_variables_between_runs(self):
        threads.runs.create_and_poll(thread_id=self.thread, assistant_id=self.assistant, **QUICK)
        threads.messages.create(self.thread, role="user", content="int(sales.total.max())")
        run = threads.runs.create_and_poll(thread_id=self.thread, assistant_id=self.assistant, **QUICK)

        step = threads.runs.steps.list(run.id, thread_id=self.thread, order="asc").data[0]
        self.assertEqual(step.step_details.tool_calls[0].code_interpreter.outputs[0].logs, "6\n")
