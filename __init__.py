"""medbench: evaluate medical language models, gate their checkpoints, train until the gates pass.

    import medbench

    base = medbench.evaluate("Qwen/Qwen3-8B", tasks=["medqa", "pubmedqa"])
    verdict = medbench.gate("checkpoints/step-800", "gates.yaml", baseline=base)
    print(base.results["medqa"].accuracy, verdict.status, verdict.why)

Messages go to the logger "medbench". Importing this module imports nothing else of medbench.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medbench.harness.api import compare, evaluate, gate, gate_all, load_run, report, score, train
    from medbench.harness.contracts import Completion, Engine, MedbenchError, Question, Request, Sample
    from medbench.harness.gates.rules import Gate, GateFile
    from medbench.harness.gates.verdict import GateResult, Judged, Verdict
    from medbench.harness.runs.compare import Comparison, Difference, TaskComparison
    from medbench.harness.runs.records import RunRecord
    from medbench.harness.runs.stored_run import StoredRun
    from medbench.harness.scoring.summary import TaskResult
    from medbench.harness.training.train import Trained
    from medbench.trainers.gate_callback import GateCallback

_PLACES = {
    "harness.api": ("compare", "evaluate", "gate", "gate_all", "load_run", "report", "score", "train"),
    "harness.contracts": ("Completion", "Engine", "MedbenchError", "Question", "Request", "Sample"),
    "harness.gates.rules": ("Gate", "GateFile"),
    "harness.gates.verdict": ("GateResult", "Judged", "Verdict"),
    "harness.runs.compare": ("Comparison", "Difference", "TaskComparison"),
    "harness.runs.records": ("RunRecord",),
    "harness.runs.stored_run": ("StoredRun",),
    "harness.scoring.summary": ("TaskResult",),
    "harness.training.train": ("Trained",),
    "trainers.gate_callback": ("GateCallback",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Comparison",
    "Completion",
    "Difference",
    "Engine",
    "Gate",
    "GateCallback",
    "GateFile",
    "GateResult",
    "Judged",
    "MedbenchError",
    "Question",
    "Request",
    "RunRecord",
    "Sample",
    "StoredRun",
    "TaskComparison",
    "TaskResult",
    "Trained",
    "Verdict",
    "compare",
    "evaluate",
    "gate",
    "gate_all",
    "load_run",
    "report",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for (PEP 562): heavy packages stay out until they are needed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("medbench")
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'medbench' has no attribute {name!r}")
    return getattr(import_module(f"medbench.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
