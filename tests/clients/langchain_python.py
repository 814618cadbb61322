"""LangChain's OpenAIEmbeddings with its defaults, which send cl100k token ids instead of text."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import openai
from langchain_openai import OpenAIEmbeddings

from check import TOLERANCE, Server, bits, distance, expect, expect_raises, golden, run

sent_inputs: list[object] = []


def remember(request: object) -> None:
    if request.content:
        sent_inputs.append(json.loads(request.content)["input"])


def embeddings(**options: object) -> OpenAIEmbeddings:
    transport = openai.DefaultHttpxClient(event_hooks={"request": [remember]})
    settings = {"model": Server.model, "base_url": Server.base_url, "api_key": "unused", "max_retries": 0}
    return OpenAIEmbeddings(**(settings | {"http_client": transport} | options))


def plain(texts: list[str]) -> list[bytes]:
    """The same texts, sent as text."""
    direct = openai.OpenAI(base_url=Server.base_url, api_key="unused", max_retries=0)
    return [bits(row.embedding) for row in direct.embeddings.create(model=Server.model, input=texts).data]


def short_texts() -> list[str]:
    """Every golden text that fits the model, except those of white space alone, for which LangChain sends no ids."""
    return [item.text for item in golden() if item.full_tokens == item.tokens and item.text.strip()]


def documents_by_default_equal_plain_text() -> None:
    texts = short_texts()
    found = [bits(vector) for vector in embeddings().embed_documents(texts)]
    expect(isinstance(sent_inputs[-1][0], list), f"LangChain sent {str(sent_inputs[-1])[:80]}, not token ids")
    wrong = [text for text, vector, wanted in zip(texts, found, plain(texts), strict=True) if vector != wanted]
    expect(not wrong, f"{len(wrong)} of {len(texts)} texts differ: {[text[:40] for text in wrong[:5]]}")


def query_by_default_equals_plain_text() -> None:
    for text in ("hello world", "naïve café 😀 中文", "What is the capital of France?"):
        vector = embeddings().embed_query(text)
        expect(isinstance(sent_inputs[-1][0], list), "LangChain did not send token ids")
        expect(bits(vector) == plain([text])[0], f"{text!r} differs")


def documents_by_default_equal_sentence_transformers() -> None:
    items = [item for item in golden() if item.text in set(short_texts())]
    found = embeddings().embed_documents([item.text for item in items])
    worst = max(distance(vector, item.vector) for vector, item in zip(found, items, strict=True))
    expect(worst <= TOLERANCE, f"{worst:.1e} away")


def documents_sent_as_text_equal_plain_text() -> None:
    texts = short_texts()[:20]
    found = embeddings(check_embedding_ctx_length=False).embed_documents(texts)
    expect(isinstance(sent_inputs[-1][0], str), "LangChain did not send text")
    expect([*map(bits, found)] == plain(texts), "vectors differ")


def an_empty_document_is_a_bad_request() -> None:
    expect_raises(openai.BadRequestError, lambda: embeddings().embed_documents(["", "a"]))


def an_empty_document_is_embedded_where_that_is_allowed() -> None:
    found = embeddings(base_url=Server.small_base_url).embed_documents(["", "a"])
    expect(len(found) == 2, f"{len(found)} vectors")
    expect(bits(found[1]) == plain(["a"])[0], "the document beside the empty one differs")
    expect(bits(found[0]) != bits(found[1]), "the empty document got the other's vector")


def batches_larger_than_one_request_keep_their_order() -> None:
    texts = [f"document number {number}" for number in range(1200)]
    found = embeddings().embed_documents(texts)
    expect(len(found) == 1200, f"{len(found)} vectors")
    probes = [0, 999, 1000, 1199]
    expect([bits(found[probe]) for probe in probes] == plain([texts[probe] for probe in probes]), "order lost")


CHECKS = [
    documents_by_default_equal_plain_text,
    query_by_default_equals_plain_text,
    documents_by_default_equal_sentence_transformers,
    documents_sent_as_text_equal_plain_text,
    an_empty_document_is_a_bad_request,
    an_empty_document_is_embedded_where_that_is_allowed,
    batches_larger_than_one_request_keep_their_order,
]

if __name__ == "__main__":
    sys.exit(run(f"langchain-openai {version('langchain-openai')}", CHECKS))
