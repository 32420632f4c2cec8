"""The benchmarks, one folder each: an lm-eval YAML file, its row schema, and a sample of original questions."""

if __name__ != "medbench.tasks":
    raise ImportError("import this as medbench.tasks: a second copy under another name would share no state with it")
