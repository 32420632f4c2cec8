"""The training of one cell as a child of a sweep: python -m medbench.harness.sweeps.cell_process RECIPE RUNS [DATA].

Exit status as `medbench train`. On Linux it is killed with the sweep, even by kill -9, and so is what it has started.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.training.prepare import TrainOptions
from medbench.harness.training.recipe import read_recipe
from medbench.harness.training.train import train
from medbench.harness.training.worker import die_with

PARENT = "MEDBENCH_SWEEP_PARENT"
EXIT_INTERRUPTED = 4


def main(recipe: Path, runs: Path, data: str | None = None) -> int:
    """The exit status."""
    if PARENT in os.environ:
        die_with(int(os.environ[PARENT]))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        options = TrainOptions(recipe, runs, data, resume=True, quiet=True)
        trained = train(read_recipe(recipe), options, lambda line: print(line, flush=True))
    except MedbenchError as error:
        print(error.lines[0], flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished work is kept", flush=True)
        return EXIT_INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 70
    return 0 if trained.passed else 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as the command line does: vLLM leaves threads behind
