"""A row on its way in: rendered, tokenised once, given its budget and its seed, and handed to a decoder.

Must never know files, vLLM or what becomes of the row.
"""

from collections.abc import Callable
from typing import Any

from seedx_batch.decoding import Admitted
from seedx_batch.decoding.beam import BeamDecoder, Ends, Search, stream_params
from seedx_batch.decoding.budget import Budget
from seedx_batch.decoding.sample import SampleDecoder, base_params, row_seed
from seedx_batch.engine import Engine
from seedx_batch.errors import Fault, SpecError
from seedx_batch.prompts import Prompts
from seedx_batch.records import Params, Row
from seedx_batch.spec import BeamDecoding, Decoding, SampleDecoding

Admit = Callable[[Row, list[int], int], Admitted]
"""Hands a row with its prompt's tokens and its budget to a decoder."""


class Intake:
    """Admits rows of one job to one engine.

    Raises:
        SpecError: the engine refuses what every row would ask for.
    """

    def __init__(self, prompts: Prompts, decoding: Decoding, engine: Engine) -> None:
        self._prompts = prompts
        self._engine = engine
        self._budget = Budget(decoding.max_tokens, prompts.render_empty, engine.encode)
        self._checked = False
        self._admit: Admit
        if isinstance(decoding, BeamDecoding):
            self._admit = _searching(prompts, decoding, engine)
        else:
            self._admit = _sampling(prompts, decoding, engine)

    def __call__(self, row: Row) -> Admitted:
        """The row's decoder.

        Raises:
            RowRejected: the row cannot be rendered or does not fit.
            SpecError: the first prompt shows that the model and the job do not suit each other.
        """
        prompt = self._prompts.render(row)
        token_ids = self._engine.encode(prompt)
        if not self._checked:
            self._engine.check_prompt(prompt, token_ids)
            self._checked = True
        return self._admit(row, token_ids, self._budget.max_tokens(row, len(token_ids)))


def _sampling(prompts: Prompts, decoding: SampleDecoding, engine: Engine) -> Admit:
    base = base_params(decoding, prompts.stop)
    shared: dict[int, dict[str, Any]] = {}

    def params(row_id: str, max_tokens: int) -> Params:
        if decoding.greedy:  # one object for each budget, so that the engine can prepare it once
            return shared.setdefault(max_tokens, {**base, "max_tokens": max_tokens})
        # Every row has a seed: an unseeded row in a batch makes some samplers ignore the seeds of the others.
        return {**base, "max_tokens": max_tokens, "seed": row_seed(decoding.seed, row_id)}

    def admit(row: Row, token_ids: list[int], max_tokens: int) -> Admitted:
        asked = params(row.id, max_tokens)
        return Admitted(SampleDecoder(row.key, token_ids, asked, prompts.finish), token_ids, asked, decoding.n)

    engine.check_params(params("", decoding.max_tokens.max))
    return admit


def _searching(prompts: Prompts, decoding: BeamDecoding, engine: Engine) -> Admit:
    width = decoding.beam_width
    if width > engine.max_num_seqs:
        raise SpecError(Fault("decoding.beam_width", f"is more than max_num_seqs, {engine.max_num_seqs}"))
    eos = frozenset() if decoding.ignore_eos else engine.eos_token_ids
    stop = list(dict.fromkeys([*prompts.stop, *decoding.stop]))
    ends = Ends(eos | frozenset(decoding.stop_token_ids), stop, engine.decode)
    search = Search(decoding, ends, engine.max_model_len, engine.decode, prompts.finish)

    def admit(row: Row, token_ids: list[int], max_tokens: int) -> Admitted:
        decoder = BeamDecoder(row.key, token_ids, max_tokens, search)
        # The prompt's blocks are shared; of its own a hypothesis has the rest and, at both ends, parts of blocks.
        num_kv_tokens = len(token_ids) + width * (decoder.num_places + 2 * engine.block_size)
        return Admitted(decoder, token_ids, {"max_tokens": max_tokens}, width, num_kv_tokens)

    engine.check_params(stream_params(decoding.max_tokens.max, search.num_likeliest))
    return admit
