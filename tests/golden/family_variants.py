"""What stands around an encoder: several weight files, chains of modules, prompts, shorter vectors. All on BERT."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import mistakes
import texts
from family import Family, Mistake
from family_bert import Bert
from modules import Dense


@dataclass(frozen=True)
class Variant(Bert):
    dimensions: tuple[int, ...] = ()

    def items(self) -> list[texts.Item]:
        plain = texts.for_limit(self.expected_limit())
        prompted = texts.with_prompts(self.prompts, plain) if self.prompts else []
        if not self.include_prompt:
            # Of a prompt beyond the limit, its last token stays: it takes the place of the special token.
            prompted.append(texts.Item("nothing is read", prompt="the " * self.positions))
        shorter = [texts.Item(item.text, dimensions=length) for length in self.dimensions for item in plain[:8]]
        return [*plain, *prompted, *shorter]

    def mistakes(self) -> dict[str, Mistake]:
        listed = super().mistakes()
        if self.prompts and not self.include_prompt and self.pooling != "lasttoken":
            listed["the prompt pooled"] = lambda model: mistakes.attribute([model[1]], "include_prompt", True)
        if self.default_prompt_name:
            listed["no default prompt"] = lambda model: mistakes.attribute([model], "default_prompt_name", None)
        if self.layer_norm:
            listed["no LayerNorm module"] = lambda model: mistakes.attribute(
                [module for module in model if type(module).__name__ == "LayerNorm"], "forward", lambda found: found
            )
        if self.normalize_first:
            listed["normalised only at the end"] = lambda model: mistakes.attribute(
                [model[2]], "forward", lambda found: found
            )
        for index, dense in enumerate(self.dense):
            other = "Identity" if dense.activation == "Tanh" else "Tanh"
            listed[f"{other} after Dense {index}"] = _other_activation(index, other)
        return listed


def _other_activation(index: int, name: str) -> Mistake:
    def change(model: object) -> object:
        chain = [module for module in model if type(module).__name__ == "Dense"]
        return mistakes.attribute([chain[index]], "activation_function", getattr(torch.nn, name)())

    return change


_PROMPTS = {"query": "search the document for: ", "passage": "text: ", "cut": "the quick que"}


def _without_prompt(pooling: str, seed: int, layout: str) -> Variant:
    return Variant(
        f"prompt-excluded-{pooling}",
        seed,
        layout=layout,
        pooling=pooling,
        include_prompt=False,
        prompts=_PROMPTS,
        normalize=pooling != "max",
    )


FAMILIES: list[Family] = [
    Variant("sharded", 1701, layout="classic", shards=2),
    Variant("dense-chain", 1702, dense=(Dense(48, "Tanh"), Dense(20, "Identity", bias=False))),
    Variant("layer-norm-module", 1703, layout="classic", layer_norm=True, normalize=False),
    Variant("dense-layer-norm", 1704, dense=(Dense(24, "Identity"),), layer_norm=True),
    Variant("last-token", 1705, layout="classic", pooling="lasttoken"),
    Variant("default-prompt", 1706, prompts=_PROMPTS, default_prompt_name="query"),
    _without_prompt("mean", 1707, "classic"),
    _without_prompt("cls", 1708, "current"),
    _without_prompt("max", 1709, "current"),
    _without_prompt("lasttoken", 1710, "classic"),
    Variant("weighted-mean", 1712, layout="classic", pooling="weightedmean"),
    Variant("weighted-mean-prompt-excluded", 1713, pooling="weightedmean", include_prompt=False, prompts=_PROMPTS),
    Variant("concatenated", 1714, pooling="mean+max", normalize=False),
    Variant("concatenated-dense", 1715, layout="classic", pooling="cls+mean+mean_sqrt_len_tokens", dense=(Dense(24),)),
    Variant("normalize-twice", 1716, normalize_first=True, dense=(Dense(24),)),
    Variant("matryoshka", 1711, dimensions=(1, 8, 16, 31)),
]
