"""What is asked next about a question: attempts, and for each wrong answer another strategy.

After HuatuoGPT-o1's search (arXiv 2412.18925): a strategy is drawn at random, backtracking not for the first retry. Two
things differ. A model is told the answer only where the recipe says so, and the reply then counts as told and is
verified like any other. And each reply is a candidate of its own, where HuatuoGPT-o1 joins all of them and has the
whole rewritten.
"""

from __future__ import annotations

import hashlib

from medbench.harness.contracts import MedbenchError
from medbench.harness.synth.candidates import Candidate
from medbench.harness.synth.prompts import FIRST, TOLD
from medbench.harness.synth.recipe import SynthRecipe

Chain = list[Candidate]
"""The replies of one attempt, in order."""


def chains_of(candidates: list[Candidate], attempts: int) -> list[Chain]:
    """One per attempt. Raises MedbenchError where rounds or attempts are missing or twice."""
    chains: list[Chain] = [[] for _ in range(attempts)]
    for candidate in sorted(candidates, key=lambda one: one.round):
        if candidate.attempt >= attempts or candidate.round != len(chains[candidate.attempt]):
            raise MedbenchError(
                f"candidates.jsonl: reply {candidate.key} is there twice, or an earlier one is missing: put the file "
                f"back as it was, or start again in a new folder"
            )
        chains[candidate.attempt].append(candidate)
    return chains


def next_strategy(chain: Chain, id: str, attempt: int, recipe: SynthRecipe) -> str | None:
    """What follows the replies so far; None where nothing does. A failed request is not asked again."""
    if not chain:
        return FIRST
    last = chain[-1]
    if last.error is not None or last.right is not False or last.is_told:
        return None
    verify = recipe.verify
    if len(chain) <= verify.rounds:
        allowed = [one for one in verify.strategies if one != "backtracking" or len(chain) > 1]
        drawn = f"strategy\0{recipe.sampling.seed}\0{id}\0{attempt}\0{len(chain)}".encode("utf-8", "replace")
        return allowed[int.from_bytes(hashlib.sha256(drawn).digest()[:8]) % len(allowed)]
    return TOLD if verify.told_answer else None


def is_complete(candidates: list[Candidate], recipe: SynthRecipe) -> bool:
    """Whether a question has all its replies."""
    attempts = recipe.sampling.attempts
    if len(candidates) < attempts:
        return False
    id = candidates[0].id
    chains = chains_of(candidates, attempts)
    return all(next_strategy(chain, id, attempt, recipe) is None for attempt, chain in enumerate(chains))
