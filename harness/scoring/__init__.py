"""Scores of completions, and what the samples of a task add up to."""
