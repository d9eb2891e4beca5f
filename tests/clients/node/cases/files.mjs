// Files and uploads.

import assert from 'node:assert/strict';
import OpenAI, { toFile } from 'openai';

import { all, assertRejected, client } from './common.mjs';

const NAME = 'naïve 你好.jsonl';
const LINES = '{"custom_id": "1"}\n'.repeat(10_000);

export default {
  async 'a file is created, listed, retrieved, downloaded and deleted'() {
    const created = await client.files.create({ file: await toFile(Buffer.from(LINES), NAME), purpose: 'batch' });

    assert.deepEqual([created.filename, created.bytes, created.purpose], [NAME, LINES.length, 'batch']);
    assert.deepEqual(await client.files.retrieve(created.id), created);
    assert.deepEqual(await client.files.waitForProcessing(created.id), created);
    const listed = await all(client.files.list({ purpose: 'batch', limit: 2 }));
    assert.deepEqual(listed.filter(({ id }) => id === created.id), [created]);
    assert.equal(await (await client.files.content(created.id)).text(), LINES);

    assert.deepEqual(await client.files.delete(created.id), { object: 'file', deleted: true, id: created.id });
    const message = `No such File object: ${created.id}`;
    await assertRejected(client.files.retrieve(created.id), OpenAI.NotFoundError, message, { param: 'id' });
  },

  async 'a file that is not for download is rejected'() {
    const created = await client.files.create({ file: await toFile(Buffer.from('x'), 'a.txt'), purpose: 'assistants' });

    const message = 'Not allowed to download files of purpose: assistants';
    await assertRejected(client.files.content(created.id), OpenAI.BadRequestError, message);
    await client.files.delete(created.id);
  },

  async 'the parts of an upload are joined in the requested order'() {
    const body = { filename: 'a.jsonl', purpose: 'batch', bytes: 6, mime_type: 'text/jsonl' };
    const upload = await client.uploads.create(body);
    const part = async (text) => client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(text), 'part') });
    const [second, first] = [await part('}}}'), await part('{{{')];

    const completed = await client.uploads.complete(upload.id, { part_ids: [first.id, second.id] });

    assert.deepEqual([completed.status, completed.file.bytes], ['completed', 6]);
    assert.equal(await (await client.files.content(completed.file.id)).text(), '{{{}}}');
    await client.files.delete(completed.file.id);
  },

  async 'an upload is cancelled'() {
    const body = { filename: 'a.txt', purpose: 'assistants', bytes: 6, mime_type: 'text/plain' };
    const upload = await client.uploads.create(body);

    assert.equal((await client.uploads.cancel(upload.id)).status, 'cancelled');
    const message = "Cannot complete upload with status 'cancelled'.";
    await assertRejected(client.uploads.complete(upload.id, { part_ids: ['part_x'] }), OpenAI.BadRequestError, message);
  },
};
