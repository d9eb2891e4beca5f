"""Vector stores: their files, batches, and search."""

import openai

from cases.common import Case, QUICK, client, threads

stores = client.vector_stores


class VectorStoreTest(Case):
    def create(self, **members):
        store = stores.create(**members)
        self.addCleanup(stores.delete, store.id)
        return store

    def upload(self, name, text):
        file = client.files.create(file=(name, text), purpose="assistants")
        self.addCleanup(client.files.delete, file.id)
        return file.id

    def test_is_created_modified_listed_and_deleted(self):
        policy = {"anchor": "last_active_at", "days": 3}
        created = stores.create(name="n", expires_after=policy, metadata={"k": "v"})

        self.assertEqual((created.status, created.file_counts.total, created.usage_bytes), ("completed", 0, 0))
        self.assertEqual(created.expires_at - created.last_active_at, 3 * 86_400)
        self.assertEqual(stores.retrieve(created.id), created)
        modified = stores.update(created.id, name="m", metadata={})
        self.assertEqual((modified.name, modified.metadata), ("m", {}))
        self.assertIn(created.id, [store.id for store in stores.list(limit=2)])
        self.assertTrue(stores.delete(created.id).deleted)
        text = f"No vector store found with id '{created.id}'."
        self.assert_rejected(openai.NotFoundError, text, stores.retrieve, created.id)

    def test_a_batch_is_uploaded_and_polled(self):
        store = self.create()
        texts = {"a.txt": b"Rome was not built in a day.", "b.md": b"# Cake\n\nIt needs an hour.", "c.py": b"print(1)"}

        batch = stores.file_batches.upload_and_poll(store.id, files=list(texts.items()), **QUICK)

        self.assertEqual((batch.status, batch.file_counts.completed, batch.file_counts.total), ("completed", 3, 3))
        files = list(stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=2))
        self.assertEqual({file.status for file in files}, {"completed"})
        found = {client.files.retrieve(file.id).filename: file for file in files}
        self.assertEqual(set(found), set(texts))
        for name, text in texts.items():
            content = stores.files.content(found[name].id, vector_store_id=store.id)
            self.assertEqual("".join(part.text for part in content), text.decode())
        self.assertGreater(stores.retrieve(store.id).usage_bytes, 0)
        results = stores.search(store.id, query="How long does a cake take?", max_num_results=1)
        self.assertEqual([result.filename for result in results], ["b.md"])
        cancelled = stores.file_batches.cancel(batch.id, vector_store_id=store.id)
        self.assertEqual(cancelled, batch, "a finished batch is unchanged")
        for file in files:
            client.files.delete(file.id)
        self.assertEqual(stores.retrieve(store.id).file_counts.total, 0)

    def test_files_have_attributes_that_searches_filter_by(self):
        store = self.create()
        for number, color in enumerate(("red", "blue")):
            file = self.upload(f"{color}.txt", f"The house is {color}.".encode())
            attributes = {"color": color, "number": number, "new": True}
            done = stores.files.create_and_poll(file, vector_store_id=store.id, attributes=attributes, **QUICK)
            self.assertEqual((done.status, done.last_error, done.attributes), ("completed", None, attributes))

        def search(filters):
            found = stores.search(store.id, query="house", filters=filters)
            return sorted(result.filename for result in found)

        self.assertEqual(search({"type": "eq", "key": "color", "value": "red"}), ["red.txt"])
        self.assertEqual(search({"type": "gte", "key": "number", "value": 1}), ["blue.txt"])
        both = [{"type": "eq", "key": "new", "value": True}, {"type": "in", "key": "color", "value": ["red", "blue"]}]
        self.assertEqual(search({"type": "and", "filters": both}), ["blue.txt", "red.txt"])
        changed = stores.files.update(file, vector_store_id=store.id, attributes={"color": "green"})
        self.assertEqual(changed.attributes, {"color": "green"})
        self.assertEqual(search({"type": "eq", "key": "color", "value": "blue"}), [])
        self.assertTrue(stores.files.delete(file, vector_store_id=store.id).deleted)
        self.assertEqual([file.status for file in stores.files.list(store.id, filter="completed")], ["completed"])

    def test_a_file_that_cannot_be_read_fails_alone(self):
        store = self.create()
        good, bad = self.upload("a.txt", b"text"), self.upload("b.pdf", b"%PDF-1.7 broken")

        batch = stores.file_batches.create_and_poll(store.id, file_ids=[good, bad], **QUICK)

        self.assertEqual((batch.status, batch.file_counts.completed, batch.file_counts.failed), ("completed", 1, 1))
        failed = stores.files.retrieve(bad, vector_store_id=store.id)
        self.assertEqual((failed.status, failed.last_error.code), ("failed", "invalid_file"))
        table = self.upload("c.csv", b"1,2")
        text = (
            "Files with extensions [.csv] are not supported for retrieval. Supported extensions:"
            " c, cpp, cs, css, doc, docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt."
        )
        self.assert_rejected(
            openai.BadRequestError,
            text,
            stores.files.create,
            store.id,
            file_id=table,
            param="file_ids",
            code="unsupported_file",
        )

    def test_attachments_are_added_to_the_vector_store_of_the_thread(self):
        file = self.upload("a.txt", b"text")
        attachment = {"file_id": file, "tools": [{"type": "file_search"}, {"type": "code_interpreter"}]}

        thread = threads.create(messages=[{"role": "user", "content": "Hi", "attachments": [attachment]}])

        (store,) = thread.tool_resources.file_search.vector_store_ids
        self.addCleanup(stores.delete, store)
        self.assertEqual(thread.tool_resources.code_interpreter.file_ids, [file])
        self.assertEqual(stores.files.poll(file, vector_store_id=store, **QUICK).status, "completed")
        self.assertEqual(stores.retrieve(store).expires_after.days, 7)
        other = self.upload("b.txt", b"text")
        tools = [{"type": "file_search"}]
        threads.messages.create(
            thread.id, role="user", content="Hi", attachments=[{"file_id": other, "tools": tools}]
        )
        self.assertEqual([file.id for file in stores.files.list(store, order="asc")], [file, other])
        threads.delete(thread.id)
