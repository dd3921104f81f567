// The story of a tenant, told by the official npm client: argv are the base URL, the key, a privatized file.
import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The client is wherever the test has it installed, not beside this file.
const OpenAI = createRequire(process.env.RAPT_NODE_MODULES + "/")("openai");
const [baseURL, apiKey, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const file = await client.files.create({ file: createReadStream(path), purpose: "fine-tune" });
assert.equal(file.status, "processed");
assert.deepEqual(await client.files.retrieve(file.id), file);
const content = Buffer.from(await (await client.files.content(file.id)).arrayBuffer());
assert.ok(content.equals(readFileSync(path)));
const names = [];
for await (const item of client.files.list()) names.push(item.id);
assert.ok(names.includes(file.id));

const hyperparameters = { num_virtual_tokens: 4, n_epochs: 3, batch_size: 16 };
const method = { type: "prompt_tuning", prompt_tuning: { hyperparameters } };
const body = { model: "bert-tiny", training_file: file.id, method, suffix: "node", metadata: { run: "node" } };
let job = await client.fineTuning.jobs.create(body);
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded");
assert.match(job.fine_tuned_model, /^ft:bert-tiny:local:node:[0-9a-f]{12}$/);
const messages = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) messages.push(event.message);
assert.equal(messages.at(-1), "the job is queued");
for await (const item of client.fineTuning.jobs.list({ metadata: { run: "node" } })) assert.equal(item.id, job.id);
const checkpoints = [];
for await (const item of client.fineTuning.jobs.checkpoints.list(job.id)) checkpoints.push(item);
assert.deepEqual(checkpoints.map((item) => item.step_number).sort((a, b) => a - b), [4, 8, 12]);
assert.ok(checkpoints.every((item) => item.fine_tuning_job_id === job.id));
const name = checkpoints[0].fine_tuned_model_checkpoint;
assert.equal(name, `${job.fine_tuned_model}:ckpt-step-12`);
assert.equal((await client.models.retrieve(name)).id, name);

const long = { ...method, prompt_tuning: { hyperparameters: { ...hyperparameters, n_epochs: 1000 } } };
const paused = await client.fineTuning.jobs.create({ ...body, method: long });
assert.equal((await client.fineTuning.jobs.pause(paused.id)).status, "paused");
assert.equal((await client.fineTuning.jobs.resume(paused.id)).status, "queued");
assert.equal((await client.fineTuning.jobs.cancel(paused.id)).status, "cancelled");

assert.equal((await client.models.retrieve(job.fine_tuned_model)).id, job.fine_tuned_model);
assert.ok((await client.models.delete(job.fine_tuned_model)).deleted);
await assert.rejects(client.models.retrieve(job.fine_tuned_model), OpenAI.NotFoundError);
await assert.rejects(client.models.retrieve(name), OpenAI.NotFoundError);
await assert.rejects(client.fineTuning.jobs.create({ ...body, seed: -1 }), OpenAI.BadRequestError);
await assert.rejects(new OpenAI({ baseURL, apiKey: "rapt-none", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
assert.ok((await client.files.delete(file.id)).deleted);
console.log("the story is told");
