// Assistants.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

import { all, assertRejected, assistantOf, assistants } from './common.mjs';

export default {
  async 'an assistant is created, retrieved, modified and deleted'() {
    const created = await assistants.create({
      model: 'words', name: 'Ada', description: 'counts', instructions: 'Count.', metadata: { team: 'one' },
      temperature: 0.5,
    });
    const { name, description, instructions, temperature } = created;
    assert.deepEqual([name, description, instructions, temperature], ['Ada', 'counts', 'Count.', 0.5]);
    assert.deepEqual(await assistants.retrieve(created.id), created);

    const changed = await assistants.update(created.id, { name: 'Bea', metadata: { team: 'two' } });
    assert.deepEqual([changed.name, changed.metadata, changed.instructions], ['Bea', { team: 'two' }, 'Count.']);

    const deleted = await assistants.delete(created.id);
    assert.deepEqual([deleted.id, deleted.object, deleted.deleted], [created.id, 'assistant.deleted', true]);
    const message = `No assistant found with id '${created.id}'.`;
    await assertRejected(assistants.retrieve(created.id), OpenAI.NotFoundError, message);
  },

  async 'a list of assistants pages automatically in both orders'() {
    const created = [];
    for (let number = 0; number < 5; number++) created.push(await assistantOf('words'));

    const ids = async (order) =>
      (await all(assistants.list({ limit: 2, order }))).map(({ id }) => id).filter((id) => created.includes(id));

    assert.deepEqual(await ids('desc'), [...created].reverse());
    assert.deepEqual(await ids('asc'), created);
    const between = await assistants.list({ order: 'asc', after: created[0], before: created[4] });
    assert.deepEqual(between.data.map(({ id }) => id), created.slice(1, 4));
  },
};
