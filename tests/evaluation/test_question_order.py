"""The order of a gate's questions: one per checkpoint, unknown before, the same for every retry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medbench.harness.contracts import MedbenchError
from medbench.harness.evaluation.question_order import SALT, order_seed
from medbench.harness.runs.records import ModelRecord


@pytest.fixture(autouse=True)
def no_salt_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDBENCH_ORDER_SALT", raising=False)


def model(fingerprint: str = "f", kind: str = "full") -> ModelRecord:
    return ModelRecord(name="m", kind=kind, fingerprint=fingerprint)


def test_a_checkpoint_keeps_its_order_and_another_has_another(tmp_path: Path) -> None:
    assert order_seed(tmp_path, model("a")) == order_seed(tmp_path, model("a"))
    assert order_seed(tmp_path, model("a")) != order_seed(tmp_path, model("b"))
    renamed = ModelRecord(name="other", kind="adapter", fingerprint="a")
    assert order_seed(tmp_path, renamed) == order_seed(tmp_path, model("a"))


def test_nobody_without_the_salt_knows_the_order(tmp_path: Path) -> None:
    assert order_seed(tmp_path / "one", model()) != order_seed(tmp_path / "two", model())
    salt = (tmp_path / "one" / SALT).read_text()
    assert len(bytes.fromhex(salt)) == 16


def test_the_salt_of_the_environment_is_that_of_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_ORDER_SALT", "a secret of the CI")
    assert order_seed(tmp_path / "one", model()) == order_seed(tmp_path / "two", model())
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("kind", ["served", "engine"])
def test_weights_that_cannot_be_seen_get_a_fresh_order(tmp_path: Path, kind: str) -> None:
    assert order_seed(tmp_path, model(kind=kind)) != order_seed(tmp_path, model(kind=kind))


def test_many_processes_make_one_salt(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: order_seed(tmp_path / "runs", model()), range(64)))
    assert len(found) == 1
    assert (tmp_path / "runs" / SALT).exists()


@pytest.mark.parametrize("content", ["", "xyz", "00" * 15, "é" * 32, "zz" * 16])
def test_a_damaged_salt_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / SALT).write_text(content)
    with pytest.raises(MedbenchError, match="not 32 hexadecimal digits: restore it, or delete it") as fault:
        order_seed(tmp_path, model())
    assert "\n" not in str(fault.value)


def test_a_salt_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MedbenchError, match=r"cannot be used \(.*\): correct --runs"):
        order_seed(tmp_path / "runs", model())
