"""Optimizers by name: those of transformers, and those of the package pytorch_optimizer (such as EXAdam).

    python -c "from medbench.trainers.trl.optimizers import optimizer_fault; print(optimizer_fault('adamw_torsch'))"

A name known to transformers (adamw_torch, adafactor, ...) means transformers' own; any other is looked up in the
package, ignoring case.
"""

from __future__ import annotations

from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import did_you_mean

MARK = "medbench_optimizer="
"""Prefix of TrainingArguments.optim_args for an optimizer of the package. TrainingArguments accepts only its own names,
so optim_args carries the name to run.run, which gives the class to the trainer."""


def optimizer_fault(name: str) -> str | None:
    """What is wrong with the optimizer `name` on this machine, in one line; None if it works."""
    try:
        if name in _own_names():
            _own(name)
        else:
            _takes_a_step(_class(name))
    except MedbenchError as error:
        return str(error)
    except Exception as error:  # each of some hundred optimizers fails in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"optimizer {name!r} cannot be used here ({reason}): use another, such as adamw_torch or exadam"
    return None


def optimizer_arguments(name: str) -> dict[str, Any]:
    """Keyword arguments for TrainingArguments. Raises MedbenchError for an unknown name."""
    if name in _own_names():
        return {"optim": name}
    _class(name)
    return {"optim": "adamw_torch", "optim_args": f"{MARK}{name.lower()}"}


def optimizer_class(arguments: Any) -> tuple[type[Any], dict[str, Any]] | None:
    """`optimizer_cls_and_kwargs` for a Trainer with these TrainingArguments; None if transformers creates its own."""
    carried = arguments.optim_args or ""
    if not carried.startswith(MARK):
        return None
    return _class(carried.removeprefix(MARK)), {"lr": arguments.learning_rate}


def _class(name: str) -> type[Any]:
    try:
        import pytorch_optimizer
    except ImportError:
        raise MedbenchError(
            f"optimizer {name!r}: unknown to transformers, and the package with more optimizers is not installed: "
            f"pip install pytorch_optimizer; {did_you_mean(name, _own_names())}"
        ) from None
    known = pytorch_optimizer.get_supported_optimizers()
    if name.lower() not in known:
        raise MedbenchError(
            f"unknown optimizer {name[:80]!r}; {did_you_mean(name[:80].lower(), [*_own_names(), *known])}"
        )
    found: type[Any] = pytorch_optimizer.load_optimizer(name)
    return found


def _own_names() -> list[str]:
    from transformers.training_args import OptimizerNames

    return [str(one.value) for one in OptimizerNames]


def _own(name: str) -> None:
    """Raises what transformers raises if a package needed for `name` is missing."""
    from types import SimpleNamespace

    from transformers import Trainer

    arguments = SimpleNamespace(
        optim=name,
        optim_args=None,
        optim_target_modules=None,
        learning_rate=1e-3,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
    )
    Trainer.get_optimizer_cls_and_kwargs(arguments)  # type: ignore[arg-type]


def _takes_a_step(optimizer: type[Any]) -> None:
    """Created and called as by the Trainer: two parameter groups, and steps without a closure."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.randn(8))]
        made = optimizer([{"params": [one], "weight_decay": 0.01} for one in weights], lr=1e-3)
        before = [one.detach().clone() for one in weights]
        for _ in range(2):
            (weights[0] @ weights[1]).square().sum().backward()  # type: ignore[no-untyped-call]
            made.step()
            made.zero_grad()
    if all(torch.equal(one, old) for one, old in zip(weights, before, strict=True)):
        raise ValueError("two steps change no weight")
