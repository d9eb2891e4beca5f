"""Replies that are sent before the request body was read: they arrive, and the next request of the same client succeeds."""

import asyncio
import time
import unittest

import openai

# Not the recorded client: the large bodies and the unknown path are not of interest to the contract.
client = openai.OpenAI(max_retries=0)
SIZES = [0, 10_000, 1_000_000, 5_000_000, 34_000_000, 60_000_000]
TOO_LARGE = 33_554_432
WRONG_KEY = {"Authorization": "Bearer sk-wrong-0123456789"}
# Status, method, path and headers of the rejections.
REJECTIONS = [
    (401, "POST", "/assistants", WRONG_KEY),
    (404, "POST", "/nothing", {}),
    (405, "PUT", "/assistants", {}),
    (400, "POST", "/threads/undefined/messages", {}),
    (415, "POST", "/assistants", {"Content-Type": "text/plain"}),
]


def rejections(size):
    too_large = [(413, "POST", "/assistants", {})] if size > TOO_LARGE else []
    return REJECTIONS + too_large


def body_of(size):
    return {"model": "words", "instructions": "x" * size}


class EarlyReply(unittest.TestCase):
    def check(self, error, status):
        self.assertEqual(error.status_code, status)
        self.assertIsInstance(error.body["message"], str)

    def test_rejection_arrives_whatever_the_size_of_the_body(self):
        for size in SIZES:
            for status, method, path, headers in rejections(size):
                with self.subTest(status=status, size=size):
                    with self.assertRaises(openai.APIStatusError) as caught:
                        call = client.put if method == "PUT" else client.post
                        call(path, cast_to=object, body=body_of(size), options={"headers": headers})
                    self.check(caught.exception, status)
                    client.beta.assistants.list(limit=1)

    def test_rejection_arrives_with_the_asynchronous_client(self):
        async def flow(size):
            async with openai.AsyncOpenAI(max_retries=0) as asynchronous:
                for status, method, path, headers in rejections(size):
                    with self.subTest(status=status, size=size):
                        with self.assertRaises(openai.APIStatusError) as caught:
                            call = asynchronous.put if method == "PUT" else asynchronous.post
                            await call(path, cast_to=object, body=body_of(size), options={"headers": headers})
                        self.check(caught.exception, status)
                        await asynchronous.beta.assistants.list(limit=1)

        for size in (10_000, 5_000_000, 60_000_000):
            asyncio.run(flow(size))

    def test_rejection_of_a_body_of_unknown_size_arrives(self):
        def pieces(count, pause):
            for _ in range(count):
                yield b"x" * 50_000
                if pause:
                    time.sleep(pause)

        http = openai.DefaultHttpxClient(headers={"Authorization": f"Bearer {client.api_key}"})
        with http:
            for count, pause in ((100, 0), (3, 0.1)):
                for status, method, path, headers in REJECTIONS:
                    with self.subTest(status=status, count=count, pause=pause):
                        url = f"{client.base_url}{path.removeprefix('/')}"
                        headers = {"Content-Type": "application/json", **headers}
                        reply = http.request(method, url, headers=headers, content=pieces(count, pause))
                        self.assertEqual(reply.status_code, status)
                        self.assertIn("message", reply.json()["error"])
                        self.assertEqual(http.get(f"{client.base_url}assistants?limit=1").status_code, 200)
