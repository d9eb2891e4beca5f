"""Files and uploads."""

import hashlib
import io

import openai

from cases.common import Case, client

NAME = "naïve 你好.jsonl"
LINES = b'{"custom_id": "1"}\n' * 100_000


class FileTest(Case):
    def test_is_created_listed_retrieved_downloaded_and_deleted(self):
        created = client.files.create(file=(NAME, LINES), purpose="batch")

        self.assertEqual((created.filename, created.bytes, created.purpose), (NAME, len(LINES), "batch"))
        self.assertEqual((created.status, created.expires_at - created.created_at), ("processed", 30 * 86_400))
        self.assertEqual(client.files.retrieve(created.id), created)
        self.assertEqual(client.files.wait_for_processing(created.id), created)
        self.assertEqual([file for file in client.files.list(purpose="batch") if file.id == created.id], [created])
        self.assertNotIn(created.id, [file.id for file in client.files.list(purpose="vision")])
        content = client.files.content(created.id)
        self.assertEqual(content.read(), LINES)
        self.assertIn("attachment; filename=", content.response.headers["content-disposition"])

        deleted = client.files.delete(created.id)

        self.assertEqual((deleted.id, deleted.deleted, deleted.object), (created.id, True, "file"))
        self.assert_rejected(
            openai.NotFoundError, f"No such File object: {created.id}", client.files.retrieve, created.id, param="id"
        )

    def test_list_pages_automatically(self):
        created = [client.files.create(file=(f"{number}.txt", b"x"), purpose="assistants").id for number in range(5)]

        listed = [file.id for file in client.files.list(limit=2, order="asc") if file.id in created]

        self.assertEqual(listed, created)
        for file in created:
            client.files.delete(file)

    def test_expires_when_the_client_wants(self):
        policy = {"anchor": "created_at", "seconds": 3_600}

        created = client.files.create(file=io.BytesIO(b"x"), purpose="user_data", expires_after=policy)

        self.assertEqual(created.expires_at - created.created_at, 3_600)
        client.files.delete(created.id)

    def test_is_rejected_with_the_texts_of_the_service(self):
        for file, purpose, text, param in (
            (("a.txt", b"x"), "batch", "Invalid file format for Batch API. Must be .jsonl", None),
            (("a.txt", b""), "assistants", "File is empty.", "file"),
            (
                ("a.txt", b"x"),
                "world_domination",
                "'world_domination' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals']"
                " - 'purpose'",
                "purpose",
            ),
        ):
            self.assert_rejected(
                openai.BadRequestError, text, client.files.create, file=file, purpose=purpose, param=param
            )


class UploadTest(Case):
    def test_parts_are_joined_in_the_requested_order(self):
        upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=6, mime_type="text/jsonl")
        self.assertEqual((upload.status, upload.expires_at - upload.created_at), ("pending", 3_600))
        second = client.uploads.parts.create(upload.id, data=b"}}}")
        first = client.uploads.parts.create(upload.id, data=b"{{{")
        self.assertEqual((first.upload_id, first.object), (upload.id, "upload.part"))

        md5 = hashlib.md5(b"{{{}}}").hexdigest()
        completed = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5)

        self.assertEqual((completed.status, completed.file.filename), ("completed", "a.jsonl"))
        self.assertEqual(client.files.content(completed.file.id).read(), b"{{{}}}")
        client.files.delete(completed.file.id)

    def test_is_cancelled(self):
        upload = client.uploads.create(filename="a.txt", purpose="assistants", bytes=6, mime_type="text/plain")

        cancelled = client.uploads.cancel(upload.id)

        self.assertEqual((cancelled.status, cancelled.file), ("cancelled", None))
        self.assert_rejected(
            openai.BadRequestError,
            "Cannot add parts to upload with status 'cancelled'.",
            client.uploads.parts.create,
            upload.id,
            data=b"x",
        )

    def test_a_large_file_is_sent_in_chunks(self):
        completed = client.uploads.upload_file_chunked(
            file=LINES, filename=NAME, bytes=len(LINES), purpose="batch", mime_type="text/jsonl", part_size=300_000
        )

        self.assertEqual((completed.status, completed.file.filename), ("completed", NAME))
        self.assertEqual(client.files.content(completed.file.id).read(), LINES)
        client.files.delete(completed.file.id)
