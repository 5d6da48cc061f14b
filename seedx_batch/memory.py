"""What an engine's memory goes to, reckoned from the model's folder alone, and what to lower where it is not enough.

Asks the machine and the model's files; must never import torch or vLLM, nor know a job.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN_WEIGHTS = 14e9
"""Bytes, where a model is not on this machine: 7B in 16 bits."""

BLOCK = 128
"""Tokens by which vLLM gives memory for keys and values away on a CPU."""

SEQ_TOKENS = 1024
"""Tokens of a sequence that memory is set aside for on a CPU: vLLM touches all of it at the start, 1.7 s a GiB. Where
rows are longer on average, some of a batch wait."""

_SPARE_BLOCKS = 2  # one that vLLM keeps empty, and one for a sliding window that begins within a block
_KV_SHARE = 0.4  # of the memory that is free
_KV_UNKNOWN = 4 << 30  # bytes, where there is no config.json to reckon from
PROGRAM = 3 << 29
"""Bytes of vLLM itself and its libraries; on a device about as much goes to activations and graphs."""

SPARE = 0.95
"""Of what is free, so much may be taken."""

_FITTING_LENGTH = re.compile(r"estimated maximum model length is (\d+)")
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, slots=True)
class Demand:
    """What an engine needs of the memory of each device that holds a part of a model, in bytes.

    Args:
        weights: its part of the weights.
        per_token: of keys and values.
    """

    weights: int
    per_token: int
    max_model_len: int
    max_num_seqs: int

    @property
    def one(self) -> int:
        """Keys and values of one full sequence: with less vLLM does not start."""
        return self.per_token * _num_places(self.max_model_len)

    @property
    def all(self) -> int:
        """Keys and values where all sequences are as long as they may be."""
        return self.one * self.max_num_seqs

    def num_full(self, room: int) -> int:
        """How many full sequences fit at a time into so many bytes, weights and vLLM itself included."""
        return min(self.max_num_seqs, max(0, room - self.weights - PROGRAM) // self.one)


def demand(
    described: Mapping[str, Any], num_bytes: float, args: Mapping[str, Any], max_model_len: int, max_num_seqs: int
) -> Demand | None:
    """What an engine needs of each device; None where the config does not say.

    Args:
        described: the model's config.
        num_bytes: of the weights, as they are stored.
        args: vLLM's EngineArgs by name.
    """
    dtype, cache_dtype = str(args.get("dtype") or "auto"), str(args.get("kv_cache_dtype") or "auto")
    per_token = bytes_per_token(described, dtype)
    if per_token is None:
        return None
    if cache_dtype.startswith("fp8"):
        per_token //= _width(described, dtype)
    ranks = int(args.get("tensor_parallel_size") or 1)
    heads = int(described.get("num_key_value_heads") or described["num_attention_heads"])
    layers = int(args.get("pipeline_parallel_size") or 1)
    if not described.get("quantization_config"):
        num_bytes *= _width(described, dtype) / _width(described, "auto")
    # Fewer heads than ranks: each rank has a whole one, as it has the whole of a latent vector.
    share = 1.0 if "kv_lora_rank" in described else max(1, heads // ranks) / heads
    per_rank = math.ceil(per_token * share / layers)
    return Demand(int(num_bytes / (ranks * layers)), per_rank, max_model_len, max_num_seqs)


def advice(args: Mapping[str, Any], told: str, free: int) -> str:
    """What to lower, and to what, so that an engine that could not start can; nothing where memory is not the reason.

    Args:
        args: vLLM's EngineArgs by name, with `kv_cache_memory_bytes` where memory for keys and values is set aside
            on this machine rather than on a device.
        told: what vLLM and its log said.
        free: bytes of this machine that can be had.
    """
    fitting = _FITTING_LENGTH.search(told)
    if fitting:
        return f"lower model.max_model_len to {fitting[1]}, as vLLM reckons"
    kv = args.get("kv_cache_memory_bytes")
    folder = Path(str(args["model"]))
    if not isinstance(kv, int) or not folder.is_dir():
        return ""
    weights = int(weight_bytes(folder))
    if weights + PROGRAM + kv <= free * SPARE:
        return ""
    room = int(free * SPARE) - weights - PROGRAM
    sizes = (
        f"the weights take {weights / _GIB:.1f} GiB, keys and values {kv / _GIB:.1f} GiB and vLLM itself about "
        f"{PROGRAM / _GIB:.1f} GiB; {free / _GIB:.1f} GiB are free"
    )
    per_token = bytes_per_token(config(folder), str(args.get("dtype", "auto")))
    if per_token is None:
        return f"{sizes}; lower engine.kv_cache_memory_bytes to {max(0, room)}" if room > 0 else sizes
    if room < per_token * _num_places(1):
        wanted = weights + PROGRAM + per_token * SEQ_TOKENS
        return f"{sizes}; one sequence needs {wanted / _GIB:.1f} GiB: take a smaller model, or a larger machine"
    lower = [f"engine.kv_cache_memory_bytes to {room // _MIB * _MIB}"]
    num_tokens = room // per_token // BLOCK * BLOCK - _SPARE_BLOCKS * BLOCK
    length = args.get("max_model_len")
    if isinstance(length, int) and num_tokens < length:
        lower.append(f"model.max_model_len to {num_tokens}")
    num_seqs = max(1, num_tokens // min(SEQ_TOKENS, length if isinstance(length, int) else SEQ_TOKENS))
    if num_seqs < int(args.get("max_num_seqs") or num_seqs):
        lower.append(f"engine.max_num_seqs to {num_seqs}")
    return f"{sizes}; lower {', '.join(lower)}"


def kv_bytes(described: Mapping[str, Any], dtype: str, max_model_len: int, max_num_seqs: int) -> int:
    """Bytes for `max_num_seqs` usual sequences, within a share of free memory, but at least for a full one.

    Args:
        described: the model's config.
        dtype: as the job has it; `auto` is the config's.
    """
    limit = int(free_bytes() * _KV_SHARE)
    per_token = bytes_per_token(described, dtype)
    if per_token is None:
        return min(_KV_UNKNOWN, limit)
    full, usual = (
        per_token * _num_places(num_tokens) for num_tokens in (max_model_len, min(max_model_len, SEQ_TOKENS))
    )
    return int(max(full, min(usual * max_num_seqs, limit)))


def _num_places(num_tokens: int) -> int:
    """Tokens that memory must have room for so that a sequence of so many runs."""
    return BLOCK * (-(-num_tokens // BLOCK) + _SPARE_BLOCKS)


def bytes_per_token(described: Mapping[str, Any], dtype: str) -> int | None:
    """Bytes of a token's keys and values in all layers; None where the config does not say."""
    try:
        if "kv_lora_rank" in described:  # multi-head latent attention: one vector for all heads
            latent = described["kv_lora_rank"] + described["qk_rope_head_dim"]
            return int(described["num_hidden_layers"] * latent * _width(described, dtype))
        heads = described["num_attention_heads"]
        head_dim = described.get("head_dim") or described["hidden_size"] // heads
        kv_heads = described.get("num_key_value_heads") or heads
        return int(described["num_hidden_layers"] * 2 * kv_heads * head_dim * _width(described, dtype))
    except KeyError:
        return None


def _width(described: Mapping[str, Any], dtype: str) -> int:
    """Bytes of a number in the dtype that a job asks for; `auto` is the config's."""
    stored = described.get("dtype") or described.get("torch_dtype") if dtype == "auto" else dtype
    return 4 if stored in ("float", "float32") else 2


def config(folder: Path | None) -> dict[str, Any]:
    """The part of config.json about text; {} where there is none."""
    if folder is None or not (folder / "config.json").is_file():
        return {}
    tree: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = tree.get("text_config") or tree
    return text


def weight_bytes(folder: Path | None) -> float:
    """The size of the model's weights; a usual one where they are not here."""
    by_kind = {kind: list(folder.glob(f"*{kind}")) if folder else [] for kind in (".safetensors", ".bin")}
    files = by_kind[".safetensors"] or by_kind[".bin"]  # some folders hold both, and the first is what is loaded
    return float(sum(path.stat().st_size for path in files)) or UNKNOWN_WEIGHTS


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had without swapping: of the machine, of its smallest NUMA node, of this control group."""
    free = [_meminfo(root / "proc/meminfo", ("MemAvailable",))]
    for node in root.glob("sys/devices/system/node/node[0-9]*/meminfo"):
        # As vLLM reckons, which refuses more than this.
        free.append(_meminfo(node, ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")))
    group = root / "sys/fs/cgroup"
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / limit).is_file() and (most := (group / limit).read_text().strip()).isdigit():
            free.append(max(0, int(most) - int((group / usage).read_text())))
    return min(free)


def _meminfo(path: Path, names: Iterable[str]) -> int:
    lines = [line.removeprefix("Node").split(":") for line in path.read_text().splitlines() if ":" in line]
    sizes = {before.split()[-1]: int(after.split()[0]) * 1024 for before, after in lines}
    return sum(sizes.get(name, 0) for name in names)
