"""Threads and their messages."""

import openai
from openai.pagination import SyncCursorPage
from openai.types.beta import Thread

from cases.common import Case, client, text_of, texts_of, thread_with, threads


class ThreadTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        created = threads.create(messages=[{"role": "user", "content": "Hi"}], metadata={"a": "b"})

        self.assertEqual(created.metadata, {"a": "b"})
        read = threads.retrieve(created.id)
        self.assertEqual(read.tool_resources.code_interpreter.file_ids, [], "as in the recording")
        read.tool_resources = created.tool_resources
        self.assertEqual(read, created)
        self.assertEqual(texts_of(created.id), [("user", "Hi")])

        changed = threads.update(created.id, metadata={"a": "c"})

        self.assertEqual(changed.metadata, {"a": "c"})

        self.assertTrue(threads.delete(created.id).deleted)
        message = f"No thread found with id '{created.id}'."
        self.assert_rejected(openai.NotFoundError, message, threads.retrieve, created.id)
        self.assert_rejected(openai.NotFoundError, message, threads.messages.list, created.id)

    def test_threads_are_listed_and_paged_automatically(self):
        created = [threads.create().id for _ in range(5)]

        first = client.get("/threads", cast_to=object, options={"params": {"limit": 2}})
        pages = client.get_api_list(
            "/threads", page=SyncCursorPage[Thread], model=Thread, options={"params": {"limit": 2}}
        )
        listed = [thread.id for thread in pages if thread.id in created]

        self.assertEqual((first["object"], len(first["data"]), first["has_more"]), ("list", 2, True))
        self.assertEqual(first["last_id"], first["data"][-1]["id"])
        self.assertEqual(listed, created[::-1])


class MessageTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        thread_id = thread_with()

        created = threads.messages.create(thread_id, role="user", content="Hello", metadata={"a": "b"})

        actual = (created.role, text_of(created), created.status, created.run_id)
        self.assertEqual(actual, ("user", "Hello", "completed", None))
        self.assertEqual(threads.messages.retrieve(created.id, thread_id=thread_id), created)

        changed = threads.messages.update(created.id, thread_id=thread_id, metadata={"a": "c"})

        self.assertEqual((changed.metadata, text_of(changed)), ({"a": "c"}, "Hello"))

        self.assertTrue(threads.messages.delete(created.id, thread_id=thread_id).deleted)
        self.assert_rejected(
            openai.NotFoundError,
            f"No message found with id '{created.id}'.",
            threads.messages.retrieve,
            created.id,
            thread_id=thread_id,
        )

    def test_list_is_in_insertion_order_and_pages_automatically(self):
        texts = [f"text {number}" for number in range(7)]
        thread_id = thread_with(*texts[:4])
        for text in texts[4:]:
            threads.messages.create(thread_id, role="user", content=text)

        newest = [text_of(message) for message in threads.messages.list(thread_id, limit=3)]

        self.assertEqual(newest, texts[::-1])
        self.assertEqual(texts_of(thread_id), [("user", text) for text in texts])

    def test_content_parts_are_stored(self):
        thread_id = thread_with()
        parts = [
            {"type": "text", "text": "Ünïcödé 日本語 🙂"},
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        ]

        created = threads.messages.create(thread_id, role="user", content=parts)

        self.assertEqual(created.content[0].text.value, "Ünïcödé 日本語 🙂")
        self.assertEqual(created.content[1].image_url.url, "https://example.com/cat.png")
        self.assertEqual(created.content[1].image_url.detail, "auto")
