"""Training with TRL and peft."""
