"""What each platform wants before vLLM is imported: environment variables, engine arguments, and why.

Asks the machine and the model's config.json; must never import torch or vLLM, nor know a job's files.
"""

import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from seedx_batch import memory
from seedx_batch.spec import BeamDecoding, EngineSpec, JobSpec, ModelSpec

Platform = Literal["ascend", "cuda", "cpu"]

COMPILE_FROM_S = 1800
"""Jobs of fewer seconds' work run eagerly on a CPU.

Compiling takes a minute and a half at the first start and ten seconds at later ones, and was measured on two cores to
give 600 output tokens/s instead of 400 with a 135M Llama, and nothing with a 270M Gemma 3: worth it for jobs of half
an hour and more.
"""

_EAGER_BYTES_PER_S = 54e9
"""Weights times output tokens that one core gets through a second: two gave 400 tokens/s with the 270 MB of the 135M
Llama."""
_CPU_NUM_SEQS = 64
_CPU_MODEL_LEN = 4096
_PRELOADS = {"tcmalloc": ("libtcmalloc_minimal.so*", "libtcmalloc.so*"), "omp": ("libiomp5.so",)}
"""Libraries by a part of the name of what serves as well: Intel's OpenMP beside GNU's would be one too many."""

_BEAM_ARGS = {
    # What a fork shares with its stream is copied on the device instead of computed again (engine/forking.py), and
    # the engine waits for its reader instead of running ahead of it (engine/pacing.py).
    "kv_transfer_config": {
        "kv_connector": "ForkConnector",
        "kv_connector_module_path": "seedx_batch.engine.forking",
        "kv_role": "kv_both",
    },
    "scheduler_cls": "seedx_batch.engine.pacing.PacedScheduler",
    "async_scheduling": False,
}
_LOGPROBS_PER_BEAM = 8  # of each place, enough for seven ends of text; vLLM allows 20 in all unless told otherwise

# A virtual environment's own first: intel-openmp puts its library there.
_LIBRARIES = [Path(sys.prefix, "lib"), Path(sys.base_prefix, "lib"), Path("/usr/local/lib"), Path("/usr/lib64")]
_LIBRARIES += [Path("/usr/lib"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu")]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine process starts with.

    Args:
        env: the variables that matter and the values that they are to have, the user's own included.
        args: vLLM's EngineArgs by name.
        notes: what was chosen for the user and why, a sentence each.
    """

    platform: Platform
    env: dict[str, str]
    args: dict[str, Any]
    notes: tuple[str, ...]


def detect(devices: Path = Path("/dev")) -> Platform:
    """The platform that vLLM would find on this machine; imports nothing."""
    if find_spec("torch_npu") or find_spec("vllm_ascend") or any(devices.glob("davinci[0-9]*")):
        return "ascend"
    has_nvidia = any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()
    return "cuda" if has_nvidia and _has_cuda_vllm() else "cpu"


def of_job(
    job: JobSpec, model_folder: Path | None, num_output_tokens: int, cache: Path, environ: Mapping[str, str]
) -> EngineSettings:
    """What to start the engine of a job with; see `settings`."""
    beam_width = job.decoding.beam_width if isinstance(job.decoding, BeamDecoding) else None
    return settings(job.model, job.engine, model_folder, num_output_tokens, cache, environ, beam_width)


def settings(
    spec: ModelSpec,
    engine: EngineSpec,
    model_folder: Path | None,
    num_output_tokens: int,
    cache: Path,
    environ: Mapping[str, str],
    beam_width: int | None = None,
) -> EngineSettings:
    """What to start an engine with; a key of the job's `engine` section or a variable that is set already wins.

    Args:
        model_folder: where the model lies, if it is on this machine; a snapshot of the hub's cache counts, complete
            or not.
        num_output_tokens: about so many are expected of the whole job, rather than of what is left, so that a resumed
            job computes as it began.
        cache: folder for what may be kept between runs.
        environ: this process's environment.
        beam_width: of a job that decodes by beam search.
    """
    platform = detect() if engine.platform == "auto" else engine.platform
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    args = _model_args(spec, model_folder) | {"generation_config": "vllm"}
    notes: list[str] = []
    if Path(args["model"]).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    given = engine.arguments
    if platform == "cpu":
        more_env, more_args = _cpu(spec, given, model_folder, num_output_tokens, cache, environ, notes)
    elif platform == "ascend":
        more_env, more_args = _ascend(given), {}
    else:
        # A forked engine process would inherit this one's threads.
        more_env, more_args = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, {}
    env |= more_env
    if beam_width is not None:
        more_args = more_args | _BEAM_ARGS | {"max_logprobs": max(20, _LOGPROBS_PER_BEAM * beam_width)}
        if world_size(given) == 1:
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # engine and search take turns, so that nothing would overlap
    kept = {name: environ[name] for name in env if name in environ and name != "LD_PRELOAD"}
    notes += [f"{name}={value} was set already and stays" for name, value in kept.items() if env[name] != value]
    return EngineSettings(platform, env | kept, args | more_args | given, tuple(notes))


def missing(settings: EngineSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """What has to be set in the environment, before the process starts, for the settings to hold."""
    return {name: value for name, value in settings.env.items() if environ.get(name) != value}


def _model_args(spec: ModelSpec, folder: Path | None) -> dict[str, Any]:
    args = spec.model_dump(exclude={"name"}, exclude_none=True)
    if folder is not None and folder.parent.name == "snapshots" and not Path(spec.name).expanduser().is_dir():
        # The hub's cache: perhaps only config.json is there yet, so vLLM is given the name, at that commit.
        return args | {"model": spec.name, "revision": folder.name}
    return args | {"model": spec.name if folder is None else str(folder)}


def _ascend(given: Mapping[str, Any]) -> dict[str, str]:
    env = {
        "HCCL_OP_EXPANSION_MODE": "AIV",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        # vLLM forces it only for CUDA and XPU, and an NPU cannot be used again in a forked process.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if given.get("enable_sleep_mode"):
        del env["PYTORCH_NPU_ALLOC_CONF"]  # torch_npu: "Expandable segments are not compatible with memory pool"
    return env


def _cpu(
    spec: ModelSpec,
    given: Mapping[str, Any],
    model_folder: Path | None,
    num_output_tokens: int,
    cache: Path,
    environ: Mapping[str, str],
    notes: list[str],
) -> tuple[dict[str, str], dict[str, Any]]:
    num_ranks = world_size(given)
    cpus = _one_per_core(sorted(os.sched_getaffinity(0)))
    env = {
        # Without these an installed torch_npu or vllm-ascend would be loaded, and fail.
        "VLLM_PLUGINS": "",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        # An explicit list, because vLLM's own choice leaves one core of each rank idle.
        "VLLM_CPU_OMP_THREADS_BIND": _bind(cpus, num_ranks),
        # Sampling kernels and compiled graphs survive the process.
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    if num_ranks == 1:
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # up in 10 s instead of 27, and no core polls
        env["OMP_NUM_THREADS"] = str(len(cpus))  # in this process vLLM binds nothing
    preload = preloads(environ)
    if preload:
        env["LD_PRELOAD"] = preload
    if "tcmalloc" not in preload:
        notes.append(
            "libtcmalloc is not installed (Debian: libtcmalloc-minimal4): slower, and vLLM 0.18 refuses to start"
        )
    args: dict[str, Any] = {"max_num_seqs": _CPU_NUM_SEQS}
    config = memory.config(model_folder)
    longest = _longest(config)
    if spec.max_model_len is None and longest is not None:
        args["max_model_len"] = min(longest, _CPU_MODEL_LEN)
        if longest > _CPU_MODEL_LEN:
            notes.append(f"max_model_len is {_CPU_MODEL_LEN} on a CPU where the model could do {longest}")
    if not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & given.keys() and not environ.get(
        "VLLM_CPU_KVCACHE_SPACE"
    ):
        num_tokens = spec.max_model_len or args.get("max_model_len", _CPU_MODEL_LEN)
        size = memory.kv_bytes(config, spec.dtype, num_tokens, int(given.get("max_num_seqs") or _CPU_NUM_SEQS))
        args["kv_cache_memory_bytes"] = size
        notes.append(f"{size / (1 << 30):.1f} GiB of memory for keys and values")
        if _vllm_version() < (0, 23):  # reads only this variable on a CPU
            env["VLLM_CPU_KVCACHE_SPACE"] = str(-(-size // (1 << 30)))
    if not {"enforce_eager", "compilation_config"} & given.keys():
        work_s = num_output_tokens * memory.weight_bytes(model_folder) / (_EAGER_BYTES_PER_S * len(cpus))
        told = f"about {num_output_tokens:,} output tokens, some {_span(work_s)} of work here"
        if work_s < COMPILE_FROM_S:
            args["enforce_eager"] = True
            notes.append(
                f"not compiled: {told}, and it pays from {_span(COMPILE_FROM_S)} (engine.enforce_eager decides)"
            )
        else:
            notes.append(f"compiled, which takes a minute or two: {told} (engine.enforce_eager decides)")
    return env, args


def world_size(given: Mapping[str, Any]) -> int:
    """How many processes, and on an accelerator devices, hold the model together."""
    return int(given.get("tensor_parallel_size") or 1) * int(given.get("pipeline_parallel_size") or 1)


def _span(seconds: float) -> str:
    """A time for a person, roughly."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and unit == "min"):
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def _longest(config: Mapping[str, Any]) -> int | None:
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    return longest if isinstance(longest, int) else None


def _bind(cpus: list[int], num_ranks: int) -> str:
    """The CPUs as vLLM's list, `0-3,8`, in equal parts `0-1|2-3` for the ranks; nobind where there are too few."""
    share = len(cpus) // num_ranks
    if not share:
        return "nobind"
    parts = [cpus[rank * share : (rank + 1) * share] for rank in range(num_ranks)]
    return "|".join(",".join(_ranges(part)) for part in parts)


def _one_per_core(cpus: list[int], system: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """The first CPU of every physical core: two threads of one core do not multiply matrices faster than one."""
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = system / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        first.setdefault(siblings.read_text() if siblings.is_file() else f"only {cpu}", cpu)
    return list(first.values())


def _ranges(cpus: list[int]) -> list[str]:
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def preloads(environ: Mapping[str, str]) -> str:
    """LD_PRELOAD with the allocator and the OpenMP library that vLLM asks for on a CPU, where they are found."""
    parts = [part for part in environ.get("LD_PRELOAD", "").split(":") if part]
    for name, patterns in _PRELOADS.items():
        if not any(name in Path(part).name for part in parts):
            found = (path for folder in _LIBRARIES for pattern in patterns for path in sorted(folder.glob(pattern)))
            parts += [str(path) for path in itertools.islice(found, 1)]
    return ":".join(parts)


def _has_cuda_vllm() -> bool:
    try:
        return not metadata.version("vllm").endswith(("+cpu", "+empty"))
    except metadata.PackageNotFoundError:
        return False


def _vllm_version() -> tuple[int, int]:
    """Major and minor number of the vLLM that is installed; of the newest where there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
        except metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return 1, 0
