// openai for Node, current major and 6: both ask for base64; 6 decodes whatever comes without looking.

import {
  TOLERANCE,
  baseURL,
  decoded,
  distance,
  expect,
  golden,
  key,
  keyedBaseURL,
  model,
  rejected,
  run,
  sameBits,
  versionOf,
} from "./check.mjs";

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

for (const name of ["openai", "openai6"]) {
  const { default: OpenAI } = await import(name);
  await run(`openai-node ${versionOf(name)}`, checksOf(OpenAI));
}
