"""What is on disk?

`run_folder` creates, appends to, seals and reads a run folder; `records` is run.json, `provenance` versions and git
commit. `stored_run` is a finished run in Python, `compare` pairs two runs, and `comparability` says which may be
compared or resumed. Others use all of these, and never open a run's files themselves.
"""
