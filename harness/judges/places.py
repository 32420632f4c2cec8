"""Where the steps of a reply stand in it, so that a page can mark them.

python -c "from medbench.harness.judges.places import places_of; print(places_of(['A  fell.'], '- A *fell*.'))"
"""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[int, int]
"""[start, end) in characters of the reply."""
_DROPPED = frozenset("*_`")
"""What steps.sentences leaves out within a line, besides white space."""


def places_of(steps: Sequence[str], output: str) -> list[Place | None]:
    """One for each step, in order and never overlapping; None for a step that is not found as it was said.

    Compared without white space and emphasis, which splitting into steps changes.
    """
    text, origin = _bare(output.encode("utf-8", "replace").decode())  # as the splitter reads half a surrogate pair
    found: list[Place | None] = []
    start = 0
    for step in steps:
        wanted, _ = _bare(step)
        at = text.find(wanted, start) if wanted else -1
        if at < 0:
            found.append(None)
            continue
        start = at + len(wanted)
        found.append((origin[at], origin[start - 1] + 1))
    return found


def _bare(text: str) -> tuple[str, list[int]]:
    """The characters that count, and where each stood."""
    kept = [at for at, character in enumerate(text) if not character.isspace() and character not in _DROPPED]
    return "".join(text[at] for at in kept), kept
