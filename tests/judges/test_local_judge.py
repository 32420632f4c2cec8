"""The judge `local`: trained in seconds on a tiny model, then asked, copied, damaged and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.abstracts import abstracts_data

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.abstracts import abstracts_of
from medbench.harness.judges.contracts import VERDICTS, Item, JudgeChoice, Ruling, item_id
from medbench.harness.judges.local.pairs import KINDS
from medbench.harness.judges.local.report import Report
from medbench.harness.judges.local.train import TrainOptions, train_judge
from medbench.harness.judges.plugins import start_judge

pytestmark = pytest.mark.slow


def options(folder: Path, model: Path, name: str = "judge") -> TrainOptions:
    return TrainOptions(folder / name, str(folder / "data"), base=str(model), layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """With data/ and the trained judge/. Do not write to it."""
    folder = tmp_path_factory.mktemp("local")
    abstracts_data(folder / "data")
    train_judge(options(folder, tiny_model), lambda report: f"<p>{report.layers}</p>", lambda _: None)
    return folder


def item(step: str, source: str) -> Item:
    return Item(item_id(step, source), step, source)


def ruled(judge: Path, items: list[Item]) -> list[Ruling]:
    asked = start_judge(JudgeChoice("local", model=str(judge)))
    found = {one.id: one for one in asked.judge(items)}
    asked.close()
    return [found[one.id] for one in items]


def items_of(folder: Path, number: int = 6) -> list[Item]:
    """Sentences of abstracts, each beside its own abstract and beside the next."""
    abstracts = abstracts_of(str(folder / "data"), "test")[:number]
    return [
        item(sentence, source.text)
        for at, one in enumerate(abstracts)
        for sentence in one.sentences()
        for source in (one, abstracts[at - 1])
    ]


def test_the_report_has_every_kind_beside_the_baseline(folder: Path) -> None:
    report = Report.model_validate_json((folder / "judge" / "report.json").read_bytes())
    assert {one.kind for one in report.kinds} == {"all", "changed conclusion", *KINDS}
    assert report.abstracts == {"trained": 24, "calibrated": 6, "tested": 30}
    for one in report.kinds:
        assert one.faulty > 0
        assert one.judge.auroc is not None
        assert one.baseline.auroc is not None
        assert 0 <= one.judge.auroc.low <= one.judge.auroc.value <= one.judge.auroc.high <= 1
        assert sum(part.steps for part in one.judge.bins) == one.faulty + one.supported
    assert (folder / "judge" / "judge.html").read_text() == "<p>2</p>"


def test_it_tells_sentences_of_the_abstract_from_those_of_another(folder: Path) -> None:
    found = [one.verdict for one in ruled(folder / "judge", items_of(folder))]
    own, other = found[::2], found[1::2]
    assert own.count("supported") > 2 * other.count("supported")


def test_a_verdict_is_the_same_again_and_whatever_else_is_asked(folder: Path) -> None:
    items = items_of(folder)
    together = ruled(folder / "judge", items)
    assert ruled(folder / "judge", items) == together
    assert ruled(folder / "judge", items[::-1]) == together[::-1]
    alone = [ruled(folder / "judge", [one])[0] for one in items[:4]]
    assert alone == together[:4]


def test_what_cannot_be_encoded_has_no_verdict_and_costs_nothing_else(folder: Path) -> None:
    sound = items_of(folder)[0]
    items = [
        item("", sound.source),
        item("It helps. " * 200, sound.source),
        item(sound.step, " \n"),
        item(sound.step, "pressure " * 2000),
        item("half a character: \ud83d", sound.source),
        sound,
    ]
    found = ruled(folder / "judge", items)
    assert [one.verdict is None for one in found] == [True, True, True, True, False, False]
    assert found[0].fault == "the step has 0 tokens; this judge reads 1 to 192"
    assert "the source has" in str(found[3].fault)
    assert all(one.verdict in (None, *VERDICTS) for one in found)


def test_a_copy_has_the_same_fingerprint_and_another_threshold_another(folder: Path, tmp_path: Path) -> None:
    def fingerprint(judge: Path) -> str:
        return start_judge(JudgeChoice("local", model=str(judge))).fingerprint

    shutil.copytree(folder / "judge", tmp_path / "copy")
    (tmp_path / "copy" / "report.json").unlink()
    assert fingerprint(tmp_path / "copy") == fingerprint(folder / "judge")
    edit(tmp_path / "copy", lambda file: file["thresholds"].update(supported=0.9))
    assert fingerprint(tmp_path / "copy") != fingerprint(folder / "judge")


def test_more_steps_than_are_read_at_once_all_get_their_verdicts(folder: Path) -> None:
    sound = items_of(folder)[0]
    many = [item(f"{sound.step} {number}", sound.source) for number in range(120)]
    together = ruled(folder / "judge", many)
    assert None not in {one.verdict for one in together}
    assert ruled(folder / "judge", many[-3:]) == together[-3:]


def edit(judge: Path, change: Callable[[dict[str, Any]], object], name: str = "judge.json") -> None:
    content = json.loads((judge / name).read_text())
    change(content)
    (judge / name).write_text(json.dumps(content))


def cut(judge: Path) -> None:
    weights = judge / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def flip(judge: Path) -> None:
    weights = bytearray((judge / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (judge / "model.safetensors").write_bytes(bytes(weights))


def forged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another config, with the hash that goes with it."""

    def damage(judge: Path) -> None:
        from medbench.harness.judges.local.folder import hash_of

        edit(judge, change, "config.json")
        edit(judge, lambda file: file.update(weights_sha256=hash_of(judge)))

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda judge: (judge / "judge.json").unlink(), "no judge.json: train a judge"),
        (lambda judge: (judge / "judge.json").write_text("{"), "the file is damaged"),
        (lambda judge: (judge / "judge.json").write_text("[1]"), "expected a JSON object"),
        (lambda judge: (judge / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda judge: (judge / "tokenizer.json").unlink(), "are not those that judge.json was written with"),
        (cut, "are not those that judge.json was written with"),
        (flip, "are not those that judge.json was written with"),
        (forged(lambda config: config.update(num_hidden_layers=10**9)), "1000000000 layers"),
        (forged(lambda config: config.update(hidden_size=10**6)), "no judge can be loaded"),
        (forged(lambda config: config.update(intermediate_size=10**9)), "does not fit config.json"),
        (forged(lambda config: config.update(model_type="none-such")), "no judge can be loaded"),
        (forged(lambda config: config.update(auto_map={"AutoModel": "evil.Model"}, model_type="evil")), "be loaded"),
        (lambda judge: edit(judge, lambda file: file.update(verdicts=["yes", "no", "maybe"])), "verdicts must be"),
        (lambda judge: edit(judge, lambda file: file.update(features=["length"])), "features are not those"),
        (lambda judge: edit(judge, lambda file: file.update(kind="other")), "kind: "),
        (lambda judge: edit(judge, lambda file: file.update(schema_version=99)), "schema version 99 is newer"),
        (lambda judge: edit(judge, lambda file: file["thresholds"].update(supported=0)), "thresholds.supported"),
        (lambda judge: edit(judge, lambda file: file["calibrator"]["bias"].append(1.0)), "calibrator"),
        (lambda judge: edit(judge, lambda file: file["calibrator"].update(scale=[0.0] * 18)), "calibrator"),
    ],
)
def test_a_hostile_folder_is_one_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    judge = tmp_path / "judge"
    shutil.copytree(folder / "judge", judge)
    damage(judge)
    with pytest.raises(MedbenchError) as caught:
        start_judge(JudgeChoice("local", model=str(judge)))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_no_judge_and_a_judge_needs_a_folder(tiny_model: Path) -> None:
    with pytest.raises(MedbenchError, match=r"no judge\.json: train a judge with medbench judge train"):
        start_judge(JudgeChoice("local", model=str(tiny_model)))
    with pytest.raises(MedbenchError, match="--judge local needs --model"):
        start_judge(JudgeChoice("local"))


def test_a_folder_that_exists_and_faulty_data_are_refused_before_any_work(
    folder: Path, tmp_path: Path, tiny_model: Path
) -> None:
    def refused(wanted: TrainOptions) -> str:
        with pytest.raises(MedbenchError) as caught:
            train_judge(wanted, lambda _: "", lambda _: None)
        return str(caught.value)

    assert "exists already" in refused(options(folder, tiny_model))
    few = abstracts_data(tmp_path / "few", 5)
    assert "fewer than 20 abstracts" in refused(TrainOptions(tmp_path / "a", str(few), base=str(tiny_model)))
    same = abstracts_data(tmp_path / "same", 30)
    shutil.copy(same / "pubmedqa" / "train.jsonl", same / "pubmedqa" / "test.jsonl")
    assert "is in train.jsonl and in test.jsonl" in refused(TrainOptions(tmp_path / "a", str(same)))
    odd = tmp_path / "odd"
    shutil.copytree(tiny_model, odd)
    edit(odd, lambda config: config.update(model_type="none-such"), "config.json")
    data = str(folder / "data")
    assert "its first layers cannot be trained" in refused(TrainOptions(tmp_path / "a", data, base=str(odd)))
    below_a_file = TrainOptions(folder / "data" / "pubmedqa" / "train.jsonl" / "a", data, str(tiny_model))
    assert "cannot be made" in refused(below_a_file)
    assert not list(tmp_path.glob("*a*/judge.json"))


def test_a_training_that_is_killed_leaves_no_folder_and_the_same_command_makes_it(
    folder: Path, tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "judge"
    words = ["judge", "train", "--out", str(out), "--data", str(folder / "data"), "--model", str(tiny_model)]
    command = [sys.executable, "-m", "medbench.harness.cli", *words, "--layers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    aside = tmp_path / ".judge.unfinished"
    until = time.monotonic() + 120
    while not list(aside.glob("*.safetensors")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(aside.glob("*.safetensors"))
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout
    assert (out / "judge.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]
