"""Helpers that tests share: made-up runs and trainings, tiny models, hostile text."""
