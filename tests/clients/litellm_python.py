"""LiteLLM's `openai/` route: it sorts errors by words in the message, and keeps floats as they are."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

# Otherwise the import asks a host on the internet for prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

from check import TOLERANCE, Server, distance, expect, expect_raises, golden, run  # noqa: E402

litellm.suppress_debug_info = True


def embed(**request: object) -> litellm.EmbeddingResponse:
    settings = {"model": f"openai/{Server.model}", "api_base": Server.base_url, "api_key": "unused", "max_retries": 0}
    return litellm.embedding(**(settings | request))


def vectors_and_usage_equal_sentence_transformers() -> None:
    items = [item for item in golden() if item.full_tokens == item.tokens]
    answer = embed(input=[item.text for item in items])
    worst = max(distance(row["embedding"], item.vector) for row, item in zip(answer.data, items, strict=True))
    expect(worst <= TOLERANCE, f"{worst:.1e} away")
    expect(answer.usage.prompt_tokens == sum(item.tokens for item in items), f"usage {answer.usage}")


def keywords_of_others_are_ignored() -> None:
    embed(input="x", input_type="query", user="somebody")


def unknown_models_are_not_found() -> None:
    expect_raises(litellm.NotFoundError, lambda: embed(model="openai/no-such-model", input="x"))


def too_long_texts_are_context_window_errors() -> None:
    expect_raises(litellm.ContextWindowExceededError, lambda: embed(input="the " * 300))


def wrong_keys_are_authentication_errors() -> None:
    for key in ("wrong", "x" * 40):
        request = {"api_base": Server.keyed_base_url, "api_key": key, "input": "x"}
        expect_raises(litellm.AuthenticationError, lambda r=request: embed(**r))
    embed(api_base=Server.keyed_base_url, api_key=Server.key, input="x")


def bad_inputs_are_bad_requests() -> None:
    error = expect_raises(litellm.BadRequestError, lambda: embed(input=["a", ""]))
    expect(type(error) is litellm.BadRequestError, f"sorted as {type(error).__name__}")


CHECKS = [
    vectors_and_usage_equal_sentence_transformers,
    keywords_of_others_are_ignored,
    unknown_models_are_not_found,
    too_long_texts_are_context_window_errors,
    wrong_keys_are_authentication_errors,
    bad_inputs_are_bad_requests,
]

if __name__ == "__main__":
    sys.exit(run(f"litellm {version('litellm')}", CHECKS))
