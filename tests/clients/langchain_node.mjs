// LangChain.js: sends text, 512 documents a request and two requests at a time, and repeats by its own rules.

import { ContextOverflowError } from "@langchain/core/errors";
import { OpenAIEmbeddings } from "@langchain/openai";
import * as check from "./check.mjs";

const { expect } = check;

function embeddings(configuration = {}, options = {}) {
  const settings = { model: check.model, apiKey: "unused", ...options };
  return new OpenAIEmbeddings({ ...settings, configuration: { baseURL: check.baseURL, ...configuration } });
}

// LangChain.js turns line breaks into spaces, which is another text.
const whole = check.golden.filter((item) => item.full_tokens === item.tokens && !item.text.includes("\n"));

await check.run(`@langchain/openai ${check.versionOf("@langchain/openai")}`, {
  async "a query equals plain text"() {
    for (const text of ["hello world", "naïve café 😀 中文", "What is the capital of France?"]) {
      const vector = await embeddings().embedQuery(text);
      check.expectSameVectors([vector], (await check.plain([text])).vectors);
    }
  },
  async "documents equal plain text and sentence-transformers"() {
    const texts = whole.map((item) => item.text);
    const found = await embeddings().embedDocuments(texts);
    check.expectSameVectors(found, (await check.plain(texts)).vectors);
    const worst = Math.max(...found.map((vector, index) => check.distance(vector, check.decoded(whole[index]))));
    expect(worst <= check.TOLERANCE, `${worst} away`);
  },
  async "batches larger than one request keep their order"() {
    const texts = Array.from({ length: 1200 }, (_, number) => `document number ${number}`);
    const { exchanges, fetch } = check.recorder();
    const found = await embeddings({ fetch }).embedDocuments(texts);
    expect(exchanges.length === 3, `${exchanges.length} requests`);
    expect(exchanges[1].alongside === 1, "the second request waited for the first");
    check.expectSameVectors(found, (await check.plain(texts)).vectors);
  },
  async "too long texts are context overflow errors, not repeated"() {
    const long = "the ".repeat(300);
    const calls = [(from) => from.embedQuery(long), (from) => from.embedDocuments(["x", long])];
    for (const call of calls) {
      const { exchanges, fetch } = check.recorder();
      const error = await check.rejected(() => call(embeddings({ fetch })));
      expect(ContextOverflowError.isInstance(error), `${error.constructor.name}: ${error.message}`);
      expect(exchanges.length === 1, `${exchanges.length} requests`);
    }
  },
  async "a refusal for a full queue is repeated until there is room"() {
    const { exchanges, fetch } = check.recorder();
    const patient = embeddings({ baseURL: check.smallBaseURL, fetch });
    const found = await check.whileOccupied(() => patient.embedDocuments(check.FILLS_THE_QUEUE));
    check.expectRefusedThenAnswered(exchanges);
    check.expectSameVectors(found, (await check.plain(check.FILLS_THE_QUEUE)).vectors);
  },
  async "errors carry their class and are not repeated"() {
    const wrong = [
      ["MODEL_NOT_FOUND", 404, {}, { model: "no-such-model" }],
      ["MODEL_AUTHENTICATION", 401, { baseURL: check.keyedBaseURL }, { apiKey: "wrong" }],
      [undefined, 400, {}, {}, ""],
    ];
    for (const [code, status, configuration, options, text = "x"] of wrong) {
      const { exchanges, fetch } = check.recorder();
      const error = await check.rejected(() => embeddings({ fetch, ...configuration }, options).embedDocuments([text]));
      expect(error.lc_error_code === code && error.status === status, `${error.lc_error_code} ${error.status}`);
      expect(exchanges.length === 1, `${exchanges.length} requests for a ${status}`);
    }
    await embeddings({ baseURL: check.keyedBaseURL }, { apiKey: check.key }).embedQuery("x");
  },
});
