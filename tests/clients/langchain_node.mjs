// LangChain.js: sends text, 512 documents a request and two requests at a time, and repeats by its own rules.

import { ContextOverflowError } from "@langchain/core/errors";
import { OpenAIEmbeddings } from "@langchain/openai";
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

function embeddings(configuration = {}, options = {}) {
  const settings = { model, apiKey: "unused", ...options };
  return new OpenAIEmbeddings({ ...settings, configuration: { baseURL, ...configuration } });
}

// LangChain.js turns line breaks into spaces, which is another text.
const whole = golden.filter((item) => item.full_tokens === item.tokens && !item.text.includes("\n"));

await run(`@langchain/openai ${versionOf("@langchain/openai")}`, {
  async "a query equals plain text"() {
    for (const text of ["hello world", "naïve café 😀 中文", "What is the capital of France?"]) {
      const vector = await embeddings().embedQuery(text);
      expectSameVectors([vector], (await plain([text])).vectors);
    }
  },
  async "documents equal plain text and sentence-transformers"() {
    const texts = whole.map((item) => item.text);
    const found = await embeddings().embedDocuments(texts);
    expectSameVectors(found, (await plain(texts)).vectors);
    const worst = Math.max(...found.map((vector, index) => distance(vector, decoded(whole[index]))));
    expect(worst <= TOLERANCE, `${worst} away`);
  },
  async "batches larger than one request keep their order"() {
    const texts = Array.from({ length: 1200 }, (_, number) => `document number ${number}`);
    const { exchanges, fetch } = recorder();
    const found = await embeddings({ fetch }).embedDocuments(texts);
    expect(exchanges.length === 3, `${exchanges.length} requests`);
    expect(exchanges[1].alongside === 1, "the second request waited for the first");
    expectSameVectors(found, (await plain(texts)).vectors);
  },
  async "too long texts are context overflow errors, not repeated"() {
    const long = "the ".repeat(300);
    const calls = [(from) => from.embedQuery(long), (from) => from.embedDocuments(["x", long])];
    for (const call of calls) {
      const { exchanges, fetch } = recorder();
      const error = await rejected(() => call(embeddings({ fetch })));
      expect(ContextOverflowError.isInstance(error), `${error.constructor.name}: ${error.message}`);
      expect(exchanges.length === 1, `${exchanges.length} requests`);
    }
  },
  async "a refusal for a full queue is repeated until there is room"() {
    const { exchanges, fetch } = recorder();
    const patient = embeddings({ baseURL: smallBaseURL, fetch });
    const found = await whileOccupied(() => patient.embedDocuments(FILLS_THE_QUEUE));
    expectRefusedThenAnswered(exchanges);
    expectSameVectors(found, (await plain(FILLS_THE_QUEUE)).vectors);
  },
  async "errors carry their class and are not repeated"() {
    const wrong = [
      ["MODEL_NOT_FOUND", 404, {}, { model: "no-such-model" }],
      ["MODEL_AUTHENTICATION", 401, { baseURL: keyedBaseURL }, { apiKey: "wrong" }],
      [undefined, 400, {}, {}, ""],
    ];
    for (const [code, status, configuration, options, text = "x"] of wrong) {
      const { exchanges, fetch } = recorder();
      const error = await rejected(() => embeddings({ fetch, ...configuration }, options).embedDocuments([text]));
      expect(error.lc_error_code === code && error.status === status, `${error.lc_error_code} ${error.status}`);
      expect(exchanges.length === 1, `${exchanges.length} requests for a ${status}`);
    }
    await embeddings({ baseURL: keyedBaseURL }, { apiKey: key }).embedQuery("x");
  },
});
