"""A running `vllm serve` in development mode as the engine of one checkpoint after another; fails closed.

    server = SwapServer(EngineChoice("openai", base_url="http://127.0.0.1:8000/v1", swap=True))
    engine = server.serve(resolve("checkpoints/step-800"))

What the server served before is unknown, so nothing is concluded from it. A swap goes by way of a blank:

1. The checkpoint's config, tensor names and shapes, tokens of a text with every special token, and its rendered chat
   template must be those of the server. Other tensors would end vLLM's engine.
2. A blank is loaded: files with the checkpoint's tensors, all zero (holes, which take no room on the disk). Whatever
   the model, it then gives every token the probability 1 / vocabulary, and the probe must say so. A server that does
   not reload, or one of several behind one address, is found out here, by a value that no server has to be asked for.
3. The checkpoint is loaded over the blank, and the prefix cache dropped. The probe must differ from the blank's, agree
   with itself, with the probes of the same weights earlier in this process, and, for models of up to
   REFERENCE_PARAMETERS, with that of transformers in this process on the CPU, computed from the files. A tensor that
   was left out is still zero, which is no small difference.
4. The same probe by way of the prefix cache must agree with the one beside it, and read no block from it: one of the
   blank's would show.

While it answers, completions are held back until the next probe: it must be the one of step 3, and the label that the
swap gave the weights must still be there. What is given out has such a probe before it and one after it. The last
probe, with nothing of ours under way, is compared exactly. All requests have a cache salt of the swap's own, so no
block of other weights could serve them even if a cache were left.

Not proven: for larger models, that the file which the server read is the one which medbench sees, where their machines
differ, and that every tensor was loaded. While replies are computed in bfloat16, probes in the same batch vary by up to
BUSY_ROUNDED nats, so an exchange for a very similar checkpoint shows only at the last probe, or by the label. One that
is taken back between two probes without touching the label does not show.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil
from filelock import FileLock, Timeout

from medbench.harness.checkpoints.cache import cache_dir, make_cache_dir
from medbench.harness.checkpoints.fingerprint import served_config
from medbench.harness.checkpoints.weights import end_tokens, weight_files
from medbench.harness.contracts import Checkpoint, Completion, Interrupted, MedbenchError, Message, Request
from medbench.harness.engines.hot_swap import SAME, Shape, distance
from medbench.harness.engines.openai import OpenAIEngine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.engines.vllm import PROBE, PROBE_TOKENS
from medbench.harness.engines.vllm_development import About, DevelopmentServer, Probed, is_loopback, is_not_there
from medbench.harness.extraction.thinking import cut_at_stop, opens_reasoning
from medbench.harness.files import slug
from medbench.harness.protocols.chat import (
    ReplyDecoder,
    encode,
    has_template,
    load_tokenizer,
    render_chat,
    split_choice,
)
from medbench.harness.text import duration

PROBES = 3
"""Of a state of the server: of several replicas behind one address more than one would answer."""
TRIES = 3
"""Probes that may differ before they count: a request of someone else's in the same batch changes roundings."""
BLANK = 0.01
"""Nats by which a blank's probe may differ from the uniform distribution."""
UNSTEADY = 0.3
"""Nats by which probes of an idle server may differ from each other in less than float32."""
BUSY_ROUNDED = 0.75
"""Nats by which a probe may differ in less than float32 while other requests share its batch."""
AWAY, AWAY_ROUNDED = 0.05, 1.0
"""Nats by which a probe may differ from transformers' on the CPU, in float32 and in less."""
REFERENCE_PARAMETERS = 2_000_000_000
"""Up to which transformers computes the probe here, in float32 on the CPU: about 8 GB, and seconds."""
CHECK_SECONDS, CHECK_SHARE = 2.0, 0.02
"""Time between two probes while the server answers, at least; and the share of the time that they may take."""
BEAT = 0.5
"""Seconds without a reply after which those that are held back are looked at again."""
LEFT_SECONDS = 86_400
MOST_PLACES = 256
CPU_PLACES = 32
"""As in vllm.py."""

log = logging.getLogger("medbench")


class StaleServer(Interrupted):
    """The server does not serve the weights that it was given, or not for certain; none of its replies may be kept."""


class SwapServer:
    """One server for many checkpoints. Others on this machine wait for it from `serve` to `release`."""

    def __init__(self, choice: EngineChoice) -> None:
        """Raises MedbenchError for an address that may not be used, see vllm_development."""
        assert choice.base_url is not None
        self._config, self._base_url = choice.config, choice.base_url
        self._server = DevelopmentServer(choice.base_url, timeout=self._config.timeout, allowed=self._config.swap_hosts)
        self._lock = FileLock(_lock_file(self._server.url))
        self._known: dict[tuple[str, str | None], list[float]] = {}

    def serve(self, checkpoint: Checkpoint) -> SwappedEngine:
        """Give the server the checkpoint's weights. Raises StaleServer where it does not serve them for certain, and
        MedbenchError for a server and a checkpoint that do not fit."""
        self._take()
        try:
            return self._serve(checkpoint)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let another process have the server."""
        self._lock.release()

    def _serve(self, checkpoint: Checkpoint) -> SwappedEngine:
        started = time.monotonic()
        about = self._server.about()
        tokens = CheckpointTokens(checkpoint, about, secrets.token_hex(16))
        self._refuse_unlike(checkpoint, about, tokens)
        prober = _Prober(self._server, about, tokens.tokenizer)
        reference = _reference(checkpoint, prober)
        try:
            self._load_blank(checkpoint, about, prober)
            now = self._load(checkpoint, about, prober, reference)
        except BaseException:
            with suppress(MedbenchError):  # so that others find a server that serves something
                self._server.reload(about.folder.resolve())
                self._server.forget()
            raise
        self._known[checkpoint.fingerprint, checkpoint.config_sha256] = now.logprobs
        away = distance(reference, now.logprobs) if reference is not None else None
        label = f"medbench {checkpoint.fingerprint[:12]} {secrets.token_hex(4)}"
        guard = _Guard(self._server, prober, now, label if self._server.mark(label) else None, checkpoint.name)
        compared = (
            f"{away:.2g} nats from transformers' on the CPU" if away is not None else "not compared with a reference"
        )
        log.info("%s: swapped in after %.1f s, the probe is %s", checkpoint.name, time.monotonic() - started, compared)
        return SwappedEngine(self._engine(about, tokens), guard, about, away, self)

    def _engine(self, about: About, tokens: CheckpointTokens) -> OpenAIEngine:
        """One place is left for the probes."""
        config = self._config
        places = min(about.seats - 1, CPU_PLACES if about.device == "cpu" else MOST_PLACES)
        concurrency = config.concurrency if "concurrency" in config.model_fields_set else max(1, places)
        return OpenAIEngine(
            self._base_url,
            about.model,
            concurrency=concurrency,
            timeout=config.timeout,
            patience=config.patience,
            tokens=tokens,
        )

    def _take(self) -> None:
        try:
            self._lock.acquire(timeout=0)
            return
        except Timeout:
            patience = self._config.patience
            log.info(
                "%s is in use by another medbench: waiting up to --patience %s", self._server.url, duration(patience)
            )
        except OSError as error:
            raise MedbenchError(
                f"{self._lock.lock_file}: cannot be locked ({error.strerror}): another user's medbench used this server"
            ) from None
        try:
            self._lock.acquire(timeout=patience, poll_interval=0.2)
        except Timeout:
            raise Interrupted(
                f"{self._server.url} is still in use by another medbench after {duration(patience)}: run the same "
                f"command again, or wait longer with --patience"
            ) from None

    def _refuse_unlike(self, checkpoint: Checkpoint, about: About, tokens: CheckpointTokens) -> None:
        """Raises MedbenchError where the weights cannot take the place of the server's, or would be asked otherwise."""
        fix = f"start it from {checkpoint.path}, or use another server"
        name = checkpoint.name
        if checkpoint.quantization is not None:
            raise MedbenchError(
                f"--swap: {name} is quantised, and vLLM repacks such weights once, when it starts: use --engine vllm"
            )
        try:
            started_from = Shape.of(about.folder, dtype=False)
        except MedbenchError as fault:
            raise MedbenchError(
                f"--swap: {self._server.url} was started from a folder that has changed: {fault}"
            ) from None
        different = started_from.difference(name, Shape.of(Path(checkpoint.path), dtype=False))
        if different is not None:
            raise MedbenchError(f"--swap: {different} than {self._server.url}, started from {about.folder}: {fix}")
        text = tokens.sample_text()
        for special in (True, False):
            theirs = self._server.tokens_of(about.model, prompt=text, add_special_tokens=special)
            if theirs is None:
                raise MedbenchError(f"--swap: {self._server.url} does not tokenise (/tokenize): use vLLM's own server")
            if theirs != tokens.tokenizer.encode(text, add_special_tokens=special):
                raise MedbenchError(f"--swap: {name} has another tokenizer than {self._server.url}: {fix}")
        turns = (Message("user", "A question?"), Message("assistant", "An answer."), Message("user", "Another one?"))
        chat = [{"role": turn.role, "content": turn.content} for turn in turns]
        theirs = self._server.tokens_of(about.model, messages=chat)
        ours = encode(tokens.tokenizer, tokens.render(turns, None), templated=True)
        if theirs != (ours if tokens.chat_template == "model" else None):
            raise MedbenchError(
                f"--swap: {name} has another chat template than {self._server.url}: {fix}, without --chat-template"
            )

    def _load_blank(self, checkpoint: Checkpoint, about: About, prober: _Prober) -> None:
        prober.probe(None)  # puts blocks of the old weights into the prefix cache
        with _blank_of(Path(checkpoint.path)) as blank:
            self._reload(
                blank, f"a blank of {checkpoint.name}, which medbench keeps in its cache", "set MEDBENCH_CACHE to"
            )
        for _ in range(PROBES):
            probe = prober.fresh()
            if not _is_uniform(probe.logprobs, _vocabulary(Path(checkpoint.path))):
                raise StaleServer(
                    f"{checkpoint.name}: {self._server.url} said that it loaded weights of zero and still answers by "
                    f"others: it does not reload, or several servers share the address; no reply was kept"
                )

    def _load(self, checkpoint: Checkpoint, about: About, prober: _Prober, reference: list[float] | None) -> Probed:
        """The probe of the checkpoint's weights."""
        name, url = checkpoint.name, self._server.url
        prober.probe(None)  # puts the blank's blocks into the prefix cache, which would show
        self._reload(Path(checkpoint.path).resolve(), name, "put the checkpoint into")
        rounded = about.dtype != "float32"
        probes = [prober.fresh() for _ in range(PROBES)]
        now = probes[0]
        if _is_uniform(now.logprobs, None):
            raise StaleServer(f"{name}: {url} said that it loaded the weights and still has those of zero: restart it")
        unsteady = max(distance(now.logprobs, other.logprobs) for other in probes)
        if unsteady > (UNSTEADY if rounded else SAME):
            raise StaleServer(
                f"{name}: {url} answers the same prompt differently each time (by {unsteady:.2g} nats): several "
                f"servers share the address, or it is busy with others' requests"
            )
        prober.tolerance = max(SAME, 2 * unsteady)
        prober.busy_tolerance = BUSY_ROUNDED if rounded else prober.tolerance
        if reference is not None and (away := distance(reference, now.logprobs)) > (AWAY_ROUNDED if rounded else AWAY):
            raise StaleServer(
                f"{name}: {url} gives other log-probabilities than these files do in transformers (by {away:.2g} "
                f"nats): it did not load all of them, or has other files at {checkpoint.path}"
            )
        known = self._known.get((checkpoint.fingerprint, checkpoint.config_sha256))
        if known is not None and (away := distance(known, now.logprobs)) > max(prober.tolerance, SAME):
            raise StaleServer(
                f"{name}: the probe of the same weights differs by {away:.2g} nats from before: restart {url}"
            )
        through = prober.probe(None)
        if through.cached_tokens or distance(through.logprobs, now.logprobs) > (UNSTEADY if rounded else SAME):
            raise StaleServer(
                f"{name}: the prefix cache of {url} still holds blocks of other weights, although it said that they "
                f"were dropped: restart it"
            )
        return now

    def _reload(self, folder: Path, what: str, fix: str) -> None:
        """Load a folder and drop the cache."""
        url = self._server.url
        said = self._server.reload(folder)
        if said is not None and is_not_there(said):
            raise MedbenchError(f"--swap: {url} does not see {what} ({folder}): {fix} a folder that both see ({said})")
        if said is not None:
            raise StaleServer(f"{url} cannot load {what} in place ({said}): restart it")
        for _ in range(TRIES):
            if self._server.forget():
                return
            time.sleep(1)
        raise StaleServer(
            f"{url} does not drop its prefix cache: others' requests are running there; let them end and run again"
        )


class _Prober:
    """Asks the server for a fixed probe."""

    def __init__(self, server: DevelopmentServer, about: About, tokenizer: Any) -> None:
        self._server, self._model = server, about.model
        length = min(about.block_size + 2, about.max_model_len - 1)  # just over a block of the cache
        tokens = encode(tokenizer, PROBE, templated=False)
        self.prompt = (tokens * (length // len(tokens) + 1))[:length]
        self.asked = sorted(set(tokens))[:PROBE_TOKENS]
        self.tolerance = self.busy_tolerance = SAME

    def probe(self, salt: str | None) -> Probed:
        return self._server.probe(self._model, self.prompt, self.asked, salt)

    def fresh(self) -> Probed:
        """Computed without the prefix cache."""
        return self.probe(secrets.token_hex(16))


class _Guard:
    """Says whether the server still serves the weights of a swap."""

    def __init__(
        self, server: DevelopmentServer, prober: _Prober, expected: Probed, label: str | None, name: str
    ) -> None:
        self._server, self._prober, self._expected, self._label, self._name = server, prober, expected, label, name
        self._next = time.monotonic() + CHECK_SECONDS

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def check(self, *, busy: bool) -> None:
        """Raises StaleServer unless the server gives the same probe as after the swap; exactly unless `busy`."""
        started = time.monotonic()
        if self._label is not None and self._server.label() != self._label:
            raise self._changed("someone labelled other weights")
        allowed = self._prober.busy_tolerance if busy else self._prober.tolerance
        away = float("inf")
        for number in range(TRIES):
            if number:
                time.sleep(0.2)
            away = min(away, distance(self._prober.fresh().logprobs, self._expected.logprobs))
            if away <= allowed:
                break
        else:
            raise self._changed(f"the probe moved by {away:.2g} nats")
        now = time.monotonic()
        self._next = now + max(CHECK_SECONDS, (now - started) / CHECK_SHARE)

    def _changed(self, why: str) -> StaleServer:
        return StaleServer(
            f"{self._name}: {self._server.url} was given other weights, or restarted, while it answered ({why}): "
            f"nothing of this session was kept; leave the server to one user at a time and run again"
        )


class SwappedEngine:
    """contracts.Engine over a server that was given a checkpoint's weights; see the module."""

    name = "openai"

    def __init__(
        self, inner: OpenAIEngine, guard: _Guard, about: About, away: float | None, server: SwapServer
    ) -> None:
        self._inner, self._guard, self._about, self._away, self._server = inner, guard, about, away, server

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        return self._inner.chat_template

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return self._inner.render(messages, thinking)

    @property
    def not_applied(self) -> Mapping[str, str]:
        return self._inner.not_applied

    @property
    def places(self) -> int:
        return self._inner.places

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Raises StaleServer also where it is closed early: what was yielded before may then not be used."""
        source = iter(requests)
        try:
            while True:
                held: list[Completion] = []
                stream = self._inner.replies(source, BEAT)
                for found in stream:
                    held += [found] if found is not None else []
                    if held and self._guard.is_due:
                        self._guard.check(busy=True)
                        yield from _drained(held)
                self._guard.check(busy=False)
                if not held:
                    return
                yield from _drained(held)
        except GeneratorExit:
            stream.close()  # nothing of ours is under way at the last probe
            self._guard.check(busy=False)
            raise

    def settings(self) -> Mapping[str, Any]:
        about = self._about
        cache = {"kv_cache_dtype": about.kv_cache_dtype} if about.kv_cache_dtype != "auto" else {}
        return {
            **self._inner.settings(),
            "vllm": about.version,
            "device": about.device,
            "dtype": about.dtype,
            "batch_invariant": about.batch_invariant,
            "tensor_parallel_size": about.tensor_parallel_size,
            **cache,
            "swapped": True,
            "reference_deviation": self._away,
        }

    def close(self) -> None:
        self._server.release()


class CheckpointTokens:
    """openai.OwnTokens: the checkpoint's tokenizer and template, and the fields that make vLLM's server answer as an
    engine in this process would."""

    def __init__(self, checkpoint: Checkpoint, about: About, salt: str) -> None:
        tokenizer = load_tokenizer(checkpoint.path)
        self.tokenizer = tokenizer
        self._decoder = ReplyDecoder(tokenizer)
        self._ends = sorted(end_tokens(Path(checkpoint.path)))
        self._longest, self._salt = about.max_model_len, salt

    @property
    def chat_template(self) -> Literal["model", "none"]:
        return "model" if has_template(self.tokenizer) else "none"

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return render_chat(self.tokenizer, messages, thinking)

    def fields(self, request: Request) -> Mapping[str, Any]:
        """Raises ValueError for a prompt that is too long."""
        if request.choices is not None:
            return {"cache_salt": self._salt}
        tokens = len(self.prompt(request))
        if tokens >= self._longest:
            raise ValueError(f"the prompt has {tokens} tokens, the server's context holds {self._longest}")
        return {
            "cache_salt": self._salt,
            "max_tokens": min(request.max_new_tokens, self._longest - tokens),
            "skip_special_tokens": not self._decoder.keeps_special,
            "stop_token_ids": self._ends,
        }

    def prompt(self, request: Request) -> list[int]:
        return encode(self.tokenizer, request.prompt, request.templated)

    def choices(self, request: Request) -> list[tuple[list[int], list[int]]]:
        return [
            split_choice(self.tokenizer, request.prompt, choice, request.templated) for choice in request.choices or ()
        ]

    def readable(self, request: Request, text: str) -> tuple[str, bool]:
        whole = self._decoder.readable(text)
        # cut afterwards: on a server a stop string would fire inside reasoning too
        kept = cut_at_stop(whole, request.stop, opened=opens_reasoning(request.prompt))
        return kept, len(kept) < len(whole)

    def sample_text(self) -> str:
        """A text of every special token, and of what tokenizers treat in different ways."""
        specials = sorted({str(token) for token in self.tokenizer.all_special_tokens})
        added = sorted(token.content for token in self.tokenizer.added_tokens_decoder.values())
        plain = f"{PROBE[:200]}\n\n\tÄrztin, 38.5 °C,  µg/L: 1234567 <= 0.05; naïve – 糖尿病 🩺\r\n"
        return plain + "".join(f"{token}a " for token in list(dict.fromkeys([*specials, *added]))[:500])


def _drained(held: list[Completion]) -> Iterator[Completion]:
    while held:
        yield held.pop(0)


def _is_uniform(logprobs: Sequence[float], vocabulary: int | None) -> bool:
    """Whether all tokens have the same probability; with a `vocabulary`, that of one in so many."""
    if vocabulary is not None and abs(logprobs[0] + math.log(vocabulary)) > BLANK:
        return False
    return all(math.isfinite(one) and abs(one - logprobs[0]) < BLANK for one in logprobs)


def _vocabulary(folder: Path) -> int | None:
    """Number of tokens that config.json gives the model; None where it does not say."""
    config = served_config(folder)
    inner = config.get("text_config")
    size = (inner if isinstance(inner, dict) and "vocab_size" in inner else config).get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 1 else None


@contextmanager
def _blank_of(folder: Path) -> Iterator[Path]:
    """A checkpoint with the same tensors, all zero, for as long as the `with` block lasts."""
    make_cache_dir()
    for left in cache_dir().glob("blank-*"):  # by a process that was killed; another machine may share the cache
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    try:
        blank = Path(tempfile.mkdtemp(prefix="blank-", dir=cache_dir())).resolve()
    except OSError as error:
        raise MedbenchError(f"{cache_dir()}: cannot be written ({error.strerror}): set MEDBENCH_CACHE") from None
    try:
        blank.chmod(0o755)  # the server may belong to another user
        for path in (*folder.glob("*.json"), *weight_files(folder)):
            copy = blank / path.name
            if path.suffix != ".safetensors":
                shutil.copyfile(path, copy)
                continue
            with path.open("rb") as file, copy.open("wb") as hole:
                head = file.read(8)
                hole.write(head + file.read(struct.unpack("<Q", head)[0]))
                hole.truncate(os.fstat(file.fileno()).st_size)
        yield blank
    except OSError as error:
        raise MedbenchError(
            f"{blank}: cannot be written ({error.strerror}): make room, or set MEDBENCH_CACHE"
        ) from None
    finally:
        shutil.rmtree(blank, ignore_errors=True)


def _reference(checkpoint: Checkpoint, prober: _Prober) -> list[float] | None:
    """The probe by transformers on the CPU; None where that takes too much, or the packages are not there."""
    parameters = checkpoint.parameters or 0
    room = psutil.virtual_memory().available
    if not 0 < parameters <= REFERENCE_PARAMETERS or parameters * 6 > room:
        return None
    try:
        from medbench.harness.engines.hf import next_logprobs

        return next_logprobs(checkpoint.path, prober.prompt, prober.asked)
    except ImportError:
        return None


def _lock_file(url: str) -> Path:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Path(tempfile.gettempdir()) / f"medbench-swap-{slug('this' if is_loopback(host) else host)}-{port}.lock"
