// The client, and what the tests have in common.

import assert from 'node:assert/strict';
import { appendFileSync } from 'node:fs';
import OpenAI from 'openai';

export const ANSWER = 'Hello! How can I help?';
export const STEADY = Array.from({ length: 40 }, (_, number) => `word${number} `).join('');
export const RUN_STARTED = ['thread.run.created', 'thread.run.queued', 'thread.run.in_progress'];
export const TEXT_STARTED = [
  'thread.run.step.created', 'thread.run.step.in_progress', 'thread.message.created', 'thread.message.in_progress',
];
export const RUN_COMPLETED = ['thread.message.completed', 'thread.run.step.completed', 'thread.run.completed'];
export const DELTA = 'thread.message.delta';
export const CALL_STARTED = ['thread.run.step.created', 'thread.run.step.in_progress'];
export const RESUMED = ['thread.run.step.completed', 'thread.run.queued', 'thread.run.in_progress'];
export const REQUIRES_ACTION = 'thread.run.requires_action';
export const WEATHER_ARGUMENTS = '{"city": "Rome"}';
export const TIME_ARGUMENTS = '{"zone": "CET"}';
export const QUICK = { pollIntervalMs: 50 };

const transcript = process.env.TRANSCRIPT;
export const transcriptWrites = [];

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

export const client = new OpenAI({ maxRetries: 0, fetch: recorded });
export const { assistants, threads } = client.beta;
export const { messages, runs } = threads;

export const assistantOf = async (model, members) => (await assistants.create({ model, ...members })).id;
export const threadWith = async (...texts) =>
  (await threads.create({ messages: texts.map((content) => ({ role: 'user', content })) })).id;
export const textOf = (message) => message.content.map((part) => part.text.value).join('');

/** Returns every element of a list, through the pages that the SDK fetches. */
export async function all(list) {
  const found = [];
  for await (const element of list) found.push(element);
  return found;
}

/** Returns role and text of each message, oldest first. */
export const textsOf = async (threadId) =>
  (await all(messages.list(threadId, { order: 'asc' }))).map((message) => [message.role, textOf(message)]);

/** Returns the run's only step, which creates a message. */
export async function oneStep(thread_id, run_id) {
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
export const functionAssistant = (model) => assistantOf(model, { tools: FUNCTIONS });

/** Returns the names and arguments of a run's required calls. */
export const callsOf = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map(({ function: { name, arguments: json } }) => [name, json]);

export const outputsFor = (run) => run.required_action.submit_tool_outputs.tool_calls.map((call) => (
  { tool_call_id: call.id, output: RESULTS[call.function.name] }
));

export const submitted = (run, tool_outputs = outputsFor(run)) =>
  runs.submitToolOutputsAndPoll(run.id, { thread_id: run.thread_id, tool_outputs }, QUICK);

/** Creates and polls a run that requires tool outputs. */
export async function runRequiringAction(model) {
  const run = await runs.createAndPoll(await threadWith('Hi'), { assistant_id: await functionAssistant(model) }, QUICK);
  assert.deepEqual([run.status, run.required_action?.type, run.usage], ['requires_action', 'submit_tool_outputs', null]);
  return run;
}

/** Checks the run's steps, oldest first: 'message', or the outputs of a step's calls. Their usage adds up to the run's. */
export async function assertSteps(run, ...expected) {
  const steps = await all(runs.steps.list(run.id, { thread_id: run.thread_id, order: 'asc' }));
  const outputs = (step) => step.step_details.tool_calls?.map((call) => call.function.output) ?? 'message';
  assert.deepEqual(steps.map((step) => [step.status, outputs(step)]), expected.map((step) => ['completed', step]));
  assert.equal(steps.reduce((sum, step) => sum + step.usage.total_tokens, 0), run.usage.total_tokens);
}

export async function assertRejected(call, kind, message, { param = null, code = null } = {}) {
  const error = await call.then(() => assert.fail(`expected: ${message}`), (error) => error);
  assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.deepEqual(error.error, { message, type: 'invalid_request_error', param, code });
  assert.match(error.requestID, /^req_/);
}

/** Records every event of an AssistantStream, in order. */
export function record(stream) {
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
