#!/usr/bin/env python3
"""Times embedserve beside sentence-transformers for every architecture at its usual size, with random weights.

    python benches/peers/architectures.py --binary target/release/embedserve
    ... --only bert-large,bge-m3          shapes whose start and memory matter more than their speed

Each shape becomes a folder in the Hugging Face layout, seeded; both engines read the same folder and embed the same
texts in interleaved rounds, sentence-transformers with whichever batch size is fastest for it. A row says: seconds from start to ready with files in the page cache, resident memory
then and at its peak, medians of real tokens per second, and the largest error and smallest cosine to
sentence-transformers in float32, one text per batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

import engines
from workload import Workload, wait_for_quiet

SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
MEDIAN_TOKENS = 40
SIGMA = 0.8


@dataclass(frozen=True)
class Shape:
    """One random model: transformers' classes and the fields of its configuration."""

    name: str
    kind: str
    fields: dict[str, object]
    pooling: str = "mean"
    max_tokens: int = 512


ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
SHAPES = [
    Shape("minilm-l6", "Bert", {**SMALL, "vocab_size": 30522}),
    Shape("bert-base", "Bert", {**BASE, "vocab_size": 30522}),
    Shape("roberta-base", "Roberta", {**BASE, **ROBERTA, "vocab_size": 50265, "max_position_embeddings": 514}),
    Shape("xlm-roberta-base", "XLMRoberta", {**BASE, **ROBERTA, "vocab_size": 250002, "max_position_embeddings": 514}),
    Shape("mpnet-base", "MPNet", {**BASE, "vocab_size": 30527, "max_position_embeddings": 514}),
    Shape(
        "distilbert-base",
        "DistilBert",
        {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 30522},
    ),
    Shape(
        "t5-base",
        "T5",
        {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
    ),
    Shape("modernbert-base", "ModernBert", {"vocab_size": 50368, "pad_token_id": 1}, pooling="cls", max_tokens=8192),
    Shape("nomic-base", "NomicBert", {**BASE, "vocab_size": 30528}, max_tokens=2048),
    Shape("gte-base", "Gte", {**BASE, "vocab_size": 30528, "type_vocab_size": 0}, pooling="cls", max_tokens=8192),
    Shape("bert-large", "Bert", {**LARGE, "vocab_size": 30522}, pooling="cls"),
    Shape(
        "bge-m3",
        "XLMRoberta",
        {**LARGE, **ROBERTA, "vocab_size": 250002, "max_position_embeddings": 8194},
        pooling="cls",
        max_tokens=8192,
    ),
]


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    torch.set_num_threads(len(cores))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for shape in SHAPES:
        if arguments.only and shape.name not in arguments.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / shape.name
            write(shape, folder)
            row = measure(shape, folder, arguments, len(cores))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    table(rows)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def write(shape: Shape, folder: Path) -> None:
    """Random weights as the library initialises them, and a tokenizer whose tokens are whole words."""
    torch.manual_seed(7)
    config = getattr(transformers, shape.kind + "Config")(**shape.fields)
    model = getattr(transformers, shape.kind + ("EncoderModel" if shape.kind == "T5" else "Model"))(config)
    model.save_pretrained(folder)
    del model
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{index}": index for index in range(len(SPECIAL), 20_000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_tokens}
    described |= {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    write_json(folder / "tokenizer_config.json", described)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    width = shape.fields.get("d_model") or shape.fields.get("dim") or config.hidden_size
    pooling = {"word_embedding_dimension": width, f"pooling_mode_{shape.pooling}_tokens": True}
    if shape.pooling == "cls":
        pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling/config.json", pooling)
    (folder / "2_Normalize").mkdir()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": shape.max_tokens, "do_lower_case": False})


def write_json(path: Path, described: object) -> None:
    path.write_text(json.dumps(described, indent=1) + "\n")


def texts(count: int, longest: int) -> Workload:
    """Lognormal lengths as in `mixed256`."""
    generator = np.random.Generator(np.random.PCG64(256))
    lengths = np.clip(np.rint(generator.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)).astype(int), 4, longest)
    ids = [[0, *generator.integers(len(SPECIAL), 20_000, length - 2).tolist(), 2] for length in lengths]
    return Workload([" ".join(f"w{token}" for token in row[1:-1]) for row in ids], ids)


def measure(shape: Shape, folder: Path, arguments: argparse.Namespace, threads: int) -> dict[str, object]:
    work = texts(arguments.texts, min(shape.max_tokens, 512))
    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    ).eval()
    reference = np.stack([model.encode([text], batch_size=1, show_progress_bar=False)[0] for text in work.texts])
    theirs = engines.SentenceTransformers(model, work, threads)
    theirs.choose_batch((1, 8, 32))
    foreign = wait_for_quiet()
    # The second start finds the files in the page cache.
    engines.Embedserve(arguments.binary, folder, work).close()
    begun = time.perf_counter()
    ours = engines.Embedserve(arguments.binary, folder, work)
    ready = time.perf_counter() - begun
    resident = memory(ours.process.pid, "VmRSS")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    try:
        for _ in range(arguments.rounds):
            for name, engine in (("ours", ours), ("theirs", theirs)):
                begun = time.perf_counter()
                found = engine.run()
                rates[name].append(work.tokens / (time.perf_counter() - begun))
                if name == "ours":
                    error = float(np.abs(found - reference).max())
                    cosine = float((found.astype(float) * reference).sum(1).min())
        peak = memory(ours.process.pid, "VmHWM")
    finally:
        ours.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "shape": shape.name,
        "weights_mib": round((folder / "model.safetensors").stat().st_size / 2**20),
        "ready_s": round(ready, 2),
        "rss_mib": resident,
        "peak_mib": peak,
        "tokens_per_s": round(medians["ours"]),
        "sentence_transformers_tokens_per_s": round(medians["theirs"]),
        "their_batch": theirs.batch,
        "ratio": round(medians["ours"] / medians["theirs"], 2),
        "max_error": f"{error:.1e}",
        "min_cosine": round(cosine, 9),
        "foreign_load": foreign,
    }


def memory(process: int, field: str) -> int:
    """A field of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field + ":"))


def table(rows: list[dict[str, object]]) -> None:
    if not rows:
        return
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
