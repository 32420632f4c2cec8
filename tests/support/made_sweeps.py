"""A sweep as it is on disk, made up.

from support.made_sweeps import a_sweep; a_sweep(tmp_path / "runs" / "sweep-methods")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbench.harness.sweeps.record import CellDrop, CellRecord, CellScore, CellTraining, SweepRecord, write_sweep

KIND, FRACTION = "stages.sft.config.adapter.kind", "stages.sft.config.data_fraction"


def a_cell(kind: str, fraction: str, score: float, **more: Any) -> CellRecord:
    training = CellTraining(
        outcome="passed",
        reason="every stage's gates are passed and confirmed",
        checkpoint=f"train-{kind}-{fraction}/1-sft/promoted",
        fingerprint="0" * 64,
        seconds=90.0 + 100 * float(fraction),
        trained_parameters={"lora": 4_884_480, "ia3": 57_600}[kind],
        peak_memory_gib=2.5,
        steps=24,
        confirmed=score - 0.02,
        confirmed_interval=(score - 0.1, score + 0.06),
    )
    asked = 32 if more.get("dropped") else 128
    return CellRecord(
        name=f"kind-{kind}_data_fraction-{fraction}",
        values={KIND: kind, FRACTION: fraction},
        training=training,
        score=CellScore(
            asked=asked, failed=0, score=score, interval=(score - 0.1, score + 0.1), of_new_questions=asked == 128
        ),
        **more,
    )


def a_sweep(folder: Path, **changes: Any) -> SweepRecord:
    drop = CellDrop(by="kind-lora_data_fraction-1.0", after=21, exact=False, log_e=5.2)
    record = SweepRecord(
        name="methods",
        created="2026-11-28T09:00:00+00:00",
        command=["medbench", "train", "recipe.yaml"],
        recipe={"name": "methods"},
        recipe_sha256="1" * 64,
        state="complete",
        seconds=720.0,
        task="pubmedqa",
        alpha=0.05,
        alpha_each=0.05 / 3,
        questions=128,
        most=128,
        order_seed="0 abc",
        rounds=[(32, 3), (128, 3)],
        best="kind-lora_data_fraction-1.0",
        cells=[
            a_cell("lora", "0.1", 0.55),
            a_cell("lora", "1.0", 0.6),
            a_cell("ia3", "0.1", 0.2, dropped=drop),
            a_cell("ia3", "1.0", 0.58),
        ],
    ).model_copy(update=changes)
    folder.mkdir(parents=True)
    write_sweep(folder, record)
    return record
