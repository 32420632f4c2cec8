"""Rewards for completions to questions with options, or with a ground truth in free text."""
