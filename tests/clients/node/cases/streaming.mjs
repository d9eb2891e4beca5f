// Runs that are streamed.

import assert from 'node:assert/strict';

import {
  ANSWER, DELTA, QUICK, RUN_COMPLETED, RUN_STARTED, STEADY, TEXT_STARTED, all, assistantOf, messages, oneStep, record,
  runs, textOf, textsOf, threadWith, threads,
} from './common.mjs';

export default {
  async 'a streamed run emits events in the recorded order'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('words') });
    const log = record(stream);

    const run = await stream.finalRun();
    await stream.done();

    assert.deepEqual(log.events, [...RUN_STARTED, ...TEXT_STARTED, ...Array(8).fill(DELTA), ...RUN_COMPLETED]);
    assert.deepEqual(log.calls, [
      'connect', 'runStepCreated', 'messageCreated', 'textCreated', 'messageDelta', 'textDelta',
      ...Array(7).fill(['messageDelta', 'textDelta']).flat(), 'textDone', 'messageDone', 'runStepDone', 'run', 'end',
    ]);
    assert.deepEqual(log.deltas, ['Hello', '!', ' How', ' can', ' I', ' hel', 'p', '?']);
    assert.deepEqual([run.status, run.usage.total_tokens], ['completed', 19]);
    assert.deepEqual((await stream.finalMessages()).map(textOf), [ANSWER]);
    assert.equal((await stream.finalRunSteps())[0].id, (await oneStep(thread_id, run.id)).id);
  },

  async 'a streamed run can be read event by event'() {
    const params = { assistant_id: await assistantOf('words'), stream: true };
    const events = await all(await runs.create(await threadWith('Hi'), params));

    const names = events.map(({ event }) => event);
    const expected = [...RUN_STARTED, ...TEXT_STARTED, ...Array(8).fill(DELTA), ...RUN_COMPLETED];
    assert.deepEqual(names.filter((name) => name !== 'done'), expected);
    assert.deepEqual(events[0].data, events[1].data);
  },

  async 'a run and its thread are created together, and streamed'() {
    const thread = { messages: [{ role: 'user', content: 'Hi' }] };
    const stream = threads.createAndRunStream({ assistant_id: await assistantOf('words'), thread });
    const log = record(stream);

    const run = await stream.finalRun();

    assert.equal(log.events[0], 'thread.created');
    assert.equal(log.deltas.join(''), ANSWER);
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'Hi'], ['assistant', ANSWER]]);
  },

  async 'a run completes when its client disconnects'() {
    const thread_id = await threadWith('Hi');
    for await (const event of runs.stream(thread_id, { assistant_id: await assistantOf('steady') })) {
      if (event.event === DELTA) break;
    }

    const [{ id }] = (await runs.list(thread_id)).data;
    const run = await runs.poll(id, { thread_id }, QUICK);

    assert.equal(run.status, 'completed');
    assert.deepEqual(await textsOf(thread_id), [['user', 'Hi'], ['assistant', STEADY]]);
    await oneStep(thread_id, id);
  },

  async 'a cancelled stream ends in order and the partial text is stored'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('slow') });
    const log = record(stream);
    stream.once('textDelta', () => runs.cancel(stream.currentRun().id, { thread_id }));

    await stream.done();

    assert.deepEqual(log.events.filter((name) => ![...RUN_STARTED, ...TEXT_STARTED, DELTA].includes(name)), [
      'thread.run.cancelling', 'thread.message.incomplete', 'thread.run.step.cancelled', 'thread.run.cancelled',
    ]);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'run_cancelled' }]);
    assert.equal(textOf(message), log.deltas.join(''));
  },
};
