"""What every client check shares: the golden vectors, exact comparison of float32 values, a server whose queue is full,
and one line per check."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
import traceback
import urllib.request
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "minilm.json"

# max abs to sentence-transformers in float32; the same bar as the in-process parity tests.
TOLERANCE = 1e-5

OCCUPIED_SECONDS = 60


@dataclass(frozen=True)
class Golden:
    """One stored text with what the reference computed for it."""

    text: str
    tokens: int
    full_tokens: int
    vector: array


def golden() -> list[Golden]:
    stored = json.loads(GOLDEN.read_text(encoding="ascii"))
    return [
        Golden(item["text"], item["tokens"], item["full_tokens"], from_base64(item["vector"]))
        for item in stored["items"]
    ]


def from_base64(encoded: str) -> array:
    values = array("f")
    values.frombytes(base64.b64decode(encoded, validate=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def bits(values: Sequence[float]) -> bytes:
    """The float32 pattern. The wire's decimals are the shortest that name a float32, so Python's doubles differ from a
    decoded base64 vector although both mean the same float32."""
    return array("f", values).tobytes()


def distance(values: Sequence[float], expected: Sequence[float]) -> float:
    expect(len(values) == len(expected), f"{len(values)} values instead of {len(expected)}")
    expect(all(map(math.isfinite, values)), "a value is not finite")
    return max(abs(a - b) for a, b in zip(values, expected, strict=True))


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def expect_raises(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    try:
        call()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"raised {type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise AssertionError(f"nothing was raised, expected {kind.__name__}")


class Server:
    """Where the running servers are: one open, one that wants a key, one with a small queue. Set by run.py."""

    base_url = os.environ["CHECK_BASE_URL"]
    keyed_base_url = os.environ["CHECK_KEYED_BASE_URL"]
    # Open too. A request of as many rows as its queue holds fits only while no other row waits.
    small_base_url = os.environ["CHECK_SMALL_BASE_URL"]
    small_queue_rows = int(os.environ["CHECK_SMALL_QUEUE_ROWS"])
    key = os.environ["CHECK_KEY"]
    model = os.environ["CHECK_MODEL"]


@contextmanager
def occupied() -> Iterator[None]:
    """On entry rows wait in the small server's queue; on leaving the request they belong to has been answered."""
    # Long rows first, so that the server knows its speed on them when it says how long to wait.
    post_long_rows(8)
    with ThreadPoolExecutor(1) as pool:
        occupying = pool.submit(post_long_rows, 24)
        deadline = time.monotonic() + OCCUPIED_SECONDS
        while metric(Server.small_base_url, "embedserve_queue_rows") < 12:
            expect(not occupying.done(), "the request that should have occupied the server ended before rows waited")
            expect(time.monotonic() < deadline, f"nothing waited within {OCCUPIED_SECONDS} s")
        yield
        occupying.result()


def post_long_rows(rows: int) -> None:
    body = json.dumps({"model": Server.model, "input": ["the " * 250] * rows}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{Server.small_base_url}/embeddings", body, headers)
    with urllib.request.urlopen(request, timeout=OCCUPIED_SECONDS) as answer:
        answer.read()


def metric(base_url: str, name: str, labels: str = "") -> float:
    """The sum over all samples of that name whose labels contain the text given."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    samples = [line for line in lines if line.startswith((name + "{", name + " ")) and labels in line]
    expect(bool(samples), f"no metric {name} {labels}")
    return sum(float(line.rpartition(" ")[2]) for line in samples)


def run(suite: str, checks: Sequence[Callable[[], None]]) -> int:
    """Runs them all, prints a line each, and returns the process's exit code."""
    failed = 0
    for check in checks:
        name = f"{suite}: {check.__name__.replace('_', ' ')}"
        try:
            check()
        except Exception as error:
            failed += 1
            print(f"FAIL {name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            traceback.print_exc(file=sys.stderr)
        else:
            print(f"ok   {name}", flush=True)
    return 1 if failed else 0
