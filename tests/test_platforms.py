"""Platforms: what is found on a machine, what an engine starts with there, and that the user's own word wins."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from seedx_batch import memory, platforms
from seedx_batch.platforms import EngineSettings, detect, missing, settings
from seedx_batch.spec import EngineSpec, ModelSpec

Start = Callable[..., EngineSettings]
GIB = 1 << 30
CONFIG = {
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
PER_TOKEN = 10 * 2 * 2 * 64 * 2  # layers, keys and values, heads, width of a head, bytes


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Settings for a model folder on a machine of two CPUs with 10 GiB free and vLLM 0.32."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * GIB)
    monkeypatch.setattr(platforms, "_vllm_version", lambda: (0, 32))
    monkeypatch.setattr(platforms, "_LIBRARIES", [])
    monkeypatch.setattr(platforms, "_one_per_core", lambda cpus: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))

    def make(
        platform: str = "cpu",
        *,
        num_output_tokens: int = 100,
        environ: dict[str, str] | None = None,
        model: dict[str, Any] | None = None,
        beam_width: int | None = None,
        **engine: Any,
    ) -> EngineSettings:
        spec = ModelSpec.model_validate({"name": str(folder), **(model or {})})
        section = EngineSpec.model_validate({"platform": platform, **engine})
        return settings(spec, section, folder, num_output_tokens, tmp_path / "cache", environ or {}, beam_width)

    return make


def devices(tmp_path: Path, *names: str) -> Path:
    """A folder like /dev."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """A machine without Ascend packages, on which `vllm` has the given version, if any."""
    monkeypatch.setattr(platforms, "find_spec", lambda name: None)

    def install(version: str | None) -> None:
        def version_of(name: str) -> str:
            if name != "vllm" or version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", version_of)

    install(None)
    return install


@pytest.mark.parametrize(
    ("names", "vllm", "platform"),
    [
        ((), None, "cpu"),
        ((), "0.32.0", "cpu"),
        (("davinci0", "davinci_manager"), "0.18.0", "ascend"),
        (("davinci_manager",), "0.18.0", "cpu"),
        (("nvidia0", "nvidiactl"), "0.32.0", "cuda"),
        (("nvidiactl",), "0.32.0", "cpu"),
        (("nvidia0",), "0.32.0+cpu", "cpu"),
        (("nvidia0",), None, "cpu"),
        (("nvidia0", "davinci3"), "0.18.0", "ascend"),
    ],
)
def test_detects_by_devices_and_vllm(
    bare: Callable[[str | None], None], tmp_path: Path, names: tuple[str, ...], vllm: str | None, platform: str
) -> None:
    """An NPU's devices mean Ascend; a GPU's mean CUDA where vLLM is no CPU build; anything else is a CPU."""
    bare(vllm)
    assert detect(devices(tmp_path, *names)) == platform


@pytest.mark.parametrize("package", ["torch_npu", "vllm_ascend"])
def test_detects_ascend_by_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Where Ascend's packages are installed vLLM would load them, so that is the platform."""
    monkeypatch.setattr(platforms, "find_spec", lambda name: object() if name == package else None)
    assert detect(devices(tmp_path)) == "ascend"


def test_asking_imports_neither_torch_nor_vllm() -> None:
    """Detection and settings leave the heavy packages alone."""
    code = (
        "import os, sys; from pathlib import Path; from seedx_batch.platforms import settings; "
        "from seedx_batch.spec import EngineSpec, ModelSpec; "
        "settings(ModelSpec(name='x'), EngineSpec(), None, 1, Path('c'), os.environ); "
        "print(sorted({'torch', 'vllm', 'transformers', 'torch_npu'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_auto_detects(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` asks the machine; a named platform does not."""
    monkeypatch.setattr(platforms, "detect", lambda: "ascend")
    assert start("auto").platform == "ascend"
    assert start("cuda").platform == "cuda"


@pytest.mark.parametrize("platform", ["ascend", "cuda", "cpu"])
def test_common_to_all(start: Start, platform: str) -> None:
    """Everywhere: no usage statistics, logs on stderr, the checkpoint's sampling left out, no hub for a local model."""
    chosen = start(platform)
    assert chosen.env["VLLM_NO_USAGE_STATS"] == "1"
    assert chosen.env["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    assert chosen.env["HF_HUB_OFFLINE"] == "1"
    assert chosen.args["generation_config"] == "vllm"


@pytest.mark.parametrize("platform", ["ascend", "cuda", "cpu"])
def test_engine_section_wins(start: Start, platform: str) -> None:
    """Every key of the job's engine section comes through as it was given."""
    given = {
        "max_num_seqs": 3,
        "generation_config": "auto",
        "enforce_eager": False,
        "kv_cache_memory_bytes": 5,
        "block_size": 64,
        "additional_config": {"refresh": True},
    }
    chosen = start(platform, **given)
    assert {name: chosen.args[name] for name in given} == given


@pytest.mark.parametrize("platform", ["ascend", "cuda", "cpu"])
def test_variables_that_are_set_win(start: Start, platform: str) -> None:
    """A variable that the user has set keeps its value, and the notes say so."""
    ours = start(platform).env
    for name in ours:
        chosen = start(platform, environ={name: "mine"})
        assert chosen.env == {**ours, name: "mine"}
        assert missing(chosen, {**ours, name: "mine"}) == {}
        assert f"{name}=mine was set already and stays" in chosen.notes


@pytest.mark.parametrize("platform", ["ascend", "cuda", "cpu"])
def test_nothing_is_missing_the_second_time(start: Start, platform: str) -> None:
    """A process that begins again with what was missing misses nothing, and has the same settings."""
    first = start(platform)
    environ = missing(first, {})
    assert environ == first.env
    second = start(platform, environ=environ)
    assert (second.env, second.args) == (first.env, first.args)
    assert missing(second, environ) == {}


def test_model_section_becomes_arguments(start: Start) -> None:
    """What the model section says reaches vLLM under its names; what it leaves open does not."""
    chosen = start("cuda", model={"dtype": "bfloat16", "max_model_len": 77, "tokenizer": "t", "quantization": "fp8"})
    given = {"dtype": "bfloat16", "max_model_len": 77, "tokenizer": "t", "quantization": "fp8"}
    assert given.items() <= chosen.args.items()
    assert "hf_overrides" not in chosen.args
    assert "name" not in chosen.args


def test_hub_model_is_given_by_name_and_commit(tmp_path: Path) -> None:
    """A snapshot in the hub's cache may be incomplete: vLLM gets the name at that commit, and may ask the hub."""
    folder = tmp_path / "models--org--model" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    chosen = settings(ModelSpec(name="org/model"), EngineSpec(platform="cuda"), folder, 1, tmp_path, {})
    assert (chosen.args["model"], chosen.args["revision"]) == ("org/model", "c0ffee")
    assert "HF_HUB_OFFLINE" not in chosen.env


def test_packaged_model_is_given_by_its_folder(start: Start, tmp_path: Path) -> None:
    """A name that is no folder itself is given as the folder it was resolved to."""
    chosen = start("cpu", model={"name": "package:tiny"})
    assert chosen.args["model"] == str(tmp_path / "model")


def test_ascend(start: Start) -> None:
    """The variables that vllm-ascend asks for, and nothing of a CPU's."""
    chosen = start("ascend")
    assert (
        chosen.env.items()
        >= {
            "HCCL_OP_EXPANSION_MODE": "AIV",
            "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }.items()
    )
    assert "VLLM_PLUGINS" not in chosen.env
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in chosen.env
    assert not {"enforce_eager", "kv_cache_memory_bytes", "max_num_seqs", "max_model_len"} & chosen.args.keys()


def test_ascend_with_sleep_mode(start: Start) -> None:
    """Sleep mode's memory pool and expandable segments exclude each other."""
    assert "PYTORCH_NPU_ALLOC_CONF" not in start("ascend", enable_sleep_mode=True).env


def test_cpu_environment(start: Start, tmp_path: Path) -> None:
    """In one process, on all CPUs, no plugins, caches that stay."""
    assert (
        start("cpu").env.items()
        >= {
            "VLLM_PLUGINS": "",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "VLLM_CACHE_ROOT": str(tmp_path / "cache" / "vllm"),
        }.items()
    )


@pytest.mark.parametrize(
    ("cpus", "ranks", "bind"),
    [
        ({0, 1}, 1, "0-1"),
        ({0, 2, 3, 4, 9}, 1, "0,2-4,9"),
        ({0, 1, 2, 3}, 2, "0-1|2-3"),
        ({3}, 1, "3"),
        ({3}, 2, "nobind"),
    ],
)
def test_cpu_threads(start: Start, monkeypatch: pytest.MonkeyPatch, cpus: set[int], ranks: int, bind: str) -> None:
    """Threads are bound to the CPUs that this process may use, in equal parts for the ranks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus)
    chosen = start("cpu", tensor_parallel_size=ranks)
    assert chosen.env["VLLM_CPU_OMP_THREADS_BIND"] == bind
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in chosen.env) is (ranks == 1)


def test_cpu_threads_are_one_per_core(tmp_path: Path) -> None:
    """Of the hardware threads of one core that this process may use, the first is taken."""
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert platforms._one_per_core([0, 1, 2, 4, 5], tmp_path) == [0, 1, 2]
    assert platforms._one_per_core([1, 2, 4, 5], tmp_path) == [1, 2, 4]
    assert platforms._one_per_core([8, 9], tmp_path) == [8, 9]


def test_cpu_memory_for_usual_sequences(start: Start) -> None:
    """Memory is set aside for max_num_seqs sequences of 1,024 tokens, two blocks more each."""
    assert start("cpu", max_num_seqs=8).args["kv_cache_memory_bytes"] == 8 * PER_TOKEN * (1024 + 256)


def test_cpu_memory_for_short_contexts(start: Start) -> None:
    """Where the context is shorter it is what counts."""
    chosen = start("cpu", max_num_seqs=8, model={"max_model_len": 300})
    assert chosen.args["kv_cache_memory_bytes"] == 8 * PER_TOKEN * (384 + 256)


def test_cpu_memory_is_a_share_of_what_is_free(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than 40 % of the free memory, but always room for one full sequence."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 100 << 20)
    assert start("cpu", max_num_seqs=64).args["kv_cache_memory_bytes"] == 40 << 20
    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 20)
    assert start("cpu", max_num_seqs=64).args["kv_cache_memory_bytes"] == PER_TOKEN * (4096 + 256)


@pytest.mark.parametrize(("dtype", "factor"), [("auto", 1), ("float32", 2), ("float16", 1)])
def test_cpu_memory_follows_the_dtype(start: Start, dtype: str, factor: int) -> None:
    """Keys and values are stored in the model's dtype."""
    size = start("cpu", max_num_seqs=1, model={"max_model_len": 128, "dtype": dtype}).args["kv_cache_memory_bytes"]
    assert size == factor * PER_TOKEN * 384


def test_cpu_memory_without_a_config(tmp_path: Path, start: Start) -> None:
    """A model that is not here yet gets a fixed size and vLLM's own context."""
    chosen = settings(ModelSpec(name="org/model"), EngineSpec(platform="cpu"), None, 1, tmp_path, {})
    assert chosen.args["kv_cache_memory_bytes"] == 4 * GIB
    assert "max_model_len" not in chosen.args


def test_cpu_memory_that_is_said_stays(start: Start) -> None:
    """Where the user says how much memory, by argument or variable, nothing is reckoned."""
    assert "kv_cache_memory_bytes" not in start("cpu", gpu_memory_utilization=0.3).args
    assert "kv_cache_memory_bytes" not in start("cpu", environ={"VLLM_CPU_KVCACHE_SPACE": "2"}).args


def test_cpu_memory_of_older_vllm(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.18 reads the size from a variable, in whole GiB; in a newer one that variable would win."""
    assert "VLLM_CPU_KVCACHE_SPACE" not in start("cpu").env
    monkeypatch.setattr(platforms, "_vllm_version", lambda: (0, 18))
    assert start("cpu", max_num_seqs=64).env["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_cpu_context(start: Start) -> None:
    """The context is at most 4,096 tokens on a CPU, which the notes say, unless the job says another."""
    chosen = start("cpu")
    assert chosen.args["max_model_len"] == 4096
    assert any("max_model_len is 4096" in note and "32768" in note for note in chosen.notes)
    assert start("cpu", model={"max_model_len": 9000}).args["max_model_len"] == 9000


def test_cpu_context_of_a_short_model(start: Start, tmp_path: Path) -> None:
    """A model with a shorter context keeps it, also where the text model's config is a part of the whole."""
    config = {"text_config": {**CONFIG, "max_position_embeddings": 2048}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    chosen = start("cpu")
    assert chosen.args["max_model_len"] == 2048
    assert not any("max_model_len" in note for note in chosen.notes)


def test_cpu_compiles_long_jobs_only(start: Start, tmp_path: Path) -> None:
    """Half an hour's work is compiled and less is not, which the notes say; a word of the job's about either decides.

    On two cores 270 MB of weights give 400 tokens a second; a larger model takes as much longer.
    """
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(270_000_000)
    short, long = start("cpu", num_output_tokens=700_000), start("cpu", num_output_tokens=750_000)
    assert short.args["enforce_eager"] is True
    assert any("not compiled: about 700,000 output tokens, some 29 min of work" in note for note in short.notes)
    assert "enforce_eager" not in long.args
    assert any("compiled" in note and "31 min" in note for note in long.notes)
    assert "enforce_eager" not in start("cpu", num_output_tokens=1, compilation_config={"mode": 0}).args
    os.truncate(tmp_path / "model" / "model.safetensors", 2_700_000_000)
    assert "enforce_eager" not in start("cpu", num_output_tokens=75_000).args


def test_cpu_compiles_by_a_usual_size_where_the_model_is_not_here(tmp_path: Path) -> None:
    """Without weights to look at the model is taken for one of 7B."""
    for num_tokens, eager in ((100, True), (1_000_000_000, False)):
        chosen = settings(ModelSpec(name="org/model"), EngineSpec(platform="cpu"), None, num_tokens, tmp_path, {})
        assert chosen.args.get("enforce_eager", False) is eager


def test_cpu_preloads_what_is_there(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator and Intel's OpenMP are preloaded where they are found, after what the user preloads."""
    folder = tmp_path / "lib"
    folder.mkdir()
    monkeypatch.setattr(platforms, "_LIBRARIES", [tmp_path / "none", folder])
    assert "LD_PRELOAD" not in start("cpu").env
    assert any("libtcmalloc" in note for note in start("cpu").notes)
    allocator, openmp = folder / "libtcmalloc_minimal.so.4", folder / "libiomp5.so"
    allocator.touch()
    openmp.touch()
    assert start("cpu").env["LD_PRELOAD"] == f"{allocator}:{openmp}"
    assert not any("libtcmalloc" in note for note in start("cpu").notes)
    assert start("cpu", environ={"LD_PRELOAD": "/a.so"}).env["LD_PRELOAD"] == f"/a.so:{allocator}:{openmp}"


def test_cpu_preloads_no_second_openmp(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an OpenMP or the allocator is preloaded already, no other is added, and LD_PRELOAD does not grow."""
    for name in ("libtcmalloc_minimal.so.4", "libiomp5.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(platforms, "_LIBRARIES", [tmp_path])
    for preload in ("/x/libgomp.so.1:/y/libtcmalloc.so.4", "/y/libtcmalloc_minimal.so.4:/x/libiomp5.so"):
        assert start("cpu", environ={"LD_PRELOAD": preload}).env["LD_PRELOAD"] == preload


def machine(root: Path, available: int, nodes: dict[int, int], limit: str | None = None, used: int = 0) -> Path:
    """The files that tell a machine's memory; sizes in kB, those of the control group in bytes."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available} kB\nHugePages_Total:  0\n")
    for node, free in nodes.items():
        folder = root / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "meminfo").write_text(f"Node {node} MemFree:  {free} kB\nNode {node} Inactive(file):  10 kB\n")
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text(f"{used}\n")
    return root


def test_free_memory_is_the_tightest_bound(tmp_path: Path) -> None:
    """The machine, its smallest NUMA node or the container's limit: the least of them counts."""
    assert memory.free_bytes(machine(tmp_path / "a", 1000, {})) == 1000 * 1024
    assert memory.free_bytes(machine(tmp_path / "b", 1000, {0: 700, 1: 300})) == 310 * 1024
    assert memory.free_bytes(machine(tmp_path / "c", 1000, {0: 900}, "500000", 100000)) == 400000
    assert memory.free_bytes(machine(tmp_path / "d", 1000, {}, "max", 5)) == 1000 * 1024
    assert memory.free_bytes(machine(tmp_path / "e", 1000, {}, "10", 50)) == 0


def test_this_machine_has_memory_and_a_version() -> None:
    """The real files are readable, and the vLLM that is installed has a version."""
    assert memory.free_bytes() > 1 << 20
    assert platforms._vllm_version() >= (0, 18)


@pytest.mark.parametrize("platform", ["cpu", "ascend", "cuda"])
def test_beam_search_gets_an_engine_that_forks_and_waits(start: Start, platform: str) -> None:
    """On every platform forks are copied and the engine waits for its reader, in this process; what is given wins."""
    chosen = start(platform, beam_width=4)
    assert chosen.args["scheduler_cls"] == "seedx_batch.engine.pacing.PacedScheduler"
    assert chosen.args["kv_transfer_config"]["kv_connector_module_path"] == "seedx_batch.engine.forking"
    assert (chosen.args["async_scheduling"], chosen.args["max_logprobs"]) == (False, 32)
    assert chosen.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "kv_transfer_config" not in start(platform).args
    given = start(platform, beam_width=4, kv_transfer_config=None, environ={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    assert given.args["kv_transfer_config"] is None
    assert given.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert start(platform, beam_width=1).args["max_logprobs"] == 20


@pytest.mark.parametrize("platform", ["cpu", "ascend", "cuda"])
def test_one_process_cannot_hold_several_ranks(start: Start, platform: str) -> None:
    """With tensor parallelism beam search leaves the processes as the platform wants them."""
    chosen = start(platform, beam_width=4, tensor_parallel_size=2)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in chosen.env


def test_beam_search_gets_classes_that_exist(start: Start) -> None:
    """The names of our scheduler and connector, which vLLM looks up, are those of files that have them."""
    args = start(beam_width=4).args
    root = Path(platforms.__file__).parents[1]
    connector = args["kv_transfer_config"]
    for module, name in (
        args["scheduler_cls"].rsplit(".", 1),
        (connector["kv_connector_module_path"], connector["kv_connector"]),
    ):
        source = root.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"class {name}(" in source
