"""Models and chat completions."""

import openai

from cases.common import ANSWER, FUNCTIONS, WEATHER_ARGUMENTS, Case, client


class ModelTest(Case):
    def test_is_listed_and_retrieved(self):
        names = [model.id for model in client.models.list()]

        self.assertLessEqual({"words", "slow"}, set(names))
        self.assertEqual(client.models.retrieve("words").id, "words")
        self.assert_rejected(
            openai.NotFoundError,
            "The model 'fake_id' does not exist",
            client.models.retrieve,
            "fake_id",
            param="model",
            code="model_not_found",
        )

    def test_creates_a_chat_completion(self):
        answer = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "Hi"}])

        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.usage.total_tokens, 19)

    def test_streams_a_chat_completion(self):
        stream = client.chat.completions.create(
            model="words",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)

        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, ANSWER)
        self.assertEqual(chunks[-1].usage.total_tokens, 19)

    def test_calls_a_function_in_a_chat_completion(self):
        messages = [{"role": "user", "content": "Hi"}]
        answer = client.chat.completions.create(model="tool", messages=messages, tools=FUNCTIONS)

        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        self.assertEqual(answer.choices[0].message.tool_calls[0].function.arguments, WEATHER_ARGUMENTS)

    def test_error_of_a_chat_completion_is_forwarded(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="limit", messages=[{"role": "user", "content": "Hi"}])

        self.assertIsInstance(caught.exception, openai.RateLimitError)
