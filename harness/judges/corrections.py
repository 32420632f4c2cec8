"""The share of a verdict among judged steps, corrected by steps that people have labelled too: see docs/judges.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medbench.harness.stats.corrected_share import (
    UNKNOWN,
    Labelled,
    Share,
    corrected_by_error_rates,
    prediction_powered,
)


@dataclass(frozen=True, slots=True)
class CorrectedShare:
    """Value None where the labels do not tell."""

    by_error_rates: Share
    prediction_powered: Share
    """Unknown too where every judged question has labels, and where the labels are of other replies."""


def corrected_share(
    verdict: str,
    judged: Mapping[str, Sequence[str]],
    labels: Sequence[Sequence[str]],
    *,
    same_replies: bool = True,
) -> CorrectedShare:
    """`judged`: cluster -> verdicts; `labels`: (cluster, person's label, verdict).

    `same_replies`: whether the labelled steps are some of the judged ones.
    """
    clusters = {cluster: [int(one == verdict) for one in said] for cluster, said in judged.items()}
    labelled = [Labelled(cluster, int(said == verdict), int(label == verdict)) for cluster, label, said in labels]
    with_labels = {one.cluster for one in labelled}
    rest = [values for cluster, values in clusters.items() if cluster not in with_labels] if same_replies else []
    return CorrectedShare(
        corrected_by_error_rates(list(clusters.values()), labelled),
        prediction_powered(rest, labelled) if rest else UNKNOWN,
    )
