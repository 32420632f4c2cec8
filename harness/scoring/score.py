"""Completions to samples: one scorer for evaluation, re-scoring, lm-eval and rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medbench.harness.contracts import (
    OPEN_EXTRACTION,
    OWN_EXTRACTION,
    Completion,
    Extraction,
    MedbenchError,
    Question,
    Request,
    Sample,
    Task,
)
from medbench.harness.extraction.published import EXTRACTORS
from medbench.harness.extraction.quantity import accepts
from medbench.harness.extraction.thinking import cut_at_stop, opens_reasoning


def score_completion(
    task: Task,
    question: Question,
    request: Request,
    completion: Completion,
    order: tuple[int, ...] | None = None,
) -> Sample:
    """The sample of one completed (or failed) request; `order` is that of shuffled options, see contracts.Sample.

    Raises MedbenchError for one of lm-eval's own tasks whose metric is no share from 0 to 1.
    """
    answer, score = Extraction(None, "error"), None
    if completion.error is None:
        answer, score = _judge(task, question, request, completion)
    return Sample(
        id=question.id,
        cluster=question.cluster,
        prompt=request.prompt,
        output=completion.text,
        finish_reason=completion.finish_reason,
        extracted=answer.answer,
        outcome=answer.outcome,
        span=answer.span,
        gold=question.gold,
        score=score,
        error=completion.error,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        category=question.category,
        logprobs=completion.logprobs,
        repeat=request.repeat,
        order=order,
        note="cued" if completion.cued else answer.note,
    )


def _judge(task: Task, question: Question, request: Request, completion: Completion) -> tuple[Extraction, float]:
    if task.foreign is not None:
        text = cut_at_stop(completion.text, request.stop, opened=opens_reasoning(request.prompt))
        extracted, score = task.foreign.score(question.id, text, completion.logprobs)
        if not 0 <= score <= 1:  # NaN is neither
            raise MedbenchError(
                f"{task.name}: its metric is {score} for question {question.id!r}, and medbench's scores are shares "
                f"from 0 to 1: evaluate this task with the lm_eval command"
            )
        return Extraction(extracted, "answered" if extracted is not None else "unparsed"), score
    if completion.logprobs is not None:
        best = max(completion.logprobs.items(), key=lambda choice: choice[1])[0].strip()
        return Extraction(best, "answered"), float(best == question.gold)
    return score_reply(
        completion.text,
        question.labels,
        question.options,
        question.gold,
        finish_reason=completion.finish_reason,
        opened=opens_reasoning(request.prompt),
        stop=request.stop,
        extraction=request.extraction,
    )


def score_reply(
    reply: str,
    labels: tuple[str, ...],
    options: tuple[str, ...],
    gold: str,
    *,
    finish_reason: str = "stop",
    opened: bool = False,
    stop: tuple[str, ...] = (),
    extraction: str = OWN_EXTRACTION,
) -> tuple[Extraction, float]:
    """(the answer that the extractor `extraction` finds, 1.0 if it is right else 0.0)."""
    read = cut_at_stop(reply, stop, opened=opened) if stop else reply
    if len(read) < len(reply):
        finish_reason = "stop"  # the text before the cut is complete
    answer = EXTRACTORS[extraction](read, labels=labels, options=options, finish_reason=finish_reason, opened=opened)
    return answer, float(is_right(answer.answer, gold))


def is_right(answer: str | None, gold: str) -> bool:
    """Whether `answer` is `gold`, or within the limits that `gold` names (see extraction.quantity)."""
    return answer == gold or (answer is not None and accepts(gold, answer))


def lm_eval_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """`process_results` of medbench's task YAML: medbench's scorer under the lm_eval command."""
    labels = tuple(doc["labels"])
    answer, score = score_reply(
        results[0],
        labels,
        tuple(doc["options"]),
        doc["gold"],
        stop=("\nQuestion:",),
        extraction=OWN_EXTRACTION if labels else OPEN_EXTRACTION,
    )
    return {"accuracy": score, "unparsed": float(answer.answer is None)}
