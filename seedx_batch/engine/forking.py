"""Forks of a running request inside vLLM: a request that begins as another one copies its keys and values.

vLLM shares whole blocks of a common prefix and computes the rest of it again, half a block on average and all of a
short row: 64 tokens where blocks hold 128, as on an NPU and a CPU. This connector copies the last, partly filled block
on the device instead, so that a fork computes one token, whatever the block size. It must never know beam search.

A request takes part by `kv_transfer_params` in the `extra_args` of its SamplingParams: `name`, unique among requests in
flight; and for a fork `fork_of`, the name of the request that it begins as, and `num_shared`, the number of tokens that
both have in common. What a finished request held stays for one more step, so that forks which were added together with
its abort find it.

Source: KVConnectorBase_V1 in vllm/distributed/kv_transfer/kv_connector/v1/base.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)


@dataclass
class ForkMetadata(KVConnectorMetadata):  # type: ignore[misc]  # vLLM has no types here
    """What one step's workers are told.

    Args:
        copies: blocks to copy before the step, as (from, to).
        released: finished requests whose blocks may go after the step.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    released: set[str] = field(default_factory=set)


class ForkConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves of the connector; vLLM makes one for its scheduler and one for each worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._block_size: int = vllm_config.cache_config.block_size
        self._num_blocks: int = kv_cache_config.num_blocks
        # The scheduler's half: vLLM's own ids of the requests that can be forked, and their blocks by those. A name may
        # come again while what its last bearer held is still there.
        self._ids: dict[str, str] = {}
        self._blocks: dict[str, list[int]] = {}
        self._lost: set[str] = set()
        self._copies: list[tuple[int, int]] = []
        self._released: dict[str, Any] = {}
        self._leaving: dict[str, Any] = {}
        # A worker's half.
        self._caches: list[tuple[torch.Tensor, int]] = []

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens beyond the shared whole blocks that the fork need not compute; they are there at once."""
        params = request.kv_transfer_params or {}
        if self._ids.get(params.get("fork_of", "")) not in self._blocks:
            return 0, False
        return max(0, params["num_shared"] - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Notes a request's first blocks, and what has to be copied into them."""
        params = request.kv_transfer_params or {}
        if "name" not in params:
            return
        (own,) = blocks.get_block_ids()
        if num_external_tokens:
            source = self._blocks[self._ids[params["fork_of"]]]  # there, as get_num_new_matched_tokens saw
            first = (params["num_shared"] - num_external_tokens) // self._block_size
            last = (params["num_shared"] - 1) // self._block_size
            self._copies += [(source[place], own[place]) for place in range(first, last + 1)]
        if request.request_id not in self._lost:
            self._ids[params["name"]] = request.request_id
            self._blocks[request.request_id] = list(own)

    def build_connector_meta(self, scheduler_output: Any) -> ForkMetadata:
        """What this step's workers have to do; notes the blocks that running requests got."""
        for request_id in scheduler_output.preempted_req_ids or ():
            # It comes back with other blocks that are still to be computed: not to be forked any more.
            self._lost.add(request_id)
            self._blocks.pop(request_id, None)
        running = scheduler_output.scheduled_cached_reqs
        for request_id, new in zip(running.req_ids, running.new_block_ids, strict=True):
            if new and request_id in self._blocks:
                self._blocks[request_id] += new[0]
        told = ForkMetadata(copies=self._copies, released=set(self._released))
        self._leaving |= self._released
        self._copies, self._released = [], {}
        return told

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Keeps a finished request's blocks until the next step is through."""
        if request.request_id not in self._blocks:
            self._forget(request)
            return False, None
        self._released[request.request_id] = request
        return True, None

    def update_connector_output(self, connector_output: Any) -> None:
        """Forgets the requests whose blocks go now."""
        for request_id in connector_output.finished_sending or ():
            self._forget(self._leaving.pop(request_id))

    def _forget(self, request: Any) -> None:
        self._lost.discard(request.request_id)
        self._blocks.pop(request.request_id, None)
        name = (request.kv_transfer_params or {}).get("name", "")
        if self._ids.get(name) == request.request_id:
            del self._ids[name]

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Takes the worker's caches: for every layer a tensor, or one for keys and one for values (Ascend)."""
        for cache in kv_caches.values():
            tensors = cache if isinstance(cache, list | tuple) else [cache]
            # Keys and values may be stacked before the blocks: shape (2, num_blocks, ...).
            self._caches += [(tensor, int(tensor.shape[0] == 2 and tensor.dim() == 5)) for tensor in tensors]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copies blocks within each layer's cache, before the step computes."""
        copies = self._get_connector_metadata().copies
        if not copies:
            return
        for cache, dim in self._caches:
            # A block of the scheduler's is one or more of the kernel's.
            ratio = cache.shape[dim] // self._num_blocks
            source, target = (
                torch.tensor([block * ratio + part for block in blocks for part in range(ratio)], device=cache.device)
                for blocks in zip(*copies, strict=True)
            )
            cache.index_copy_(dim, target, cache.index_select(dim, source))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, None]:
        """The requests whose blocks may go now."""
        return self._get_connector_metadata().released or None, None

    def wait_for_layer_load(self, layer_name: str) -> None:
        """The copies are made when the step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is kept elsewhere."""

    def wait_for_save(self) -> None:
        """Nothing is kept elsewhere."""
