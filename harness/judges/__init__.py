"""Is this sentence supported by that text? Who says so, and how far people agree with it.

`contracts` says what a judge is, `plugins` finds one, `settings` is one in a YAML file; `command` is a program, `llm` a
language model, and `local` a small cross-encoder that is trained here. `steps` splits a reply into what is judged,
`sources` finds the text that it is judged by, `judge_run` asks about a stored run and `judgements` keeps the verdicts,
as `asking` gets them. `check` compares verdicts with people's `labels`, `direct_check` does so without a run, and
`question_labels` makes labels of PubMedQA's answers, by way of `claims`. `counterfactuals` makes sentences that a text
contradicts out of sentences that it supports, `abstracts` reads the texts. Others use `judge_run`, `plugins` and
`contracts.JudgeChoice`.
"""
