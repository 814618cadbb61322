// The Vercel AI SDK: asks for floats, sends 2,048 texts a request and all its requests at once.

import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embed, embedMany } from "ai";
import {
  FILLS_THE_QUEUE,
  TOLERANCE,
  baseURL,
  decoded,
  distance,
  expect,
  expectRefusedThenAnswered,
  expectSameVectors,
  golden,
  key,
  keyedBaseURL,
  model,
  plain,
  recorder,
  rejected,
  run,
  smallBaseURL,
  versionOf,
  whileOccupied,
} from "./check.mjs";

function embedding(options = {}) {
  const { name = model, ...settings } = options;
  return createOpenAI({ baseURL, apiKey: "unused", ...settings }).embedding(name);
}

await run(`ai ${versionOf("ai")}`, {
  async "one text equals sentence-transformers"() {
    const item = golden.find((one) => one.full_tokens === one.tokens && one.text.length > 40);
    const answer = await embed({ model: embedding(), value: item.text, maxRetries: 0 });
    const off = distance(answer.embedding, decoded(item));
    expect(off <= TOLERANCE, `${off} away`);
    expect(answer.usage.tokens === item.tokens, `usage ${answer.usage.tokens}, the reference read ${item.tokens}`);
  },
  async "2,049 texts go as two requests at once and come back in order"() {
    const values = Array.from({ length: 2049 }, (_, number) => `text number ${number}`);
    const { exchanges, fetch } = recorder();
    const answer = await embedMany({ model: embedding({ fetch }), values, maxRetries: 0 });
    const sizes = exchanges.map((exchange) => exchange.body.input.length);
    expect(String(sizes) === "2048,1", `requests of ${sizes} texts`);
    expect(exchanges[1].alongside === 1, "the second request waited for the first");
    expect(exchanges.every(({ body }) => body.encoding_format === "float"), "this SDK did not ask for floats");
    const wanted = await plain(values);
    expectSameVectors(answer.embeddings, wanted.vectors);
    expect(answer.usage.tokens === wanted.tokens, `usage ${answer.usage.tokens} instead of ${wanted.tokens}`);
    expect(new Set(answer.embeddings.map(String)).size === 2049, "different texts, equal vectors");
  },
  async "a refusal for a full queue is repeated after the stated delay"() {
    const { exchanges, fetch } = recorder();
    const settings = { model: embedding({ baseURL: smallBaseURL, fetch }), values: FILLS_THE_QUEUE };
    const answer = await whileOccupied(() => embedMany(settings));
    expectRefusedThenAnswered(exchanges);
    const waited = exchanges[1].started - exchanges[0].ended;
    const stated = Number(exchanges[0].headers.get("retry-after-ms"));
    // Timers may fire a little early.
    expect(waited > stated - 10, `came back after ${waited} ms although ${stated} ms were stated`);
    expectSameVectors(answer.embeddings, (await plain(FILLS_THE_QUEUE)).vectors);
  },
  async "errors are read and not repeated"() {
    const wrong = [
      [400, "maximum context length is", { value: "the ".repeat(300) }],
      [400, "cannot be an empty string", { value: "" }],
      [404, "no-such-model", { name: "no-such-model" }],
      [401, "Incorrect API key provided", { baseURL: keyedBaseURL, apiKey: "wrong" }],
    ];
    for (const [status, part, { value = "x", ...options }] of wrong) {
      const { exchanges, fetch } = recorder();
      const error = await rejected(() => embed({ model: embedding({ fetch, ...options }), value }));
      expect(APICallError.isInstance(error), `${error.name}: ${error.message}`);
      expect(error.statusCode === status && error.message.includes(part), `${error.statusCode}: ${error.message}`);
      expect(exchanges.length === 1, `${exchanges.length} requests for a ${status}`);
    }
    await embed({ model: embedding({ baseURL: keyedBaseURL, apiKey: key }), value: "x" });
  },
});
