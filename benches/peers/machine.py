"""What belongs beside every figure: which machine, how fast it multiplies, whether somebody else used it."""

from __future__ import annotations

import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# A run that started while others used the cores says nothing.
FOREIGN_LOAD_LIMIT = 0.02
QUIET_WAIT_SECONDS = 60
QUIET_LOOK_SECONDS = 0.5
FEATURES = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm"]
PACKAGES = ["torch", "transformers", "sentence-transformers", "onnx", "onnxruntime", "openvino", "nncf", "numpy"]


def described(cores: int) -> dict[str, str | int]:
    features = ", ".join(cpu_features())
    return {"cpu": cpu_name(), "cores": cores, "features": features, "kernel": platform.release()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def cpu_name() -> str:
    return _cpu_field("model name") or platform.machine()


def cpu_features() -> list[str]:
    """Those that decide which precisions gain anything."""
    flags = (_cpu_field("flags") or _cpu_field("Features")).split()
    return [name for name in FEATURES if name in flags]


def memory_mib(process: int, field: str) -> int:
    """A field of /proc/PID/status: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field + ":"))


def gemm_rates(threads: int) -> dict[str, float]:
    """What torch multiplies in float32 here and now, on one thread and on all: the yardstick of the same run. Threads
    work on matrices of their own, so that their ratio also shows whether somebody else holds a core."""
    alone = _gemm_gflops(1)
    together = _gemm_gflops(threads)
    rates = {"one_thread_gflops": alone, "all_threads_gflops": together, "scaling": together / alone}
    return {name: round(value, 2) for name, value in rates.items()}


def wait_for_quiet() -> float:
    """Waits until nobody else uses the cores, and returns the share that was in use at last."""
    deadline = time.monotonic() + QUIET_WAIT_SECONDS
    while True:
        load = _foreign_load()
        if load < FOREIGN_LOAD_LIMIT or time.monotonic() > deadline:
            return round(load, 4)


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.split(":")[0].strip() == name:
            return line.split(":", 1)[1].strip()
    return ""


def _gemm_gflops(threads: int) -> float:
    size, repeats = 1024, 8
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pairs = [(torch.randn(size, size), torch.randn(size, size)) for _ in range(threads)]
    barrier = threading.Barrier(threads + 1)

    def work(left: torch.Tensor, right: torch.Tensor) -> None:
        torch.set_num_threads(1)
        result = left @ right
        barrier.wait()
        for _ in range(repeats):
            torch.mm(left, right, out=result)
        barrier.wait()

    workers = [threading.Thread(target=work, args=pair) for pair in pairs]
    for worker in workers:
        worker.start()
    barrier.wait()
    begun = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - begun
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    return threads * repeats * 2 * size**3 / took / 1e9


def _foreign_load() -> float:
    """Share of all cores' time spent by other processes than this one; our idle servers count as others."""
    first, own_first = _busy_seconds(), _own_seconds()
    begun = time.monotonic()
    time.sleep(QUIET_LOOK_SECONDS)
    used = _busy_seconds() - first - (_own_seconds() - own_first)
    return max(0.0, used / ((time.monotonic() - begun) * (os.cpu_count() or 1)))


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, soft, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
