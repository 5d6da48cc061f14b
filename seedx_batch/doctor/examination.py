"""The order of the checks: the machine, its platform's own, the folders, and what a job asks for beside these.

Must never know what a check looks at.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from seedx_batch import memory, models, packaged, platforms
from seedx_batch.doctor import ascend, cuda, fit, host, model_files, npu_smi, npus, places, tokenizer
from seedx_batch.doctor.findings import Finding, Report, has_fault
from seedx_batch.doctor.machine import Machine
from seedx_batch.doctor.npus import Need
from seedx_batch.errors import SeedxBatchError, SpecError
from seedx_batch.memory import Demand
from seedx_batch.models import Model
from seedx_batch.platforms import EngineSettings, Platform
from seedx_batch.prompts import Prompts
from seedx_batch.spec import JobSpec

_UTILIZATION = 0.9  # vLLM's own default up to 0.22
_UTILIZATION_NEW = 0.92

Found = TypeVar("Found")


def examine(job: JobSpec | None, platform: Platform | Literal["auto"], machine: Machine) -> Report:
    """All checks of a machine, or of a machine and a job.

    Args:
        platform: what to look at; `auto`: what the job says, or what is here.
    """
    if platform == "auto" and job is not None:
        platform = job.engine.platform
    chosen: Platform = platforms.detect(machine.path("dev")) if platform == "auto" else platform
    args = job.engine.arguments if job else {}
    need = _need(args, machine)
    found = host.examine(machine, chosen, need.num_devices)
    elsewhere: tuple[Finding, ...] = ()
    room: int | None = None
    if chosen == "cuda":
        of_devices, room = cuda.examine(machine, need)
        found += of_devices
    elif chosen == "ascend":
        of_devices, room = _ascend(machine, need, args)
        found += of_devices
    elif platform == "auto":
        lacking = (finding for finding in _ascend(machine, need, args)[0] if finding.state == "fault")
        elsewhere = tuple(replace(finding, state="note") for finding in lacking)
    now = machine.now()
    found += places.examine("run_dir", job.directory if job else Path("runs"), now)
    found += places.examine("cache", models.cache_folder(), now)
    if job is not None:
        found += _of_job(job, chosen, machine, room, need)
    return Report(chosen, tuple(found), elsewhere)


def _need(args: Mapping[str, Any], machine: Machine) -> Need:
    """What a job asks of the devices."""
    version = machine.version("vllm") or "0.18"
    is_new = host.numbers(version) >= (0, 23)
    utilization = args.get("gpu_memory_utilization") or (_UTILIZATION_NEW if is_new else _UTILIZATION)
    return Need(platforms.world_size(args), float(utilization))


def _ascend(machine: Machine, need: Need, args: Mapping[str, Any]) -> tuple[list[Finding], int | None]:
    """The checks of an Ascend machine, and the bytes of the smallest device that a job may use."""
    told = npu_smi.ask(machine)
    found = ascend.examine(machine, told.version, args) + npus.examine(machine, told, need)
    room = npus.memory_of(machine, told)
    if has_fault(found):  # torch_npu would fail for that
        return found, room
    probed, room_seen = npus.probe(machine, need)
    return [*found, probed], room_seen or room


def _of_job(job: JobSpec, platform: Platform, machine: Machine, room: int | None, need: Need) -> list[Finding]:
    """What the job asks for: its prompts, its model, and the memory for it."""
    found: list[Finding] = []

    def attempt(name: str, make: Callable[[], Found]) -> Found | None:
        try:
            return make()
        except SpecError as error:
            found.extend(
                Finding(name, "fault", f"{fault.where}: {fault.what}", "", fault.remedy) for fault in error.faults
            )
        except SeedxBatchError as error:
            found.append(Finding(name, "fault", str(error)))
        return None

    prompts = attempt("prompt", lambda: Prompts.build(job.prompt))
    model = attempt("model", lambda: models.resolve(job.model, fetch=False))
    if model is None or model.is_simulated:
        return found
    folder = _folder(model)
    found += [_where(job)] if folder is None else model_files.examine(folder)
    if any(finding.name == "config.json" for finding in found):
        return found
    place = Path(job.model.tokenizer).expanduser() if job.model.tokenizer else folder
    if prompts is not None and folder is not None and place is not None and place.is_dir():
        found += tokenizer.examine(place, folder, prompts)
    settings = _settings(job, platform, folder, machine)
    needed = fit.demand(job, folder, settings.args)
    if not isinstance(needed, Demand):
        return [*found, needed]
    if platform == "cpu":
        return [*found, fit.on_cpu(needed, settings.args, memory.free_bytes(machine.root))]
    return [*found, fit.on_device(needed, room, need.utilization)]


def _folder(model: Model) -> Path | None:
    """Where the model's weights are; of the hub's cache perhaps only config.json is here."""
    folder = model.folder
    if folder is not None and folder.parent.name == "snapshots" and not any(folder.glob("*.safetensors")):
        return None
    return folder


def _where(job: JobSpec) -> Finding:
    name = job.model.name
    if packaged.is_packaged(name):
        return Finding("model", "note", f"{name} is made ready when the job first runs (seedx-batch prepare {name})")
    remedy = "give its folder as model.name, or download it first; if not, the job asks the hub for it"
    return Finding("model", "warn", f"{name} is not on this machine", "its folder", remedy)


def _settings(job: JobSpec, platform: Platform, folder: Path | None, machine: Machine) -> EngineSettings:
    asked = job.model_copy(update={"engine": job.engine.model_copy(update={"platform": platform})})
    return platforms.of_job(asked, folder, 0, models.cache_folder(), machine.environ)
