"""embedserve itself, as its users meet it: the built server, over HTTP on a kept-alive connection."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import machine
from engine import Engine
from workload import Workload

READY_SECONDS = 300


class Embedserve(Engine):
    """One request with all texts, the answer as the SDKs ask for it (base64); tokenising, JSON and decoding are timed.

    Start it twice to time the start: only the second finds the files in the page cache.
    """

    def __init__(self, binary: Path, folder: Path, precision: str = "f32") -> None:
        super().__init__(f"embedserve {precision}, HTTP", precision)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # Absolute, because a directory is only taken for a model when it is written as a path. An idle server checks
        # itself every few seconds, which would disturb the peers' turns, and ends connections that wait through them.
        command = [str(binary.resolve(strict=True)), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--model", str(folder.resolve(strict=True)), "--drain-delay", "0s"]
        command += ["--canary-interval", "12h", "--idle-timeout", "12h"]
        if precision != "f32":
            command += ["--dtype", precision]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDSERVE_")}
        self.requests: dict[str, bytes] = {}
        # A file, because a pipe that nobody reads would one day stop the server.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log
        )
        self.address = ("127.0.0.1", port)
        self.connection: socket.socket | None = None
        self._wait_until_ready(command)
        self.ready_seconds = time.perf_counter() - begun
        self.ready_mib = machine.memory_mib(self.process.pid, "VmRSS")
        self.model = json.loads(self._ask(self._request("GET", "/v1/models", b"")))["data"][0]["id"]

    def prepare(self, work: Workload) -> None:
        body = {"model": self.model, "input": work.texts, "encoding_format": "base64"}
        self.requests[work.name] = self._request("POST", "/v1/embeddings", json.dumps(body).encode())
        self.run(work)

    def run(self, work: Workload) -> np.ndarray:
        answer = json.loads(self._ask(self.requests[work.name]))
        if answer["usage"]["prompt_tokens"] != work.tokens:
            raise AssertionError(f"the server read {answer['usage']} tokens, not {work.tokens}")
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]])

    def peak_mib(self) -> int:
        return machine.memory_mib(self.process.pid, "VmHWM")

    def close(self) -> None:
        self._hang_up()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        """Head and body in one piece, as good clients send them: the standard library would send them in two."""
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def _ask(self, request: bytes) -> bytes:
        """As little as a client can do: the peers are called without any, and http.client takes a quarter of a millisecond."""
        if self.connection is None:
            self.connection = socket.create_connection(self.address, timeout=600)
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.sendall(request)
        head, content = self._receive(b""), b""
        while b"\r\n\r\n" not in head:
            head = self._receive(head)
        head, content = head.split(b"\r\n\r\n", 1)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        parts, missing = [content], int(fields[b"content-length"]) - len(content)
        while missing > 0:
            parts.append(self._receive(b""))
            missing -= len(parts[-1])
        if fields.get(b"connection") == b"close":
            self._hang_up()
        content, status = b"".join(parts), head.split(b" ", 2)[1]
        if status != b"200":
            raise RuntimeError(f"the server answered {status!r}: {content[:300]!r}")
        return content

    def _receive(self, before: bytes) -> bytes:
        more = self.connection.recv(1 << 20)
        if not more:
            raise ConnectionError("the server closed the connection")
        return before + more

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def _wait_until_ready(self, command: list[str]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self._ask(self._request("GET", "/readyz", b""))
            except (OSError, RuntimeError):
                self._hang_up()
                time.sleep(0.005)
            else:
                return
        self.process.kill()
        self.process.wait(60)
        self.log.seek(0)
        said = self.log.read().decode(errors="replace")
        raise RuntimeError(f"the server did not become ready: {' '.join(command)}\n{said[-2000:]}")
