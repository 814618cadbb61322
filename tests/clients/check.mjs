// What the Node checks share, as check.py is shared by the Python ones: the golden vectors, comparison of float32
// values, a server whose queue is full, and one line per check. run.py says in CHECK_* where the servers are.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

export const baseURL = process.env.CHECK_BASE_URL;
export const keyedBaseURL = process.env.CHECK_KEYED_BASE_URL;
export const smallBaseURL = process.env.CHECK_SMALL_BASE_URL;
export const key = process.env.CHECK_KEY;
export const model = process.env.CHECK_MODEL;
export const golden = JSON.parse(readFileSync(new URL("../golden/minilm.json", import.meta.url), "ascii")).items;

/** Max abs to sentence-transformers in float32; the same bar as the in-process parity tests. */
export const TOLERANCE = 1e-5;

/** What the small server's queue holds (run.py): a request of this many rows fits only while no other row waits. */
const SMALL_QUEUE_ROWS = Number(process.env.CHECK_SMALL_QUEUE_ROWS);
export const FILLS_THE_QUEUE = Array(SMALL_QUEUE_ROWS).fill("x");
const LONG_TEXT = "the ".repeat(250);
const OCCUPIED_SECONDS = 60;

export function expect(condition, message) {
  if (!condition) throw new Error(message);
}

export function decoded(item) {
  const bytes = Buffer.from(item.vector, "base64");
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(index * 4));
}

export function distance(values, expected) {
  expect(Array.isArray(values), `an embedding is a ${typeof values}`);
  expect(values.length === expected.length, `${values.length} values instead of ${expected.length}`);
  return Math.max(...values.map((value, index) => Math.abs(value - expected[index])));
}

export function sameBits(left, right) {
  return left.length === right.length && left.every((value, index) => Math.fround(value) === Math.fround(right[index]));
}

/** Fails naming the first places whose vectors differ. */
export function expectSameVectors(found, wanted) {
  expect(found.length === wanted.length, `${found.length} vectors instead of ${wanted.length}`);
  const wrong = found.flatMap((vector, index) => (sameBits(vector, wanted[index]) ? [] : [index]));
  expect(wrong.length === 0, `${wrong.length} of ${found.length} differ, first at ${wrong.slice(0, 5)}`);
}

/** What openai-node gets for the same texts, in requests of at most 2,048: the vectors and the tokens used. */
export async function plain(texts, from = baseURL) {
  const client = new OpenAI({ baseURL: from, apiKey: "unused", maxRetries: 0 });
  const vectors = [];
  let tokens = 0;
  for (let start = 0; start < texts.length; start += 2048) {
    const answer = await client.embeddings.create({ model, input: texts.slice(start, start + 2048) });
    vectors.push(...answer.data.map((row) => row.embedding));
    tokens += answer.usage.prompt_tokens;
  }
  return { vectors, tokens };
}

export async function rejected(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

/** A fetch for a client library, with what passed through it. */
export function recorder() {
  const exchanges = [];
  let running = 0;
  const recorded = async (url, options) => {
    const exchange = { started: performance.now(), body: JSON.parse(options.body), alongside: running };
    exchanges.push(exchange);
    running += 1;
    try {
      const response = await fetch(url, options);
      return Object.assign(exchange, { status: response.status, headers: response.headers }) && response;
    } finally {
      exchange.ended = performance.now();
      running -= 1;
    }
  };
  return { exchanges, fetch: recorded };
}

/** Runs `call` while rows wait in the small server's queue. */
export async function whileOccupied(call) {
  // Long rows first, so that the server knows its speed on them when it says how long to wait.
  await plain(Array(8).fill(LONG_TEXT), smallBaseURL);
  const occupying = plain(Array(24).fill(LONG_TEXT), smallBaseURL);
  let settled = false;
  occupying.catch(() => undefined).finally(() => (settled = true));
  const deadline = performance.now() + OCCUPIED_SECONDS * 1000;
  while ((await metric(smallBaseURL, "embedserve_queue_rows")) < 12) {
    expect(!settled, "the request that should have occupied the server ended before any of it was seen to wait");
    expect(performance.now() < deadline, `nothing waited within ${OCCUPIED_SECONDS} s`);
  }
  const outcome = await call();
  await occupying;
  return outcome;
}

/** A refusal came first, with a delay from 1 to 59 s that its two headers state alike; then, in the end, an answer. */
export function expectRefusedThenAnswered(exchanges) {
  const statuses = exchanges.map((exchange) => exchange.status);
  expect(statuses.length > 1 && statuses.at(-1) === 200, `statuses ${statuses}`);
  for (const { status, headers } of exchanges.slice(0, -1)) {
    const [seconds, milliseconds] = [headers.get("retry-after"), headers.get("retry-after-ms")];
    expect(status === 503, `statuses ${statuses}`);
    expect(/^[1-9]\d?$/.test(seconds) && Number(seconds) <= 59, `retry-after ${seconds}`);
    expect(Number(milliseconds) === Number(seconds) * 1000, `retry-after-ms ${milliseconds} beside ${seconds} s`);
  }
}

/** The sum over all labels. */
async function metric(from, name) {
  const text = await (await fetch(from.replace(/\/v1$/, "/metrics"))).text();
  const samples = text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  expect(samples.length > 0, `no metric ${name}`);
  return samples.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}

/** Runs them all and prints a line each; the exit code is 1 when one failed. */
export async function run(suite, checks) {
  for (const [title, check] of Object.entries(checks)) {
    const line = `${suite}: ${title}`;
    try {
      await check();
      console.log(`ok   ${line}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAIL ${line}: ${String(error.message).slice(0, 500)}`);
      console.error(error);
    }
  }
}

export function versionOf(library) {
  return JSON.parse(readFileSync(new URL(`node_modules/${library}/package.json`, import.meta.url), "utf8")).version;
}
