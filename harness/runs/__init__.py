"""The run folder on disk: records, samples, comparability of runs."""
