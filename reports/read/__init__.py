"""Runs and trainings read from disk for the pages."""
