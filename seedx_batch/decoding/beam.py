"""Beam search: hypotheses are carried by greedy streams and forked only where they leave what a stream goes on with.

A stream tells the likeliest next tokens at every place. As soon as those of all live hypotheses of a row are known, the
row's next step is done here, without the engine; where a hypothesis that lives on is what its stream goes on with
anyhow, nothing needs to be asked. So the engine's work is that of the live hypotheses, and a row never waits for
another. Must never know vLLM, files, or that other rows exist.

Source of the two ways to rank: `generate(num_beams=...)` of transformers, and `LLM.beam_search` of vLLM.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from seedx_batch.decoding import NOTHING, Finish, Wanted
from seedx_batch.records import (
    Candidate,
    Completion,
    EngineOutput,
    Params,
    Request,
    RequestId,
    RowKey,
)
from seedx_batch.spec import BeamDecoding

_first = itemgetter(0)
_UNSURE = "\ufffd"  # what a tokenizer makes of a part of a character


class Node:
    """A place in the tree of a row's hypotheses: the token there, and what may follow once a stream has told it."""

    __slots__ = ("_children", "depth", "likeliest", "parent", "stream", "token_id")

    def __init__(self, parent: "Node | None", token_id: int, depth: int) -> None:
        self.parent = parent
        self.token_id = token_id
        self.depth = depth
        self.likeliest: list[tuple[int, float]] | None = None
        self.stream = -1
        self._children: dict[int, Node] = {}

    def child(self, token_id: int) -> "Node":
        """The place that a token leads to."""
        known = self._children.get(token_id)
        if known is None:
            known = self._children[token_id] = Node(self, token_id, self.depth + 1)
        return known

    def token_ids(self, most: int | None = None) -> list[int]:
        """The tokens from the prompt's end, or the last `most` of them, up to this place."""
        found: list[int] = []
        node = self
        while node.parent is not None and (most is None or len(found) < most):
            found.append(node.token_id)
            node = node.parent
        return found[::-1]

    def at_depth(self, depth: int) -> "Node":
        """This place or the one before it at that depth."""
        node = self
        while node.depth > depth and node.parent is not None:
            node = node.parent
        return node


class Live(NamedTuple):
    """A hypothesis that may go on: its log-probability, and where it is."""

    logprob: float
    node: Node


class Ended(NamedTuple):
    """A hypothesis that has ended: its score, the place before its last token, that token, and why it ended."""

    score: float
    before: Node
    token_id: int
    finish_reason: str


class Ends:
    """What ends a hypothesis: tokens, and strings in its text.

    Args:
        decode: the text of tokens.
    """

    def __init__(self, token_ids: frozenset[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self.token_ids = token_ids
        self._stop = tuple(stop)
        self._decode = decode
        self._last_chars = {text[-1] for text in stop}
        self._num_tail = max(map(len, stop), default=0) + len(_UNSURE) + 1
        self._may_end: dict[int, bool] = {}

    def by_text(self, before: Node, token_id: int) -> bool:
        """Whether a text that goes on with that token has come to a stop string."""
        if not self._stop or not self._may_end_text(token_id):
            return False
        tail = self._decode([*before.token_ids(self._num_tail), token_id])
        return any(stop in tail for stop in self._stop)

    def cut(self, text: str) -> str:
        """A text up to the first stop string in it."""
        return text[: min((text.find(stop) for stop in self._stop if stop in text), default=len(text))]

    def _may_end_text(self, token_id: int) -> bool:
        """Whether the token's own text could be the end of a stop string: decoding every tail would take too long."""
        known = self._may_end.get(token_id)
        if known is None:
            text = self._decode([token_id])
            known = self._may_end[token_id] = _UNSURE in text or not self._last_chars.isdisjoint(text)
        return known


@dataclass(frozen=True, slots=True)
class Search:
    """What all rows of a job share.

    Args:
        max_model_len: tokens of a prompt and its output together, at most.
        decode: the text that tokens add to a prompt's.
        finish: cuts a text into the result and the preset's further columns.
    """

    spec: BeamDecoding
    ends: Ends
    max_model_len: int
    decode: Callable[[Sequence[int], Sequence[int]], str]
    finish: Finish

    @property
    def num_likeliest(self) -> int:
        """Tokens that must be known at each place, so that enough go on however many of them end."""
        return num_likeliest(self.spec, self.ends.token_ids)


def num_likeliest(spec: BeamDecoding, end_token_ids: frozenset[int]) -> int:
    """As both references have it: of each hypothesis `beam_width` for going on, and as many for every end."""
    return spec.beam_width * (2 if spec.counts_prompt else max(2, 1 + len(end_token_ids)))


class BeamDecoder:
    """One row's beam search.

    Args:
        max_tokens: the row's budget.

    Attributes:
        num_places: of tokens that a hypothesis can have, by the budget and by the context.
    """

    def __init__(self, key: RowKey, prompt_token_ids: list[int], max_tokens: int, search: Search) -> None:
        self._key = key
        self._prompt = prompt_token_ids
        self._search = search
        self.num_places = min(max_tokens, search.max_model_len - len(prompt_token_ids))
        self._depth = 0
        self._live = [Live(0.0, Node(None, -1, 0))]
        self._ended: list[Ended] = []
        self._streams: dict[int, Node] = {}  # where each one will tell next
        self._num_requests = 0
        self._num_told = 0
        self._num_used = 0
        self._num_cached_tokens = 0
        self.completion: Completion | None = None

    def start(self) -> list[Request]:
        """The stream that begins with the prompt alone."""
        return [self._request(self._live[0].node)]

    def advance(self, output: EngineOutput) -> Wanted:
        """Takes what a stream tells; when that completes the row's step, what the next one calls for."""
        sequence = output.request_id.sequence
        node = self._streams.get(sequence)
        if node is None or self.completion is not None:
            return NOTHING
        if not output.request_id.sequence and not self._num_told:
            self._num_cached_tokens = output.num_cached_tokens
        for place in output.places:
            node.likeliest = place.likeliest
            node.stream = sequence
            node = node.child(place.token_id)
        self._num_told += len(output.places)
        self._streams[sequence] = node
        if output.candidates:
            del self._streams[sequence]
            if output.candidates[0].finish_reason != "length":
                return self._break(output.candidates[0].finish_reason)
        return self._tend()

    @property
    def unfinished(self) -> list[RequestId]:
        """The streams in the engine."""
        return [RequestId(self._key, sequence) for sequence in self._streams]

    @property
    def num_wasted_tokens(self) -> int:
        """Places that streams told and no live hypothesis came to."""
        return self._num_told - self._num_used

    def _tend(self) -> Wanted:
        before = self._depth
        while self.completion is None and all(node.likeliest is not None for _, node in self._live):
            self._num_used += len(self._live)
            self._step()
            if self._is_done():
                self._complete()
        if self._depth == before:
            return NOTHING
        if self.completion is not None:
            aborts, self._streams = self.unfinished, {}
            return Wanted([], aborts)
        return self._fork()

    def _fork(self) -> Wanted:
        """Streams for the live hypotheses that none carries; those that carry none are given up."""
        live = {node for _, node in self._live}
        carried: set[Node] = set()
        aborts = []
        for sequence, node in list(self._streams.items()):
            here = node.at_depth(self._depth)
            if here in live and node.depth >= self._depth:
                carried.add(here)
            else:
                aborts.append(RequestId(self._key, sequence))
                del self._streams[sequence]
        forks = [self._request(node) for _, node in self._live if node.likeliest is None and node not in carried]
        return Wanted(forks, aborts)

    def _request(self, node: Node) -> Request:
        sequence, self._num_requests = self._num_requests, self._num_requests + 1
        self._streams[sequence] = node
        return Request(
            RequestId(self._key, sequence),
            [*self._prompt, *node.token_ids()],
            stream_params(self.num_places - node.depth, self._search.num_likeliest),
            streams=True,
            fork_of=RequestId(self._key, node.parent.stream) if node.parent is not None else None,
        )

    def _step(self) -> None:
        """The row's next step: of all tokens that may follow, the best go on, and those that end are kept apart."""
        spec, ends, width = self._search.spec, self._search.ends, self._search.spec.beam_width
        follow = self._following()
        self._depth += 1
        is_last = self._depth == self.num_places
        self._live = []
        num_cut = 0
        for rank, (logprob, node, token_id) in enumerate(follow):
            by_token = token_id in ends.token_ids
            if by_token or ends.by_text(node, token_id):
                # To transformers an end counts only among the best; to vLLM always.
                if rank < width or spec.counts_prompt:
                    self._end(Ended(self._score(logprob, by_token), node, token_id, "stop"))
            elif is_last:
                if (num_cut if spec.counts_prompt else rank) < width:
                    num_cut += 1
                    self._end(Ended(self._score(logprob, False), node, token_id, "length"))
            elif len(self._live) < width:
                self._live.append(Live(logprob, node.child(token_id)))
            elif rank >= width and not spec.counts_prompt:
                break

    def _following(self) -> list[tuple[float, Node, int]]:
        """The tokens that may follow, best first, with the log-probability of all up to there."""
        # transformers looks at no more than so many; the rest need not even be sorted.
        most = None if self._search.spec.counts_prompt else self._search.num_likeliest
        follow: list[tuple[float, Node, int]] = []
        least = -math.inf
        for logprob, node in self._live:
            for token_id, more in node.likeliest or ():
                if logprob + more < least:  # as are all that come after it
                    break
                follow.append((logprob + more, node, token_id))
            if most is not None and len(follow) >= most:
                follow.sort(key=_first, reverse=True)
                del follow[most:]
                least = follow[-1][0]
        follow.sort(key=_first, reverse=True)
        return follow

    def _end(self, hypothesis: Ended) -> None:
        self._ended.append(hypothesis)
        self._ended.sort(key=_first, reverse=True)
        del self._ended[self._search.spec.beam_width :]

    def _score(self, logprob: float, by_token: bool) -> float:
        # vLLM counts the prompt, but not the token that ends a hypothesis.
        return self._normalised(logprob, self._depth - (by_token and self._search.spec.counts_prompt))

    def _normalised(self, logprob: float, num_tokens: int) -> float:
        spec = self._search.spec
        length = num_tokens + (len(self._prompt) if spec.counts_prompt else 0)
        share: float = max(1, length) ** spec.length_penalty
        return logprob / share

    def _attainable(self, logprob: float) -> float:
        """No score above this can come of a live hypothesis: log-probabilities only fall."""
        return self._normalised(logprob, self.num_places if self._search.spec.length_penalty > 0 else self._depth)

    def _is_done(self) -> bool:
        """Whether the row is through; drops live hypotheses of which nothing can come.

        What is dropped takes places from others in the reference; those that get them here are worse still, so nothing
        comes of them either.
        """
        spec = self._search.spec
        if self._depth == self.num_places or not self._live:
            return True
        if len(self._ended) < spec.beam_width:
            return False
        if spec.early_stopping is True:
            return True
        worst = self._ended[-1].score
        best = self._live[0].logprob
        # transformers' estimate: as if the best hypothesis ended here.
        hoped = self._attainable(best) if spec.early_stopping == "never" else self._normalised(best, self._depth)
        self._live = [live for live in self._live if self._attainable(live.logprob) > worst]
        return not self._live or hoped <= worst

    def _complete(self) -> None:
        search = self._search
        candidates = []
        for score, before, token_id, finish_reason in self._ended[: search.spec.num_return]:
            token_ids = [*before.token_ids(), token_id]
            # The token that ends a text is none of it, be it special or not.
            shown = token_ids[:-1] if finish_reason == "stop" and token_id in search.ends.token_ids else token_ids
            text = search.finish(search.ends.cut(search.decode(shown, self._prompt)))
            candidates.append((Candidate(text[0], finish_reason, len(token_ids), score), text[1]))
        best, extra = candidates[0]
        self.completion = Completion(
            self._key,
            "ok" if best.finish_reason == "stop" else "truncated",
            text=best.text,
            finish_reason=best.finish_reason,
            num_prompt_tokens=len(self._prompt),
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=sum(candidate.num_output_tokens for candidate, _ in candidates),
            candidates=tuple(candidate for candidate, _ in candidates),
            extra=extra,
        )

    def _break(self, reason: str | None) -> Wanted:
        """The engine gave a stream up, and the row with it."""
        self.completion = Completion(
            self._key,
            "error",
            finish_reason=reason,
            error=f"engine_{reason or 'error'}: the engine gave the request up",
            num_prompt_tokens=len(self._prompt),
        )
        aborts, self._streams = self.unfinished, {}
        return Wanted([], aborts)


def stream_params(max_tokens: int, num_likeliest: int) -> Params:
    """The sampling parameters of a stream; it does not end of itself before `max_tokens`."""
    return {"temperature": 0.0, "max_tokens": max_tokens, "logprobs": num_likeliest, "ignore_eos": True}
