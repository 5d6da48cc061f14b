"""A row on its way in: rendered, tokenised once, given its budget and its seed, and handed to a decoder.

Must never know files, vLLM or what becomes of the row.
"""

from typing import Any

from seedx_batch.decoding import Admitted
from seedx_batch.decoding.budget import Budget
from seedx_batch.decoding.sample import SampleDecoder, base_params, row_seed
from seedx_batch.engine import Engine
from seedx_batch.prompts import Prompts
from seedx_batch.records import Params, Row
from seedx_batch.spec import SampleDecoding


class Intake:
    """Admits rows of one job to one engine."""

    def __init__(self, prompts: Prompts, decoding: SampleDecoding, engine: Engine) -> None:
        self._prompts = prompts
        self._decoding = decoding
        self._engine = engine
        self._budget = Budget(decoding.max_tokens, prompts.render_empty, engine.encode)
        self._base = base_params(decoding, prompts.stop)
        self._shared: dict[int, dict[str, Any]] = {}
        self._checked = False
        engine.check_params(self._params("", decoding.max_tokens.max))

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
        params = self._params(row.id, self._budget.max_tokens(row, len(token_ids)))
        return Admitted(SampleDecoder(row.key, token_ids, params, self._prompts.finish), token_ids, params)

    def _params(self, row_id: str, max_tokens: int) -> Params:
        if self._decoding.greedy:  # one object for each budget, so that the engine can prepare it once
            return self._shared.setdefault(max_tokens, {**self._base, "max_tokens": max_tokens})
        # Every row has a seed: an unseeded row in a batch makes some samplers ignore the seeds of the others.
        return {**self._base, "max_tokens": max_tokens, "seed": row_seed(self._decoding.seed, row_id)}
