"""Repositories of the Hub: a model as a folder, a data set as rows, each at one commit.

    folder, commit = model_folder(Repository.parse("org/model@v1"))

The Hub is what HF_ENDPOINT names; with HF_HUB_OFFLINE only the cache below HF_HOME is read. The functions here raise
whatever the Hub's client raises; `faults.explained` makes one line of it.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import foreign

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
MAIN = "main"
LONGEST_WAIT = 300
"""Seconds: the Hub counts requests in windows of five minutes."""
WAITS = 3

_NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")

T = TypeVar("T")


class Unreachable(ConnectionError):
    """Nothing answers at the Hub's address."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model or a data set on the Hub."""

    kind: Literal["model", "dataset"]
    id: str
    """org/name"""
    revision: str = MAIN
    """A branch, a tag or a commit."""

    @staticmethod
    def parse(name: str) -> Repository | None:
        """The model called "org/name" or "org/name@revision"; None where `name` is neither."""
        found = _NAME.fullmatch(name)
        if found is None or ".." in name:
            return None
        return Repository("model", found[1], found[2] or MAIN)

    @property
    def page(self) -> str:
        """Where people read about it, and accept its licence."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


def endpoint() -> str:
    """The Hub's address. Raises MedbenchError where HF_ENDPOINT is none."""
    from huggingface_hub import constants

    address = str(constants.ENDPOINT)
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        sound = False
    if not sound:
        raise MedbenchError(f"HF_ENDPOINT={foreign(address)!r} is not an address: write https://HOST, or unset it")
    return address


def model_folder(repository: Repository) -> tuple[Path, str]:
    """(folder in the Hub's cache with the model's files, commit). Files that are there are not downloaded again."""
    from huggingface_hub import is_offline_mode, snapshot_download

    fault = _unreachable()
    local = fault is not None or is_offline_mode()
    try:
        revision = _resolved(repository, local=local)
        folder = _patiently(
            lambda: snapshot_download(
                repository.id, revision=revision, allow_patterns=MODEL_FILES, local_files_only=local
            )
        )
    except Exception as error:
        if fault is None:
            raise
        raise Unreachable(fault) from error
    if fault is not None:
        _say(f"{endpoint()} does not answer ({fault}): {repository.id} is read from the cache")
    return Path(folder), str(revision.resolved)


def dataset_commit(repository: Repository) -> str:
    """The commit that its revision names now; offline, the one that it named when it was downloaded."""
    from huggingface_hub import is_offline_mode

    fault = _unreachable()
    if fault is not None:  # `datasets` itself tries for a minute before it looks into its cache
        raise Unreachable(fault)
    return str(_resolved(repository, local=is_offline_mode()).resolved)


def dataset_rows(repository: Repository, *, subset: str | None, split: str) -> Any:
    """The data set's rows. Raises MedbenchError where the cache has another commit and the Hub may not be asked."""
    import datasets

    commit = dataset_commit(repository)

    def prepared() -> Any:
        # with hf:// no local folder that is called like the data set is read in its place
        builder = datasets.load_dataset_builder(f"hf://datasets/{repository.id}", subset, revision=commit)
        if builder.hash != commit:  # offline, `datasets` takes the newest copy that it has, whatever was asked for
            raise MedbenchError(
                f"data set {repository.id}: the cache has commit {str(builder.hash)[:12]}, not {commit[:12]}: "
                f"unset HF_HUB_OFFLINE once to download that"
            )
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    return _patiently(prepared)


def wait_asked(error: Any) -> int | None:
    """Seconds to wait that came with the answer 429 to a request; None where it is another answer or names none."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # documented, but not in __all__

    if error.response.status_code != 429:
        return None
    window = parse_ratelimit_headers(error.response.headers)
    if window is not None and window.remaining == 0:
        return int(window.reset_in_seconds) + 1
    named = error.response.headers.get("Retry-After", "").strip()
    return int(named) + 1 if named.isascii() and named.isdigit() else None


def _resolved(repository: Repository, *, local: bool) -> Any:
    """huggingface_hub's ResolvedRevision, from its cache alone if `local`."""
    from huggingface_hub import HfApi

    return _patiently(
        lambda: HfApi().resolve_revision(
            repository.id, repo_type=repository.kind, revision=repository.revision, local_files_only=local
        )
    )


def _unreachable() -> str | None:
    """Why nothing answers at the Hub's address, or None; the Hub's client takes minutes to find out.

    Offline and behind a proxy nothing is tried: None.
    """
    from huggingface_hub import is_offline_mode

    address = urlsplit(endpoint())
    host = address.hostname or ""
    if is_offline_mode() or ({address.scheme, "all"} & getproxies().keys() and not proxy_bypass(host)):
        return None
    try:
        socket.create_connection((host, address.port or (80 if address.scheme == "http" else 443)), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _patiently(call: Callable[[], T]) -> T:
    """`call()`, again after the wait that the Hub asks for where there were too many requests."""
    from huggingface_hub.errors import HfHubHTTPError

    for _ in range(WAITS):
        try:
            with _warnings_as_messages():
                return call()
        except HfHubHTTPError as error:
            seconds = wait_asked(error)
            if seconds is None or seconds > LONGEST_WAIT:
                raise
            _say(f"the hub's rate limit is reached: going on in {seconds} s")
            time.sleep(seconds)
    with _warnings_as_messages():
        return call()


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """The client's warnings as medbench's messages: its own have several lines, and addresses with passwords."""
    logger = logging.getLogger("huggingface_hub")
    handlers, logger.handlers = logger.handlers, [_Forwarding()]
    try:
        yield
    finally:
        logger.handlers = handlers


class _Forwarding(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(" ".join(record.getMessage().split()))


def _say(line: str) -> None:
    logging.getLogger("medbench").info(line)
