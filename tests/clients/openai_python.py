"""openai-python, current major and 1.x: what a program sees whose only change is `base_url`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import openai

from check import TOLERANCE, Server, bits, distance, expect, expect_raises, golden, metric, occupied, run

TEXTS = ["hello world", "The cat sat on the mat.", "你好，世界！", "hello world"]

sent_bodies: list[dict[str, object]] = []


def remember(request: object) -> None:
    if request.content:
        sent_bodies.append(json.loads(request.content))


def client(**options: object) -> openai.OpenAI:
    """Without retries, so that an error shows at once; the bodies sent are kept."""
    settings = {"base_url": Server.base_url, "api_key": "unused", "max_retries": 0, "timeout": 120.0}
    transport = openai.DefaultHttpxClient(event_hooks={"request": [remember]})
    return openai.OpenAI(**(settings | {"http_client": transport} | options))


def vectors(**request: object) -> list[list[float]]:
    answer = client().embeddings.create(**({"model": Server.model} | request))
    expect([item.index for item in answer.data] == list(range(len(answer.data))), "index does not count up")
    return [item.embedding for item in answer.data]


def default_call_asks_for_base64_and_gets_native_floats() -> None:
    (vector,) = vectors(input="hello world")
    expect(sent_bodies[-1].get("encoding_format") == "base64", f"this SDK sent {sent_bodies[-1]}")
    expect(len(vector) == 384, f"{len(vector)} values")
    expect(all(type(value) is float for value in vector), "values are not floats")
    length = sum(value * value for value in vector) ** 0.5
    expect(abs(length - 1.0) < 1e-5, f"length {length}")


def base64_is_honoured_on_the_wire() -> None:
    # This SDK also takes floats, so only the body shows it; others decode without looking.
    raw = client().embeddings.with_raw_response.create(model=Server.model, input="hello world")
    (row,) = raw.http_response.json()["data"]
    expect(isinstance(row["embedding"], str), "floats came although base64 was asked for")
    expect(raw.headers["content-type"] == "application/json", f"content type {raw.headers['content-type']}")


def float_and_base64_are_the_same_bits() -> None:
    encoded, plain = vectors(input=TEXTS), vectors(input=TEXTS, encoding_format="float")
    expect([*map(bits, encoded)] == [*map(bits, plain)], "the two encodings differ")
    expect(bits(encoded[0]) == bits(encoded[3]), "equal texts, different vectors")
    expect(bits(encoded[0]) != bits(encoded[1]), "different texts, equal vectors")


def vectors_equal_sentence_transformers() -> None:
    items = golden()
    request = {"model": Server.model, "input": [item.text for item in items], "extra_body": {"truncate": True}}
    answer = client().embeddings.create(**request)
    expect(len(answer.data) == len(items), f"{len(answer.data)} answers to {len(items)} texts")
    for item, row in zip(items, answer.data, strict=True):
        off = distance(row.embedding, item.vector)
        expect(off <= TOLERANCE, f"{off:.1e} away for {item.text[:60]!r}")
    used = sum(item.tokens for item in items)
    expect(answer.usage.prompt_tokens == used, f"usage {answer.usage.prompt_tokens}, the reference read {used}")
    expect(answer.usage.total_tokens == used, "total_tokens differs from prompt_tokens")


def cut_texts_say_so_and_others_do_not() -> None:
    items = [item for item in golden() if len(item.text) < 1500]
    request = {"model": Server.model, "input": [item.text for item in items], "extra_body": {"truncate": True}}
    answer = client().embeddings.create(**request)
    for item, row in zip(items, answer.data, strict=True):
        shown = ((row.model_extra or {}).get("truncated"), (row.model_extra or {}).get("original_tokens"))
        wanted = (True, item.full_tokens) if item.full_tokens > item.tokens else (None, None)
        expect(shown == wanted, f"{shown} instead of {wanted} for {item.text[:60]!r}")


def a_text_alone_equals_itself_in_a_batch() -> None:
    batch = [item.text for item in golden()[:40]]
    together = vectors(input=batch)
    reverse = vectors(input=batch[::-1])[::-1]
    expect([*map(bits, together)] == [*map(bits, reverse)], "order changes vectors")
    for index in (0, 7, 39):
        expect(bits(vectors(input=batch[index])[0]) == bits(together[index]), f"text {index} alone differs")


def strict_response_validation_finds_nothing() -> None:
    strict = client(_strict_response_validation=True)
    answer = strict.embeddings.create(model=Server.model, input=TEXTS, encoding_format="float")
    expect(answer.object == "list" and answer.model == Server.model, f"{answer.object} {answer.model}")
    expect(all(item.object == "embedding" for item in answer.data), "item object is not 'embedding'")
    listed = strict.models.list()
    expect(Server.model in [model.id for model in listed.data], "the model is not listed")
    one = strict.models.retrieve(Server.model)
    expect((one.id, one.object) == (Server.model, "model"), f"retrieved {one}")


def answers_carry_ids_and_times() -> None:
    answer = client().embeddings.create(model=Server.model, input="x")
    extra = answer.model_extra or {}
    expect(re.fullmatch("embd-[0-9a-f]{32}", str(extra.get("id"))) is not None, f"id {extra.get('id')}")
    expect(type(extra.get("created")) is int, f"created {extra.get('created')}")
    expect(re.fullmatch("req_[0-9a-f]{32}", answer._request_id or "") is not None, f"request id {answer._request_id}")


def native_dimensions_change_nothing() -> None:
    expect(bits(vectors(input="x", dimensions=384)[0]) == bits(vectors(input="x")[0]), "dimensions=384 differs")


def other_dimensions_are_bad_requests() -> None:
    for dimensions in (8, 385, 0, -1):
        error = expect_raises(openai.BadRequestError, lambda d=dimensions: vectors(input="x", dimensions=d))
        expect(error.param == "dimensions", f"param {error.param} for {dimensions}")


def optional_fields_may_be_null_empty_or_unknown() -> None:
    expected = bits(vectors(input="x")[0])
    nothing = {"dimensions": None, "user": None, "encoding_format": None, "truncate": None}
    unknown = {"drop_params": True, "input_type": "query", "foo": {"a": [1, {"b": None}]}}
    for extra in (nothing, unknown, {"user": ""}):
        expect(bits(vectors(input="x", extra_body=extra)[0]) == expected, f"{extra} changes the vector")


def token_ids_are_read_as_tiktoken_ids() -> None:
    expected = [*map(bits, vectors(input=["hello world", "foo"]))]
    expect([*map(bits, vectors(input=[15339, 1917]))] == expected[:1], "[15339, 1917] is not 'hello world'")
    expect([*map(bits, vectors(input=[[15339, 1917], [8134]]))] == expected, "nested ids differ from the texts")


def unknown_models_are_not_found() -> None:
    error = expect_raises(openai.NotFoundError, lambda: vectors(input="x", model="no-such-model"))
    expect(error.code == "model_not_found", f"code {error.code}")
    expect("no-such-model" in str(error), f"message {error}")
    expect(bool(error.request_id), "no request id")
    expect_raises(openai.NotFoundError, lambda: client().models.retrieve("no-such-model"))


def bad_inputs_are_bad_requests() -> None:
    for wrong in ("", [], ["a", ""], [[]], ["a", 1]):
        error = expect_raises(openai.BadRequestError, lambda w=wrong: vectors(input=w))
        expect((error.type, error.param) == ("invalid_request_error", "input"), repr(error.body))
    error = expect_raises(openai.BadRequestError, lambda: vectors(input="x", encoding_format="md5"))
    expect(error.param == "encoding_format", f"param {error.param}")


def too_long_texts_are_refused_with_both_numbers() -> None:
    error = expect_raises(openai.BadRequestError, lambda: vectors(input=["short", "the " * 300]))
    expect(error.code == "context_length_exceeded", f"code {error.code}")
    # Not str(error): 1.x prints the whole body there, with its quotes escaped.
    message = error.body["message"]
    for part in ("'input[1]'", "maximum context length is 256 tokens", "requested 302 tokens"):
        expect(part in message, f"{part!r} is not in {message}")


def wrong_keys_are_authentication_errors() -> None:
    for key in ("wrong", "x" * 40):
        stranger = client(base_url=Server.keyed_base_url, api_key=key)
        request = {"model": Server.model, "input": "x"}
        error = expect_raises(openai.AuthenticationError, lambda s=stranger, r=request: s.embeddings.create(**r))
        expect(error.code == "invalid_api_key", f"code {error.code}")
        expect(key not in str(error), "the message repeats the key")
    known = client(base_url=Server.keyed_base_url, api_key=Server.key)
    known.embeddings.create(model=Server.model, input="x")


def base_url_may_lack_the_version() -> None:
    short = client(base_url=Server.base_url.removesuffix("/v1"))
    answer = short.embeddings.create(model=Server.model, input="x")
    expect(bits(answer.data[0].embedding) == bits(vectors(input="x")[0]), "another vector without /v1")


def many_inputs_fit_one_request() -> None:
    rows = vectors(input=["x"] * 2048)
    expect(len(rows) == 2048 and len({bits(row) for row in rows}) == 1, "2,048 equal texts")
    expect_raises(openai.BadRequestError, lambda: vectors(input=["x"] * 2049))


def a_refusal_for_a_full_queue_is_repeated_after_the_stated_delay() -> None:
    sent: list[tuple[float, str]] = []
    got: list[tuple[float, object]] = []

    def keep(response: object) -> None:
        response.read()
        got.append((time.monotonic(), response))

    hooks = {
        "request": [lambda request: sent.append((time.monotonic(), request.headers["x-stainless-retry-count"]))],
        "response": [keep],
    }
    with openai.DefaultHttpxClient(event_hooks=hooks) as transport:
        # The SDK's own number of retries.
        settings = {"base_url": Server.small_base_url, "api_key": "unused", "http_client": transport}
        patient = openai.OpenAI(**settings)
        repeated = ("embedserve_http_retries_seen_total", 'route="/v1/embeddings"')
        before = metric(Server.small_base_url, *repeated)
        with occupied():
            answer = patient.embeddings.create(model=Server.model, input=["x"] * Server.small_queue_rows)
    expect(len(answer.data) == Server.small_queue_rows, f"{len(answer.data)} vectors")
    expect({bits(row.embedding) for row in answer.data} == {bits(vectors(input="x")[0])}, "vectors differ")
    statuses = [response.status_code for _, response in got]
    expect(len(got) > 1 and statuses == [503] * (len(got) - 1) + [200], f"statuses {statuses}")
    counts = [count for _, count in sent]
    expect(counts == [str(number) for number in range(len(got))], f"x-stainless-retry-count {counts}")
    for (refused_at, response), (repeated_at, _) in zip(got[:-1], sent[1:], strict=True):
        after, milliseconds = response.headers["retry-after"], response.headers["retry-after-ms"]
        expect(re.fullmatch("[1-9][0-9]?", after) is not None and int(after) <= 59, f"retry-after {after}")
        expect(int(milliseconds) == int(after) * 1000, f"retry-after-ms {milliseconds} beside {after} s")
        error = response.json()["error"]
        expect(error["code"] == "server_is_overloaded", f"code {error['code']}")
        expect(f"Please try again in {after}s." in error["message"], f"{after} s, but {error['message']}")
        waited = repeated_at - refused_at
        expect(waited > int(after) - 0.01, f"came back after {waited:.3f} s although {after} s were stated")
    seen = metric(Server.small_base_url, *repeated) - before
    expect(seen == len(got) - 1, f"the server counted {seen} repetitions of {len(got) - 1}")


def asynchronous_calls_answer_alike() -> None:
    async def all_at_once() -> list[bytes]:
        settings = {"base_url": Server.base_url, "api_key": "unused", "max_retries": 0}
        async with openai.AsyncOpenAI(**settings) as several:
            calls = [several.embeddings.create(model=Server.model, input=text) for text in TEXTS]
            return [bits(answer.data[0].embedding) for answer in await asyncio.gather(*calls)]

    expect(asyncio.run(all_at_once()) == [*map(bits, vectors(input=TEXTS))], "concurrent answers differ")


CHECKS = [
    default_call_asks_for_base64_and_gets_native_floats,
    base64_is_honoured_on_the_wire,
    float_and_base64_are_the_same_bits,
    vectors_equal_sentence_transformers,
    cut_texts_say_so_and_others_do_not,
    a_text_alone_equals_itself_in_a_batch,
    strict_response_validation_finds_nothing,
    answers_carry_ids_and_times,
    native_dimensions_change_nothing,
    other_dimensions_are_bad_requests,
    optional_fields_may_be_null_empty_or_unknown,
    token_ids_are_read_as_tiktoken_ids,
    unknown_models_are_not_found,
    bad_inputs_are_bad_requests,
    too_long_texts_are_refused_with_both_numbers,
    wrong_keys_are_authentication_errors,
    base_url_may_lack_the_version,
    many_inputs_fit_one_request,
    a_refusal_for_a_full_queue_is_repeated_after_the_stated_delay,
    asynchronous_calls_answer_alike,
]

if __name__ == "__main__":
    sys.exit(run(f"openai-python {openai.__version__}", CHECKS))
