"""Ask everything, keep everything."""
