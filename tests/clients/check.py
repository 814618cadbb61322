"""What every client check shares: the golden vectors, exact comparison of float32 values, and one line per check."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import traceback
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "minilm.json"

# max abs to sentence-transformers in float32; the same bar as the in-process parity tests.
TOLERANCE = 1e-5


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
    """Where the two running servers are: one open, one that wants a key. Set by run.py."""

    base_url = os.environ["CHECK_BASE_URL"]
    keyed_base_url = os.environ["CHECK_KEYED_BASE_URL"]
    key = os.environ["CHECK_KEY"]
    model = os.environ["CHECK_MODEL"]


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
