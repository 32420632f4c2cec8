"""Whether a checkpoint passes its gates, decided as early as the evidence allows."""
