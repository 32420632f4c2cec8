"""Pass or fail, as early as the evidence allows."""
