"""What changes in a training's settings after an attempt that failed.

    python -c "from medbench.trainers.adaptation import adapt_training; print(adapt_training.__doc__)"

A new seed, and the best checkpoint as the start while it was still improving, are the loop's own doing.
"""

from __future__ import annotations

from medbench.harness.plugins import FailedAttempt
from medbench.trainers.trl_training import TrainingSettings


def adapt_training(settings: TrainingSettings, verdict: FailedAttempt) -> TrainingSettings:
    """Half the learning rate after divergence, else the same settings."""
    if not verdict.diverged:
        return settings
    return settings.model_copy(update={"learning_rate": settings.learning_rate / 2})
