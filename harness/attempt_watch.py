"""The watchdogs over one attempt, fed in order of step, so that a resumed loop hears what an uninterrupted one would.

watch = AttemptWatch(Watchdogs(config)); alarms = watch.steps(read_metrics(folder), until=None)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medbench.harness.contracts import Sample
from medbench.harness.journal import Gated
from medbench.harness.loop_contracts import Alarm, Watch


@dataclass(slots=True)
class AttemptWatch:
    """The watchdogs of one attempt, shown each logged step once and in order, whatever they knew before a kill."""

    watch: Watch
    fed: int = -1
    """The last step that they know."""

    def catch_up(
        self,
        metrics: Sequence[Mapping[str, object]],
        gated: Sequence[Gated],
        samples: Callable[[str], Mapping[str, Sequence[Sample]]],
    ) -> None:
        """Show them what an earlier session did; what they say of it is journalled already."""
        for one in gated:
            self.steps(metrics, until=one.step)
            if one.run is not None:
                self.judged(one.step, samples(one.run))

    def steps(self, metrics: Sequence[Mapping[str, object]], until: int | None) -> list[Alarm]:
        """Show them the steps after the last, up to `until`; what they say, up to the first alarm that stops."""
        found: list[Alarm] = []
        for line in metrics:
            step = int(str(line["step"]))
            if self.fed < step and (until is None or step <= until):
                self.fed = step
                found += self.watch.step(step, line)
                if any(alarm.stop for alarm in found):
                    break
        return found

    def judged(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> Sequence[Alarm]:
        return self.watch.judged(step, samples)
