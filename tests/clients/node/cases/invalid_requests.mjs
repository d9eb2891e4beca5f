// Invalid requests.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

import { assertRejected, assistantOf, assistants, client, messages, runs, threadWith, threads } from './common.mjs';

export default {
  async 'an unknown id is not found'() {
    const thread_id = await threadWith();
    const { NotFoundError } = OpenAI;
    await assertRejected(threads.retrieve('thread_x'), NotFoundError, "No thread found with id 'thread_x'.");
    await assertRejected(runs.retrieve('run_x', { thread_id }), NotFoundError, "No run found with id 'run_x'.");
    await assertRejected(messages.list('thread_x'), NotFoundError, "No thread found with id 'thread_x'.");
  },

  async 'malformed ids are rejected'() {
    await assertRejected(
      messages.list(undefined + ''), OpenAI.BadRequestError,
      "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.",
      { param: 'thread_id', code: 'invalid_value' },
    );
  },

  async 'an invalid body is rejected with the parameter name'() {
    const { BadRequestError } = OpenAI;
    await assertRejected(
      assistants.create({ model: 'words', foo: 1 }), BadRequestError, "Unknown parameter: 'foo'.",
      { param: 'foo', code: 'unknown_parameter' },
    );
    await assertRejected(
      runs.create(await threadWith('Hi'), {}), BadRequestError, "Missing required parameter: 'assistant_id'.",
      { param: 'assistant_id', code: 'missing_required_parameter' },
    );
    await assertRejected(
      runs.stream(await threadWith(), { assistant_id: await assistantOf('words') }).done(), BadRequestError,
      'Run creation requires a Thread with a user message or an assistant with instructions.', { code: 'invalid_thread' },
    );
  },

  async 'a wrong key is rejected and masked'() {
    const error = await client.withOptions({ apiKey: 'sk-wrong-0123456789' }).models.list().catch((error) => error);
    assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
    assert.equal(error.code, 'invalid_api_key');
    assert.match(error.message, /Incorrect API key provided: sk-wr\*\*\*89\./);
  },
};
