// Failures of the model server.

import assert from 'node:assert/strict';

import { QUICK, assistantOf, messages, oneStep, record, runs, textOf, textsOf, threadWith } from './common.mjs';

export default {
  async 'a model server error fails the run with its code'() {
    for (const [model, code] of [['fail', 'server_error'], ['limit', 'rate_limit_exceeded']]) {
      const thread_id = await threadWith('Hi');
      const run = await runs.createAndPoll(thread_id, { assistant_id: await assistantOf(model) }, QUICK);
      assert.deepEqual([run.status, run.last_error.code], ['failed', code]);
      assert.deepEqual(await textsOf(thread_id), [['user', 'Hi']]);
      assert.equal((await oneStep(thread_id, run.id)).status, 'failed');
    }
  },

  async 'a model server error ends the stream with run.failed'() {
    const stream = runs.stream(await threadWith('Hi'), { assistant_id: await assistantOf('fail') });
    const log = record(stream);

    await stream.done();

    assert.equal(log.events.at(-1), 'thread.run.failed');
    assert.equal(stream.currentRun().last_error.code, 'server_error');
  },

  async 'a model server that disconnects leaves the partial text'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('cut') });
    const log = record(stream);

    await stream.done();

    assert.deepEqual(log.events.slice(-3), ['thread.message.incomplete', 'thread.run.step.failed', 'thread.run.failed']);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'run_failed' }]);
    assert.equal(textOf(message), 'Half an');
  },

  async 'the token limit of the model makes the run incomplete'() {
    const thread_id = await threadWith('Hi');
    const run = await runs.createAndPoll(thread_id, { assistant_id: await assistantOf('length') }, QUICK);

    assert.deepEqual([run.status, run.incomplete_details], ['incomplete', { reason: 'max_completion_tokens' }]);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'max_tokens' }]);
  },
};
