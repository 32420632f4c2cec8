"""Is this sentence supported by that text? Who says so, and how far people agree with it.

`contracts` says what a judge is, `plugins` finds one, `settings` is one in a YAML file; `command` is a program, `llm`
a language model, and `local` a small cross-encoder that is trained here. `steps` splits a reply into what is judged,
`places` finds these steps in it again, `sources` finds the text that it is judged by, `judge_run` asks about a stored
run and `judgements` keeps the verdicts, as `asking` gets them; `scores` says what they come to, and `scored` keeps
that for each reply. `check` compares verdicts with people's `labels`, `direct_check` does so without a run, and
`question_labels` makes labels of PubMedQA's answers, by way of `claims`. `agreement` finds what checks of runs have
shown, `corrections` corrects shares by it, and `compare` compares two judged runs. `counterfactuals` makes sentences
that a text contradicts out of sentences that it supports, `abstracts` reads the texts. Others use `judge_run`,
`plugins`, `contracts.JudgeChoice`, `scored`, `agreement` and `compare`.
"""
