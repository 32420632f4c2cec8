"""Rewards for completions to multiple-choice questions."""
