"""Which weights are these, and can they be used?

`resolve` turns a model name into a checked folder; it relies on `weights` (files and shapes), `fingerprint` (sha256),
`merge` (adapters into their base, mostly by `merge_layers`), `cache` and `packages` (missing packages in one line).
`watch_folder` yields checkpoints as they appear. Others use `resolve.resolve`, `weights` and
`watch_folder.checkpoints_in`.
"""
