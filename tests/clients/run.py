#!/usr/bin/env python3
"""Drives the built server with the real client libraries, on the real all-MiniLM-L6-v2.

    python3 tests/clients/run.py target/debug/embedserve [--model NAME_OR_FOLDER] [--only SUITE]

Three servers are started on free ports of 127.0.0.1: one open, one with a key, and one with a small queue, which is
filled to see requests refused and repeated. Each client library lives in its own
environment under target/clients, built from the exact pins beside this file. Every check prints a line that starts with
"ok" or "FAIL"; the last line is "N passed, M failed", and the exit code is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
WORK = REPOSITORY / "target" / "clients"

# Long enough for a first download of the weights on a slow line.
READY_SECONDS = 900
# Longer than the drain a server grants its last requests.
STOP_SECONDS = 60
SUITE_SECONDS = 900

SMALL_QUEUE_ROWS = 32
# One row a batch and one thread, so that its queue stays filled long enough to be seen on any machine.
SMALL = ["--queue-rows", str(SMALL_QUEUE_ROWS), "--max-batch-rows", "1", "--threads", "1", "--device", "cpu"]

# The name under which tiktoken looks for its file: the SHA-1 of the address it would otherwise load it from.
TIKTOKEN_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"


@dataclass(frozen=True)
class Suite:
    """One script with the pins it runs under; None is Node's."""

    name: str
    script: str
    requirements: str | None


SUITES = [
    Suite("openai", "openai_python.py", "requirements-current.txt"),
    Suite("openai-1x", "openai_python.py", "requirements-1x.txt"),
    Suite("langchain", "langchain_python.py", "requirements-current.txt"),
    Suite("langchain-1x", "langchain_python.py", "requirements-1x.txt"),
    Suite("litellm", "litellm_python.py", "requirements-litellm.txt"),
    Suite("haystack", "haystack_python.py", "requirements-haystack.txt"),
    Suite("node", "openai_node.mjs", None),
    Suite("langchain-js", "langchain_node.mjs", None),
    Suite("ai-sdk", "ai_sdk.mjs", None),
]


class Tally:
    """Counts the lines as they pass."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def line(self, text: str) -> None:
        print(text, flush=True)
        self.passed += text.startswith("ok ")
        self.failed += text.startswith("FAIL ")

    def check(self, name: str, reason: str | None) -> None:
        self.line(f"ok   {name}" if reason is None else f"FAIL {name}: {reason}")


class Server:
    """One running server and its log."""

    def __init__(self, binary: Path, arguments: list[str], name: str) -> None:
        self.port = free_port()
        self.log = WORK / f"server-{name}.log"
        command = [str(binary), "--host", "127.0.0.1", "--port", str(self.port), *arguments]
        # Settings of the person who runs this must not reach the server under test.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDSERVE_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the server was not ready within {READY_SECONDS} s\n{self.tail()}")

    def ask_to_stop(self) -> None:
        self.ended_early = self.process.poll() is not None
        if not self.ended_early:
            self.process.send_signal(signal.SIGTERM)

    def stopped(self) -> str | None:
        """None when it ended as it should."""
        if self.ended_early:
            return f"the server had already ended with {self.process.returncode}"
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"still running {STOP_SECONDS} s after SIGTERM"
        return None if code == 0 else f"exit code {code}"

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-40:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--model", help="passed on to the server; without it the server's own default is checked")
    parser.add_argument("--only", choices=[suite.name for suite in SUITES], action="append", help="repeatable")
    arguments = parser.parse_args()
    suites = [suite for suite in SUITES if arguments.only is None or suite.name in arguments.only]
    WORK.mkdir(parents=True, exist_ok=True)
    programs = {suite.name: prepare(suite) for suite in suites}
    tiktoken_cache = place_tiktoken_file() if any(suite.script == "langchain_python.py" for suite in suites) else None

    tally = Tally()
    key = "check-" + os.urandom(16).hex()
    chosen = ["--model", arguments.model] if arguments.model else []
    binary = arguments.binary.resolve(strict=True)
    servers = {"open": Server(binary, chosen, "open")}
    try:
        # The others start when the first has the weights, so that they are fetched once.
        servers["open"].wait_until_ready()
        servers["keyed"] = Server(binary, [*chosen, "--api-key", key], "keyed")
        servers["small"] = Server(binary, [*chosen, *SMALL, "--allow-empty-input"], "small")
        servers["keyed"].wait_until_ready()
        servers["small"].wait_until_ready()
        environment = {
            **os.environ,
            "CHECK_BASE_URL": servers["open"].base_url,
            "CHECK_KEYED_BASE_URL": servers["keyed"].base_url,
            "CHECK_SMALL_BASE_URL": servers["small"].base_url,
            "CHECK_SMALL_QUEUE_ROWS": str(SMALL_QUEUE_ROWS),
            "CHECK_KEY": key,
            "CHECK_MODEL": first_model(servers["open"].base_url),
            # The checks speak to this machine only.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if tiktoken_cache:
            environment["TIKTOKEN_CACHE_DIR"] = str(tiktoken_cache)
        for suite in suites:
            run_suite(suite, programs[suite.name], environment, tally)
    except (RuntimeError, OSError) as error:
        tally.check("servers start and answer", str(error))
    finally:
        # All first, so that they drain at the same time.
        for server in servers.values():
            server.ask_to_stop()
        for name, server in servers.items():
            tally.check(f"the {name} server ends cleanly on SIGTERM", server.stopped())
    if tally.failed:
        for name, server in servers.items():
            print(f"--- last lines of the {name} server's log\n{server.tail()}", file=sys.stderr)
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed or not tally.passed else 0


def prepare(suite: Suite) -> list[str]:
    """The program that runs this suite, with its libraries in place."""
    if suite.requirements is None:
        node = shutil.which("node")
        if node is None or shutil.which("npm") is None:
            raise SystemExit("node and npm are needed for the Node clients")
        pins = (HERE / "package-lock.json").read_bytes()
        install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        build(HERE / "node_modules", pins, [install])
        return [node, str(HERE / suite.script)]
    requirements = HERE / suite.requirements
    folder = WORK / requirements.stem
    python = folder / "bin" / "python"
    # The pins name every package, so nothing may be added to them.
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, "--requirement", str(requirements)],
        [str(python), "-m", "pip", "check", "--quiet", "--disable-pip-version-check"],
    ]
    build(folder, requirements.read_bytes() + sys.version.encode(), steps)
    return [str(python), str(HERE / suite.script)]


def build(folder: Path, pins: bytes, steps: list[list[str]]) -> None:
    """Runs the steps unless the folder was made from these very pins."""
    stamp = folder / ".pins"
    wanted = hashlib.sha256(pins).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    for step in steps:
        subprocess.run(step, check=True, cwd=HERE, stdin=subprocess.DEVNULL)
    stamp.write_text(wanted)


def place_tiktoken_file() -> Path:
    """LangChain's tiktoken would fetch its table from the internet. The server's own dependency carries the same file,
    and tiktoken checks its hash before use."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    found = subprocess.run(command, check=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    packages = json.loads(found.stdout)["packages"]
    (manifest,) = [Path(package["manifest_path"]) for package in packages if package["name"] == "tiktoken-rs"]
    cache = WORK / "tiktoken"
    cache.mkdir(exist_ok=True)
    place = cache / hashlib.sha1(TIKTOKEN_ADDRESS.encode()).hexdigest()
    shutil.copyfile(manifest.parent / "assets" / "cl100k_base.tiktoken", place)
    return cache


def run_suite(suite: Suite, program: list[str], environment: dict[str, str], tally: Tally) -> None:
    """Its standard output is read line by line; what it prints on standard error is shown only after a failure."""
    before = tally.passed + tally.failed, tally.failed
    errors = WORK / f"{suite.name}.stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            program,
            env=environment,
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=SUITE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += f"FAIL {suite.name}: not finished within {SUITE_SECONDS} s"
    for line in output.splitlines():
        tally.line(line)
    ran, failed = tally.passed + tally.failed - before[0], tally.failed - before[1]
    if not ran or (process.returncode != 0 and not failed):
        tally.check(f"{suite.name} runs to its end", f"exit code {process.returncode} after {ran} checks")
        failed += 1
    if failed:
        print(errors.read_text(errors="replace")[-8000:], file=sys.stderr, flush=True)


def first_model(base_url: str) -> str:
    with urllib.request.urlopen(f"{base_url}/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["id"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
