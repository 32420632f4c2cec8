"""Optimizers by name: transformers' own, the package's, and the errors for all others.

pytest tests/trainers/test_optimizers.py
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.trainers.trl.optimizers import optimizer_arguments, optimizer_class, optimizer_fault


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "sgd", "exadam", "EXAdam", "lion", "came", "adopt"])
def test_optimizers_that_work_here(name: str) -> None:
    assert optimizer_fault(name) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamw_torsch", "unknown optimizer 'adamw_torsch'; did you mean adamw_torch"),
        ("exadm", "did you mean .*exadam"),
        ("", "unknown optimizer ''; known: "),
        ("galore_adamw", "'galore_adamw' cannot be used here"),
        ("adamw_bnb_8bit", "'adamw_bnb_8bit' cannot be used here"),
        ("bsam", "'bsam' cannot be used here"),  # wants a closure
    ],
)
def test_an_optimizer_that_does_not_work_is_one_line(name: str, says: str) -> None:
    fault = optimizer_fault(name) or ""
    assert re.search(says, fault)
    assert len(fault.splitlines()) == 1


def test_transformers_names_are_passed_on_and_others_become_a_class() -> None:
    own = optimizer_arguments("adafactor")
    assert own == {"optim": "adafactor"}
    assert optimizer_class(SimpleNamespace(optim_args=None)) is None
    carried = optimizer_arguments("EXAdam")
    found = optimizer_class(SimpleNamespace(optim_args=carried["optim_args"], learning_rate=0.5))
    assert found is not None
    assert (found[0].__name__, found[1]) == ("EXAdam", {"lr": 0.5})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(MedbenchError, match="unknown optimizer 'nothing_like_it'"):
        optimizer_arguments("nothing_like_it")


def test_the_check_leaves_the_random_state_alone() -> None:
    import torch

    before = torch.random.get_rng_state()
    optimizer_fault("exadam")
    assert torch.equal(before, torch.random.get_rng_state())
