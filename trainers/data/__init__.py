"""Training data: rows, prompts, their rendering to tokens, and the contamination screening."""
