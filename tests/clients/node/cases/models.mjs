// Models, chat completions, and Azure's client.

import assert from 'node:assert/strict';
import { AzureOpenAI } from 'openai';

import { ANSWER, QUICK, all, client } from './common.mjs';

export default {
  async 'models are listed and retrieved'() {
    const names = (await all(client.models.list())).map(({ id }) => id);
    assert.ok(names.includes('words'), names);
    assert.equal((await client.models.retrieve('words')).id, 'words');
  },

  async "Azure's client uses the API"() {
    const endpoint = client.baseURL.replace(/\/v1$/, '');
    const settings = { apiKey: client.apiKey, apiVersion: '2024-05-01-preview', maxRetries: 0 };
    // The base URL in the environment belongs to the other client.
    const azure = new AzureOpenAI({ endpoint, baseURL: null, ...settings });
    const assistant = await azure.beta.assistants.create({ model: 'words' });
    const thread = await azure.beta.threads.create({ messages: [{ role: 'user', content: 'Hi' }] });
    const run = await azure.beta.threads.runs.createAndPoll(thread.id, { assistant_id: assistant.id }, QUICK);
    assert.equal(run.status, 'completed');
    const events = await all(azure.beta.threads.runs.stream(thread.id, { assistant_id: assistant.id }));
    assert.equal(events.at(-1).event, 'thread.run.completed');
    const body = { model: 'words', messages: [{ role: 'user', content: 'Hi' }] };
    const whole = await azure.chat.completions.create(body);
    assert.equal(whole.choices[0].message.content, ANSWER);
  },

  async 'a chat completion is created and streamed'() {
    const body = { model: 'words', messages: [{ role: 'user', content: 'Hi' }] };
    const whole = await client.chat.completions.create(body);
    const chunks = await all(await client.chat.completions.create({ ...body, stream: true }));
    assert.equal(whole.choices[0].message.content, ANSWER);
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''), ANSWER);
  },
};
