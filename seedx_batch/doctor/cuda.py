"""The GPUs of a CUDA machine, as nvidia-smi tells them.

Must never know a job's files.
"""

from seedx_batch.doctor.findings import Finding
from seedx_batch.doctor.machine import Machine
from seedx_batch.doctor.npus import Need

_LIMIT_S = 20.0
_ASK = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,driver_version,memory.free,memory.total",
    "--format=csv,noheader,nounits",
)


def examine(machine: Machine, need: Need) -> tuple[list[Finding], int | None]:
    """The checks of the devices, and the bytes of the smallest one that a job may use."""
    answer = machine.run(_ASK, _LIMIT_S)
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.text.splitlines()]
    gpus = [row for row in rows if len(row) == 6 and row[4].isdigit() and row[5].isdigit()]
    if answer.code or not gpus:
        remedy = "install the NVIDIA driver; start a container with --gpus all"
        return [Finding("GPUs", "fault", f"nvidia-smi: {answer.reason}", "a GPU", remedy)], None
    given = machine.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if given is None else [part.strip() for part in given.split(",")]
    visible = [gpu for gpu in gpus if names is None or {gpu[0], gpu[1]} & set(names)]
    if len(visible) < need.num_devices:
        told = f"{len(visible)} of {len(gpus)}" + (f", CUDA_VISIBLE_DEVICES={given}" if given is not None else "")
        remedy = "lower engine.tensor_parallel_size, or make more GPUs visible"
        return [Finding("GPUs", "fault", told, str(need.num_devices), remedy)], None
    tight = min(visible[: need.num_devices], key=lambda gpu: int(gpu[4]) / int(gpu[5]))
    free, total = int(tight[4]), int(tight[5])
    found = [Finding("GPUs", "ok", f"{len(visible)} x {tight[2]}, driver {tight[3]}")]
    told = f"{free / 1024:.1f} of {total / 1024:.1f} GiB of GPU {tight[0]}"
    if free < need.utilization * total:
        remedy = f"end what runs there, or set engine.gpu_memory_utilization to {int(free / total * 100) / 100:.2f}"
        found.append(Finding("free memory", "fault", told, f"{need.utilization * total / 1024:.1f} GiB", remedy))
    else:
        found.append(Finding("free memory", "ok", told))
    return found, min(int(gpu[5]) for gpu in visible) << 20
