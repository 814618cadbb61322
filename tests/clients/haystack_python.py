"""Haystack's OpenAI embedders: ask for floats, send documents 32 at a time, and need `usage`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

# Otherwise the import prepares to report to a host on the internet.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

import openai  # noqa: E402
from haystack import Document  # noqa: E402
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder  # noqa: E402
from haystack.utils import Secret  # noqa: E402

from check import TOLERANCE, Server, bits, distance, expect, expect_raises, golden, run  # noqa: E402


def settings(**options: object) -> dict[str, object]:
    key = Secret.from_token(str(options.pop("key", "unused")))
    return {"model": Server.model, "api_base_url": Server.base_url, "api_key": key, "max_retries": 0} | options


def documents_of(texts: list[str], **options: object) -> dict[str, object]:
    embedder = OpenAIDocumentEmbedder(**settings(progress_bar=False, raise_on_failure=True, **options))
    return embedder.run([Document(content=text) for text in texts])


def plain(texts: list[str]) -> tuple[list[bytes], int]:
    direct = openai.OpenAI(base_url=Server.base_url, api_key="unused", max_retries=0)
    answer = direct.embeddings.create(model=Server.model, input=texts)
    return [bits(row.embedding) for row in answer.data], answer.usage.prompt_tokens


def a_text_and_its_usage_equal_sentence_transformers() -> None:
    for item in [item for item in golden() if item.full_tokens == item.tokens][:20]:
        answer = OpenAITextEmbedder(**settings()).run(item.text)
        off = distance(answer["embedding"], item.vector)
        expect(off <= TOLERANCE, f"{off:.1e} away for {item.text[:60]!r}")
        used = {"prompt_tokens": item.tokens, "total_tokens": item.tokens}
        expect(answer["meta"] == {"model": Server.model, "usage": used}, f"meta {answer['meta']}")


def documents_keep_their_order_over_several_requests() -> None:
    texts = [f"document number {number}" for number in range(100)]
    answer = documents_of(texts)
    found, (wanted, used) = answer["documents"], plain(texts)
    expect([document.content for document in found] == texts, "the documents changed places")
    expect([bits(document.embedding) for document in found] == wanted, "the vectors differ from plain answers")
    usage = {"prompt_tokens": used, "total_tokens": used}
    expect(answer["meta"] == {"model": Server.model, "usage": usage}, f"meta {answer['meta']}, plain {used} tokens")


def prefix_and_meta_fields_are_embedded_as_text() -> None:
    options = {"progress_bar": False, "prefix": "passage: ", "meta_fields_to_embed": ["title"]}
    embedder = OpenAIDocumentEmbedder(**settings(**options))
    (document,) = embedder.run([Document(content="a body\nof two lines", meta={"title": "A title"})])["documents"]
    (wanted,), _ = plain(["passage: A title\na body\nof two lines"])
    expect(bits(document.embedding) == wanted, "another text was embedded")


def errors_carry_their_class() -> None:
    long = "the " * 300
    expect_raises(openai.BadRequestError, lambda: OpenAITextEmbedder(**settings()).run(long))
    expect_raises(openai.BadRequestError, lambda: documents_of(["a", ""]))
    expect_raises(openai.NotFoundError, lambda: OpenAITextEmbedder(**settings(model="no-such-model")).run("x"))
    keyed = {"api_base_url": Server.keyed_base_url}
    expect_raises(openai.AuthenticationError, lambda: documents_of(["a"], **keyed, key="wrong"))
    documents_of(["a"], **keyed, key=Server.key)


CHECKS = [
    a_text_and_its_usage_equal_sentence_transformers,
    documents_keep_their_order_over_several_requests,
    prefix_and_meta_fields_are_embedded_as_text,
    errors_carry_their_class,
]

if __name__ == "__main__":
    sys.exit(run(f"haystack-ai {version('haystack-ai')}", CHECKS))
