// Function calls of polled and streamed runs.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

import {
  CALL_STARTED, DELTA, QUICK, REQUIRES_ACTION, RESUMED, RUN_COMPLETED, RUN_STARTED, TEXT_STARTED, TIME_ARGUMENTS,
  WEATHER_ARGUMENTS, all, assertRejected, assertSteps, callsOf, functionAssistant, messages, outputsFor, record,
  runRequiringAction, runs, submitted, textOf, textsOf, threadWith, threads,
} from './common.mjs';

export default {
  async 'the outputs of a polled function call are submitted'() {
    const first = await runRequiringAction('tool');
    assert.deepEqual(callsOf(first), [['weather', WEATHER_ARGUMENTS]]);
    const [step] = await all(runs.steps.list(first.id, { thread_id: first.thread_id }));
    assert.deepEqual([step.status, step.step_details.tool_calls[0].function.output], ['in_progress', null]);

    const run = await submitted(first);

    assert.deepEqual([run.id, run.status, run.required_action, run.usage.total_tokens], [first.id, 'completed', null, 29]);
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'Hi'], ['assistant', 'The tools say: sunny']]);
    await assertSteps(run, ['sunny'], 'message');
  },

  async 'parallel function calls accept outputs in any order'() {
    const first = await runRequiringAction('tools');
    assert.deepEqual(callsOf(first), [['weather', WEATHER_ARGUMENTS], ['time', TIME_ARGUMENTS]]);

    const run = await submitted(first, outputsFor(first).reverse());

    assert.deepEqual((await textsOf(run.thread_id)).at(-1), ['assistant', 'The tools say: sunny, noon']);
    await assertSteps(run, ['sunny', 'noon'], 'message');
  },

  async 'a polled function call with text creates one message'() {
    const first = await runRequiringAction('talk');
    const once = await submitted(first);
    assert.deepEqual(await textsOf(once.thread_id), [['user', 'Hi'], ['assistant', 'Let me see.\n\nThe tools say: sunny']]);
    await assertSteps(once, 'message', ['sunny']);

    const again = await submitted(await runRequiringAction('talk-twice'));
    assert.deepEqual([again.status, callsOf(again)], ['requires_action', [['time', TIME_ARGUMENTS]]]);
    const twice = await submitted(again);
    const whole = 'Let me see.\n\nAnd once more.\n\nThe tools say: sunny, noon';
    assert.deepEqual(await textsOf(twice.thread_id), [['user', 'Hi'], ['assistant', whole]]);
    await assertSteps(twice, 'message', ['sunny'], ['noon']);
  },

  async 'a function call is streamed, and its outputs are submitted with a stream'() {
    const first = runs.stream(await threadWith('Hi'), { assistant_id: await functionAssistant('tools') });
    const log = record(first);
    const created = [];
    first.on('toolCallDone', (call) => created.push([call.function.name, call.function.arguments]));

    const waiting = await first.finalRun();

    assert.deepEqual(log.events, [
      ...RUN_STARTED, ...CALL_STARTED, ...Array(8).fill('thread.run.step.delta'), REQUIRES_ACTION,
    ]);
    assert.deepEqual(log.calls, [
      'connect', 'runStepCreated',
      'toolCallCreated', 'runStepDelta', ...Array(3).fill(['toolCallDelta', 'runStepDelta']).flat(), 'toolCallDone',
      'toolCallCreated', 'runStepDelta', ...Array(3).fill(['toolCallDelta', 'runStepDelta']).flat(), 'toolCallDone',
      'run', 'end',
    ]);
    assert.deepEqual(created, [['weather', WEATHER_ARGUMENTS], ['time', TIME_ARGUMENTS]]);
    assert.deepEqual(callsOf(waiting), created);

    const second = runs.submitToolOutputsStream(
      waiting.id, { thread_id: waiting.thread_id, tool_outputs: outputsFor(waiting) },
    );
    const secondLog = record(second);
    const run = await second.finalRun();

    assert.deepEqual(secondLog.events, [...RESUMED, ...TEXT_STARTED, ...Array(4).fill(DELTA), ...RUN_COMPLETED]);
    assert.equal(secondLog.deltas.join(''), 'The tools say: sunny, noon');
    assert.deepEqual([run.status, run.usage.total_tokens], ['completed', 32]);
    assert.deepEqual((await second.finalMessages()).map(textOf), ['The tools say: sunny, noon']);
    assert.deepEqual((await second.finalRunSteps()).map(({ type }) => type), ['tool_calls', 'message_creation']);
    await assertSteps(run, ['sunny', 'noon'], 'message');
  },

  async 'outputs are submitted while the stream is open'() {
    const thread = { messages: [{ role: 'user', content: 'Hi' }] };
    const stream = threads.createAndRunStream({ assistant_id: await functionAssistant('tool'), thread });
    let answered;
    stream.on('event', ({ event, data }) => {
      if (event !== REQUIRES_ACTION) return;
      const second = runs.submitToolOutputsStream(data.id, { thread_id: data.thread_id, tool_outputs: outputsFor(data) });
      answered = second.finalRun();
    });

    await stream.done();
    const run = await answered;

    assert.equal(run.status, 'completed');
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'Hi'], ['assistant', 'The tools say: sunny']]);
  },

  async 'a function call is streamed event by event'() {
    const params = { assistant_id: await functionAssistant('talk-twice'), stream: true };
    let stream = await runs.create(await threadWith('Hi'), params);
    let last;
    let rounds = 0;
    for (; stream; rounds++) {
      let next;
      for await (const { event, data } of stream) {
        if (event.startsWith('thread.run.') && !event.startsWith('thread.run.step.')) last = data;
        if (event === REQUIRES_ACTION) {
          const tool_outputs = outputsFor(data);
          next = await runs.submitToolOutputs(data.id, { thread_id: data.thread_id, tool_outputs, stream: true });
        }
      }
      stream = next;
    }
    assert.deepEqual([rounds, last.status, last.usage.total_tokens], [3, 'completed', 49]);
    await assertSteps(last, 'message', ['sunny'], ['noon']);
  },

  async 'text after a streamed function call continues the same message'() {
    for (const [model, ...parts] of [
      ['talk', 'Let me see.', 'The tools say: sunny'],
      ['talk-twice', 'Let me see.', 'And once more.', 'The tools say: sunny, noon'],
      ['talk-call', 'Let me see.', '', 'The tools say: sunny, noon'],
      ['call-talk', '', 'Let me see.', 'The tools say: sunny, noon'],
    ]) {
      let stream = runs.stream(await threadWith('Hi'), { assistant_id: await functionAssistant(model) });
      let text = '';
      let run;
      const snapshots = [];
      for (const [number] of parts.entries()) {
        const log = record(stream);
        stream.on('textDelta', (_, snapshot) => snapshots.push(snapshot.value));
        run = await stream.finalRun();
        assert.ok(!log.calls.includes('error'), log.calls);
        text += log.deltas.join('');
        assert.equal(text, parts.slice(0, number + 1).filter(Boolean).join('\n\n'));
        if (parts[number]) {
          assert.equal(snapshots.at(-1), text);
          assert.deepEqual((await stream.finalMessages()).map(textOf), [text]);
        }
        const isLast = number === parts.length - 1;
        assert.equal(run.status, isLast ? 'completed' : 'requires_action');
        assert.equal(log.calls.filter((name) => name === 'messageDone').length, isLast ? 1 : 0);
        if (!isLast) {
          const params = { thread_id: run.thread_id, tool_outputs: outputsFor(run) };
          stream = runs.submitToolOutputsStream(run.id, params);
        }
      }
      assert.deepEqual(await textsOf(run.thread_id), [['user', 'Hi'], ['assistant', text]]);
      const steps = [['sunny'], ['noon']].slice(0, parts.length - 1);
      await assertSteps(run, ...(parts[0] ? ['message', ...steps] : [steps[0], 'message', ...steps.slice(1)]));
    }
  },

  async 'a streamed function call with text sends the message step on every stream'() {
    let stream = runs.stream(await threadWith('Hi'), { assistant_id: await functionAssistant('talk-twice') });
    for (;;) {
      const steps = await stream.finalRunSteps();
      assert.deepEqual(steps.map(({ type }) => type).filter((type) => type !== 'tool_calls'), ['message_creation']);
      const run = await stream.finalRun();
      if (run.status === 'completed') break;
      stream = runs.submitToolOutputsStream(run.id, { thread_id: run.thread_id, tool_outputs: outputsFor(run) });
    }
  },

  async 'a run that fails or is cancelled after a function call with text ends in order'() {
    for (const [model, status, reason] of [
      ['talk-fail', 'failed', 'run_failed'], ['talk-slow', 'cancelled', 'run_cancelled'],
    ]) {
      const { id, thread_id, ...waiting } = await runRequiringAction(model);
      const stream = runs.submitToolOutputsStream(id, { thread_id, tool_outputs: outputsFor(waiting) });
      const log = record(stream);
      if (model === 'talk-slow') {
        stream.on('event', ({ event }) => event === 'thread.run.in_progress' && runs.cancel(id, { thread_id }));
      }

      assert.equal((await stream.finalRun()).status, status);

      assert.deepEqual(log.events.slice(-3), [
        'thread.message.incomplete', `thread.run.step.${status}`, `thread.run.${status}`,
      ]);
      const [message] = (await messages.list(thread_id)).data;
      assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason }]);
      assert.deepEqual((await stream.finalMessages()).map(textOf), [textOf(message)]);
    }
  },

  async 'outputs that do not match the calls are rejected'() {
    const { BadRequestError } = OpenAI;
    const run = await runRequiringAction('tools');
    const [weather, time] = outputsFor(run);
    const ids = `'${weather.tool_call_id}', '${time.tool_call_id}'`;
    const unknown = { tool_call_id: 'call_x', output: 'x' };
    const { thread_id } = run;

    for (const [tool_outputs, got] of [
      [[weather], `'${weather.tool_call_id}'`], [[weather, unknown], `'${weather.tool_call_id}', 'call_x'`], [[], ''],
    ]) {
      const message = `Expected tool outputs for call_ids [${ids}], got [${got}]`;
      await assertRejected(runs.submitToolOutputs(run.id, { thread_id, tool_outputs }), BadRequestError, message);
      const stream = runs.submitToolOutputsStream(run.id, { thread_id, tool_outputs });
      await assertRejected(stream.done(), BadRequestError, message);
    }
    const ended = await submitted(run);
    assert.equal(ended.status, 'completed');
    const late = 'Runs in status "completed" do not accept tool outputs.';
    const params = { thread_id, tool_outputs: [weather, time] };
    await assertRejected(runs.submitToolOutputs(run.id, params), BadRequestError, late);
    await assertRejected(runs.submitToolOutputsStream(run.id, params).done(), BadRequestError, late);
    assert.deepEqual(await runs.retrieve(run.id, { thread_id }), ended);
  },

  async 'a run that requires action can be cancelled'() {
    const run = await runRequiringAction('talk');
    const { thread_id } = run;

    assert.equal((await runs.cancel(run.id, { thread_id })).status, 'cancelling');
    assert.equal((await runs.poll(run.id, { thread_id }, QUICK)).status, 'cancelled');
    const steps = await all(runs.steps.list(run.id, { thread_id }));
    assert.deepEqual(steps.map(({ status }) => status), ['cancelled', 'cancelled']);
    await assertRejected(
      runs.submitToolOutputs(run.id, { thread_id, tool_outputs: outputsFor(run) }), OpenAI.BadRequestError,
      'Runs in status "cancelled" do not accept tool outputs.',
    );
    await messages.create(thread_id, { role: 'user', content: 'Go on' });
  },
};
