"""Vector stores, their search, and the file search of runs."""

import openai

from cases.common import QUICK, RUN_COMPLETED, RUN_STARTED, TEXT_STARTED, Case, client, texts_of, thread_with, threads

FOODS = "The favorite food of several people:\n- Ferdinand: tacos\n- Effie: pizza\n- Filip: cake"
MARK = "【4:0†foods.txt】"
STEP = ["thread.run.step.created", "thread.run.step.in_progress", "thread.run.step.delta", "thread.run.step.completed"]
DELTAS = ["thread.message.delta"] * 6


def vector_store(*files):
    store = client.vector_stores.create(name="Foods")
    batch = client.vector_stores.file_batches.upload_and_poll(vector_store_id=store.id, files=files, **QUICK)
    assert (batch.status, batch.file_counts.completed) == ("completed", len(files)), batch
    return store.id


def searching_assistant(model, store):
    resources = {"file_search": {"vector_store_ids": [store]}}
    return client.beta.assistants.create(model=model, tools=[{"type": "file_search"}], tool_resources=resources).id


class VectorStore(Case):
    def test_has_files_that_are_found(self):
        store = vector_store(("foods.txt", FOODS.encode()), ("ways.md", b"A way of four kilometres."))

        files = client.vector_stores.files.list(store, filter="completed").data
        self.assertEqual([file.status for file in files], ["completed", "completed"])
        found = client.vector_stores.search(store, query="What does Filip eat: cake?", max_num_results=1).data
        self.assertEqual([(result.filename, result.content[0].text) for result in found], [("foods.txt", FOODS)])
        self.assertTrue(0 < found[0].score <= 1, found)

        client.vector_stores.files.update(found[0].file_id, vector_store_id=store, attributes={"kind": "food"})
        other = {"type": "ne", "key": "kind", "value": "food"}
        found = client.vector_stores.search(store, query="cake kilometres", filters=other).data
        self.assertEqual([result.filename for result in found], ["ways.md"])
        content = client.vector_stores.files.content(found[0].file_id, vector_store_id=store).data
        self.assertEqual([part.text for part in content], ["A way of four kilometres."])

        client.vector_stores.files.delete(found[0].file_id, vector_store_id=store)
        self.assertEqual(client.vector_stores.search(store, query="kilometres").data, [])
        self.assertEqual(client.vector_stores.delete(store).deleted, True)
        self.assert_rejected(
            openai.NotFoundError, f"No vector store found with id '{store}'.", client.vector_stores.retrieve, store
        )

    def test_says_which_file_is_not_readable(self):
        store = client.vector_stores.create(name="Broken").id

        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store, file=("broken.pdf", b"%PDF-1.4 nothing follows"), **QUICK
        )

        self.assertEqual((file.status, file.last_error.code), ("failed", "invalid_file"))
        counts = client.vector_stores.retrieve(store).file_counts
        self.assertEqual((counts.failed, counts.completed, counts.total), (1, 0, 1))


class FileSearch(Case):
    def test_answers_a_polled_run_with_citations(self):
        assistant = searching_assistant("search", vector_store(("foods.txt", FOODS.encode())))
        thread = thread_with("What does Filip like? cake")

        run = threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant, **QUICK)

        self.assertEqual(run.status, "completed", run.last_error)
        self.assertEqual(texts_of(thread)[-1], ("assistant", f"It is cake {MARK}."))
        text = threads.messages.list(thread).data[0].content[0].text
        (annotation,) = text.annotations
        self.assertEqual(text.value[annotation.start_index : annotation.end_index], annotation.text)
        self.assertEqual(client.files.retrieve(annotation.file_citation.file_id).filename, "foods.txt")
        include = ["step_details.tool_calls[*].file_search.results[*].content"]
        steps = threads.runs.steps.list(run.id, thread_id=thread, order="asc", include=include).data
        (call,) = steps[0].step_details.tool_calls
        self.assertEqual((call.type, call.file_search.results[0].content[0].text), ("file_search", FOODS))

    def test_streams_its_steps_and_citations(self):
        store = vector_store(("foods.txt", FOODS.encode()))
        for model, order in (
            ("search", [*RUN_STARTED, *STEP, *TEXT_STARTED, *DELTAS, *RUN_COMPLETED]),
            (
                "talk-search",
                [
                    *RUN_STARTED,
                    *TEXT_STARTED,
                    *["thread.message.delta"] * 3,
                    *DELTAS,
                    *RUN_COMPLETED[:2],
                    *STEP,
                    *RUN_COMPLETED[2:],
                ],
            ),
        ):
            names, marks = [], []
            thread = thread_with("What does Filip like? cake")
            assistant = searching_assistant(model, store)
            with threads.runs.stream(thread_id=thread, assistant_id=assistant) as stream:
                for event in stream:
                    names.append(event.event)
                    if event.event == "thread.message.delta":
                        marks += event.data.delta.content[0].text.annotations or []
                final = stream.get_final_messages()[0]

            self.assertEqual(names, order)
            self.assertEqual([mark.text for mark in marks], [MARK])
            self.assertTrue(final.content[0].text.value.endswith(f"It is cake {MARK}."), final)
