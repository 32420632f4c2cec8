"""Rows and prompts that trainers learn from."""
