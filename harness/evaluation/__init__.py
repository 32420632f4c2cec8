"""Evaluations: questions to requests, requests to stored samples, samples to results."""
