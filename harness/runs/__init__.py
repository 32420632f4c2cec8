"""Runs on disk: records, samples, results, and which runs can be compared."""
