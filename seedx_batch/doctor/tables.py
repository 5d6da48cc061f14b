"""What is known of Ascend's versions, chips and messages, as ascend.yaml has it; the file explains its keys.

Must never know a machine.
"""

import re
from dataclasses import dataclass
from functools import cache as once
from importlib import resources
from typing import Any

from ruamel.yaml import YAML


@dataclass(frozen=True, slots=True)
class Family:
    """Chips that are programmed alike; `device` is None where no release of vllm-ascend supports them."""

    name: str
    chip: re.Pattern[str]
    soc: tuple[int, int]
    device: str | None = None
    kernels: str = ""


@once
def ascend() -> dict[str, Any]:
    """The whole table."""
    return _read("ascend.yaml")


@once
def families() -> tuple[Family, ...]:
    """The families of chips, in the order in which names are looked up."""
    return tuple(
        Family(**(entry | {"chip": re.compile(f"(Ascend)?({entry['chip']})"), "soc": tuple(entry["soc"])}))
        for entry in ascend()["families"]
    )


def family_of(chip: str) -> Family | None:
    """The family of a chip, by the name that npu-smi or torch_npu has for it."""
    return next((family for family in families() if family.chip.fullmatch(chip)), None)


def pairing_of(vllm_ascend: str) -> dict[str, Any] | None:
    """What belongs to a version of vllm-ascend."""
    pairings: list[dict[str, Any]] = ascend()["pairings"]
    public = vllm_ascend.partition("+")[0]
    return next((pairing for pairing in pairings if pairing["vllm-ascend"] == public), None)


def fits(found: str, wanted: str) -> bool:
    """Whether a version is the wanted one, whatever build of it."""
    public = found.partition("+")[0]
    return public == wanted or public.startswith((f"{wanted}.post", f"{wanted}.dev"))


def remedy_for(said: str) -> str:
    """What to do about a message; nothing where it is not known."""
    return next((entry["remedy"] for entry in ascend()["symptoms"] if entry["says"] in said), "")


@once
def known_models() -> dict[str, Any]:
    """What a model needs that is not on this machine; see known_models.yaml."""
    return _read("known_models.yaml")


def _read(name: str) -> dict[str, Any]:
    text = resources.files("seedx_batch.doctor").joinpath(name).read_text(encoding="utf-8")
    tree: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return tree
