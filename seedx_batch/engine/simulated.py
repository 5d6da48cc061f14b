"""Continuous batching without a model: the rehearsal of a job, and the engine of fast tests.

Its time is virtual and its texts are made of hashes; it must never know vLLM or files.
"""

import heapq
import math
import os
import signal
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from seedx_batch.errors import EngineDied, Fault, RowRejected, SpecError
from seedx_batch.records import Candidate, EngineOutput, Params, Place, Prompt, Request, RequestId

_CHARS_PER_TOKEN = 4
_BYTES_PER_TOKEN = 4 * _CHARS_PER_TOKEN  # of UTF-32
_VOCABULARY = 50_000
_BOS = 1
_EOS = 0
_BLOCK = 16
_NUM_LIKELY = 32  # tokens that can follow at a place; the others are as good as impossible
_SPREAD = 6.0  # of their logits


@dataclass(frozen=True, slots=True)
class StepCost:
    """Virtual seconds of one step.

    The defaults were fitted (R² 0.99) to vLLM steps of a 135M model on two CPU cores.
    """

    step_s: float = 0.038
    per_sequence_s: float = 0.0024
    per_prefilled_token_s: float = 0.0015


MEASURED = StepCost()


@dataclass(slots=True, eq=False)
class _Running:
    """A request in the engine: its answer is made when it is added, and told when its last candidate is through."""

    output: EngineOutput
    num_left: int
    num_prefilled: int
    aborted: bool = False
    fault: Callable[[], None] | None = None


@dataclass(slots=True, eq=False)
class _Stream(_Running):
    """A streaming request: what it has come to, and how many of the likeliest tokens it tells at each place."""

    token_ids: list[int] = field(default_factory=list)
    num_likeliest: int = 0


class SimulatedEngine:
    """Batches continuously as vLLM does, one token per sequence and step.

    The text is a function of the prompt's tokens, and of the seed and temperature where the latter is not 0.

    Args:
        length: the tokens that a text wants to have, by the number of its prompt's and a number from 0 to 1 that is
            drawn for it; None for any number up to `max_tokens`.
        cost: what a step takes on the virtual clock.
        die_at_step: the step in which the engine dies; None for never.
        rejects: ids that `add` refuses.
        poison: a text in a prompt that kills the process as soon as its request runs.
        stall: one that lets the step in which its request begins never end.
    """

    def __init__(
        self,
        max_num_seqs: int = 64,
        max_model_len: int = 32_768,
        cost: StepCost = MEASURED,
        die_at_step: int | None = None,
        rejects: Container[RequestId] = (),
        length: Callable[[int, float], int] | None = None,
        poison: str | None = None,
        stall: str | None = None,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.num_kv_tokens = max_num_seqs * max_model_len
        self.block_size = _BLOCK
        self.eos_token_ids = frozenset([_EOS])
        self.versions: Mapping[str, str] = {"vllm": "simulated"}
        self.num_steps = 0
        self.num_output_tokens = 0
        self.num_prefilled_tokens = 0
        self.last_step = (0.0, 0.0)
        self.clock_s = 0.0
        self._cost = cost
        self._die_at_step = die_at_step
        self._rejects = rejects
        self._faults = {text: fault for text, fault in ((poison, _die), (stall, _sleep)) if text}
        self._faulty: dict[tuple[int, ...], Callable[[], None]] = {}
        self.length = length
        self._dead = False
        self._requests: dict[RequestId, _Running] = {}
        self._waiting: deque[_Running] = deque()
        self._num_running = 0
        self._streams: list[_Stream] = []
        self._given_up: set[RequestId] = set()
        # (step that gives the last token, order of admission, request): one entry for each candidate, so that a
        # sequence costs the same whatever its length.
        self._finishing: list[tuple[int, int, _Running]] = []
        self._num_admitted = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and are neither answered nor aborted."""
        return len(self._requests)

    def check_params(self, params: Params) -> None:
        """Refuses only what no request can have."""
        if params.get("n", 1) > self.max_num_seqs:
            raise SpecError(Fault("decoding.n", f"is more than max_num_seqs, {self.max_num_seqs}"))

    def check_prompt(self, prompt: Prompt, prompt_token_ids: list[int]) -> None:
        """Lets every prompt pass."""

    def encode(self, prompt: Prompt) -> list[int]:
        """One token for the beginning and one for every four characters."""
        if not isinstance(prompt, str):
            prompt = "".join(f"<{message['role']}>{message['content']}\n" for message in prompt)
        num_tokens = 1 + -(-len(prompt) // _CHARS_PER_TOKEN)
        self._check_fits(num_tokens)
        text = prompt.encode("utf-32-le", "surrogatepass")
        starts = range(0, len(text), _BYTES_PER_TOKEN)
        ids = [_BOS, *(2 + zlib.crc32(text[start : start + _BYTES_PER_TOKEN]) % _VOCABULARY for start in starts)]
        for words, fault in self._faults.items():
            if words in prompt:
                self._faulty[tuple(ids)] = fault
        return ids

    def decode(self, token_ids: Sequence[int], prompt_token_ids: Sequence[int] = ()) -> str:
        """Four characters for every token but the special ones."""
        return "".join(f"{token_id % 0x10000:04x}" for token_id in token_ids if token_id not in (_BOS, _EOS))

    def add(self, request: Request) -> None:
        """Takes a request in; it waits until sequences are free."""
        if self._dead:
            raise EngineDied("the simulated engine is dead")
        if request.id in self._requests:
            raise ValueError(f"{request.id} is unfinished already")
        if request.id in self._rejects:
            raise RowRejected("rejected", "the simulated engine was told to refuse it")
        if not request.prompt_token_ids:
            raise RowRejected("prompt_empty", "the prompt has no tokens")
        self._check_fits(len(request.prompt_token_ids))
        running = self._stream(request) if request.streams else self._whole(request)
        if self._faulty:
            running.fault = self._faulty.get(tuple(request.prompt_token_ids))
        self._requests[request.id] = running
        self._waiting.append(running)

    def step(self) -> list[EngineOutput]:
        """The requests that this step's tokens finished."""
        if self._dead:
            raise EngineDied("the simulated engine is dead")
        if not self._requests:
            return []
        began = time.monotonic()
        self.num_steps += 1
        if self.num_steps == self._die_at_step:
            self._dead = True
            raise EngineDied(f"the simulated engine died at step {self.num_steps}, as it was told to")
        num_prefilled = self._admit()
        cost = self._cost
        self.clock_s += (
            cost.step_s + cost.per_sequence_s * self._num_running + cost.per_prefilled_token_s * num_prefilled
        )
        self._given_up.clear()
        outputs = [*self._finish(), *self._go_on()]
        self.last_step = (began, time.monotonic())
        return outputs

    def abort(self, requests: Iterable[RequestId]) -> None:
        """Forgets requests and frees their sequences."""
        for request_id in requests:
            running = self._requests.pop(request_id, None)
            if running is None:
                continue
            running.aborted = True
            self._given_up.add(request_id)
            if running in self._waiting:
                self._waiting.remove(running)
            else:
                self._num_running -= running.num_left
                self._streams = [stream for stream in self._streams if not stream.aborted]

    def close(self) -> None:
        """Forgets everything."""
        self.abort(list(self._requests))

    def _check_fits(self, num_tokens: int) -> None:
        if num_tokens + 1 > self.max_model_len:
            raise RowRejected("prompt_too_long", f"{num_tokens:,} tokens; at most {self.max_model_len - 1:,} fit")

    def _admit(self) -> int:
        """Starts waiting requests as long as sequences are free; the number of their prompt tokens."""
        num_prefilled = 0
        while self._waiting:
            output = self._waiting[0].output
            # A request of more candidates than the engine has sequences still runs, alone.
            if self._num_running and self._num_running + len(output.candidates) > self.max_num_seqs:
                break
            running = self._waiting.popleft()
            if running.fault is not None:
                running.fault()
            if isinstance(running, _Stream):
                self._streams.append(running)
            else:
                for candidate in output.candidates:
                    last = self.num_steps + candidate.num_output_tokens - 1
                    heapq.heappush(self._finishing, (last, self._num_admitted, running))
                    self._num_admitted += 1
            self._num_running += len(output.candidates)
            num_prefilled += running.num_prefilled
        self.num_prefilled_tokens += num_prefilled
        return num_prefilled

    def _finish(self) -> list[EngineOutput]:
        outputs = []
        while self._finishing and self._finishing[0][0] <= self.num_steps:
            running = heapq.heappop(self._finishing)[2]
            if running.aborted:
                continue
            running.num_left -= 1
            self._num_running -= 1
            if not running.num_left:
                output = running.output
                del self._requests[output.request_id]
                self.num_output_tokens += sum(candidate.num_output_tokens for candidate in output.candidates)
                outputs.append(output)
        return outputs

    def _go_on(self) -> list[EngineOutput]:
        """One more token of every streaming request that runs."""
        outputs = []
        for stream in self._streams:
            likeliest = _likeliest(stream.token_ids)
            token_id = likeliest[0][0]
            stream.token_ids.append(token_id)
            self.num_output_tokens += 1
            output = replace(stream.output, places=(Place(token_id, likeliest[: stream.num_likeliest]),))
            if len(stream.token_ids) < output.num_prompt_tokens + output.candidates[0].num_output_tokens:
                output = replace(output, candidates=())
            else:
                del self._requests[output.request_id]
                self._given_up.add(output.request_id)
                self._num_running -= 1
            outputs.append(output)
        self._streams = [stream for stream in self._streams if stream.output.request_id in self._requests]
        return outputs

    def _stream(self, request: Request) -> _Stream:
        ids, params = request.prompt_token_ids, request.params
        source = self._requests.get(request.fork_of) if request.fork_of else None
        is_known = source is not None or request.fork_of in self._given_up
        num_tokens = min(params["max_tokens"], self.max_model_len - len(ids))
        output = EngineOutput(
            request.id, (Candidate("", "length", num_tokens),), len(ids), len(ids) - 1 if is_known else 0
        )
        return _Stream(output, 1, 1 if is_known else len(ids), token_ids=list(ids), num_likeliest=params["logprobs"])

    def _whole(self, request: Request) -> _Running:
        output = self._answer(request)
        return _Running(output, num_left=len(output.candidates), num_prefilled=output.num_prompt_tokens)

    def _answer(self, request: Request) -> EngineOutput:
        ids, params = request.prompt_token_ids, request.params
        most = min(params.get("max_tokens", 16), self.max_model_len - len(ids))
        prompt = array("q", ids).tobytes()
        candidates = []
        for index in range(params.get("n", 1)):
            digest = blake2b(prompt, key=_sampling_key(params, index), digest_size=32).digest()
            drawn = int.from_bytes(digest[:6], "big")
            wanted = 1 + drawn % most if self.length is None else self.length(len(ids), drawn / (1 << 48))
            candidates.append(_candidate(digest, min(max(1, wanted), most), most, params))
        return EngineOutput(request.id, tuple(candidates), num_prompt_tokens=len(ids), num_cached_tokens=0)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep() -> None:
    time.sleep(86_400)


def _likeliest(token_ids: list[int]) -> list[tuple[int, float]]:
    """The tokens that can follow, the likeliest first, with their log-probabilities: a function of what is there."""
    digest = blake2b(array("q", token_ids).tobytes(), digest_size=_NUM_LIKELY).digest()
    logits = [_SPREAD * byte / 255 for byte in digest]
    total = math.log(sum(map(math.exp, logits)))
    first = int.from_bytes(digest[:4], "big") % _VOCABULARY
    tokens = [_EOS, *(2 + (first + 97 * place) % _VOCABULARY for place in range(1, _NUM_LIKELY))]
    return sorted(
        ((token_id, logit - total) for token_id, logit in zip(tokens, logits, strict=True)),
        key=lambda each: (-each[1], each[0]),
    )


def _sampling_key(params: Params, index: int) -> bytes:
    """What makes the texts of one prompt differ: nothing when decoding is greedy."""
    temperature = params.get("temperature", 1.0)
    if temperature == 0:
        return b""
    seed = params.get("seed")
    return f"{temperature:.6g}/{0 if seed is None else seed + index}/{index if seed is None else 0}".encode()


def _candidate(digest: bytes, wanted: int, max_tokens: int, params: Mapping[str, Any]) -> Candidate:
    """A text of the wanted number of tokens of four characters, cut before the first stop string in it."""
    num_tokens = max_tokens if params.get("ignore_eos") else wanted
    reason = "length" if num_tokens == max_tokens else "stop"
    words, num_chars = digest.hex(" ", 3) + " ", num_tokens * _CHARS_PER_TOKEN
    text = (words * (num_chars // len(words) + 1))[:num_chars]
    found = [(text.find(stop), stop) for stop in params.get("stop") or () if stop in text]
    if found:
        start, stop = min(found)
        num_tokens, reason = -(-(start + len(stop)) // _CHARS_PER_TOKEN), "stop"
        text = text[:start]
    score = (
        -0.5 * num_tokens - int.from_bytes(digest[:6], "big") % 1000 / 1000
        if params.get("logprobs") is not None
        else None
    )
    return Candidate(text, reason, num_tokens, score)
