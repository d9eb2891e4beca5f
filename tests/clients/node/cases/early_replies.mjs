// Replies that are sent before the request body was read: they arrive, and the next request of the same client succeeds.

import assert from 'node:assert/strict';
import http from 'node:http';
import OpenAI from 'openai';

// Without a transcript: the large bodies and the unknown path are not of interest to it.
const client = new OpenAI({ maxRetries: 0 });
const url = new URL(client.baseURL);
const SIZES = [0, 10_000, 1_000_000, 5_000_000, 34_000_000, 60_000_000];
const TOO_LARGE = 33_554_432;
const JSON_TYPE = 'application/json';

/** The rejections, but for the body: path, status, and what else is wrong with the request. */
const REJECTIONS = [
  { path: '/assistants', status: 401, key: 'sk-wrong-0123456789' },
  { path: '/nothing', status: 404 },
  { path: '/assistants', status: 405, method: 'PUT' },
  { path: '/threads/undefined/messages', status: 400 },
  { path: '/assistants', status: 415, type: 'text/plain' },
];

/** Sends a request on the agent; `write` sends the body. Returns status, error, and whether 100 was received. */
function exchange(agent, { path, method = 'POST', key = client.apiKey, type = JSON_TYPE }, headers, write) {
  return new Promise((resolve, reject) => {
    const request = http.request({
      agent, method, host: url.hostname, port: url.port, path: `${url.pathname}${path}`,
      headers: { authorization: `Bearer ${key}`, 'content-type': type, ...headers },
    });
    let continued = false;
    request.on('continue', () => { continued = true; });
    request.on('error', reject);
    request.on('response', async (response) => {
      let text = '';
      for await (const piece of response) text += piece;
      resolve({ status: response.statusCode, error: JSON.parse(text || '{}').error, continued });
    });
    write(request);
  });
}

async function withAgent(test) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const list = () => exchange(agent, { path: '/assistants?limit=1', method: 'GET' }, {}, (request) => request.end());
  try {
    await test(agent, list);
  } finally {
    agent.destroy();
  }
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export default {
  async 'openai-node gets a rejection whatever the size of the body'() {
    for (const size of SIZES) {
      for (const { path, status, key, method = 'POST', type } of REJECTIONS) {
        const body = { model: 'words', instructions: 'x'.repeat(size) };
        const options = { body, ...(type && { headers: { 'content-type': type } }) };
        const rejected = key ? client.withOptions({ apiKey: key }) : client;
        const error = await rejected[method.toLowerCase()](path, options).catch((error) => error);
        assert.equal(error.status, status, `${status} with ${size} bytes: ${error}`);
        assert.equal(typeof error.error.message, 'string');
        await client.beta.assistants.list({ limit: 1 });
      }
      if (size > TOO_LARGE) {
        const body = { model: 'words', instructions: 'x'.repeat(size) };
        const error = await client.post('/assistants', { body }).catch((error) => error);
        assert.equal(error.status, 413, `${error}`);
        await client.beta.assistants.list({ limit: 1 });
      }
    }
  },

  async "Node's agent gets a rejection, and its connection stays usable"() {
    await withAgent(async (agent, list) => {
      for (const rejection of REJECTIONS) {
        for (const size of [10_000, 5_000_000]) {
          for (let time = 0; time < 5; time += 1) {
            const body = 'x'.repeat(size);
            const headers = { 'content-length': size };
            const reply = await exchange(agent, rejection, headers, (request) => request.end(body));
            assert.equal(reply.status, rejection.status);
            assert.equal((await list()).status, 200);
          }
        }
      }
    });
  },

  async "Node's agent gets a rejection of a body of unknown size, at once or slowly"() {
    await withAgent(async (agent, list) => {
      for (const rejection of REJECTIONS) {
        for (const [pieces, pause] of [[100, 0], [3, 100]]) {
          const reply = await exchange(agent, rejection, {}, async (request) => {
            for (let piece = 0; piece < pieces; piece += 1) {
              request.write('x'.repeat(50_000));
              if (pause) await sleep(pause);
            }
            request.end();
          });
          assert.equal(reply.status, rejection.status);
          assert.equal((await list()).status, 200);
        }
      }
    });
  },

  async "Node's agent is rejected before it sends a body that it holds back for 100"() {
    await withAgent(async (agent, list) => {
      const headers = { expect: '100-continue', 'content-length': 12 };
      const whenContinued = (body) => (request) => request.on('continue', () => request.end(body));
      for (const rejection of REJECTIONS) {
        const reply = await exchange(agent, rejection, headers, whenContinued('{"model":"m"'));
        assert.deepEqual([reply.status, reply.continued], [rejection.status, false]);
        assert.equal((await list()).status, 200);
      }
      const right = { path: '/threads' };
      const reply = await exchange(agent, right, { ...headers, 'content-length': 2 }, whenContinued('{}'));
      assert.deepEqual([reply.status, reply.continued], [200, true]);
    });
  },
};
