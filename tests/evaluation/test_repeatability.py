"""The same questions twice: what counts as noise, and which margins are below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from support.questions import COT, a_task, right

from medbench.harness.contracts import Completion, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.repeatability import Noise, answers_to, compare, measure
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import warnings_of
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
    assert noise.floor == 0.2


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


def test_a_margin_below_the_noise_floor_gives_a_warning() -> None:
    rules = GateFile.model_validate({"gates": [{"task": "toy", "margin": 0.02}, {"task": "toy", "at_least": 0.5}]})
    assert warnings_of({"toy": Noise(asked=100, replies=9, answers=5, scores=1)}, rules) == []
    (line,) = warnings_of({"toy": Noise(asked=100, replies=9, answers=5, scores=4)}, rules)
    assert "4.0 %" in line
