"""How does a checkpoint become a smaller one, and can this machine serve it?

`quantise` has llm-compressor compress a checkpoint, in an interpreter of its own (`interpreter`) that runs `compress`
as a program. `schemes` says how weights and activations are kept, `texts` is what GPTQ calibrates with, `record` is
what the result says of where it comes from, `served` asks vLLM what it serves here. The command line uses `quantise`
and `served`.
"""
