// Vector stores: their files, batches, and search.

import assert from 'node:assert/strict';
import OpenAI, { toFile } from 'openai';

import { QUICK, all, assertRejected, assistants, client } from './common.mjs';

const { vectorStores } = client;
const file = (name, text) => toFile(Buffer.from(text), name);

export default {
  async 'a vector store is created, modified, listed and deleted'() {
    const created = await vectorStores.create({ name: 'n', expires_after: { anchor: 'last_active_at', days: 3 } });

    assert.deepEqual([created.status, created.file_counts.total], ['completed', 0]);
    assert.deepEqual(await vectorStores.retrieve(created.id), created);
    assert.equal((await vectorStores.update(created.id, { name: 'm' })).name, 'm');
    assert.ok((await all(vectorStores.list({ limit: 2 }))).some(({ id }) => id === created.id));
    assert.equal((await vectorStores.delete(created.id)).deleted, true);
    const message = `No vector store found with id '${created.id}'.`;
    await assertRejected(vectorStores.retrieve(created.id), OpenAI.NotFoundError, message);
  },

  async 'a batch of files is uploaded, polled and searched'() {
    const { id } = await vectorStores.create({});
    const files = [await file('a.txt', 'Rome was not built in a day.'), await file('b.txt', 'A cake needs an hour.')];

    const batch = await vectorStores.fileBatches.uploadAndPoll(id, { files }, QUICK);

    assert.deepEqual([batch.status, batch.file_counts.completed, batch.file_counts.total], ['completed', 2, 2]);
    const listed = await all(vectorStores.fileBatches.listFiles(batch.id, { vector_store_id: id, limit: 1 }));
    assert.deepEqual(listed.map(({ status }) => status), ['completed', 'completed']);
    const [best] = await all(vectorStores.search(id, { query: 'How long does a cake take?' }));
    assert.equal(best.filename, 'b.txt');
    const [part] = await all(vectorStores.files.content(best.file_id, { vector_store_id: id }));
    assert.equal(part.text, 'A cake needs an hour.');
    await vectorStores.delete(id);
    for (const { id } of listed) await client.files.delete(id);
  },

  async 'a file is added and polled, and one that is not supported is rejected'() {
    const { id } = await vectorStores.create({});

    const added = await vectorStores.files.uploadAndPoll(id, await file('a.md', '# Title'), QUICK);

    assert.deepEqual([added.status, added.last_error, added.chunking_strategy.static.max_chunk_size_tokens], [
      'completed', null, 800,
    ]);
    const { id: table } = await client.files.create({ file: await file('a.csv', '1,2'), purpose: 'assistants' });
    const message = 'Files with extensions [.csv] are not supported for retrieval. Supported extensions: ' +
      'c, cpp, cs, css, doc, docx, go, html, java, js, json, md, pdf, php, pptx, py, rb, sh, tex, ts, txt.';
    const options = { param: 'file_ids', code: 'unsupported_file' };
    const rejected = vectorStores.fileBatches.createAndPoll(id, { file_ids: [added.id, table] });
    await assertRejected(rejected, OpenAI.BadRequestError, message, options);
    assert.equal((await vectorStores.files.delete(added.id, { vector_store_id: id })).deleted, true);
    await vectorStores.delete(id);
    for (const file of [added.id, table]) await client.files.delete(file);
  },

  async 'a vector store is created with an assistant'() {
    const { id } = await client.files.create({ file: await file('a.txt', 'text'), purpose: 'assistants' });
    const resources = { file_search: { vector_stores: [{ file_ids: [id] }] } };

    const assistant = await assistants.create({ model: 'gpt-4o', tool_resources: resources });

    const [store] = assistant.tool_resources.file_search.vector_store_ids;
    assert.equal((await vectorStores.files.poll(store, id, QUICK)).status, 'completed');
    assert.equal((await vectorStores.retrieve(store)).expires_at, null);
    await assistants.delete(assistant.id);
    await vectorStores.delete(store);
    await client.files.delete(id);
  },
};
