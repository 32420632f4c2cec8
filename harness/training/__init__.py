"""Train by a recipe, gate every checkpoint, rerun failed attempts, promote what is confirmed.

`train` is the way in: it reads a `recipe`, `prepare`s it and runs the `loop`. A pure function in `next_action` decides
what happens next from the `state`, which is folded from the `journal`. `process` and `worker` run a trainer as a child
process, `engine_judge` gates its checkpoints, and `watchdogs` stop an attempt that went wrong. Trainers use
`trainer_plugins` and `checkpoint_folder`; pages read `journal` and `state`.
"""
