// Tests a running assistd with openai-node, like an application. The model server is ../upstream.py.
//
//     OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key node drive.mjs [WORD]
//
// The server must have API keys configured. The tests are in cases/. With WORD, only the tests with this word in their
// name are run. With TRANSCRIPT=FILE, the responses are appended to FILE as JSON lines, for ../python/contract.py to check.

import assistants from './cases/assistants.mjs';
import { transcriptWrites } from './cases/common.mjs';
import earlyReplies from './cases/early_replies.mjs';
import fileSearch from './cases/file_search.mjs';
import files from './cases/files.mjs';
import invalidRequests from './cases/invalid_requests.mjs';
import modelFailures from './cases/model_failures.mjs';
import models from './cases/models.mjs';
import runs from './cases/runs.mjs';
import streaming from './cases/streaming.mjs';
import threads from './cases/threads.mjs';
import toolCalls from './cases/tool_calls.mjs';
import vectorStores from './cases/vector_stores.mjs';

const tests = {
  ...assistants,
  ...threads,
  ...fileSearch,
  ...files,
  ...vectorStores,
  ...runs,
  ...streaming,
  ...toolCalls,
  ...modelFailures,
  ...invalidRequests,
  ...earlyReplies,
  ...models,
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
