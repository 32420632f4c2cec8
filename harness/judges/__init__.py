"""Is this sentence supported by that text? Who says so, and how far people agree with it.

`contracts` says what a judge is, `plugins` finds one, `settings` is one in a YAML file; `command` is a program, `llm` a
language model. `steps` splits a reply into what is
judged, `sources` finds the text that it is judged by, `judge_run` asks about a stored run and `judgements` keeps the
verdicts. `counterfactuals` makes sentences that a text contradicts out of sentences that it supports. Others use
`judge_run`, `plugins` and `contracts.JudgeChoice`.
"""
