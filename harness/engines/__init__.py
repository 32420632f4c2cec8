"""What answers: one module per engine, each behind contracts.Engine and with its heavy imports inside functions."""
