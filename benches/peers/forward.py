"""Another program's figures for the same texts: the forward bench, which times candle-transformers beside our encoder
without HTTP (`benches/forward.rs`).

It is named by a command line in which `{workload}` (a file of texts), `{model}` (a folder), `{repetitions}` and, where
it knows them, `{precision}` are replaced. It prints JSON lines {"engine", "ms"} for each engine, the median time of the
whole workload, and may print {"peak_gflops"}: what the machine multiplies and adds in registers alone. With
`{precision}` it is run once for each, and our own lines must name the one they were computed in: {"precision"}.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from workload import Workload

OURS = "embedserve"


@dataclass(frozen=True)
class Program:
    command: str
    model: Path
    scratch: Path
    precisions: list[str]

    def run(self, work: Workload, repetitions: int) -> tuple[dict[str, tuple[str, float]], float | None]:
        """Precision and seconds of each engine, and the peak in GFLOP/s where it said one."""
        file = self.scratch / f"workload-{work.name}.json"
        file.write_text(json.dumps({"texts": work.texts, "tokens": work.lengths}))
        engines: dict[str, tuple[str, float]] = {}
        peak = None
        for precision in self.precisions if "{precision}" in self.command else ["f32"]:
            values = {"workload": file, "model": self.model, "repetitions": repetitions, "precision": precision}
            for line in self._lines({name: str(value) for name, value in values.items()}):
                peak = line.get("peak_gflops", peak)
                if "engine" not in line:
                    continue
                ours = line["engine"] == OURS
                if ours and line.get("precision", "f32") != precision:
                    raise RuntimeError(f"the forward program computed in another precision than {precision}: {line}")
                name = f"{OURS} {precision}, forward alone" if ours else line["engine"]
                if ours or precision == "f32":
                    engines[name] = (precision, line["ms"] / 1e3)
        if not engines:
            raise RuntimeError("the forward program printed no figures")
        return engines, peak

    def _lines(self, values: dict[str, str]) -> list[dict]:
        parts = shlex.split(self.command)
        for name, value in values.items():
            parts = [part.replace("{" + name + "}", value) for part in parts]
        done = subprocess.run(parts, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
