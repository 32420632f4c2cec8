"""Is this sentence supported by that text? Who says so, and how far people agree with it.

`counterfactuals` makes sentences that a text contradicts out of sentences that it supports.
"""
