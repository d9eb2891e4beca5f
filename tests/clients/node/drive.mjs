// Drives a served assistd through openai-node, as an app would. The models are those of ../upstream.py.
//
//     OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key node drive.mjs [WORD]
//
// The server must be served with API keys. With WORD, only the tests that have it in their name are run. With
// TRANSCRIPT=FILE, what was answered is appended there as JSON lines, for ../python/contract.py to check.

import assert from 'node:assert/strict';
import { appendFileSync } from 'node:fs';
import OpenAI from 'openai';

const ANSWER = 'Hello! How can I help?';
const STEADY = Array.from({ length: 40 }, (_, number) => `word${number} `).join('');
const BEGIN = ['thread.run.created', 'thread.run.queued', 'thread.run.in_progress'];
const OPEN = ['thread.run.step.created', 'thread.run.step.in_progress', 'thread.message.created', 'thread.message.in_progress'];
const CLOSE = ['thread.message.completed', 'thread.run.step.completed', 'thread.run.completed'];
const DELTA = 'thread.message.delta';
const QUICK = { pollIntervalMs: 50 };

const transcript = process.env.TRANSCRIPT;
const written = [];

/** Fetches, and keeps a copy of the answer; of a stream that its reader leaves, nothing is kept. */
async function recorded(url, init) {
  const response = await fetch(url, init);
  if (transcript) {
    const copy = response.clone();
    const exchange = { method: init.method.toUpperCase(), path: new URL(url).pathname, status: response.status };
    const type = response.headers.get('content-type') ?? '';
    written.push(copy.text().then(
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

/** Every element of a list, through the pages that the SDK fetches. */
async function all(list) {
  const found = [];
  for await (const element of list) found.push(element);
  return found;
}

/** Role and text of each message, oldest first. */
const textsOf = async (threadId) =>
  (await all(messages.list(threadId, { order: 'asc' }))).map((message) => [message.role, textOf(message)]);

/** The run's only step, which makes a message. */
async function oneStep(thread_id, run_id) {
  const steps = await all(runs.steps.list(run_id, { thread_id }));
  assert.deepEqual(steps.map((step) => step.type), ['message_creation']);
  return steps[0];
}

async function refused(call, kind, message, { param = null, code = null } = {}) {
  const error = await call.then(() => assert.fail(`expected: ${message}`), (error) => error);
  assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.deepEqual(error.error, { message, type: 'invalid_request_error', param, code });
  assert.match(error.requestID, /^req_/);
}

/** Listens to every event of an AssistantStream; gives what came, in order, once the stream is over. */
function listen(stream) {
  const heard = { events: [], calls: [], deltas: [] };
  stream.on('event', (event) => heard.events.push(event.event));
  const names = [
    'connect', 'run', 'runStepCreated', 'runStepDelta', 'runStepDone', 'messageCreated', 'messageDelta', 'messageDone',
    'textCreated', 'textDelta', 'textDone', 'toolCallCreated', 'toolCallDone', 'error', 'abort', 'end',
  ];
  for (const name of names) stream.on(name, () => heard.calls.push(name));
  stream.on('textDelta', (delta) => heard.deltas.push(delta.value));
  return heard;
}

const tests = {
  async 'an assistant is created, read, changed and deleted'() {
    const made = await assistants.create({
      model: 'words', name: 'Ada', description: 'counts', instructions: 'Count.', metadata: { team: 'one' }, temperature: 0.5,
    });
    assert.deepEqual([made.name, made.description, made.instructions, made.temperature], ['Ada', 'counts', 'Count.', 0.5]);
    assert.deepEqual(await assistants.retrieve(made.id), made);

    const changed = await assistants.update(made.id, { name: 'Bea', metadata: { team: 'two' } });
    assert.deepEqual([changed.name, changed.metadata, changed.instructions], ['Bea', { team: 'two' }, 'Count.']);

    const gone = await assistants.delete(made.id);
    assert.deepEqual([gone.id, gone.object, gone.deleted], [made.id, 'assistant.deleted', true]);
    await refused(assistants.retrieve(made.id), OpenAI.NotFoundError, `No assistant found with id '${made.id}'.`);
  },

  async 'a list of assistants pages by itself, in both orders'() {
    const made = [];
    for (let number = 0; number < 5; number++) made.push(await assistantOf('words'));

    const ids = async (order) =>
      (await all(assistants.list({ limit: 2, order }))).map(({ id }) => id).filter((id) => made.includes(id));

    assert.deepEqual(await ids('desc'), [...made].reverse());
    assert.deepEqual(await ids('asc'), made);
    const between = await assistants.list({ order: 'asc', after: made[0], before: made[4] });
    assert.deepEqual(between.data.map(({ id }) => id), made.slice(1, 4));
  },

  async 'a thread is created, read, changed and deleted'() {
    const made = await threads.create({ messages: [{ role: 'user', content: 'Hi' }], metadata: { a: 'b' } });
    assert.deepEqual(await threads.retrieve(made.id), made);
    assert.deepEqual(await textsOf(made.id), [['user', 'Hi']]);

    const changed = await threads.update(made.id, { metadata: { a: 'c' } });
    assert.deepEqual(changed.metadata, { a: 'c' });

    assert.equal((await threads.delete(made.id)).deleted, true);
    await refused(threads.retrieve(made.id), OpenAI.NotFoundError, `No thread found with id '${made.id}'.`);
  },

  async 'threads are listed, which is our own'() {
    const made = [await threadWith(), await threadWith()];

    const list = await client.get('/threads', { query: { limit: 2 } });

    assert.equal(list.object, 'list');
    assert.deepEqual(list.data.map(({ id }) => id), [...made].reverse());
  },

  async 'a message is created, read, changed and deleted'() {
    const thread_id = await threadWith();
    const made = await messages.create(thread_id, { role: 'user', content: 'Ünïcödé 日本語 🙂', metadata: { a: 'b' } });
    assert.equal(textOf(made), 'Ünïcödé 日本語 🙂');
    assert.deepEqual(await messages.retrieve(made.id, { thread_id }), made);

    const changed = await messages.update(made.id, { thread_id, metadata: { a: 'c' } });
    assert.deepEqual(changed.metadata, { a: 'c' });

    assert.equal((await messages.delete(made.id, { thread_id })).deleted, true);
    await refused(
      messages.retrieve(made.id, { thread_id }), OpenAI.NotFoundError, `No message found with id '${made.id}'.`,
    );
  },

  async 'a list of messages keeps the order of insertion'() {
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

  async 'a poll is as fast as the server says'() {
    const began = Date.now();
    const run = await runs.createAndPoll(await threadWith('Hi'), { assistant_id: await assistantOf('words') });
    assert.equal(run.status, 'completed');
    assert.ok(Date.now() - began < 2000, 'openai-poll-after-ms is below the five seconds of the SDK');
  },

  async 'a run and its thread are created together, and polled'() {
    const thread = { messages: [{ role: 'user', content: 'One' }, { role: 'user', content: 'Two' }] };

    const run = await threads.createAndRunPoll({ assistant_id: await assistantOf('words'), thread }, QUICK);

    assert.equal(run.status, 'completed');
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'One'], ['user', 'Two'], ['assistant', ANSWER]]);
  },

  async 'a run is listed, read and changed'() {
    const assistant_id = await assistantOf('words');
    const thread_id = await threadWith('Hi');
    const made = [];
    for (let number = 0; number < 3; number++) made.push((await runs.createAndPoll(thread_id, { assistant_id }, QUICK)).id);

    const changed = await runs.update(made[0], { thread_id, metadata: { seen: 'yes' } });

    assert.deepEqual((await all(runs.list(thread_id, { limit: 2 }))).map(({ id }) => id), [...made].reverse());
    assert.deepEqual([changed.metadata, changed.status], [{ seen: 'yes' }, 'completed']);
    assert.deepEqual(await runs.retrieve(made[0], { thread_id }), changed);
  },

  async 'the model sees the whole thread and the instructions'() {
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

    await refused(
      messages.create(thread_id, { role: 'user', content: 'Wait' }), OpenAI.BadRequestError,
      `Can't add messages to ${thread_id} while a run ${run.id} is active.`,
    );
    await refused(
      runs.create(thread_id, { assistant_id }), OpenAI.BadRequestError,
      `Thread ${thread_id} already has an active run ${run.id}.`,
    );
    assert.equal((await runs.cancel(run.id, { thread_id })).status, 'cancelling');
    assert.equal((await runs.poll(run.id, { thread_id }, QUICK)).status, 'cancelled');
    await refused(
      runs.cancel(run.id, { thread_id }), OpenAI.BadRequestError, "Cannot cancel run with status 'cancelled'.",
    );
  },

  async 'a streamed run emits in the recorded order'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('words') });
    const heard = listen(stream);

    const run = await stream.finalRun();
    await stream.done();

    assert.deepEqual(heard.events, [...BEGIN, ...OPEN, ...Array(8).fill(DELTA), ...CLOSE]);
    assert.deepEqual(heard.calls, [
      'connect', 'runStepCreated', 'messageCreated', 'textCreated', 'messageDelta', 'textDelta',
      ...Array(7).fill(['messageDelta', 'textDelta']).flat(), 'textDone', 'messageDone', 'runStepDone', 'run', 'end',
    ]);
    assert.deepEqual(heard.deltas, ['Hello', '!', ' How', ' can', ' I', ' hel', 'p', '?']);
    assert.deepEqual([run.status, run.usage.total_tokens], ['completed', 19]);
    assert.deepEqual((await stream.finalMessages()).map(textOf), [ANSWER]);
    assert.equal((await stream.finalRunSteps())[0].id, (await oneStep(thread_id, run.id)).id);
  },

  async 'a streamed run can be read event by event'() {
    const params = { assistant_id: await assistantOf('words'), stream: true };
    const events = await all(await runs.create(await threadWith('Hi'), params));

    const names = events.map(({ event }) => event);
    assert.deepEqual(names.filter((name) => name !== 'done'), [...BEGIN, ...OPEN, ...Array(8).fill(DELTA), ...CLOSE]);
    assert.deepEqual(events[0].data, events[1].data);
  },

  async 'a run and its thread are created together, and streamed'() {
    const thread = { messages: [{ role: 'user', content: 'Hi' }] };
    const stream = threads.createAndRunStream({ assistant_id: await assistantOf('words'), thread });
    const heard = listen(stream);

    const run = await stream.finalRun();

    assert.equal(heard.events[0], 'thread.created');
    assert.equal(heard.deltas.join(''), ANSWER);
    assert.deepEqual(await textsOf(run.thread_id), [['user', 'Hi'], ['assistant', ANSWER]]);
  },

  async 'a run goes on when its client leaves'() {
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

  async 'a cancelled stream ends in order and the partial text stays'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('slow') });
    const heard = listen(stream);
    stream.once('textDelta', () => runs.cancel(stream.currentRun().id, { thread_id }));

    await stream.done();

    assert.deepEqual(heard.events.filter((name) => ![...BEGIN, ...OPEN, DELTA].includes(name)), [
      'thread.run.cancelling', 'thread.message.incomplete', 'thread.run.step.cancelled', 'thread.run.cancelled',
    ]);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'run_cancelled' }]);
    assert.equal(textOf(message), heard.deltas.join(''));
  },

  async 'a failing upstream fails the run, with its code'() {
    for (const [model, code] of [['fail', 'server_error'], ['limit', 'rate_limit_exceeded']]) {
      const thread_id = await threadWith('Hi');
      const run = await runs.createAndPoll(thread_id, { assistant_id: await assistantOf(model) }, QUICK);
      assert.deepEqual([run.status, run.last_error.code], ['failed', code]);
      assert.deepEqual(await textsOf(thread_id), [['user', 'Hi']]);
      assert.equal((await oneStep(thread_id, run.id)).status, 'failed');
    }
  },

  async 'a failing upstream is told on the stream'() {
    const stream = runs.stream(await threadWith('Hi'), { assistant_id: await assistantOf('fail') });
    const heard = listen(stream);

    await stream.done();

    assert.equal(heard.events.at(-1), 'thread.run.failed');
    assert.equal(stream.currentRun().last_error.code, 'server_error');
  },

  async 'an upstream that breaks off leaves the partial text'() {
    const thread_id = await threadWith('Hi');
    const stream = runs.stream(thread_id, { assistant_id: await assistantOf('cut') });
    const heard = listen(stream);

    await stream.done();

    assert.deepEqual(heard.events.slice(-3), ['thread.message.incomplete', 'thread.run.step.failed', 'thread.run.failed']);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'run_failed' }]);
    assert.equal(textOf(message), 'Half an');
  },

  async 'an upstream at its token limit makes the run incomplete'() {
    const thread_id = await threadWith('Hi');
    const run = await runs.createAndPoll(thread_id, { assistant_id: await assistantOf('length') }, QUICK);

    assert.deepEqual([run.status, run.incomplete_details], ['incomplete', { reason: 'max_completion_tokens' }]);
    const [message] = (await messages.list(thread_id)).data;
    assert.deepEqual([message.status, message.incomplete_details], ['incomplete', { reason: 'max_tokens' }]);
  },

  async 'an unknown id is not found'() {
    const thread_id = await threadWith();
    const { NotFoundError } = OpenAI;
    await refused(threads.retrieve('thread_x'), NotFoundError, "No thread found with id 'thread_x'.");
    await refused(runs.retrieve('run_x', { thread_id }), NotFoundError, "No run found with id 'run_x'.");
    await refused(messages.list('thread_x'), NotFoundError, "No thread found with id 'thread_x'.");
  },

  async 'the ids of half-migrated code are refused'() {
    await refused(
      messages.list(undefined + ''), OpenAI.BadRequestError,
      "Invalid 'thread_id': 'undefined'. Expected an ID that begins with 'thread'.",
      { param: 'thread_id', code: 'invalid_value' },
    );
  },

  async 'a wrong body is refused, and the member named'() {
    const { BadRequestError } = OpenAI;
    await refused(
      assistants.create({ model: 'words', foo: 1 }), BadRequestError, "Unknown parameter: 'foo'.",
      { param: 'foo', code: 'unknown_parameter' },
    );
    await refused(
      runs.create(await threadWith('Hi'), {}), BadRequestError, "Missing required parameter: 'assistant_id'.",
      { param: 'assistant_id', code: 'missing_required_parameter' },
    );
    await refused(
      runs.stream(await threadWith(), { assistant_id: await assistantOf('words') }).done(), BadRequestError,
      'Run creation requires a Thread with a user message or an assistant with instructions.', { code: 'invalid_thread' },
    );
  },

  async 'a wrong key is refused, and shown masked'() {
    const error = await client.withOptions({ apiKey: 'sk-wrong-0123456789' }).models.list().catch((error) => error);
    assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
    assert.equal(error.code, 'invalid_api_key');
    assert.match(error.message, /Incorrect API key provided: sk-wr\*\*\*89\./);
  },

  async 'models are listed and read'() {
    const names = (await all(client.models.list())).map(({ id }) => id);
    assert.ok(names.includes('words'), names);
    assert.equal((await client.models.retrieve('words')).id, 'words');
  },

  async 'a chat is completed and streamed'() {
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
await Promise.all(written);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;
