"""What do these numbers show? Pure functions and records: no files, no engine, no medbench records.

`sequential` is the anytime-valid test behind gates, `intervals` has Wilson's interval and clustered standard errors,
`score_test` score tests of a mean, Wilson's and Tango's among them. `agreement` compares a judge with people, and
`corrected_share` takes its errors into account. Every public name may be used.
"""
