"""Works a queue off in one warm engine, whatever becomes of a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from medbench.harness.checkpoints.watch_folder import checkpoints_in
from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.gates.judge import Gatekeeper
from medbench.harness.gates.verdict import Judged
from medbench.harness.secrets import redact
from medbench.harness.verdict_server.queue import Item, JudgingQueue

POLL_SECONDS = 0.5
EXIT_FAULT = 70
EXITS = {"pass": 0, "fail": 1}
"""Of `medbench gate`; 3 for any other verdict."""


def judged_items(
    keeper: Gatekeeper,
    queue: JudgingQueue,
    keep_fault: Callable[[BaseException], str],
) -> Iterator[tuple[Item, Judged | None]]:
    """Judge what is in the queue and what comes into it, for ever; each item with its verdict, if any.

    A checkpoint that cannot be judged is an item with an error, and the next one gets a new engine. `keep_fault` stores
    a fault of medbench and describes it in one line. Raises only KeyboardInterrupt, and Interrupted where the queue
    cannot be written.
    """
    while True:
        item = queue.take(POLL_SECONDS)
        if item is not None:
            yield _judge(item, keeper, queue, keep_fault)


def _judge(
    item: Item, keeper: Gatekeeper, queue: JudgingQueue, keep_fault: Callable[[BaseException], str]
) -> tuple[Item, Judged | None]:
    try:
        judged = keeper.judge(item.checkpoint)
    except Exception as error:
        keeper.drop_engine()
        if not Path(item.checkpoint).exists():
            return queue.failed(item.id, 2, _gone(item)), None
        if isinstance(error, MedbenchError):
            return queue.failed(item.id, error.exit_code, redact(str(error))), None
        return queue.failed(item.id, EXIT_FAULT, keep_fault(error)), None
    if judged.folder is None and not Path(item.checkpoint).exists():
        return queue.failed(item.id, 2, _gone(item)), None
    return queue.judged(item.id, EXITS.get(judged.verdict.overall, 3), judged.as_json()), judged


def _gone(item: Item) -> str:
    return f"{item.checkpoint}: removed while it was judged: no verdict"


def accept_found(folder: Path, queue: JudgingQueue, settled_seconds: float, say: Say) -> None:
    """Put every checkpoint that appears in `folder` into the queue, in a thread that goes on until the process ends.

    Raises MedbenchError if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise MedbenchError(f"{folder}: no such folder to watch")

    def look() -> None:
        for checkpoint in checkpoints_in(folder, idle_seconds=None, settled_seconds=settled_seconds, say=say):
            try:
                queue.accept(checkpoint.resolve())
            except (MedbenchError, OSError) as error:
                say(f"medbench: {checkpoint}: not accepted: {error}")

    threading.Thread(target=look, name="medbench-watch", daemon=True).start()
