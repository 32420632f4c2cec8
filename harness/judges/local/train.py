"""Makes a judge: pairs, training, calibration, a report on held-out abstracts, and the folder.

    train_judge(TrainOptions(Path("my-judge"), data="data"), say)

The task's 500 rows for training are trained on, but for a fifth that the calibration is learnt from; up to
MOST_TESTED rows of its test split are only measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.resolve import SMOLLM2, resolve
from medbench.harness.contracts import Checkpoint, MedbenchError, Say
from medbench.harness.judges.abstracts import Abstract, abstracts_of, sha256_of
from medbench.harness.judges.contracts import VERDICTS, Item, item_id
from medbench.harness.judges.local.calibrate import best_thresholds, chosen, fitted, probabilities
from medbench.harness.judges.local.fit import Fit, fit
from medbench.harness.judges.local.folder import (
    JUDGE,
    REPORT,
    Calibrator,
    JudgeFile,
    Made,
    load_network,
    refuse_existing,
    save_network,
    write_folder,
    write_json,
)
from medbench.harness.judges.local.lexical import FEATURES, features_of
from medbench.harness.judges.local.network import Network, fresh_network
from medbench.harness.judges.local.pairs import Pair, pairs_of
from medbench.harness.judges.local.report import PAGE, Report, kind_reports, verdicts_of
from medbench.harness.judges.local.scoring import Limits, inputs_of

LAYERS = 20
"""Of SmolLM2-135M's 30: the first heads that find an earlier occurrence of a word, and what followed it there, are in
layers 18 and 19. Without them a step is hard to compare with a source."""
TRAINED_LAYERS = 4
PASSES = 1
MOST_TESTED = 250
CALIBRATED_ON = 5
"""Every fifth abstract of the training split."""
LIMITS = Limits(source=1536, step=192)
CALIBRATION_SEED, TEST_SEED = 1000, 2000
"""Added to the seed of training, whose passes count up from it."""
FEWEST_ABSTRACTS = 20


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of `medbench judge train`."""

    out: Path
    data: str
    """A folder of benchmark files, or "hub"."""
    base: str = SMOLLM2
    layers: int = LAYERS
    passes: int = PASSES
    seed: int = 0
    limit: int | None = None
    """Most abstracts of each split, for a trial."""


def train_judge(options: TrainOptions, page: Callable[[Report], str], say: Say) -> Report:
    """`page`: the report as HTML, for the folder. Raises MedbenchError for faulty options, before any work."""
    refuse_existing(options.out)
    with needed("medbench judge train cannot start", "torch"):
        given, test = (abstracts_of(options.data, split)[: options.limit] for split in ("train", "test"))
        _refuse_few(options, given, test)
        data = _Data(
            learnt=[one for at, one in enumerate(given, 1) if at % CALIBRATED_ON],
            held=given[CALIBRATED_ON - 1 :: CALIBRATED_ON],
            test=test[:MOST_TESTED],
            sha256={"train": sha256_of(given), "test": sha256_of(test)},
        )
        checkpoint = resolve(options.base, say)
        network = fresh_network(Path(checkpoint.path), options.layers)
        report: list[Report] = []

        def fill(folder: Path) -> None:
            file, found = _made(options, checkpoint, network, data, folder, say)
            write_json(folder / JUDGE, file.model_dump())
            write_json(folder / REPORT, found.model_dump())
            (folder / PAGE).write_text(page(found), encoding="utf-8")
            report.append(found)

        write_folder(options.out, fill)
    return report[0]


@dataclass(frozen=True, slots=True)
class _Data:
    """No abstract is in two of the three."""

    learnt: list[Abstract]
    held: list[Abstract]
    """What the calibration is learnt from."""
    test: list[Abstract]
    sha256: dict[str, str]

    def sizes(self) -> dict[str, int]:
        return {"trained": len(self.learnt), "calibrated": len(self.held), "tested": len(self.test)}


def _made(
    options: TrainOptions, checkpoint: Checkpoint, network: Network, data: _Data, folder: Path, say: Say
) -> tuple[JudgeFile, Report]:
    """Trains the network and writes it to the folder; how it is used, and how well it does."""
    import torch

    began = time.monotonic()
    if torch.cuda.is_available():
        network.backbone.cuda()
        network.head.cuda()
    layers = int(network.backbone.config.num_hidden_layers)
    say(f"training {layers} layers of {options.base} on {len(data.learnt)} abstracts, {options.passes} times")
    how = Fit(options.passes, min(TRAINED_LAYERS, layers), options.seed, LIMITS.source, LIMITS.step)
    seen = fit(network, data.learnt, how, say)
    weights = save_network(folder, network)
    stored = load_network(folder, layers)  # in another precision its scores are slightly others
    say(f"measuring on {len(data.test)} abstracts")
    calibrated = pairs_of(data.held, options.seed + CALIBRATION_SEED)
    calibrator, thresholds = _calibration(stored, calibrated)
    tested = _within_limits(stored, pairs_of(data.test, options.seed + TEST_SEED))
    shares = probabilities(calibrator, tested.inputs)
    plain, plain_thresholds = _baseline(seen, calibrated)
    plain_shares = probabilities(plain, tested.features)
    report = Report(
        base=options.base,
        layers=layers,
        abstracts=data.sizes(),
        pairs={"trained": len(seen), "calibrated": len(calibrated), "tested": len(tested.pairs)},
        seconds=time.monotonic() - began,
        cores=torch.get_num_threads(),
        torch=torch.__version__,
        kinds=kind_reports(tested.pairs, shares[:, 0], plain_shares[:, 0]),
        judge=verdicts_of(tested.pairs, chosen(shares, thresholds)),
        baseline=verdicts_of(tested.pairs, chosen(plain_shares, plain_thresholds)),
    )
    file = JudgeFile(
        verdicts=list(VERDICTS),
        features=list(FEATURES),
        layers=layers,
        most_source_tokens=LIMITS.source,
        most_step_tokens=LIMITS.step,
        calibrator=calibrator,
        thresholds=thresholds,
        unchecked=report.unchecked,
        weights_sha256=weights,
        made=Made(
            base=options.base,
            base_fingerprint=checkpoint.fingerprint,
            data_sha256=data.sha256,
            abstracts=data.sizes(),
            passes=options.passes,
            seed=options.seed,
        ),
    )
    return file, report


@dataclass(frozen=True, slots=True)
class _Measured:
    pairs: list[Pair]
    inputs: np.ndarray
    """[pairs, scores and features]"""

    @property
    def features(self) -> np.ndarray:
        return self.inputs[:, len(VERDICTS) :]

    @property
    def verdicts(self) -> list[int]:
        return [VERDICTS.index(pair.verdict) for pair in self.pairs]


def _within_limits(network: Network, pairs: Sequence[Pair]) -> _Measured:
    """Pairs with what the judge has to go by; without those that are too long for it."""
    items = {item_id(pair.step, pair.source): pair for pair in pairs}
    asked = [Item(id, pair.step, pair.source) for id, pair in items.items()]
    found = {item.id: row for item, row in inputs_of(network, asked, LIMITS) if not isinstance(row, str)}
    return _Measured([items[id] for id in found], np.stack(list(found.values())))


def _calibration(network: Network, pairs: Sequence[Pair]) -> tuple[Calibrator, dict[str, float]]:
    measured = _within_limits(network, pairs)
    calibrator = fitted(measured.inputs, measured.verdicts)
    return calibrator, best_thresholds(probabilities(calibrator, measured.inputs), measured.verdicts)


def _baseline(seen: Sequence[Pair], calibrated: Sequence[Pair]) -> tuple[Calibrator, dict[str, float]]:
    """A logistic regression on the features alone, of all pairs that the judge has learnt from."""
    pairs = [*seen, *calibrated]
    features = np.array([features_of(pair.step, pair.source) for pair in pairs])
    verdicts = [VERDICTS.index(pair.verdict) for pair in pairs]
    model = fitted(features, verdicts, firmness=1.0)
    return model, best_thresholds(probabilities(model, features), verdicts)


def _refuse_few(options: TrainOptions, *splits: Sequence[Abstract]) -> None:
    if (options.limit is not None and options.limit < FEWEST_ABSTRACTS) or min(map(len, splits)) < FEWEST_ABSTRACTS:
        raise MedbenchError(f"{options.data}: fewer than {FEWEST_ABSTRACTS} abstracts of a split: too few")
    ids = [{one.id for one in split} for split in splits]
    if both := ids[0] & ids[1]:
        raise MedbenchError(f"{options.data}: abstract {min(both)} is in train.jsonl and in test.jsonl: remove one")
