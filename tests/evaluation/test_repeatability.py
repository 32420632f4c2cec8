"""The same questions twice: what counts as noise, and which margins are below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from support.questions import COT, a_task, right

from medbench.harness.contracts import Completion, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.repeatability import Noise, answers_to, compare, measure
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import gate_result, warnings_of
from medbench.harness.protocols.protocol import Continuation


class Wavering(FakeEngine):
    """Answers B to the first question of each pass, so that an answer depends on the order."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for number, completion in enumerate(super().generate(requests)):
            text = "The answer is (B)." if number == 0 else completion.text
            yield Completion(completion.id, text, "stop")


def test_a_steady_engine_has_no_noise() -> None:
    noise = measure(a_task(), COT, FakeEngine(right(a_task())), questions=10, seed=0)
    assert (noise.asked, noise.replies, noise.answers, noise.scores) == (10, 0, 0, 0)


def test_answers_that_depend_on_the_order_are_counted() -> None:
    task = a_task()
    all_a = {id: {"output": "The answer is (A)."} for id in right(task)}
    noise = measure(task, COT, Wavering(all_a), questions=10, seed=0)
    assert (noise.asked, noise.answers, noise.scores) == (10, 2, 2)
    assert noise.flip_rate == 0.2


def test_failed_requests_are_not_noise() -> None:
    some = dict(list(right(a_task()).items())[:6])
    assert measure(a_task(), COT, FakeEngine(some), questions=12, seed=0).asked == 6


def test_a_reply_that_the_protocol_continues_is_compared_as_a_whole() -> None:
    task = a_task()
    cut_off = FakeEngine({id: reply | {"finish_reason": "length"} for id, reply in right(task).items()})
    plain = answers_to(task, task.questions, COT, cut_off, seed=0)
    forced = COT.model_copy(update={"continuation": Continuation(cue=" Final answer:", max_new_tokens=8)})
    whole = answers_to(task, task.questions, forced, cut_off, seed=0, at_once=5)
    assert all(" Final answer:" in sample.output for sample in whole.values())
    assert (compare(plain, whole).replies, compare(whole, whole).replies) == (12, 0)


def warnings(flips: int, questions: int, **gate: Any) -> list[str]:
    """Of one gate on `questions` questions, where `flips` of 100 asked twice changed from right to wrong or back."""
    rules = GateFile.model_validate({"gates": [{"task": "toy", **gate}]})
    (rule,) = rules.gates
    found = {"status": "pass", "estimate": 0.0, "interval": None, "used": questions, "total": questions, "why": ""}
    noise = {"toy": Noise(asked=100, replies=9, answers=9, scores=flips)}
    return warnings_of(noise, rules, [gate_result(rule, **found)])


def test_a_margin_within_what_repeats_do_to_a_mean_gives_a_warning() -> None:
    """Flips go both ways, so a mean moves by the root of their share over the number of questions."""
    (line,) = warnings(4, 100, margin=0.02)
    assert "of 100 questions asked twice, 4 changed from right to wrong or back" in line
    assert "two runs of the same checkpoint can differ by 4.0 points on 100 questions" in line
    assert warnings(4, 400, margin=0.02) == []
    assert len(warnings(4, 399, better_by=0.02)) == 1
    assert warnings(0, 100, margin=0.001) == []


def test_only_comparisons_of_accuracy_have_such_a_warning() -> None:
    assert warnings(40, 100, at_least=0.5) == []
    assert warnings(40, 100, metric="unparsed", margin=0.001) == []
