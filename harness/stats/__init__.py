"""What the numbers say: pure functions on numpy arrays."""
