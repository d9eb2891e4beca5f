"""Invalid requests."""

import openai

from cases.common import QUICK, Case, assistant_of, assistants, client, thread_with, threads


class InvalidRequest(Case):
    def test_unknown_id_is_not_found(self):
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
                self.assert_rejected(openai.NotFoundError, text, call, *args, **kwargs)

    def test_malformed_id_is_rejected_with_the_expected_prefix(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.",
            threads.retrieve,
            "undefined",
            param="thread_id",
            code="invalid_value",
        )

    def test_invalid_body_is_rejected_with_the_parameter_name(self):
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
                self.assert_rejected(openai.BadRequestError, text, assistants.create, param=param, code=code, **members)

    def test_invalid_limit_is_rejected_with_the_maximum(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            assistants.list,
            limit=101,
            param="limit",
            code="integer_above_max_value",
        )

    def test_malformed_json_is_rejected(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            headers = {"content-type": "application/json"}
            client.post("/threads", cast_to=object, content=b"{", options={"headers": headers})

        self.assertTrue(caught.exception.body["message"].startswith("We could not parse the JSON body of your request."))

    def test_run_without_messages_and_instructions_is_rejected(self):
        self.assert_rejected(
            openai.BadRequestError,
            "Run creation requires a Thread with a user message or an assistant with instructions.",
            threads.runs.create,
            thread_with(),
            assistant_id=assistant_of("words"),
            stream=True,
            code="invalid_thread",
        )

    def test_cancelling_a_finished_run_is_rejected(self):
        thread_id = thread_with("Hi")
        run = threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant_of("words"), **QUICK)

        self.assert_rejected(
            openai.BadRequestError,
            "Cannot cancel run with status 'completed'.",
            threads.runs.cancel,
            run.id,
            thread_id=thread_id,
        )

    def test_unknown_url_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client.post("/nowhere", cast_to=object)

        message = caught.exception.body["message"]
        self.assertTrue(message.startswith("Invalid URL (POST /v1/nowhere). assistd does not serve this path"), message)

    def test_wrong_key_is_rejected_and_masked(self):
        wrong = client.with_options(api_key="sk-wrong-0123456789")

        with self.assertRaises(openai.AuthenticationError) as caught:
            wrong.beta.assistants.list()

        error = caught.exception
        self.assertEqual((error.status_code, error.code), (401, "invalid_api_key"))
        self.assertTrue(error.body["message"].startswith("Incorrect API key provided: sk-wr***89."), error.body)
