"""Drives a gate without an engine: every answer that its schedule asks for arrives at once."""

from __future__ import annotations

from collections.abc import Mapping

from medbench.harness.contracts import Sample, sample_key
from medbench.harness.gates.live_gate import LiveGate
from medbench.harness.gates.schedule import Schedule


def drive(gate: LiveGate, samples: Mapping[str, Mapping[str, Sample]]) -> list[tuple[str, str]]:
    """Answer with `samples` (task -> key -> sample) until the verdict is certain. Returns what was asked, in turn."""
    schedule = Schedule(gate, {task: {} for task in samples}, places=1)
    asked = []
    for item in schedule.to_send():
        assert item is not None, "the schedule waits though nothing is under way"
        task, id, repeat = item
        asked.append((task, sample_key(id, repeat)))
        schedule.arrived(task, samples[task][sample_key(id, repeat)], seconds=0.0)
    return asked
