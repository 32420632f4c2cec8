"""How is a question asked, and how is its completion read?

`protocol` reads the YAML files in this folder and renders prompts from them; `chat` turns messages into the tokens that
a local model gets. Others use `protocol.Protocol`, `protocol.load_protocol` and `chat`.
"""
