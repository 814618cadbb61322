"""Plausible mistakes, made to a loaded oracle and undone again. Vectors that do not show one could not test for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from sentence_transformers import SentenceTransformer
from transformers.activations import ACT2FN


def encoder(model: SentenceTransformer) -> torch.nn.Module:
    return model[0].model


@contextmanager
def attribute(owners: Iterable[object], name: str, value: object) -> Iterator[None]:
    """Another value for an attribute of each owner."""
    owners = list(owners)
    right = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, old in zip(owners, right, strict=True):
            setattr(owner, name, old)


@contextmanager
def tensor(parameter: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Other numbers in a weight or a buffer."""
    right = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(change(right))
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(right)


def other_gelu(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Exact for tanh and tanh for exact."""
    return ACT2FN["gelu_new" if name == "gelu" else "gelu"]


def positions_off_by_one(table: torch.Tensor) -> object:
    """The table as seen by an encoder that starts one row too late."""
    return tensor(table, lambda rows: torch.roll(rows, -1, 0))


def positions_from_zero(table: torch.Tensor, first: int) -> object:
    """The table as seen by an encoder that does not leave out the rows before the first."""
    return tensor(table, lambda rows: torch.roll(rows, first, 0))
