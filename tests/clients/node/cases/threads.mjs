// Threads and their messages.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

import { all, assertRejected, client, messages, textOf, textsOf, threadWith, threads } from './common.mjs';

export default {
  async 'a thread is created, retrieved, modified and deleted'() {
    const created = await threads.create({ messages: [{ role: 'user', content: 'Hi' }], metadata: { a: 'b' } });
    // As in the recording.
    const tool_resources = { code_interpreter: { file_ids: [] } };
    assert.deepEqual(await threads.retrieve(created.id), { ...created, tool_resources });
    assert.deepEqual(await textsOf(created.id), [['user', 'Hi']]);

    const changed = await threads.update(created.id, { metadata: { a: 'c' } });
    assert.deepEqual(changed.metadata, { a: 'c' });

    assert.equal((await threads.delete(created.id)).deleted, true);
    await assertRejected(threads.retrieve(created.id), OpenAI.NotFoundError, `No thread found with id '${created.id}'.`);
  },

  async 'threads are listed'() {
    const created = [await threadWith(), await threadWith()];

    const list = await client.get('/threads', { query: { limit: 2 } });

    assert.equal(list.object, 'list');
    assert.deepEqual(list.data.map(({ id }) => id), [...created].reverse());
  },

  async 'a message is created, retrieved, modified and deleted'() {
    const thread_id = await threadWith();
    const created = await messages.create(thread_id, { role: 'user', content: 'Ünïcödé 日本語 🙂', metadata: { a: 'b' } });
    assert.equal(textOf(created), 'Ünïcödé 日本語 🙂');
    assert.deepEqual(await messages.retrieve(created.id, { thread_id }), created);

    const changed = await messages.update(created.id, { thread_id, metadata: { a: 'c' } });
    assert.deepEqual(changed.metadata, { a: 'c' });

    assert.equal((await messages.delete(created.id, { thread_id })).deleted, true);
    await assertRejected(
      messages.retrieve(created.id, { thread_id }), OpenAI.NotFoundError, `No message found with id '${created.id}'.`,
    );
  },

  async 'a list of messages is in insertion order'() {
    const texts = Array.from({ length: 7 }, (_, number) => `text ${number}`);
    const thread_id = await threadWith(...texts.slice(0, 4));
    for (const content of texts.slice(4)) await messages.create(thread_id, { role: 'user', content });

    const newest = (await all(messages.list(thread_id, { limit: 3 }))).map(textOf);

    assert.deepEqual(newest, [...texts].reverse());
  },
};
