"""Ask everything, keep everything: from questions to requests, samples on disk, and results.

`evaluate` runs one evaluation from its `options` by a `plan`, which opens run and engine together; `requests` builds
what is sent, `runner` sends it and stores the answers, `progress` shows how far it is. `score_replies` does the same
for stored replies. `determinism`, `repeatability` and `protocol_sensitivity` are diagnostics. Others use `evaluate`,
`plan`, `options`, `runner` and the diagnostics.
"""
