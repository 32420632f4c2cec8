"""A judge in a YAML file, such as a recipe's `rewards: {factuality: {judge: command, command: python my_judge.py}}`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from medbench.harness.config import Record
from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.judges.contracts import Judge, JudgeChoice
from medbench.harness.judges.plugins import FLAGS, needs_of, start_judge
from medbench.harness.text import foreign


class JudgeSettings(Record):
    """Which judge, and what it needs: the options of `medbench judge` under the same names."""

    judge: str = Field(min_length=1)
    command: str | None = Field(None, min_length=1)
    model: str | None = Field(None, min_length=1)
    engine: str | None = None
    """For `model`; None: openai with `base_url`, else vllm."""
    base_url: str | None = None
    engine_config: EngineConfig = EngineConfig()
    timeout: float = Field(600.0, gt=0, allow_inf_nan=False)
    """Seconds without a verdict after which the judge is taken to hang."""

    @model_validator(mode="after")
    def _engine_has_a_model(self) -> Self:
        if self.model is None and (self.engine or self.base_url or self.engine_config != EngineConfig()):
            raise ValueError("engine, base_url and engine_config belong to model: add it, or leave them out")
        return self


def start_from(settings: JudgeSettings, where: str, say: Say, *, kept: bool = False) -> Judge:
    """The judge, ready to be asked. `where`: the settings' place in the file, for messages. `kept`: see JudgeChoice.

    Raises MedbenchError for a judge that is unknown or broken, or lacks what it needs.
    """
    shown = foreign(settings.judge, 60)
    try:
        needs = needs_of(settings.judge)
        for name in FLAGS:
            given = getattr(settings, name, None) is not None
            if given and name not in needs:
                raise MedbenchError(f"the judge {shown} takes no {name}: leave it out")
            if name in needs and not given:
                raise MedbenchError(f"the judge {shown} needs {name}: add it, or choose another judge")
        engine = settings.engine or ("openai" if settings.base_url else "vllm")
        choice = JudgeChoice(
            settings.judge,
            settings.command,
            settings.model,
            EngineChoice(engine, settings.engine_config, settings.base_url),
            settings.timeout,
            say,
            kept,
        )
        return start_judge(choice)
    except MedbenchError as fault:
        raise type(fault)(f"{where}: {fault}") from None
