"""Which weights are these, and can they be used: model names to verified folders."""
