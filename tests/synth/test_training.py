"""What comes out of synth goes into sft and grpo as it is.

pytest tests/synth/test_training.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.synth import good_reply, recipe, write_replies, write_rows

from medbench.harness.synth.synth import SynthOptions, synthesize
from medbench.harness.training import checkpoint_folder
from medbench.trainers import grpo, sft


@pytest.mark.slow
def test_two_steps_of_sft_on_what_passed(tmp_path: Path, tiny_model: Path) -> None:
    questions = write_rows(tmp_path / "rows.jsonl", 6)
    write_replies(tmp_path / "replies.jsonl", questions, lambda q, n: good_reply(q, q.gold, n), 1)
    found = synthesize(SynthOptions(recipe(tmp_path), tmp_path / "out"), lambda _: None)
    assert found.card.accepted == 6
    source = {"path": str(tmp_path / "out/accepted/multiple_choice.jsonl")}
    training = {"steps": 2, "batch_size": 2, "save_every": 2}
    config = sft.Config(data=[source], training=training, lora={"rank": 4})
    (tmp_path / "sft").mkdir()
    lines = sft.prepare(config, start=tiny_model, folder=tmp_path / "sft", benchmarks={})
    assert any("6 " in line for line in lines)
    sft.train(config, start=tiny_model, folder=tmp_path / "sft", seed=1)
    assert [one.step for one in checkpoint_folder.checkpoints(tmp_path / "sft")] == [2]
    asked = grpo.Config(prompts=[source], training={"steps": 1, "batch_size": 8}, rollout={"max_completion_tokens": 64})
    (tmp_path / "grpo").mkdir()
    assert grpo.prepare(asked, start=tiny_model, folder=tmp_path / "grpo", benchmarks={})
