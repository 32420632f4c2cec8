"""What the Hub's client raises, as one line that says what to do.

except Exception as error: raise explained(error, repository) from None
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.files import FULL
from medbench.harness.hub.repository import MAIN, Repository, Unreachable, endpoint, wait_asked
from medbench.harness.secrets import HIDDEN
from medbench.harness.text import foreign, one_line

KINDS = {"model": "model", "dataset": "data set"}
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def explained(error: BaseException, repository: Repository) -> MedbenchError:
    """The exception to raise: MedbenchError for what the user can correct, Interrupted where the Hub, the network or a
    full disk is at fault; `error` itself where it is one of these."""
    from huggingface_hub import errors

    fault = fault_of(error, repository)
    if fault is not None:
        return fault
    said = _subject(repository)
    if isinstance(error, errors.HFValidationError):
        return MedbenchError(f"{said}not a hub id: correct it to org/name")
    if isinstance(error, JSONDecodeError) or any(isinstance(one, errors.FileMetadataError) for one in _chain(error)):
        # a mirror that is none, or the login page of a network
        return MedbenchError(f"{said}what answers at {endpoint()} is not a hub: correct HF_ENDPOINT or the proxy")
    if isinstance(error, UnicodeEncodeError):
        return MedbenchError(said + _bad_token())
    if isinstance(error, OSError) and error.errno is not None:
        return MedbenchError(f"{said}cannot be kept in {_cache()} ({error.strerror}): correct that, or set HF_HOME")
    return MedbenchError(f"{said}not downloaded from the hub ({type(error).__name__}: {_reason(error)})")


def fault_of(error: BaseException, repository: Repository) -> MedbenchError | None:
    """As `explained`; None where nothing says that the error has to do with the Hub."""
    import httpx
    from huggingface_hub import errors, is_offline_mode

    chain = tuple(_chain(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if isinstance(error, MedbenchError):
        return error
    said = _subject(repository)
    full = next((one for one in chain if isinstance(one, OSError) and one.errno in FULL), None)
    if full is not None:
        return Interrupted(f"{said}no room for it in {_cache()} ({full.strerror}): make room, or set HF_HOME")
    answer = next((one for one in chain if isinstance(one, errors.HfHubHTTPError)), None)
    if answer is not None:
        return _refused(answer, repository)
    missing = next((one for one in chain if type(one).__name__ == "DatasetNotFoundError"), None)
    if missing is not None:  # `datasets` drops the cause of it
        return MedbenchError(said + (_gated(repository) if "gated" in str(missing) else _absent(repository)))
    if is_any(Unreachable, httpx.ConnectError):
        kept = " (it is not in the cache)"
        if repository.kind == "dataset":
            kept = ", or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        return Interrupted(
            f"{said}{endpoint()} does not answer ({_reason(error)}): check the network and HF_ENDPOINT{kept}"
        )
    if is_any(httpx.LocalProtocolError):  # its message quotes the header
        return MedbenchError(said + _bad_token())
    if is_any(httpx.TransportError) or "Consistency check failed" in str(error):
        return Interrupted(f"{said}the download broke off ({_reason(error)}): run again")
    if is_offline_mode() and is_any(ConnectionError, errors.LocalEntryNotFoundError, errors.RevisionResolutionError):
        return MedbenchError(
            f"{said}not in the hub's cache {_cache()}, and HF_HUB_OFFLINE is set: unset it once to download"
        )
    return None


def _refused(error: BaseException, repository: Repository) -> MedbenchError:
    """`error`: a HfHubHTTPError."""
    from huggingface_hub import errors, get_token

    assert isinstance(error, errors.HfHubHTTPError)
    said, status = _subject(repository), error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return MedbenchError(said + _gated(repository))
    if isinstance(error, errors.RevisionNotFoundError):
        return MedbenchError(
            f"{said}no revision {foreign(repository.revision)!r} of it on the hub: name a branch, a tag or a whole "
            f"commit of {repository.page}"
        )
    # a hub tells people without a token that they are unauthorized, whether a repository is private or absent
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404 or (status == 401 and get_token() is None):
        return MedbenchError(said + _absent(repository))
    if status == 401:
        return MedbenchError(f"{said}the hub refuses your token: {LOG_IN} again")
    if isinstance(error, errors.DisabledRepoError):
        return MedbenchError(f"{said}disabled on the hub: see {repository.page}, or choose another")
    if status == 403:
        return MedbenchError(f"{said}your token may not read it: give it access at {endpoint()}/settings/tokens")
    if status == 429:
        seconds = wait_asked(error)
        when = "later" if seconds is None else f"in {seconds} s"
        own = "" if get_token() else f"; to have a limit of your own, {LOG_IN}"
        return Interrupted(f"{said}the hub's rate limit is reached: run again {when}{own}")
    if status >= 500:
        return Interrupted(f"{said}the hub is out of order (status {status}): run again later")
    return MedbenchError(f"{said}not downloaded from the hub (status {status}: {_reason(error)})")


def _bad_token() -> str:
    return f"your token has characters that none has: {LOG_IN} again"


def _absent(repository: Repository) -> str:
    return f"no such {KINDS[repository.kind]} on the hub, or a private one: correct the id, or {LOG_IN}"


def _gated(repository: Repository) -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return f"gated on the hub: accept its licence at {repository.page}, then {LOG_IN}"
    return (
        f"gated on the hub, and the account of your token has no access: accept its licence, or ask for access, at "
        f"{repository.page}"
    )


def _subject(repository: Repository) -> str:
    revision = "" if repository.revision == MAIN else f"@{repository.revision}"
    if repository.kind == "dataset":
        return f"data set {repository.id}{revision}: "
    return f"model '{repository.id}{revision}': no such folder, and "  # a mistyped folder looks like a hub id


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    from huggingface_hub import get_token

    token = get_token()  # of a file, which redact() does not know
    said = one_line(error)
    return foreign(said.replace(token, HIDDEN) if token else said, 160)


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
