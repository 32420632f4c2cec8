"""What answers? One module per engine, each behind contracts.Engine and with its heavy imports inside functions.

`vllm`, `hf`, `openai` and `fake` are the engines, `plugins` finds them and those of other packages, `settings` holds
their options, `pool` starts one and keeps it for the next checkpoint, `hot_swap` verifies a swap of weights in this
process and `served_swap` one in a running server, by the endpoints in `vllm_development`. `stored_replies` reads
replies from a file. `ray` makes one engine of many `replicas`. Others use `settings`, `pool`, `plugins`,
`stored_replies` and the errors of `served_swap`.
"""
