"""medbench's core: verdicts on medical language models. Knows no benchmark, no trainer, no HTML.

python -m medbench.harness.cli --help
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """__version__, as pyproject.toml gave it to the installed package; looked up when it is asked for."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("medbench")


if __name__ != "medbench.harness":
    raise ImportError("import this as medbench.harness: a second copy under another name would share no state with it")
