"""What is a set of answers worth?

`score` turns a completion into a sample, `summary` adds samples up to a task's result. `repeated_samples`,
`option_order_bias`, `calibration` and `published_accuracy` are measurements that only some runs have. Others use
`score.score_completion` and `summary`.
"""
