"""Trains the network on pairs: one pass over the abstracts, and the next with newly drawn pairs.

Each step of the optimizer is over the pairs of one abstract, whose source is read once for all of them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from medbench.harness.contracts import Say
from medbench.harness.judges.abstracts import Abstract
from medbench.harness.judges.contracts import VERDICTS
from medbench.harness.judges.local.network import Network
from medbench.harness.judges.local.pairs import Pair, pairs_of
from medbench.harness.text import duration

LEARNING_RATE = 1e-4
HEAD_LEARNING_RATE = 1e-3
WARMUP = 0.1
"""Share of all steps in which the rate rises; then it falls to nought along a cosine."""
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
SAID_EVERY = 20.0
"""Seconds between lines of progress."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How the network is trained."""

    passes: int
    layers: int
    """The last ones; those before them keep their weights, as the embeddings do."""
    seed: int
    most_source_tokens: int
    most_step_tokens: int


def fit(network: Network, abstracts: Sequence[Abstract], how: Fit, say: Say) -> list[Pair]:
    """Changes the network's weights; returns the pairs that it has seen. The same for the same arguments, as far as the
    machine's arithmetic is."""
    import torch

    torch.manual_seed(how.seed)
    trained = network.trainable(how.layers)
    optimizer = torch.optim.AdamW(
        [{"params": trained, "lr": LEARNING_RATE}, {"params": network.head.parameters(), "lr": HEAD_LEARNING_RATE}],
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    seen: list[Pair] = []
    batches: list[list[Pair]] = []
    for number in range(how.passes):
        pairs = pairs_of(abstracts, how.seed + number)
        seen += pairs
        drawn = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.abstract)]
        random.Random(how.seed + number).shuffle(drawn)
        batches += drawn
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: _rate(at, len(batches)))
    network.backbone.train()
    began = said = time.monotonic()
    losses: list[float] = []
    for at, (source, steps, verdicts) in enumerate(_encoded(network, batches, how), 1):
        scores = network.scores(source, steps)
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(verdicts, device=scores.device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*trained, *network.head.parameters()], LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if time.monotonic() - said > SAID_EVERY:
            said = time.monotonic()
            left = (said - began) / at * (len(batches) - at)
            recent = losses[-50:]
            say(f"{at} of {len(batches)} abstracts, loss {sum(recent) / len(recent):.3f}, {duration(left)} left")
    network.backbone.eval()
    return seen


def _encoded(
    network: Network, batches: Sequence[Sequence[Pair]], how: Fit
) -> Iterator[tuple[list[int], list[list[int]], list[int]]]:
    """(source, steps, places in VERDICTS); without what is too long."""
    for batch in batches:
        source = network.source_tokens(batch[0].source)
        steps = [(network.tokens(pair.step), VERDICTS.index(pair.verdict)) for pair in batch]
        steps = [(step, verdict) for step, verdict in steps if 0 < len(step) <= how.most_step_tokens]
        if steps and len(source) <= how.most_source_tokens:
            yield source, [step for step, _ in steps], [verdict for _, verdict in steps]


def _rate(at: int, of: int) -> float:
    warm = max(1, round(WARMUP * of))
    if at < warm:
        return (at + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, of - warm)))
