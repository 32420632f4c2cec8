"""The endpoints that vLLM's server has only in development mode (VLLM_SERVER_DEV_MODE=1), and what it says of itself.

    server = DevelopmentServer("http://127.0.0.1:8000/v1", timeout=600, allowed=())
    server.reload(Path("checkpoints/step-800"))

They carry no key of their own: whoever reaches the server can call any method of its workers. So medbench talks to this
machine only, or to hosts that the user names.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.engines.openai import NEUTRAL_VLLM, key_of_environment, split_userinfo
from medbench.harness.engines.server_replies import LARGEST, Count, ModelList, read_reply
from medbench.harness.secrets import redact
from medbench.harness.text import escaped, foreign, joined

START = "VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --host 127.0.0.1"
"""How such a server is started."""
PREFLIGHT_S = 10
NOT_THERE = ("repo id must be", "cannot find any model weights", "no such file", "not a local folder")
"""What vLLM says, in lower case, of a folder that its machine does not have."""


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class _Model(_Said):
    model: str
    dtype: str
    quantization: Any = None
    logprobs_mode: str = "raw_logprobs"
    generation_config: str = "auto"
    override_generation_config: dict[str, Any] | None = None
    hf_overrides: Any = None
    max_model_len: Annotated[int, Field(ge=2)]


class _Parallel(_Said):
    tensor_parallel_size: Count = 1
    data_parallel_size: Count = 1
    data_parallel_external_lb: bool = False
    data_parallel_hybrid_lb: bool = False


class _Cache(_Said):
    block_size: Annotated[int, Field(ge=1, le=10**6)]
    cache_dtype: str = "auto"


class _Scheduler(_Said):
    max_num_seqs: Annotated[int, Field(ge=1, le=10**6)]


class _Device(_Said):
    device: Any = None


class _Config(_Said):
    model_config_: _Model = Field(alias="model_config")
    parallel_config: _Parallel
    cache_config: _Cache
    scheduler_config: _Scheduler
    device_config: _Device | None = None
    kv_transfer_config: Any = None


class _Info(_Said):
    vllm_config: _Config
    vllm_env: dict[str, Any] = {}


class _Version(_Said):
    version: str


class _Sleeping(_Said):
    is_sleeping: bool = False


class _Weights(_Said):
    weight_version: str


class _Dropped(_Said):
    success: bool | None = None


class _Tokens(_Said):
    tokens: list[int]


class _Details(_Said):
    cached_tokens: Count | None = None


class _Usage(_Said):
    prompt_tokens_details: _Details | None = None


class _Scores(_Said):
    top_logprobs: list[dict[str, Annotated[float, Field(allow_inf_nan=False)]]] = Field(min_length=1)


class _Choice(_Said):
    logprobs: _Scores


class _Reply(_Said):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class About:
    """What the server says of itself."""

    model: str
    """The name under which it serves its model."""
    folder: Path
    """That its model was started from."""
    version: str
    dtype: str
    device: str
    max_model_len: int
    block_size: int
    """Tokens of a block of its prefix cache."""
    seats: int
    """Requests that it works on at once."""
    tensor_parallel_size: int
    batch_invariant: bool
    kv_cache_dtype: str


@dataclass(frozen=True, slots=True)
class Probed:
    """The server's output for a prompt."""

    logprobs: list[float]
    """Of the tokens that were asked for, in nats."""
    cached_tokens: int | None
    """Prompt tokens that came from the prefix cache; None where the server does not say."""


class DevelopmentServer:
    """See the module. Every method raises Interrupted where the server does not answer."""

    def __init__(self, base_url: str, *, timeout: float, allowed: Collection[str]) -> None:
        """`timeout` in seconds is for one call. Raises MedbenchError for an address that may not be used."""
        self.url, self._userinfo = split_userinfo(base_url)
        if not self.url.endswith("/v1"):
            raise MedbenchError(f"--swap: {self.url} does not end in /v1: give vLLM's own --base-url")
        host = urlsplit(self.url).hostname or ""
        if not is_loopback(host) and host not in {name.lower() for name in allowed}:
            raise MedbenchError(
                f"--swap: {host} is another machine, and whoever reaches a server in development mode can run code on "
                f"it: forward its port to 127.0.0.1, or behind the cluster's wall set engine_config: "
                f"{{swap_hosts: [{host}]}} in --config"
            )
        self._root = self.url.removesuffix("/v1")
        self._key = key_of_environment()
        self._timeout = timeout
        self._client: Any = None  # an httpx.Client, whose certificates take a while to load

    def about(self) -> About:
        """Raises MedbenchError where it is no server whose weights can be swapped, with how to start one."""
        try:
            return self._about()
        except Interrupted as fault:  # nothing has begun yet
            raise MedbenchError(str(fault)) from None

    def _about(self) -> About:
        status, body = self._call("GET", "/v1/models", seconds=PREFLIGHT_S)
        if status in (401, 403):
            raise MedbenchError(f"{self.url} refuses the key: set OPENAI_API_KEY to one that it accepts")
        cards = self._read(status, body, ModelList, "/v1/models").data
        if not cards or cards[0].owned_by != "vllm":
            raise MedbenchError(f"--swap: {self.url} is no vLLM server: start one as {START}")
        status, body = self._call("GET", "/server_info?config_format=json")
        if status == 404:
            raise MedbenchError(f"--swap: {self.url} runs without vLLM's development mode: start it as {START}")
        info = self._read(status, body, _Info, "/server_info")
        config, model = info.vllm_config, info.vllm_config.model_config_
        if (fault := _unfit(config)) is not None:
            raise MedbenchError(f"--swap: {self.url} {fault}")
        if self._read(*self._call("GET", "/is_sleeping"), _Sleeping, "/is_sleeping").is_sleeping:
            raise MedbenchError(f"--swap: {self.url} is asleep: wake it by curl -X POST {self._root}/wake_up")
        folder = Path(model.model)
        if not folder.is_dir():
            raise MedbenchError(
                f"--swap: {self.url} was started from {foreign(model.model)}, which is no folder here, and a "
                f"checkpoint must have the same config and tensors: start it from a folder that medbench sees too "
                f'(vllm serve "$(hf download ORG/NAME)")'
            )
        return About(
            model=cards[0].id,
            folder=folder,
            version=self._read(*self._call("GET", "/version"), _Version, "/version").version,
            dtype=model.dtype.removeprefix("torch."),
            device=_device(config.device_config),
            max_model_len=model.max_model_len,
            block_size=config.cache_config.block_size,
            seats=config.scheduler_config.max_num_seqs,
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
            batch_invariant=bool(info.vllm_env.get("VLLM_BATCH_INVARIANT")),
            kv_cache_dtype=config.cache_config.cache_dtype,
        )

    def reload(self, folder: Path) -> str | None:
        """Load the weights in `folder` in place. What the server says against it, None where it says that it did."""
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        status, body = self._call("POST", "/collective_rpc", rpc)
        return None if status == 200 else _reason(status, body)

    def forget(self) -> bool:
        """Drop the prefix cache. False where the server says that it cannot, as while requests are running."""
        status, body = self._call("POST", "/reset_prefix_cache")
        if status != 200:
            return False
        return not body or self._read(status, body, _Dropped, "/reset_prefix_cache").success is not False

    def mark(self, label: str) -> bool:
        """Label the weights. False for a vLLM without labels."""
        return self._call("POST", "/update_weight_version", {"new_version": label})[0] == 200

    def label(self) -> str:
        """The label of the weights."""
        weights: _Weights = self._read(*self._call("GET", "/weight_info"), _Weights, "/weight_info")
        return weights.weight_version

    def tokens_of(self, model: str, **asked: Any) -> list[int] | None:
        """The server's tokens of `prompt`, or of the chat `messages`; None where it cannot."""
        status, body = self._call("POST", "/tokenize", {"model": model, **asked})
        return None if 400 <= status < 500 else self._read(status, body, _Tokens, "/tokenize").tokens

    def probe(self, model: str, prompt: Sequence[int], asked: Sequence[int], salt: str | None) -> Probed:
        """Log-probabilities of the tokens `asked` after `prompt`. With a new `salt`, the prefix cache is not read."""
        request = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": list(asked),
            "return_tokens_as_token_ids": True,
            **NEUTRAL_VLLM,
            **({"cache_salt": salt} if salt is not None else {}),
        }
        reply = self._read(*self._call("POST", "/v1/completions", request), _Reply, "/v1/completions")
        found = reply.choices[0].logprobs.top_logprobs[0]
        names = [f"token_id:{token}" for token in asked]
        if any(name not in found for name in names):
            raise MedbenchError(
                f"--swap: {self.url} sends no log-probabilities of chosen tokens (logprob_token_ids): upgrade its vLLM"
            )
        details = reply.usage.prompt_tokens_details if reply.usage else None
        return Probed([found[name] for name in names], details.cached_tokens if details else None)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float | None = None
    ) -> tuple[int, bytes]:
        """(status, body)"""
        import httpx

        client = self._client = self._client or httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
        seconds = seconds or self._timeout
        until = time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity"}
        basic = self._userinfo if any(self._userinfo) else None
        patience = httpx.Timeout(seconds, connect=min(seconds, PREFLIGHT_S))
        content = bytearray()
        try:
            with client.stream(
                method, f"{self._root}{path}", json=body, headers=headers, auth=basic, timeout=patience
            ) as response:
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > LARGEST:
                        raise MedbenchError(f"--swap: {self.url}{path} sends more than {LARGEST >> 20} MiB")
                    if time.monotonic() > until:
                        raise httpx.ReadTimeout(f"no whole reply within {seconds:g} s")
                return response.status_code, bytes(content)
        except httpx.ConnectError as fault:
            raise Interrupted(self._line(f"no server answers at {self.url} ({fault}): start it as {START}")) from None
        except httpx.HTTPError as fault:
            said = str(fault) or type(fault).__name__
            raise Interrupted(
                self._line(f"{self.url}{path}: the server does not answer ({said}): see its log")
            ) from None

    def _read(self, status: int, body: bytes, model: type[Any], path: str) -> Any:
        try:
            if status != 200:
                raise ValueError(_reason(status, body))
            return read_reply(body, model)
        except ValueError as fault:
            raise Interrupted(self._line(f"--swap: {self._root}{path}: {fault}: see the server's log")) from None

    def _line(self, text: str) -> str:
        text = redact(text)
        for secret in (self._key, *self._userinfo):
            text = text.replace(secret, "***") if secret not in ("", "EMPTY") else text
        return escaped(" ".join(text.split())[:600])


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_not_there(said: str) -> bool:
    """Whether what vLLM says against a folder is that its machine does not have it."""
    return any(words in said.lower() for words in NOT_THERE)


def _unfit(config: _Config) -> str | None:
    """Why the weights of a server cannot be swapped, and what to leave out when it is started."""
    model, parallel = config.model_config_, config.parallel_config
    if model.quantization is not None:
        return "serves quantised weights, which vLLM repacks once, when it starts: start it without --quantization"
    if parallel.data_parallel_size > 1 or parallel.data_parallel_external_lb or parallel.data_parallel_hybrid_lb:
        return "has several replicas, of which a probe sees only one: start it with --data-parallel-size 1"
    if config.kv_transfer_config is not None:
        return "shares its cache with others, who keep the old weights' blocks: start it without --kv-transfer-config"
    if model.logprobs_mode != "raw_logprobs":
        return "changes log-probabilities, by which weights are told: start it without --logprobs-mode"
    if model.hf_overrides:
        return "overrides the model's config: start it without --hf-overrides"
    if model.override_generation_config or model.generation_config not in ("auto", "vllm"):
        return "has decoding defaults of its own: start it with --generation-config auto or vllm, and no overrides"
    return None


def _device(config: _Device | None) -> str:
    found = config.device if config is not None else None
    return found.partition(":")[0] if isinstance(found, str) else "unknown"


def _reason(status: int, body: bytes) -> str:
    """The server's words against a request."""
    try:
        said = loads(body)
    except (JSONDecodeError, RecursionError, UnicodeDecodeError):
        said = body[:300].decode(errors="replace")
    if isinstance(said, dict):
        said = said.get("error", said)
        said = said.get("message") if isinstance(said, dict) else said
    return f"HTTP {status}: {foreign(joined(said or 'no reason given'), 300)}"
