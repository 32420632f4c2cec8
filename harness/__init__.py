"""medbench's core: verdicts on medical language models. Knows no benchmark, no trainer, no HTML.

python -m medbench.harness.cli --help
"""

__version__ = "0.1.0"

if __name__ != "medbench.harness":
    raise ImportError("import this as medbench.harness: a second copy under another name would share no state with it")
