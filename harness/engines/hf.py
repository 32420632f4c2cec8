"""transformers in this process: slow and simple, for checkpoints that vLLM does not support and for cross-checks.

In float32 a greedy reply depends only on its own request, not on its batch or on the order of requests.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from medbench.harness.checkpoints.architecture import refuse_other_shapes
from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.package_versions import refuse_other_versions
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.weights import end_tokens
from medbench.harness.contracts import Checkpoint, Completion, Engine, MedbenchError, Message, Request
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.extraction.thinking import cut_at_stop, opens_reasoning
from medbench.harness.protocols.chat import (
    ReplyDecoder,
    encode,
    has_template,
    load_tokenizer,
    refuse_unknown_tokens,
    render_chat,
    split_choice,
)

WINDOW = 8
"""Number of batches read ahead and sorted by length, so that little padding is needed."""


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> Engine:
    """See engines.plugins."""
    assert checkpoint is not None
    refuse_other_versions("transformers")
    with needed("--engine hf cannot start"):
        return HFEngine(checkpoint.path, dtype=choice.config.dtype, batch_size=choice.config.batch_size)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A Request to generate for, tokenised."""

    request: Request
    ids: list[int]
    room: int
    """Maximum number of new tokens: what the request asks for, limited by the model's context."""

    def decoding(self) -> tuple[float, float, int, int]:
        return self.request.temperature, self.request.top_p, self.request.top_k, self.room


@dataclass(frozen=True, slots=True)
class _Choice:
    """One choice of a Request to score, tokenised."""

    request: Request
    text: str
    context: list[int]
    continuation: list[int]


class HFEngine:
    """contracts.Engine over AutoModelForCausalLM; raises BrokenCheckpoint when the checkpoint cannot be loaded."""

    name = "hf"

    def __init__(self, path: str, *, dtype: str = "auto", device: str = "auto", batch_size: int = 8) -> None:
        import torch

        self._device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        # On a CPU float32 is the fastest type for small models, and the most exact.
        wanted = "float32" if dtype == "auto" and self._device == "cpu" else dtype
        self._batch_size = batch_size
        self._path = path
        self._tokenizer = load_tokenizer(path)
        self._decoder = ReplyDecoder(self._tokenizer)
        with blame_checkpoint(f"transformers cannot load {path}"):
            self._load(path, wanted)
        self._closed = False

    def _load(self, path: str, dtype: str) -> None:
        from transformers import GenerationConfig

        self._model = _load_model(path, dtype)
        self._model.to(self._device).eval()
        own_end = self._tokenizer.eos_token_id
        # generation_config.json of a chat model often lists more than the tokenizer has
        self._ends = end_tokens(Path(path)) | ({own_end} - {None})
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        pad = self._tokenizer.pad_token_id
        self._pad = pad if pad is not None and 0 <= pad < self._vocabulary else 0  # masked, so any token will do
        # Requests say how to decode. The checkpoint's own defaults (Qwen: top_k 20, repetition_penalty 1.05) would
        # silently apply to everything that a request does not set, even for greedy decoding.
        ends = sorted(self._ends) or None
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            pad_token_id=self._pad, eos_token_id=ends
        )
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._max_len = int(limit or self._tokenizer.model_max_length)

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        return "model" if has_template(self._tokenizer) else "none"

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return render_chat(self._tokenizer, messages, thinking)

    @property
    def places(self) -> int:
        return self._batch_size

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        source = iter(requests)
        while window := list(islice(iter(lambda: next(source, None), None), WINDOW * self._batch_size)):
            prompts: list[_Prompt] = []
            choices: list[_Choice] = []
            for request in window:
                fault = self._tokenise(request, prompts, choices)
                if fault is not None:
                    yield Completion(request.id, "", "error", error=fault)
            yield from self._generate(prompts)
            yield from self._score(choices)

    def settings(self) -> Mapping[str, Any]:
        return {
            "device": self._device,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "batch_size": self._batch_size,
            "max_model_len": self._max_len,
            "attention": self._model.config._attn_implementation,
        }

    def close(self) -> None:
        import gc

        import torch

        if self._closed:
            return
        self._closed = True
        del self._model
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _tokenise(self, request: Request, prompts: list[_Prompt], choices: list[_Choice]) -> str | None:
        """Add the request to `prompts` or `choices`; returns a fault where it cannot be run, or None."""
        if request.choices is None:
            ids = encode(self._tokenizer, request.prompt, request.templated)
            if len(ids) >= self._max_len:
                return self._too_long(len(ids))
            prompts.append(_Prompt(request, ids, min(request.max_new_tokens, self._max_len - len(ids))))
            return None
        pairs = [
            _Choice(request, choice, *split_choice(self._tokenizer, request.prompt, choice, request.templated))
            for choice in dict.fromkeys(request.choices)
        ]
        if not pairs or any(not pair.context or not pair.continuation for pair in pairs):
            return "a choice adds no token of its own to the prompt"
        longest = max(len(pair.context) + len(pair.continuation) for pair in pairs)
        if longest > self._max_len:
            return self._too_long(longest)
        choices.extend(pairs)
        return None

    def _generate(self, prompts: list[_Prompt]) -> Iterator[Completion]:
        # All rows of a batch decode alike. Longest first, so that a batch that does not fit in memory fails at once.
        prompts.sort(key=lambda prompt: (prompt.decoding(), -len(prompt.ids)))
        for _, alike in groupby(prompts, _Prompt.decoding):
            while batch := list(islice(alike, self._batch_size)):
                yield from self._generate_batch(batch)

    def _generate_batch(self, batch: list[_Prompt]) -> list[Completion]:
        import torch
        from transformers import GenerationConfig

        temperature, top_p, top_k, room = batch[0].decoding()
        decoding: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            decoding = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
            # One generator serves the whole batch, so its seed depends on all requests in it.
            torch.manual_seed(zlib.crc32(repr([(one.request.id, one.request.seed) for one in batch]).encode()))
        rows, mask = self._padded([one.ids for one in batch])
        config = GenerationConfig(max_new_tokens=room, **decoding)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), _memory_faults_named(len(batch)):
            whole = self._model.generate(input_ids=rows, attention_mask=mask, generation_config=config)
        replies = whole[:, rows.shape[1] :].tolist()
        return [self._completion(one, reply) for one, reply in zip(batch, replies, strict=True)]

    def _completion(self, prompt: _Prompt, reply: list[int]) -> Completion:
        end = next((index for index, token in enumerate(reply) if token in self._ends), None)
        tokens = reply if end is None else reply[: end + 1]
        text = self._decoder.decode(tokens)
        # Cut afterwards: a stopping criterion would fire inside reasoning too, and would save tokens only where every
        # row of the batch stops early.
        kept = cut_at_stop(text, prompt.request.stop, opened=opens_reasoning(prompt.request.prompt))
        ended = end is not None or len(kept) < len(text)
        return Completion(prompt.request.id, kept, "stop" if ended else "length", len(prompt.ids), len(tokens))

    def _score(self, choices: list[_Choice]) -> Iterator[Completion]:
        found: dict[str, dict[str, float]] = defaultdict(dict)
        source = iter(sorted(choices, key=lambda one: -len(one.context) - len(one.continuation)))
        while batch := list(islice(source, self._batch_size)):
            for one, logprob in zip(batch, self._log_likelihoods(batch), strict=True):
                of_request = found[one.request.id]
                of_request[one.text] = logprob
                asked = dict.fromkeys(one.request.choices or ())
                if len(of_request) == len(asked):
                    in_order = {choice: of_request[choice] for choice in asked}
                    yield Completion(one.request.id, "", "stop", prompt_tokens=len(one.context), logprobs=in_order)

    def _log_likelihoods(self, batch: list[_Choice]) -> list[float]:
        """Natural log-likelihood of each continuation after its context, summed over its tokens.

        With B rows padded to length L, the longest continuation having C tokens, and vocabulary V: `rows`, `mask` and
        `positions` are [B, L], `logits` [B, C + 1, V], `scored` [B, C].
        """
        import torch

        rows, mask = self._padded([pair.context + pair.continuation for pair in batch])
        # Padding on the left puts all continuations at the end, so the logits of the last positions are enough; those
        # of whole prompts would take gigabytes. Unlike generate(), the forward pass does not derive positions itself.
        last = max(len(pair.continuation) for pair in batch)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode(), _memory_faults_named(len(batch)):
            logits = self._model(
                input_ids=rows, attention_mask=mask, position_ids=positions, logits_to_keep=last + 1
            ).logits
            scored = logits[:, :-1].float().log_softmax(-1).gather(-1, rows[:, -last:, None]).squeeze(-1)
        return [scored[row, -len(pair.continuation) :].sum().item() for row, pair in enumerate(batch)]

    def _padded(self, rows: list[list[int]]) -> tuple[Any, Any]:
        """(token ids, attention mask): two int64 tensors [rows, longest row] on the device, padded on the left.

        The mask is 1 at tokens and 0 at padding.
        """
        import torch

        for row in rows:
            refuse_unknown_tokens(self._path, row, self._vocabulary)
        width = max(len(row) for row in rows)
        ids = [[self._pad] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _too_long(self, tokens: int) -> str:
        return f"the prompt has {tokens} tokens and the model's context holds {self._max_len}: shorten the prompt"


def next_logprobs(path: str, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities, in nats, of each of `tokens` as the next one after `prompt`; float32, on the CPU.

    Raises BrokenCheckpoint where the checkpoint in `path` cannot be loaded.
    """
    import torch

    with blame_checkpoint(f"transformers cannot load {path}"):
        model = _load_model(path, "float32").eval()
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([list(prompt)]), logits_to_keep=1).logits[0, -1]
        scored: list[float] = logits.float().log_softmax(-1)[list(tokens)].tolist()
    return scored


def _load_model(path: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    refuse_other_shapes(Path(path))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers and warns
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    return model


@contextmanager
def _memory_faults_named(batch_size: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise MedbenchError(
            f"out of GPU memory with a batch of {batch_size}: lower engine_config.batch_size or max_new_tokens"
        ) from None
