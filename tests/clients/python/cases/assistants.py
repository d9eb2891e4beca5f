"""Assistants."""

import openai

from cases.common import Case, assistant_of, assistants


class AssistantTest(Case):
    def test_is_created_retrieved_modified_and_deleted(self):
        created = assistants.create(
            model="words",
            name="Ada",
            description="counts",
            instructions="Count.",
            metadata={"team": "one"},
            temperature=0.5,
            top_p=0.9,
        )

        self.assertEqual((created.name, created.description, created.instructions), ("Ada", "counts", "Count."))
        self.assertEqual((created.temperature, created.top_p, created.metadata), (0.5, 0.9, {"team": "one"}))
        self.assertEqual(assistants.retrieve(created.id), created)

        changed = assistants.update(created.id, name="Bea", metadata={"team": "two"})

        self.assertEqual((changed.name, changed.metadata, changed.instructions), ("Bea", {"team": "two"}, "Count."))
        self.assertEqual(assistants.retrieve(created.id), changed)

        deleted = assistants.delete(created.id)

        self.assertEqual((deleted.id, deleted.deleted, deleted.object), (created.id, True, "assistant.deleted"))
        self.assert_rejected(
            openai.NotFoundError, f"No assistant found with id '{created.id}'.", assistants.retrieve, created.id
        )

    def test_list_pages_automatically_in_both_orders(self):
        created = [assistant_of("words", name=f"page {number}") for number in range(5)]

        newest = assistants.list(limit=2)
        listed = [assistant.id for assistant in newest if assistant.id in created]
        oldest = [assistant.id for assistant in assistants.list(limit=2, order="asc") if assistant.id in created]

        self.assertEqual(listed, created[::-1])
        self.assertEqual(oldest, created)
        self.assertTrue(newest.has_more)

        between = assistants.list(order="asc", after=created[0], before=created[4])

        self.assertEqual([assistant.id for assistant in between.data], created[1:4])
