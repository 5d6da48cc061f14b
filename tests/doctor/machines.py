"""Ascend machines as trees of files and answers of npu-smi, to be looked at without a card.

All of it is constructed: the layouts are those that reports to vllm-ascend show (npu-smi's table: #834, #3403, #1047;
CANN's and the driver's version files: #834 and the reports' collect_env), the numbers are made up. None was seen here.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seedx_batch.doctor import Answer, Machine

ASCEND = "/usr/local/Ascend"
TOOLKIT = f"{ASCEND}/ascend-toolkit/latest"
ATB = f"{ASCEND}/nnal/atb/latest/atb/cxx_abi_0"
KERNELS = f"{TOOLKIT}/opp/built-in/op_impl/ai_core/tbe/kernel"
ABSENT = Answer(127, "")
GIB = 1 << 30

ENVIRON = {
    "ASCEND_HOME_PATH": TOOLKIT,
    "ASCEND_OPP_PATH": f"{TOOLKIT}/opp",
    "ATB_HOME_PATH": ATB,
    "LD_LIBRARY_PATH": f"{ATB}/lib:{TOOLKIT}/lib64",
}
PACKAGES = {
    "vllm": "0.18.0+empty",
    "vllm-ascend": "0.18.0",
    "torch": "2.9.0+cpu",
    "torch-npu": "2.9.0.post1+gitee7ba04",
    "triton-ascend": "3.2.0",
}
_DRIVER = """Version=25.5.2
ascendhal_version=7.35.23
Innerversion=V100R001C23SPC005B226
package_version=25.5.2
"""
_TOOLKIT_INFO = """package_name=Ascend-cann-toolkit
version={version}
innerversion=V100R001C25B100
arch={arch}
os=linux
path={path}
"""
_ATB_INFO = """    Ascend-cann-atb : {version}
    Ascend-cann-atb Version : {version}.B130
    Platform : aarch64
"""
_RULE = "+---------------------------+---------------+----------------------------------------------------+"
_THICK = _RULE.replace("-", "=")


@dataclass
class Npu:
    """A row pair of npu-smi's table; `phy` is the column of A3 cards."""

    number: int
    name: str = "910B3"
    health: str = "OK"
    used: int = 3318
    total: int = 65536
    chip: int = 0
    phy: int | None = None


def table(npus: Sequence[Npu], version: str = "25.5.2") -> str:
    """What `npu-smi info` prints."""
    second = "Chip                     " if npus[0].phy is None else "Chip  Phy-ID             "
    lines = [
        "+" + "-" * 96 + "+",
        f"| npu-smi {version:<25}Version: {version:<52} |",
        _RULE,
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        f"| {second} | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
        _THICK,
    ]
    for npu in npus:
        chip = f"{npu.chip}" if npu.phy is None else f"{npu.chip:<6}{npu.phy}"
        lines += [
            f"| {npu.number:<6}{npu.name:<20}| {npu.health:<14}| 95.1        41                0    / 0             |",
            f"| {chip:<26}| 0000:C1:00.0  | 0           0    / 0          {npu.used:<5}/ {npu.total:<14}|",
            _THICK,
        ]
    return "\n".join(
        [
            *lines,
            _RULE,
            "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |",
            _THICK,
            f"| {npus[0].number:<8}0                 | 824166        | python                   | {59316:<24}|",
            _THICK,
        ]
    )


def board(npu_name: str | None) -> str:
    """What `npu-smi info -t board -i 0 -c 0` prints of an A3 chip, or with None of an A2 one."""
    name = f"\tNPU Name                       : {npu_name}\n" if npu_name else ""
    kind = "Ascend910" if npu_name else "910B3"
    return f"\tNPU ID                         : 0\n{name}\tChip ID                        : 0\n\tChip Name  : {kind}\n"


def seen(num: int = 2, name: str = "Ascend910B3", soc: int = 223, free: float = 60.9) -> str:
    """What the probe of torch_npu prints, after a line that torch_npu is free to print."""
    memory = [[int(free * GIB), int(61.3 * GIB)]] * num
    return "a warning of torch_npu\n" + json.dumps({"names": [name] * num, "memory": memory, "soc": soc})


@dataclass
class Ascend:
    """A machine in the making; what is left as it is is a good one with two 910B3 cards."""

    root: Path
    packages: dict[str, str] = field(default_factory=lambda: dict(PACKAGES))
    environ: dict[str, str] = field(default_factory=lambda: dict(ENVIRON))
    npus: list[Npu] = field(default_factory=lambda: [Npu(0), Npu(1)])
    nodes: list[str] = field(
        default_factory=lambda: ["davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc", "shm/x"]
    )
    smi: Answer | None = None
    board: str = board(None)
    probed: Answer = field(default_factory=lambda: Answer(0, seen()))
    python: tuple[int, int] = (3, 11)
    arch: str = "aarch64"
    cann: str = "8.5.1"
    atb: str = ""
    device: str = "A2"
    kernels: str = "ascend910b"
    available_kb: int = 500_000_000
    asked: list[str] = field(default_factory=list)

    def write(self, name: str, text: str = "") -> None:
        """A file of the machine."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def machine(self, without: Sequence[str] = ()) -> Machine:
        """The machine, with these of its files missing."""
        files = {
            f"{ASCEND}/driver/version.info": _DRIVER,
            f"{ASCEND}/driver/lib64/driver/libascend_hal.so": "",
            f"{ASCEND}/ascend-toolkit/set_env.sh": "",
            f"{TOOLKIT}/{self.arch}-linux/ascend_toolkit_install.info": _TOOLKIT_INFO.format(
                version=self.cann, arch=self.arch, path=TOOLKIT
            ),
            f"{TOOLKIT}/runtime/x": "",
            f"{TOOLKIT}/compiler/x": "",
            f"{KERNELS}/{self.kernels}/x": "",
            f"{ASCEND}/nnal/atb/set_env.sh": "",
            f"{ASCEND}/nnal/atb/latest/version.info": _ATB_INFO.format(version=self.atb or self.cann),
            f"{ATB}/lib/libatb.so": "",
            "proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable: {self.available_kb} kB\n",
            "site/vllm_ascend/_build_info.py": f"# Auto-generated file\n__device_type__ = '{self.device}'\n",
            **{f"dev/{name}": "" for name in self.nodes},
            **{
                f"site/{name.replace('-', '_')}-{version}.dist-info/METADATA": f"Name: {name}\nVersion: {version}\n"
                for name, version in self.packages.items()
            },
        }
        for name, text in files.items():
            if not name.startswith(tuple(without) or ("no such file",)):
                self.write(name, text)
        return Machine(
            root=self.root,
            environ=self.environ,
            site=[str(self.root / "site")],
            python=self.python,
            arch=self.arch,
            run=self._run,
        )

    def _run(self, command: Sequence[str], limit_s: float) -> Answer:
        self.asked.append(" ".join(command))
        if command[0] == sys.executable:
            return self.probed
        if "board" in command:
            return Answer(0, self.board)
        return self.smi or Answer(0, table(self.npus))


def with_run(machine: Machine, answers: Mapping[str, Answer]) -> Machine:
    """The machine, where commands by their first word are answered so, and others are not there."""
    return replace(machine, run=lambda command, limit_s: answers.get(command[0], ABSENT))


def bare(root: Path, **given: Any) -> Machine:
    """A machine with memory and nothing else."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text("MemAvailable: 500000000 kB\n")
    (root / "dev/shm").mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"root": root, "environ": {}, "site": [], "python": (3, 11), "arch": "aarch64"}
    return Machine(**(settings | {"run": lambda command, limit_s: ABSENT} | given))
