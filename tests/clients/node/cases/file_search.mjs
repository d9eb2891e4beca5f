// Vector stores, their search, and the file search of runs.

import assert from 'node:assert/strict';
import { toFile } from 'openai';

import { QUICK, RUN_COMPLETED, RUN_STARTED, TEXT_STARTED, client, record, threadWith, threads } from './common.mjs';

const FOODS = 'The favorite food of several people:\n- Ferdinand: tacos\n- Effie: pizza\n- Filip: cake';
const MARK = '【4:0†foods.txt】';

async function vectorStore() {
  const { id } = await client.vectorStores.create({ name: 'Foods' });
  const files = [await toFile(Buffer.from(FOODS), 'foods.txt'), await toFile(Buffer.from('Four kilometres.'), 'ways.md')];
  const batch = await client.vectorStores.fileBatches.uploadAndPoll(id, { files }, QUICK);
  assert.deepEqual([batch.status, batch.file_counts.completed], ['completed', 2]);
  return id;
}

async function searchingAssistant(model) {
  const resources = { file_search: { vector_store_ids: [await vectorStore()] } };
  const body = { model, tools: [{ type: 'file_search' }], tool_resources: resources };
  return (await client.beta.assistants.create(body)).id;
}

export default {
  async 'a vector store is searched'() {
    const store = await vectorStore();

    const { data } = await client.vectorStores.search(store, { query: 'What does Filip eat: cake?', max_num_results: 1 });

    assert.deepEqual(data.map(({ filename, content }) => [filename, content[0].text]), [['foods.txt', FOODS]]);
  },

  async 'a streamed run searches files and cites them'() {
    const thread = await threadWith('What does Filip like? cake');

    const stream = threads.runs.stream(thread, { assistant_id: await searchingAssistant('search') });
    const log = record(stream);
    const run = await stream.finalRun();

    assert.equal(run.status, 'completed');
    const step = ['created', 'in_progress', 'delta', 'completed'].map((name) => `thread.run.step.${name}`);
    const deltas = Array(6).fill('thread.message.delta');
    assert.deepEqual(log.events, [...RUN_STARTED, ...step, ...TEXT_STARTED, ...deltas, ...RUN_COMPLETED]);
    const [message] = await stream.finalMessages();
    assert.equal(message.content[0].text.value, `It is cake ${MARK}.`);
    assert.deepEqual(message.content[0].text.annotations.map(({ text }) => text), [MARK]);
  },
};
