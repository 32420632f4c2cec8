"""Training data written by a model: questions in, reasoning that passed the filters out.

`recipe` is the file behind `medbench synth`, `questions` reads its sources and `prompts` asks. `generate` keeps every
reply in a journal (`candidates`), following each wrong answer as `chains` says. `select` then reads the journal and
applies `filters`, `near_duplicates` and `judging` in a fixed order; `rows` writes what passed as training data, and
`card` says in Markdown how it came about. `synth` ties them together.
"""
