// openai for Node, current major and 6: both ask for base64; 6 decodes whatever comes without looking.

import { readFileSync } from "node:fs";

const baseURL = process.env.CHECK_BASE_URL;
const keyedBaseURL = process.env.CHECK_KEYED_BASE_URL;
const key = process.env.CHECK_KEY;
const model = process.env.CHECK_MODEL;
const golden = JSON.parse(readFileSync(new URL("../golden/minilm.json", import.meta.url), "ascii")).items;

const TOLERANCE = 1e-5;

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

function decoded(item) {
  const bytes = Buffer.from(item.vector, "base64");
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(index * 4));
}

function distance(values, expected) {
  expect(Array.isArray(values), `an embedding is a ${typeof values}`);
  expect(values.length === expected.length, `${values.length} values instead of ${expected.length}`);
  return Math.max(...values.map((value, index) => Math.abs(value - expected[index])));
}

function sameBits(left, right) {
  return left.length === right.length && left.every((value, index) => Math.fround(value) === Math.fround(right[index]));
}

async function rejected(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

function checksOf(OpenAI) {
  const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
  const embed = (request, from = client) => from.embeddings.create({ model, ...request });
  const whole = golden.filter((item) => item.full_tokens === item.tokens);
  return {
    async "default call equals sentence-transformers"() {
      const answer = await embed({ input: whole.map((item) => item.text) });
      expect(answer.data.length === whole.length, `${answer.data.length} answers to ${whole.length} texts`);
      answer.data.forEach((row, index) => {
        const off = distance(row.embedding, decoded(whole[index]));
        expect(off <= TOLERANCE, `${off} away for ${JSON.stringify(whole[index].text.slice(0, 60))}`);
        expect(row.index === index, "index does not count up");
      });
      const used = whole.reduce((sum, item) => sum + item.tokens, 0);
      expect(answer.usage.prompt_tokens === used, `usage ${answer.usage.prompt_tokens}, the reference read ${used}`);
    },
    async "cut texts equal sentence-transformers"() {
      const long = golden.filter((item) => item.full_tokens > item.tokens);
      const answer = await embed({ input: long.map((item) => item.text), truncate: true });
      answer.data.forEach((row, index) => {
        const off = distance(row.embedding, decoded(long[index]));
        expect(off <= TOLERANCE, `${off} away for ${JSON.stringify(long[index].text.slice(0, 60))}`);
        expect(row.truncated === true, "a cut text does not say so");
      });
    },
    async "float and base64 are the same bits"() {
      const input = ["hello world", "你好，世界！"];
      const [encoded, plain] = [await embed({ input }), await embed({ input, encoding_format: "float" })];
      encoded.data.forEach((row, index) => {
        expect(sameBits(row.embedding, plain.data[index].embedding), `row ${index} differs`);
      });
    },
    async "models are listed and found"() {
      const listed = await client.models.list();
      expect(listed.data.some((entry) => entry.id === model), "the model is not listed");
      const one = await client.models.retrieve(model);
      expect(one.id === model && one.object === "model", JSON.stringify(one));
    },
    async "unknown models are not found"() {
      const error = await rejected(() => client.embeddings.create({ model: "no-such-model", input: "x" }));
      expect(error instanceof OpenAI.NotFoundError, `${error.constructor.name}: ${error.message}`);
      expect(error.code === "model_not_found", `code ${error.code}`);
      expect(Boolean(error.requestID), "no request id");
    },
    async "bad inputs are bad requests"() {
      for (const input of ["", [], ["a", ""], "the ".repeat(300)]) {
        const error = await rejected(() => embed({ input }));
        expect(error instanceof OpenAI.BadRequestError, `${error.constructor.name}: ${error.message}`);
        expect(error.param === "input", `param ${error.param}`);
      }
    },
    async "wrong keys are authentication errors"() {
      const stranger = new OpenAI({ baseURL: keyedBaseURL, apiKey: "wrong", maxRetries: 0 });
      const error = await rejected(() => embed({ input: "x" }, stranger));
      expect(error instanceof OpenAI.AuthenticationError, `${error.constructor.name}: ${error.message}`);
      expect(error.code === "invalid_api_key", `code ${error.code}`);
      const known = new OpenAI({ baseURL: keyedBaseURL, apiKey: key, maxRetries: 0 });
      await embed({ input: "x" }, known);
    },
  };
}

let failed = false;
for (const name of ["openai", "openai6"]) {
  const described = JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url), "utf8"));
  const { default: OpenAI } = await import(name);
  for (const [title, check] of Object.entries(checksOf(OpenAI))) {
    const line = `openai-node ${described.version}: ${title}`;
    try {
      await check();
      console.log(`ok   ${line}`);
    } catch (error) {
      failed = true;
      console.log(`FAIL ${line}: ${String(error.message).slice(0, 500)}`);
      console.error(error);
    }
  }
}
process.exitCode = failed ? 1 : 0;
