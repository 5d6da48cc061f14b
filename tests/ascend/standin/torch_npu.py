"""A stand-in for torch_npu, without CANN and without a card: as much as vllm-ascend's platform layer looks at.

Must never answer for a card: whatever it is asked to do raises, so that a contract holds only for what needs no device.
"""

import sys
from types import ModuleType
from typing import NoReturn

import torch
import torch.distributed


class Stream:
    """Named in annotations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        _refuse("Stream")


class Event:
    """Named in annotations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        _refuse("Event")


class ProcessGroupHCCL:
    """Named in imports."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        _refuse("ProcessGroupHCCL")


def is_available() -> bool:
    """No; torch asks."""
    return False


def npu_fusion_attention(*args: object, **kwargs: object) -> NoReturn:
    """Named in imports."""
    _refuse("npu_fusion_attention")


def memory_stats(*args: object, **kwargs: object) -> NoReturn:
    """Put in the place of torch.accelerator's."""
    _refuse("memory_stats")


def memory_reserved(*args: object, **kwargs: object) -> NoReturn:
    """Put in the place of torch.accelerator's."""
    _refuse("memory_reserved")


def reset_peak_memory_stats(*args: object, **kwargs: object) -> NoReturn:
    """Put in the place of torch.accelerator's."""
    _refuse("reset_peak_memory_stats")


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(f"torch_npu.{name} was called, and this is only a stand-in without a card")


def _module(name: str, *members: type | object) -> ModuleType:
    """A module of that name with those classes and functions, importable from now on."""
    module = ModuleType(name)
    for member in members:
        setattr(module, getattr(member, "__name__", ""), member)
    sys.modules[name] = module
    return module


npu = _module("torch_npu.npu", is_available, Stream, Event, memory_stats, memory_reserved, reset_peak_memory_stats)
_C = _module("torch_npu._C")
_module("torch_npu._C._distributed_c10d", ProcessGroupHCCL)

# What importing the real one does to torch.
torch.utils.rename_privateuse1_backend("npu")
sys.modules["torch.npu"] = npu
torch.npu = npu
torch.distributed.is_hccl_available = lambda: True
