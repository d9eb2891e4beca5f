// Runs that are polled.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

import {
  ANSWER, QUICK, all, assertRejected, assistantOf, messages, oneStep, runs, textsOf, threadWith, threads,
} from './common.mjs';

export default {
  async 'a polled run completes with one message and one step'() {
    const assistant_id = await assistantOf('words');
    const thread_id = await threadWith('Hi');

    const run = await runs.createAndPoll(thread_id, { assistant_id }, QUICK);

    assert.deepEqual([run.status, run.last_error, run.usage.total_tokens], ['completed', null, 19]);
    assert.deepEqual(await textsOf(thread_id), [['user', 'Hi'], ['assistant', ANSWER]]);
    const step = await oneStep(thread_id, run.id);
    assert.deepEqual([step.status, step.usage.total_tokens], ['completed', 19]);
    assert.deepEqual(await runs.steps.retrieve(step.id, { thread_id, run_id: run.id }), step);
    const [answer] = await all(messages.list(thread_id, { run_id: run.id }));
    assert.equal(step.step_details.message_creation.message_id, answer.id);
  },

  async 'polling follows the interval of the server'() {
    const started = Date.now();
    const run = await runs.createAndPoll(await threadWith('Hi'), { assistant_id: await assistantOf('words') });
    assert.equal(run.status, 'completed');
    assert.ok(Date.now() - started < 2000, 'openai-poll-after-ms is below the SDK default of five seconds');
  },

  async 'a run and its thread are created together, and polled'() {
    const thread = { messages: [{ role: 'user', content: 'One' }, { role: 'user', content: 'Two' }] };

    const run = await threads.createAndRunPoll({ assistant_id: await assistantOf('words'), thread }, QUICK);

    assert.equal(run.status, 'completed');
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'One'], ['user', 'Two'], ['assistant', ANSWER]]);
  },

  async 'a run is listed, retrieved and modified'() {
    const assistant_id = await assistantOf('words');
    const thread_id = await threadWith('Hi');
    const created = [];
    for (let number = 0; number < 3; number++) {
      created.push((await runs.createAndPoll(thread_id, { assistant_id }, QUICK)).id);
    }

    const changed = await runs.update(created[0], { thread_id, metadata: { seen: 'yes' } });

    assert.deepEqual((await all(runs.list(thread_id, { limit: 2 }))).map(({ id }) => id), [...created].reverse());
    assert.deepEqual([changed.metadata, changed.status], [{ seen: 'yes' }, 'completed']);
    assert.deepEqual(await runs.retrieve(created[0], { thread_id }), changed);
  },

  async 'the model receives the whole thread and the instructions'() {
    const thread_id = await threadWith('First');

    await runs.createAndPoll(thread_id, {
      assistant_id: await assistantOf('repeat', { instructions: 'Be terse.' }),
      additional_instructions: 'Be kind.',
      additional_messages: [{ role: 'user', content: 'Second' }],
    }, QUICK);

    const seen = JSON.parse((await textsOf(thread_id)).at(-1)[1]);
    assert.deepEqual(seen.map(({ content }) => content), ['Be terse.\nBe kind.', 'First', 'Second']);
  },

  async 'a run locks its thread and can be cancelled'() {
    const assistant_id = await assistantOf('slow');
    const thread_id = await threadWith('Hi');

    const run = await runs.create(thread_id, { assistant_id });

    await assertRejected(
      messages.create(thread_id, { role: 'user', content: 'Wait' }), OpenAI.BadRequestError,
      `Can't add messages to ${thread_id} while a run ${run.id} is active.`,
    );
    await assertRejected(
      runs.create(thread_id, { assistant_id }), OpenAI.BadRequestError,
      `Thread ${thread_id} already has an active run ${run.id}.`,
    );
    assert.equal((await runs.cancel(run.id, { thread_id })).status, 'cancelling');
    assert.equal((await runs.poll(run.id, { thread_id }, QUICK)).status, 'cancelled');
    await assertRejected(
      runs.cancel(run.id, { thread_id }), OpenAI.BadRequestError, "Cannot cancel run with status 'cancelled'.",
    );
  },
};
