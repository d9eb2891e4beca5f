// Tests a running assistd with openai-node, like an application. The model server is ../upstream.py.
//
//     OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key node drive.mjs [WORD]
//
// The server must have API keys configured. With WORD, only the tests with this word in their name are run. With
// TRANSCRIPT=FILE, the responses are appended to FILE as JSON lines, for ../python/contract.py to check.

import assert from 'node:assert/strict';
import { appendFileSync } from 'node:fs';
import OpenAI, { AzureOpenAI } from 'openai';

const ANSWER = 'Hello! How can I help?';
const STEADY = Array.from({ length: 40 }, (_, number) => `word${number} `).join('');
const RUN_STARTED = ['thread.run.created', 'thread.run.queued', 'thread.run.in_progress'];
const TEXT_STARTED = [
  'thread.run.step.created', 'thread.run.step.in_progress', 'thread.message.created', 'thread.message.in_progress',
];
const RUN_COMPLETED = ['thread.message.completed', 'thread.run.step.completed', 'thread.run.completed'];
const DELTA = 'thread.message.delta';
const CALL_STARTED = ['thread.run.step.created', 'thread.run.step.in_progress'];
const RESUMED = ['thread.run.step.completed', 'thread.run.queued', 'thread.run.in_progress'];
const REQUIRES_ACTION = 'thread.run.requires_action';
const WEATHER_ARGUMENTS = '{"city": "Rome"}';
const TIME_ARGUMENTS = '{"zone": "CET"}';
const QUICK = { pollIntervalMs: 50 };

const transcript = process.env.TRANSCRIPT;
const transcriptWrites = [];

/** Fetches, and records a copy of the response, unless the reader aborts the stream. */
async function recorded(url, init) {
  const response = await fetch(url, init);
  if (transcript) {
    const copy = response.clone();
    const exchange = { method: init.method.toUpperCase(), path: new URL(url).pathname, status: response.status };
    const type = response.headers.get('content-type') ?? '';
    transcriptWrites.push(copy.text().then(
      (text) => appendFileSync(transcript, JSON.stringify({ ...exchange, type, text }) + '\n'),
      () => {},
    ));
  }
  return response;
}

const client = new OpenAI({ maxRetries: 0, fetch: recorded });
const { assistants, threads } = client.beta;
const { messages, runs } = threads;

const assistantOf = async (model, members) => (await assistants.create({ model, ...members })).id;
const threadWith = async (...texts) =>
  (await threads.create({ messages: texts.map((content) => ({ role: 'user', content })) })).id;
const textOf = (message) => message.content.map((part) => part.text.value).join('');

/** Returns every element of a list, through the pages that the SDK fetches. */
async function all(list) {
  const found = [];
  for await (const element of list) found.push(element);
  return found;
}

/** Returns role and text of each message, oldest first. */
const textsOf = async (threadId) =>
  (await all(messages.list(threadId, { order: 'asc' }))).map((message) => [message.role, textOf(message)]);

/** Returns the run's only step, which creates a message. */
async function oneStep(thread_id, run_id) {
  const steps = await all(runs.steps.list(run_id, { thread_id }));
  assert.deepEqual(steps.map((step) => step.type), ['message_creation']);
  return steps[0];
}

const FUNCTIONS = ['weather', 'time'].map((name) => ({
  type: 'function',
  function: {
    name,
    description: `Gets the ${name}.`,
    parameters: { type: 'object', properties: { city: { type: 'string' }, zone: { type: 'string' } } },
  },
}));
const RESULTS = { weather: 'sunny', time: 'noon' };

/** Creates an assistant with two functions; returns its ID. */
const functionAssistant = (model) => assistantOf(model, { tools: FUNCTIONS });

/** Returns the names and arguments of a run's required calls. */
const callsOf = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map(({ function: { name, arguments: json } }) => [name, json]);

const outputsFor = (run) => run.required_action.submit_tool_outputs.tool_calls.map((call) => (
  { tool_call_id: call.id, output: RESULTS[call.function.name] }
));

const submitted = (run, tool_outputs = outputsFor(run)) =>
  runs.submitToolOutputsAndPoll(run.id, { thread_id: run.thread_id, tool_outputs }, QUICK);

/** Creates and polls a run that requires tool outputs. */
async function runRequiringAction(model) {
  const run = await runs.createAndPoll(await threadWith('Hi'), { assistant_id: await functionAssistant(model) }, QUICK);
  assert.deepEqual([run.status, run.required_action?.type, run.usage], ['requires_action', 'submit_tool_outputs', null]);
  return run;
}

/** Checks the run's steps, oldest first: 'message', or the outputs of a step's calls. Their usage adds up to the run's. */
async function assertSteps(run, ...expected) {
  const steps = await all(runs.steps.list(run.id, { thread_id: run.thread_id, order: 'asc' }));
  const outputs = (step) => step.step_details.tool_calls?.map((call) => call.function.output) ?? 'message';
  assert.deepEqual(steps.map((step) => [step.status, outputs(step)]), expected.map((step) => ['completed', step]));
  assert.equal(steps.reduce((sum, step) => sum + step.usage.total_tokens, 0), run.usage.total_tokens);
}

async function assertRejected(call, kind, message, { param = null, code = null } = {}) {
  const error = await call.then(() => assert.fail(`expected: ${message}`), (error) => error);
  assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.deepEqual(error.error, { message, type: 'invalid_request_error', param, code });
  assert.match(error.requestID, /^req_/);
}

/** Records every event of an AssistantStream, in order. */
function record(stream) {
  const log = { events: [], calls: [], deltas: [] };
  stream.on('event', (event) => log.events.push(event.event));
  const names = [
    'connect', 'run', 'runStepCreated', 'runStepDelta', 'runStepDone', 'messageCreated', 'messageDelta', 'messageDone',
    'textCreated', 'textDelta', 'textDone', 'toolCallCreated', 'toolCallDelta', 'toolCallDone', 'error', 'abort', 'end',
  ];
  for (const name of names) stream.on(name, () => log.calls.push(name));
  stream.on('textDelta', (delta) => log.deltas.push(delta.value));
  return log;
}

const tests = {
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
    const over = await submitted(run);
    assert.equal(over.status, 'completed');
    const late = 'Runs in status "completed" do not accept tool outputs.';
    const params = { thread_id, tool_outputs: [weather, time] };
    await assertRejected(runs.submitToolOutputs(run.id, params), BadRequestError, late);
    await assertRejected(runs.submitToolOutputsStream(run.id, params).done(), BadRequestError, late);
    assert.deepEqual(await runs.retrieve(run.id, { thread_id }), over);
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

const word = process.argv[2] ?? '';
let passed = 0;
let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  if (!name.includes(word)) continue;
  try {
    await test();
    passed += 1;
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
await Promise.all(transcriptWrites);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
