"""Which schemes vLLM serves here: it is asked, and whatever happens to it is an answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.vllm import runs_on_cpu
from medbench.harness.quantise import served
from medbench.harness.quantise.schemes import SCHEMES
from medbench.harness.quantise.served import Served, ask_vllm, quantization_config, served_schemes


@pytest.mark.engine
@pytest.mark.skipif(not runs_on_cpu(), reason="asks vLLM's CPU build")
def test_vllm_serves_w8a8_on_a_cpu_and_names_its_kernel() -> None:
    found = ask_vllm(quantization_config("w8a8", 32))
    assert found.served, found.said
    assert "Int8" in found.said


@pytest.mark.engine
def test_what_vllm_refuses_is_told_in_its_own_words() -> None:
    config = quantization_config("w8a8", 32)
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    found = ask_vllm(config)
    assert not found.served
    assert "\n" not in found.said
    assert "Error" in found.said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("kill -9 $$", "its process ended by signal 9"),
        ("echo Illegal instruction >&2; exit 1", "its process ended with status 1: Illegal instruction"),
        ("echo 'no JSON'; exit 0", "its process ended with status 0: nothing"),
    ],
)
def test_a_process_that_ends_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    assert ask_vllm({}) == Served(False, said)


@pytest.mark.parametrize(("some", "status"), [(True, 0), (False, 1)])
def test_the_command_lists_every_scheme_with_vllm_s_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], some: bool, status: int
) -> None:
    monkeypatch.setattr(served, "ask_vllm", lambda config: Served(some, f"[b]{config['format']}[/b]"))
    assert run(["quantise", "--schemes", "--json"]) == status
    content = json.loads(capfd.readouterr().out)
    assert content == {name: {"served": some, "said": f"[b]{one.format}[/b]"} for name, one in SCHEMES.items()}
    assert run(["quantise", "--schemes"]) == status
    assert "[b]int-quantized[/b]" in capfd.readouterr().out


def test_without_vllm_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "version", lambda: None)
    with pytest.raises(MedbenchError, match="vLLM is not installed"):
        served_schemes(print)
