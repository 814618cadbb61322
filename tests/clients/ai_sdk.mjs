// The Vercel AI SDK: asks for floats, sends 2,048 texts a request and all its requests at once.

import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, embed, embedMany } from "ai";
import * as check from "./check.mjs";

const { expect } = check;

function embedding(options = {}) {
  const { name = check.model, ...settings } = options;
  return createOpenAI({ baseURL: check.baseURL, apiKey: "unused", ...settings }).embedding(name);
}

await check.run(`ai ${check.versionOf("ai")}`, {
  async "one text equals sentence-transformers"() {
    const item = check.golden.find((one) => one.full_tokens === one.tokens && one.text.length > 40);
    const answer = await embed({ model: embedding(), value: item.text, maxRetries: 0 });
    const off = check.distance(answer.embedding, check.decoded(item));
    expect(off <= check.TOLERANCE, `${off} away`);
    expect(answer.usage.tokens === item.tokens, `usage ${answer.usage.tokens}, the reference read ${item.tokens}`);
  },
  async "2,049 texts go as two requests at once and come back in order"() {
    const values = Array.from({ length: 2049 }, (_, number) => `text number ${number}`);
    const { exchanges, fetch } = check.recorder();
    const answer = await embedMany({ model: embedding({ fetch }), values, maxRetries: 0 });
    const sizes = exchanges.map((exchange) => exchange.body.input.length);
    expect(String(sizes) === "2048,1", `requests of ${sizes} texts`);
    expect(exchanges[1].alongside === 1, "the second request waited for the first");
    expect(exchanges.every(({ body }) => body.encoding_format === "float"), "this SDK did not ask for floats");
    const wanted = await check.plain(values);
    check.expectSameVectors(answer.embeddings, wanted.vectors);
    expect(answer.usage.tokens === wanted.tokens, `usage ${answer.usage.tokens} instead of ${wanted.tokens}`);
    expect(new Set(answer.embeddings.map(String)).size === 2049, "different texts, equal vectors");
  },
  async "a refusal for a full queue is repeated after the stated delay"() {
    const { exchanges, fetch } = check.recorder();
    const settings = { model: embedding({ baseURL: check.smallBaseURL, fetch }), values: check.FILLS_THE_QUEUE };
    const answer = await check.whileOccupied(() => embedMany(settings));
    check.expectRefusedThenAnswered(exchanges);
    const waited = exchanges[1].started - exchanges[0].ended;
    const stated = Number(exchanges[0].headers.get("retry-after-ms"));
    // Timers may fire a little early.
    expect(waited > stated - 10, `came back after ${waited} ms although ${stated} ms were stated`);
    check.expectSameVectors(answer.embeddings, (await check.plain(check.FILLS_THE_QUEUE)).vectors);
  },
  async "errors are read and not repeated"() {
    const wrong = [
      [400, "maximum context length is", { value: "the ".repeat(300) }],
      [400, "cannot be an empty string", { value: "" }],
      [404, "no-such-model", { name: "no-such-model" }],
      [401, "Incorrect API key provided", { baseURL: check.keyedBaseURL, apiKey: "wrong" }],
    ];
    for (const [status, part, { value = "x", ...options }] of wrong) {
      const { exchanges, fetch } = check.recorder();
      const error = await check.rejected(() => embed({ model: embedding({ fetch, ...options }), value }));
      expect(APICallError.isInstance(error), `${error.name}: ${error.message}`);
      expect(error.statusCode === status && error.message.includes(part), `${error.statusCode}: ${error.message}`);
      expect(exchanges.length === 1, `${exchanges.length} requests for a ${status}`);
    }
    await embed({ model: embedding({ baseURL: check.keyedBaseURL, apiKey: check.key }), value: "x" });
  },
});
