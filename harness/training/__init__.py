"""Trains by a recipe: trains, gates every checkpoint, reruns failed attempts, promotes what is confirmed."""
