"""medbench's core, in wings that import only downwards (tests/test_layering.py). Knows no benchmark and no trainer.

`contracts`, `config`, `files` and `text` are what all wings share; `api` holds the functions behind `import medbench`.
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
