"""Whether a job fits into the memory, in numbers, from the model's config and the sizes of its files alone.

Must never know how the memory was found out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedx_batch import memory
from seedx_batch.doctor import tables
from seedx_batch.doctor.findings import Finding
from seedx_batch.doctor.npus import RESERVED_MIB
from seedx_batch.memory import Demand
from seedx_batch.spec import JobSpec

_NUM_SEQS = 256  # vLLM's own default on an accelerator
_CARDS_GIB = (64, 32)  # what Ascend cards have
_GIB = 1 << 30


def demand(job: JobSpec, folder: Path | None, args: Mapping[str, Any]) -> Demand | Finding:
    """What a job needs of each device, or why that is not known.

    Args:
        folder: the model's, with its weights.
        args: vLLM's EngineArgs by name, as the engine will be given them.
    """
    known = tables.known_models().get(job.model.name)
    if folder is not None:
        described, num_bytes = memory.config(folder), memory.weight_bytes(folder)
    elif known is not None:
        described, num_bytes = known["config"], known["weight_bytes"]
    else:
        found = f"not known: {job.model.name} is not on this machine"
        return Finding("fit", "note", found, "", "ask again when it is here")
    longest = described.get("max_position_embeddings") or described.get("n_positions")
    length = args.get("max_model_len") or longest
    needed = None
    if isinstance(length, int):
        needed = memory.demand(described, num_bytes, args, length, int(args.get("max_num_seqs") or _NUM_SEQS))
    return needed or Finding("fit", "note", "not known: the model's config.json does not say how many layers and heads")


def on_device(needed: Demand, room: int | None, utilization: float) -> Finding:
    """Whether an engine fits on a device.

    Args:
        room: bytes of the device's memory; None where no device is known.
        utilization: the share of them that an engine takes.
    """
    told = _told(needed, "activations and graphs about")
    if room is None:
        rooms = {size: int((size * _GIB - (RESERVED_MIB << 20)) * utilization) for size in _CARDS_GIB}
        cards = "; ".join(f"of {size} GiB {_seqs(needed, share)}" for size, share in rooms.items())
        return Finding("fit", "note", f"{told}. No device's memory is known here; on a card {cards}")
    share = int(room * utilization)
    told = f"{told}; of {room / _GIB:.1f} GiB an engine takes {share / _GIB:.1f}"
    if needed.weights + memory.PROGRAM + needed.one > share:
        left = (share - needed.weights - memory.PROGRAM) // needed.per_token // memory.BLOCK - 2
        remedy = (
            f"lower model.max_model_len to {left * memory.BLOCK}, or raise engine.tensor_parallel_size"
            if left > 0
            else "raise engine.tensor_parallel_size, or take a smaller or quantized model"
        )
        wanted = f"{(needed.weights + memory.PROGRAM + needed.one) / _GIB:.1f} GiB for one full sequence"
        return Finding("fit", "fault", told, wanted, remedy)
    return _finding(needed, told, share)


def on_cpu(needed: Demand, args: Mapping[str, Any], free: int) -> Finding:
    """Whether an engine fits into this machine's memory, with what is set aside for keys and values."""
    told = _told(needed, "vLLM itself about")
    aside = args.get("kv_cache_memory_bytes")
    if not isinstance(aside, int):
        return Finding(
            "fit", "note", f"{told}; {free / _GIB:.1f} GiB are free, and memory for keys and values was set by hand"
        )
    told = f"{told}; set aside for keys and values are {aside / _GIB:.1f} GiB, and {free / _GIB:.1f} are free"
    wanted = needed.weights + memory.PROGRAM + aside
    if wanted > free * memory.SPARE:
        remedy = memory.advice(args, "", free).rpartition("; ")[2] or "take a smaller model, or a larger machine"
        return Finding("fit", "fault", told, f"{wanted / _GIB:.1f} GiB", remedy)
    if aside < needed.one:
        remedy = "lower model.max_model_len, or raise engine.kv_cache_memory_bytes"
        return Finding("fit", "fault", told, f"{needed.one / _GIB:.1f} GiB for one full sequence", remedy)
    # Usual rows are shorter; setting all of it aside would only cost time at the start.
    num = min(needed.max_num_seqs, aside // needed.one)
    return Finding("fit", "ok", f"{told}: {num} of {needed.max_num_seqs} at full length, more of shorter ones")


def _finding(needed: Demand, told: str, share: int) -> Finding:
    if needed.num_full(share) == needed.max_num_seqs:
        return Finding("fit", "ok", f"{told}: all {needed.max_num_seqs} fit")
    usual = (share - needed.weights - memory.PROGRAM) // (needed.per_token * needed.max_num_seqs)
    remedy = (
        f"no harm where rows, prompt and output, stay below {usual:,} tokens on average; or lower engine.max_num_seqs"
    )
    return Finding("fit", "warn", told, f"{_seqs(needed, share)}", remedy)


def _told(needed: Demand, rest: str) -> str:
    return (
        f"weights {needed.weights / _GIB:.1f} GiB, keys and values {needed.all / _GIB:.1f} GiB "
        f"({needed.max_num_seqs} x {needed.max_model_len:,} tokens of {needed.per_token / 1024:,.0f} KiB), "
        f"{rest} {memory.PROGRAM / _GIB:.1f} GiB"
    )


def _seqs(needed: Demand, room: int) -> str:
    num = needed.num_full(room)
    if num == 0:
        return "not one full sequence fits"
    return f"{num} of {needed.max_num_seqs} sequences fit at full length"
