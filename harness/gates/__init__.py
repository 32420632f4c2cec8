"""Does a checkpoint pass its gates, decided as early as the evidence allows?

`rules` is the gate file; `build` makes a test from each rule: `census`, `population`, `task_mean`, `population_mean`
or `pace`, behind the interface in `gate_test`. `live_gate` asks until the verdict is certain, `finished_run` judges
what is on disk, and `judge` does both for many checkpoints. `baseline` reads stored runs, `answers` and
`metric_values` turn samples into shares, `wording` says what was found, `verdict` is the record. Others use `rules`,
`verdict`, `judge` and `finished_run`.
"""
