"""Which settings train best? Every cell of a recipe's `sweep:` is trained by the ordinary loop, then all are compared.

`sweep` is the way in. `cells` trains the cells, one after the other or at the same time on several GPUs, `race` asks
their checkpoints the same questions in the same order, `halving` decides from the answers who is dropped, and `record`
is what is kept; pages read that alone.
"""
