"""`doctor` as a whole: what is asked of whom, what a job adds, how it is told and how it ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.doctor import Answer, Finding, Machine, Report, examine
from seedx_batch.spec import JobSpec
from tests.doctor.machines import Ascend, Npu, bare, with_run
from tests.doctor.test_model_files import safetensors
from tests.jobs import REPOSITORY, ask, environment, write_job, write_rows

Capture = pytest.CaptureFixture[str]
MODEL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 2048,
    "model_type": "mistral",
    "torch_dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders to write to."""
    monkeypatch.setenv("SEEDX_BATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model's folder, as Seed-X's is."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    processor = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}
    (folder / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    safetensors(folder / "model.safetensors", {"a": ("BF16", [512], 1024)})
    return folder


def job(model: Path | str, preset: str = "seed-x", **engine: Any) -> JobSpec:
    """A job for the model."""
    return JobSpec.model_validate(
        {
            "name": "x",
            "input": {"path": "x.jsonl"},
            "prompt": {"preset": preset, "target_lang": "en"} if preset == "seed-x" else {"preset": preset},
            "model": {"name": str(model)},
            "engine": {"max_num_seqs": 4} | engine,
        }
    )


def states(report: Report) -> dict[str, str]:
    """State by name, of all that is not well."""
    return {finding.name: finding.state for finding in report.findings if finding.state in ("warn", "fault")}


def named(report: Report, name: str) -> Finding:
    """The finding of a name."""
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding


def test_a_good_job_on_a_good_machine(tmp_path: Path, model: Path) -> None:
    """Model files, first token and fit are told, and all is well."""
    report = examine(job(model, platform="ascend"), "auto", Ascend(tmp_path / "root").machine())
    assert (report.platform, states(report), report.exit_code) == ("ascend", {}, 0)
    assert "of 61.3 GiB an engine takes 55.2: all 4 fit" in named(report, "fit").found
    assert {"weights", "first token"} <= {finding.name for finding in report.findings}


def test_a_platform_that_is_named_wins(tmp_path: Path, model: Path) -> None:
    """--platform is stronger than the job, and the job than what is here."""
    machine = bare(tmp_path / "root")
    for engine, asked, looked_at in (("cuda", "cpu", "cpu"), ("cuda", "auto", "cuda"), ("auto", "auto", "cpu")):
        assert examine(job(model, platform=engine), asked, machine).platform == looked_at  # type: ignore[arg-type]


def test_ascend_is_information_where_it_is_not_asked_for(tmp_path: Path) -> None:
    """On a machine that is found to be a CPU's it is told what Ascend would need, and that is no fault of it."""
    report = examine(None, "auto", bare(tmp_path / "root"))
    assert report.platform == "cpu"
    assert {"driver", "CANN", "devices"} <= {finding.name for finding in report.elsewhere}
    assert {finding.state for finding in report.elsewhere} == {"note"}
    assert not {"start method", "Python"} & {finding.name for finding in report.elsewhere}
    assert not {"driver", "CANN"} & {finding.name for finding in report.findings}
    assert "CANN" in report.as_text()
    assert examine(None, "cpu", bare(tmp_path / "root")).elsewhere == ()


def test_too_few_devices_for_the_job(tmp_path: Path, model: Path) -> None:
    """A job for four devices is told that two are here; its free memory is that of those it would use."""
    ascend = Ascend(tmp_path / "root")
    report = examine(job(model, tensor_parallel_size=4), "ascend", ascend.machine())
    assert states(report) == {"visible devices": "fault"}
    ascend.npus[1].used = 60000
    ascend.environ["ASCEND_RT_VISIBLE_DEVICES"] = "0"
    assert states(examine(job(model), "ascend", ascend.machine())) == {}
    del ascend.environ["ASCEND_RT_VISIBLE_DEVICES"]
    assert states(examine(job(model), "ascend", ascend.machine())) == {}
    assert states(examine(job(model, tensor_parallel_size=2), "ascend", ascend.machine())) == {"free HBM": "fault"}


def test_a_share_that_the_job_asks_for(tmp_path: Path, model: Path) -> None:
    """Of a card that others use the share counts that the job asks for; vLLM asks for more since 0.23."""
    ascend = Ascend(tmp_path / "root", npus=[Npu(0, used=9500), Npu(1, used=9500)])
    assert states(examine(job(model), "ascend", ascend.machine())) == {}
    assert states(examine(job(model, gpu_memory_utilization=0.95), "ascend", ascend.machine())) == {"free HBM": "fault"}
    packages = {"vllm": "0.23.0", "vllm-ascend": "0.23.0", "torch": "2.10.0", "torch-npu": "2.10.0.post4"}
    newer = Ascend(tmp_path / "newer", packages | {"triton-ascend": "3.2.2"}, npus=ascend.npus, cann="9.1.0")
    assert states(examine(job(model), "ascend", newer.machine())) == {"free HBM": "fault"}


def test_variables_that_the_job_excludes(tmp_path: Path, model: Path) -> None:
    """Blocking launches are harmless without graphs; expandable segments exclude the sleep mode."""
    ascend = Ascend(tmp_path / "root")
    ascend.environ |= {"ASCEND_LAUNCH_BLOCKING": "1", "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"}
    assert states(examine(job(model, enforce_eager=True), "ascend", ascend.machine())) == {}
    sleeping = job(model, enforce_eager=True, enable_sleep_mode=True)
    assert states(examine(sleeping, "ascend", ascend.machine())) == {"variables": "fault"}


def test_every_fault_of_a_job_at_once(tmp_path: Path, model: Path) -> None:
    """Prompt, weights and tokenizer are all looked at, whatever the others are like."""
    (model / "model.safetensors").write_bytes(b"x")
    (model / "tokenizer.json").unlink()
    machine = Ascend(tmp_path / "root").machine()
    assert states(examine(job(model, "chat"), "ascend", machine)) == {"prompt": "fault", "weights": "fault"}
    assert states(examine(job(model), "ascend", machine)) == {"tokenizer": "fault", "weights": "fault"}
    assert states(examine(job("./none"), "ascend", machine)) == {"model": "fault"}


def test_a_model_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known one is reckoned from its table, of another it is said that nothing is known."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    machine = Ascend(tmp_path / "root").machine()
    known = examine(job("ByteDance-Seed/Seed-X-PPO-7B"), "ascend", machine)
    assert states(known) == {"model": "warn"}
    assert named(known, "fit").found.startswith("weights 14.0 GiB")
    other = examine(job("org/model"), "ascend", machine)
    assert named(other, "fit").found == "not known: org/model is not on this machine"


def test_a_rehearsal_needs_no_model(tmp_path: Path) -> None:
    """A simulated job asks for nothing of a model."""
    report = examine(job("simulated"), "ascend", Ascend(tmp_path / "root").machine())
    assert not {"weights", "model", "fit"} & {finding.name for finding in report.findings}


GPUS = "0, GPU-aa, NVIDIA H100 80GB HBM3, 550.54, 81000, 81559\n1, GPU-bb, NVIDIA H100 80GB HBM3, 550.54, 1000, 81559\n"


@pytest.mark.parametrize(
    ("answer", "visible", "ranks", "wanted"),
    [
        (Answer(0, GPUS), None, 1, {}),
        (Answer(0, GPUS), "GPU-aa", 1, {}),
        (Answer(0, GPUS), "1", 1, {"free memory": "fault"}),
        (Answer(0, GPUS), None, 2, {"free memory": "fault"}),
        (Answer(0, GPUS), "0", 2, {"GPUs": "fault"}),
        (Answer(0, GPUS), "7", 1, {"GPUs": "fault"}),
        (Answer(9, "NVIDIA-SMI has failed"), None, 1, {"GPUs": "fault"}),
        (Answer(127, ""), None, 1, {"GPUs": "fault"}),
    ],
)
def test_gpus(
    tmp_path: Path, model: Path, answer: Answer, visible: str | None, ranks: int, wanted: dict[str, str]
) -> None:
    """GPUs are counted, and the free memory of those that a job would use is compared with its share."""
    machine = with_run(
        bare(tmp_path / "r", environ={"CUDA_VISIBLE_DEVICES": visible} if visible else {}), {"nvidia-smi": answer}
    )
    found = states(examine(job(model, tensor_parallel_size=ranks), "cuda", machine))
    assert {name: state for name, state in found.items() if name in ("GPUs", "free memory")} == wanted


def test_the_probe_asks_torch_npu(tmp_path: Path) -> None:
    """What a stand-in for torch_npu says comes back; where it is missing, the error's own words do."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/torch_npu.py").write_text(
        "class npu:\n"
        "    device_count = staticmethod(lambda: 1)\n"
        "    get_device_name = staticmethod(lambda number: 'Ascend910B3')\n"
        "    mem_get_info = staticmethod(lambda number: (5, 7))\n"
        "    get_soc_version = staticmethod(lambda: 223)\n"
    )
    command = (sys.executable, "-m", "seedx_batch.doctor.npu_probe")
    done = subprocess.run(
        command, env=environment({"PYTHONPATH": f"{REPOSITORY}:{tmp_path}/site"}), capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"names": ["Ascend910B3"], "memory": [[5, 7]], "soc": 223}
    answer = Machine().run(command, 60)
    assert (answer.code, answer.reason) == (1, "ModuleNotFoundError: No module named 'torch_npu'")


def test_the_table(tmp_path: Path) -> None:
    """A finding has its state, what was found and wanted, and below it what to do; the verdict comes last."""
    fault = Finding("CANN", "fault", "9.1.0", "8.5.1", "install CANN 8.5.1")
    told = Report("ascend", (Finding("clock", "ok", "2026", "x"), fault)).as_text().splitlines()
    assert told[0] == "  ok     clock             2026"
    assert told[1] == "  fault  CANN              9.1.0 (wanted: 8.5.1)"
    assert told[2].split() == ["install", "CANN", "8.5.1"]
    assert told[3] == "ascend: not ready (1 fault)"
    warned = Report("cpu", (Finding("a", "warn", "b"), Finding("c", "warn", "d")))
    assert (warned.as_text().splitlines()[-1], warned.exit_code) == ("cpu: ready (2 warnings)", 0)


def test_this_machine(capsys: Capture) -> None:
    """Here, without an NPU, `doctor --platform ascend` ends with 78 and every missing thing, as JSON too."""
    code, told, _ = ask(capsys, "doctor", "--platform", "ascend", "--json")
    assert code == 78
    shown = json.loads(told)
    assert shown["ready"] is False
    faults = {finding["name"] for finding in shown["findings"] if finding["state"] == "fault"}
    assert {"driver", "CANN", "NNAL (ATB)", "vllm-ascend", "torch-npu", "devices"} <= faults
    assert all(finding["remedy"] for finding in shown["findings"] if finding["state"] == "fault")


def test_the_command_with_a_job(tmp_path: Path, capsys: Capture) -> None:
    """A job's path and overrides are understood, and a job that cannot be read is refused as by every command."""
    path = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", ["a"]))
    code, told, _ = ask(capsys, "doctor", path, "--set", "engine.platform=cuda")
    assert (code, told.splitlines()[-1][:15]) == (78, "cuda: not ready")
    code, _, message = ask(capsys, "doctor", "none.yaml")
    assert (code, "none.yaml: cannot be read" in message) == (78, True)


def test_every_finding_is_explained(tmp_path: Path, model: Path) -> None:
    """docs/doctor.md has every name that a report can show here and on an Ascend machine."""
    page = (REPOSITORY / "docs/doctor.md").read_text(encoding="utf-8")
    ascend = Ascend(tmp_path / "root").machine()
    reports = (examine(job(model), "ascend", ascend), examine(job(model), "cpu", bare(tmp_path / "bare")))
    for name in {finding.name for report in reports for finding in report.findings}:
        assert name.replace("room for run_dir", "room for …").replace("room for cache", "room for …") in page


def test_memory_of_a_device_is_told_by_whom_can(tmp_path: Path, model: Path) -> None:
    """Where npu-smi fails in a container torch_npu tells the memory, and where torch_npu is not asked npu-smi does."""
    ascend = Ascend(tmp_path / "root", smi=Answer(1, "npu get board type failed. ret is -9005"))
    assert "of 61.3 GiB" in named(examine(job(model), "ascend", ascend.machine()), "fit").found
    other = Ascend(tmp_path / "other", python=(3, 12))
    assert "of 60.0 GiB" in named(examine(job(model), "ascend", other.machine()), "fit").found


def test_a_config_that_is_no_json_is_told_once(tmp_path: Path, model: Path) -> None:
    """What is reckoned from a broken config.json is left out."""
    (model / "config.json").write_text("{")
    report = examine(job(model), "ascend", Ascend(tmp_path / "root").machine())
    (told,) = [finding for finding in report.findings if finding.state != "ok"]
    assert "config.json" in told.name + told.found
