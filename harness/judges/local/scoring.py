"""Asks a trained judge: steps of the same source together, so that the source is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medbench.harness.judges.contracts import VERDICTS, Item, Ruling
from medbench.harness.judges.local.calibrate import chosen, probabilities
from medbench.harness.judges.local.lexical import features_of

if TYPE_CHECKING:
    from medbench.harness.judges.local.folder import Loaded
    from medbench.harness.judges.local.network import Network

MOST_TOKENS = 1024
"""Of steps that are read behind a source at once: the memory taken grows with the square of all tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens."""

    source: int
    step: int


def inputs_of(network: Network, items: Sequence[Item], limits: Limits) -> Iterator[tuple[Item, np.ndarray | str]]:
    """For each item the network's scores and the features of its words, or why there are none."""
    by_source: dict[str, list[Item]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append(item)
    for source, asked in by_source.items():
        tokens = network.source_tokens(source)
        if not tokens or len(tokens) > limits.source:
            fault = f"the source has {len(tokens)} tokens; this judge reads 1 to {limits.source}"
            yield from ((item, fault) for item in asked)
            continue
        encoded = [(item, network.tokens(item.step)) for item in asked]
        for item, step in encoded:
            if not 0 < len(step) <= limits.step:
                yield item, f"the step has {len(step)} tokens; this judge reads 1 to {limits.step}"
        fitting = [(item, step) for item, step in encoded if 0 < len(step) <= limits.step]
        for pack in _packs(fitting):
            yield from _read(network, source, tokens, pack)


def _packs(encoded: Sequence[tuple[Item, list[int]]]) -> Iterator[list[tuple[Item, list[int]]]]:
    pack: list[tuple[Item, list[int]]] = []
    for item, step in encoded:
        if pack and sum(len(tokens) for _, tokens in pack) + len(step) > MOST_TOKENS:
            yield pack
            pack = []
        pack.append((item, step))
    if pack:
        yield pack


def _read(
    network: Network, source: str, tokens: list[int], asked: Sequence[tuple[Item, list[int]]]
) -> Iterator[tuple[Item, np.ndarray | str]]:
    import torch

    with torch.inference_mode():
        scores = network.scores(tokens, [step for _, step in asked]).float().cpu().numpy()
    for (item, _), row in zip(asked, scores, strict=True):
        yield item, np.concatenate([row.astype(float), features_of(item.step, source)])


class LocalJudge:
    """See judges.local."""

    name = "local"

    def __init__(self, loaded: Loaded) -> None:
        self._file, self._network = loaded.file, loaded.network
        self.fingerprint = loaded.fingerprint

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        """A step or source that is empty or too long for the judge has no verdict."""
        limits = Limits(self._file.most_source_tokens, self._file.most_step_tokens)
        for item, found in inputs_of(self._network, items, limits):
            if isinstance(found, str):
                yield Ruling(item.id, None, found)
                continue
            shares = probabilities(self._file.calibrator, found[None])
            if not np.isfinite(shares).all():
                yield Ruling(item.id, None, "the judge's scores are no numbers")
                continue
            yield Ruling(item.id, VERDICTS[chosen(shares, self._file.thresholds)[0]])

    def close(self) -> None: ...
