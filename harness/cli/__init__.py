"""The command line: words in, words out. It calls medbench.harness.api and formats what comes back.

`main` and `gate_commands` define the commands, `options` turns their options into keywords, `tables`,
`diagnostic_tables` and `verdict_output` format results, `doctor` and `validate` do the work of these two commands, and
`streams` keeps standard output for results. Nothing else imports it.
"""
