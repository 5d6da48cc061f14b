"""The NPUs of a machine: which are there, which may be used, of what kind they are, how much of their memory is free.

npu-smi is asked first and torch_npu last, both in processes of their own; must never know software but by its answers.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seedx_batch.doctor import tables
from seedx_batch.doctor.findings import Finding
from seedx_batch.doctor.machine import Machine
from seedx_batch.doctor.npu_smi import Card, Told
from seedx_batch.doctor.tables import Family

_PROBE_LIMIT_S = 120.0
_MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
RESERVED_MIB = 4096
"""What a card may keep for itself: idle ones show 2,800 to 3,500 MB in use."""
_LEAST_SHARE = 0.3  # of a device that is worth a try
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks of the devices.

    Args:
        num_devices: so many hold the model together.
        utilization: the share of a device's memory that an engine takes.
    """

    num_devices: int = 1
    utilization: float = 0.9


def examine(machine: Machine, told: Told, need: Need) -> list[Finding]:
    """The checks of the devices that need no torch_npu."""
    nodes = _nodes(machine)
    found = [_smi(told, nodes), _devices(machine, nodes)]
    if not nodes:
        return found
    visible, finding = _visible(machine, nodes, need)
    found.append(finding)
    if not told.cards:
        return found
    cards = [card for card in told.cards if card.number in visible]
    shown = cards or list(told.cards)
    room = _memory(cards, told, nodes, need) if cards else None
    of_cards = [_family(shown), _wheel(machine, shown), _kernels(machine, shown), _health(shown), room]
    return found + [finding for finding in of_cards if finding is not None]


def memory_of(machine: Machine, told: Told) -> int | None:
    """Bytes of the smallest visible device that an engine can have a share of; None where npu-smi tells none."""
    visible, _ = _visible(machine, _nodes(machine), Need())
    totals = [card.total_mib for card in told.cards if card.number in visible]
    return (min(totals) - RESERVED_MIB) * _MIB if totals else None


def probe(machine: Machine, need: Need) -> tuple[Finding, int | None]:
    """What torch_npu makes of all of it, and the bytes of the smallest device that a job would use."""
    answer = machine.run((sys.executable, "-m", "seedx_batch.doctor.npu_probe"), _PROBE_LIMIT_S)
    lines = [line for line in answer.text.splitlines() if line.startswith("{")]
    if answer.code or not lines:
        remedy = tables.remedy_for(answer.text) or "import torch_npu by hand, in the shell that starts the job"
        return Finding("torch_npu", "fault", answer.reason, "an answer", remedy), None
    seen: dict[str, Any] = json.loads(lines[-1])
    names, memory = seen["names"], seen["memory"]
    if len(names) < need.num_devices:
        remedy = "map more devices into the container, or lower engine.tensor_parallel_size"
        return Finding("torch_npu", "fault", f"sees {len(names)} devices", f"{need.num_devices}", remedy), None
    if not any(family.device and family.soc[0] <= seen["soc"] <= family.soc[1] for family in tables.families()):
        remedy = tables.remedy_for("Can not support soc_version")
        return Finding("torch_npu", "fault", f"soc_version {seen['soc']}", "that of a 910B or 910_93", remedy), None
    free, total = min(memory[: need.num_devices])
    told = f"{len(names)} x {names[0]}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < need.utilization * total:
        wanted = f"{need.utilization * total / _GIB:.1f} GiB"
        return Finding("torch_npu", "fault", told, wanted, _make_room(free / total, ())), total
    return Finding("torch_npu", "ok", told), total


def _nodes(machine: Machine) -> list[int]:
    """The numbers of the device nodes that are here."""
    names = (re.fullmatch(r"davinci(\d+)", path.name) for path in machine.path("dev").glob("davinci*"))
    return sorted(int(name[1]) for name in names if name)


def _smi(told: Told, nodes: Sequence[int]) -> Finding:
    if told.cards:
        return Finding("npu-smi", "ok", f"{told.version or 'of an unknown version'}, {len(told.cards)} chips")
    if not nodes:
        return Finding("npu-smi", "note", f"npu-smi info: {told.reason}")
    remedy = (
        tables.remedy_for(told.reason)
        or "look at the driver; in a container mount /usr/local/bin/npu-smi and /usr/local/dcmi"
    )
    return Finding("npu-smi", "warn", f"npu-smi info: {told.reason}", "the table of cards", remedy)


def _devices(machine: Machine, nodes: Sequence[int]) -> Finding:
    absent = [f"/dev/{name}" for name in _MANAGERS if not machine.path(f"dev/{name}").exists()]
    options = " ".join(f"--device {name}" for name in (["/dev/davinci0"] if not nodes else []) + absent)
    if not nodes:
        remedy = f"put a card into the machine and install its driver; in a container add {options}"
        return Finding("devices", "fault", "no /dev/davinci0 or other", "a device", remedy)
    told = ", ".join(f"davinci{number}" for number in nodes)
    if absent:
        return Finding(
            "devices",
            "fault",
            f"{told}, without {', '.join(absent)}",
            "all of them",
            f"start the container with {options}",
        )
    return Finding("devices", "ok", told)


def _visible(machine: Machine, nodes: Sequence[int], need: Need) -> tuple[list[int], Finding]:
    """The numbers of the devices that a job may use."""
    name = "ASCEND_RT_VISIBLE_DEVICES"
    given = machine.environ.get(name)
    if given is None:
        visible, told = list(nodes), f"all {len(nodes)}"
    else:
        told = f"{name}={given}"
        parts = given.split(",")
        wanted = f"numbers from 0 to {len(nodes) - 1}, each once"
        if not all(part.strip().isdigit() and int(part) < len(nodes) for part in parts) or len(set(parts)) < len(parts):
            return [], Finding(
                "visible devices", "fault", told, wanted, f"unset it, or name devices that are here ({len(nodes)} are)"
            )
        visible = [nodes[int(part)] for part in parts]
    if len(visible) < need.num_devices:
        remedy = "lower engine.tensor_parallel_size, or make more devices visible"
        return visible, Finding("visible devices", "fault", told, f"{need.num_devices} for the job", remedy)
    return visible, Finding("visible devices", "ok", told)


def _of(card: Card) -> tuple[str, Family | None]:
    return card.name.removeprefix("Ascend"), tables.family_of(card.name)


def _family(cards: Sequence[Card]) -> Finding:
    wanted = "910B (A2) or 910_93 (A3)"
    name, family = _of(cards[0])
    if family is None:
        return Finding("SoC", "warn", f"{name}, which is not known here", wanted, "see vllm-ascend's list of devices")
    if family.device is None:
        remedy = tables.remedy_for("Can not support soc_version")
        return Finding("SoC", "fault", f"{name}, {family.name}", wanted, remedy)
    if family.device not in tables.ascend()["devices"]:
        return Finding(
            "SoC",
            "warn",
            f"{name}, {family.name}",
            wanted,
            "vllm-ascend has builds for it; this program was not made for it",
        )
    return Finding("SoC", "ok", f"{name}, {family.name}")


def _wheel(machine: Machine, cards: Sequence[Card]) -> Finding | None:
    """Whether vllm-ascend was built for this chip; nothing where either is not known."""
    built = re.search(
        r"__device_type__\s*=\s*'(\w+)'", machine.read_in("vllm-ascend", "vllm_ascend/_build_info.py") or ""
    )
    family = _of(cards[0])[1]
    if built is None or family is None or family.device is None:
        return None
    if built[1] == family.device:
        return Finding("wheel's chip", "ok", built[1])
    remedy = tables.remedy_for("does not match the installed version's device type")
    return Finding("wheel's chip", "fault", f"vllm-ascend was built for {built[1]}", family.device, remedy)


def _kernels(machine: Machine, cards: Sequence[Card]) -> Finding | None:
    """Whether CANN has kernels for this chip; nothing where its folder or the chip is not known."""
    family, opp = _of(cards[0])[1], machine.environ.get("ASCEND_OPP_PATH", "")
    folder = f"{opp}/built-in/op_impl/ai_core/tbe/kernel"
    if not opp or not machine.path(opp).is_dir() or family is None or not family.kernels:
        return None
    if any(machine.path(f"{folder}{part}/{family.kernels}").is_dir() for part in ("", "/config")):
        return Finding("kernels", "ok", family.kernels)
    # A warning, as releases of CANN lay this folder out in more than one way.
    return Finding(
        "kernels",
        "warn",
        f"no {family.kernels} in {folder}",
        "the chip's kernels",
        tables.remedy_for("binary_info_config.json"),
    )


def _health(cards: Sequence[Card]) -> Finding:
    ill = [f"NPU {card.npu} chip {card.chip} is {card.health}" for card in cards if card.health != "OK"]
    if not ill:
        return Finding("health", "ok", "OK")
    is_warning = all(card.health in ("OK", "Warning") for card in cards)
    remedy = "npu-smi info -t health -i <NPU> tells more; use another card (ASCEND_RT_VISIBLE_DEVICES)"
    return Finding("health", "warn" if is_warning else "fault", ", ".join(ill), "OK", remedy)


def _memory(cards: Sequence[Card], told: Told, nodes: Sequence[int], need: Need) -> Finding:
    """Free HBM of the devices that a job would use; vLLM refuses to start with less than its share."""
    used = cards[: need.num_devices]
    tight = min(used, key=_free_share)
    free, total = (tight.total_mib - tight.used_mib) / 1024, (tight.total_mib - RESERVED_MIB) / 1024
    found = f"{free:.1f} of {tight.total_mib / 1024:.1f} GiB of NPU {tight.npu} chip {tight.chip}"
    if _free_share(tight) >= need.utilization:
        return Finding("free HBM", "ok", found)
    free_nodes = {card.number for card in told.cards if _free_share(card) >= need.utilization}
    others = [index for index, number in enumerate(nodes) if number in free_nodes]
    return Finding(
        "free HBM",
        "fault",
        found,
        f"{need.utilization * total:.1f} GiB",
        _make_room(_free_share(tight), others[: need.num_devices]),
    )


def _free_share(card: Card) -> float:
    return (card.total_mib - card.used_mib) / (card.total_mib - RESERVED_MIB)


def _make_room(share: float, others: Sequence[int]) -> str:
    if others:
        return f"set ASCEND_RT_VISIBLE_DEVICES={','.join(map(str, others))}, which has room"
    remedy = "end what runs there (npu-smi info lists it)"
    if share < _LEAST_SHARE:
        return remedy
    return f"{remedy}, or set engine.gpu_memory_utilization to {int(share * 100) / 100:.2f}"
