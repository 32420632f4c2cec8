"""The judge `llm`: a language model, on any engine of medbench, asked with the prompt in steps-v1.txt.

medbench judge RUN --judge llm --model Qwen/Qwen3-8B
medbench judge RUN --judge llm --model my-model --base-url http://localhost:8000/v1

Greedy. Of a reply with a thought the answer is read: it must be one of the verdicts and nothing else, but for case,
quotes, emphasis and a full stop; a JSON object {"verdict": ...} is read too. Anything else, a refusal for instance, is
a failed step, not a verdict.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Checkpoint, Completion, Engine, Message, Request
from medbench.harness.engines.plugins import check_choice, takes_checkpoint
from medbench.harness.engines.pool import start_engine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.extraction.thinking import split_reasoning
from medbench.harness.files import parse_json
from medbench.harness.judges.contracts import VERDICTS, Item, JudgeChoice, Ruling, Verdict
from medbench.harness.protocols.chat import plain_text
from medbench.harness.secrets import without_credentials
from medbench.harness.text import foreign

NEEDS = ("model",)
PROMPT = "steps-v1"
"""Another text of the prompt is another file: what is kept under a fingerprint stays comparable."""
MAX_NEW_TOKENS = 1024
"""Room for a thought; an answer takes three."""
_PLACEHOLDER = re.compile(r"\{(source|step)\}")
_TAG = re.compile(r"</?\s*(?:source|step)\s*>", re.IGNORECASE)


def start(choice: JudgeChoice) -> LLMJudge:
    """Raises MedbenchError for a model or engine that cannot be used; the engine starts with the first step."""
    assert choice.model is not None
    engine = choice.engine or EngineChoice()
    check_choice(engine)
    checkpoint = None
    if takes_checkpoint(engine):
        checkpoint = resolve(choice.model, choice.say, base=engine.config.base)
    return LLMJudge(choice.model, engine, checkpoint)


class LLMJudge:
    """See the module."""

    name = "llm"

    def __init__(self, model: str, choice: EngineChoice, checkpoint: Checkpoint | None) -> None:
        self._model, self._choice, self._checkpoint = model, choice, checkpoint
        self._engine: Engine | None = None
        self._prompt = (files("medbench.harness.judges") / f"{PROMPT}.txt").read_text(encoding="utf-8")
        self.fingerprint = self._fingerprint()

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        """Raises MedbenchError where the engine cannot be started, and Interrupted as Engine.generate."""
        if self._engine is None:
            self._engine = start_engine(self._choice, self._model, self._checkpoint)
        engine, opened = self._engine, {}
        requests = []
        for item in items:
            request = self._request(item, engine)
            opened[request.id] = item
            requests.append(request)
        for completion in engine.generate(requests):
            if isinstance(completion, Completion) and completion.id in opened:
                yield _ruling(opened[completion.id].id, completion)

    def close(self) -> None:
        if self._engine is not None and self._choice.instance is None:
            self._engine.close()
        self._engine = None

    def _request(self, item: Item, engine: Engine) -> Request:
        content = {"source": _TAG.sub("", item.source), "step": _TAG.sub("", item.step)}
        messages = (Message("user", _PLACEHOLDER.sub(lambda found: content[found[1]], self._prompt)),)
        templated = engine.chat_template != "none"
        prompt = engine.render(messages, None) if templated else plain_text(messages)
        return Request(f"judge/{item.id}", messages, prompt, MAX_NEW_TOKENS, templated=templated)

    def _fingerprint(self) -> str:
        """Over the prompt, the weights (for a server its address and the model's name) and the engine's settings.

        An engine object is taken at its word: its `fingerprint`, or its settings where it has none.
        """
        choice = self._choice
        settings = choice.config.model_dump(mode="json")
        of_model: list[Any]
        if choice.instance is not None:
            own = getattr(choice.instance, "fingerprint", None)
            of_model = [self._model, own if isinstance(own, str) else dict(choice.instance.settings())]
        elif self._checkpoint is not None:
            of_model = [self._checkpoint.fingerprint, self._checkpoint.tokenizer_sha256]
        else:
            of_model = [self._model, without_credentials(choice.base_url) if choice.base_url else ""]
        shaping = {name: settings[name] for name in ("dtype", "max_model_len", "vllm_args")}
        content = json.dumps(["llm 1", self._prompt, MAX_NEW_TOKENS, choice.name, of_model, shaping], sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()


def _ruling(id: str, completion: Completion) -> Ruling:
    if completion.error is not None:
        return Ruling(id, None, f"the engine failed: {foreign(completion.error, 200)}")
    if completion.finish_reason == "length":
        return Ruling(id, None, f"no answer within {MAX_NEW_TOKENS} tokens")
    answer = split_reasoning(completion.text).answer.strip()
    verdict = read_verdict(answer)
    if verdict is None:
        return Ruling(id, None, f"the answer {foreign(answer, 80)!r} is none of {', '.join(VERDICTS)}")
    return Ruling(id, verdict)


def read_verdict(answer: str) -> Verdict | None:
    """None for anything but one verdict alone."""
    word = answer.strip()
    if word.startswith("{"):
        try:
            content = parse_json(word)
        except ValueError:
            return None
        found = content.get("verdict") if isinstance(content, dict) and len(content) == 1 else None
        word = found if isinstance(found, str) else ""
    plain = " ".join(re.sub(r"[\s_*\"'`]+", " ", word).split()).rstrip(".").rstrip().lower()
    return next((verdict for verdict in VERDICTS if verdict == plain), None)
