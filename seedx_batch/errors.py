"""The one tree of exceptions, each with the exit code it ends the program with (sysexits' numbers).

A failed row is never an exception that leaves the loop: `RowRejected` is caught there and becomes the row's completion.

    SeedxBatchError
    ├── TooManyErrors         65  so many rows fail that the job is stopped
    ├── InputError            66  an input file is missing, empty or unreadable
    ├── EngineError           69  the engine cannot be built or has died
    │   ├── EngineDied
    │   └── EngineConfigError
    ├── StorageError          74  the run directory cannot be written or holds what cannot be trusted
    ├── Stopped               75  ended early, and the same command goes on from there
    │   └── RunDirectoryBusy
    ├── SpecError             78  the job cannot mean what it says
    │   ├── ModelUnavailable
    │   └── ResumeRefused
    └── RowRejected            -  one row cannot be admitted; the others go on
"""

from collections.abc import Sequence
from dataclasses import dataclass


class SeedxBatchError(Exception):
    """Anything that this program refuses or cannot do, with a message meant for its user."""

    exit_code = 70


class TooManyErrors(SeedxBatchError):
    """More rows fail than the job bears; what has ended is kept, and the run can go on."""

    exit_code = 65


class InputError(SeedxBatchError):
    """An input file is missing, empty or unreadable."""

    exit_code = 66


class EngineError(SeedxBatchError):
    """The engine cannot be built, or something in it broke."""

    exit_code = 69


class EngineDied(EngineError):
    """The engine was running and is gone; the rows in flight are lost, the finished ones are not."""


class EngineConfigError(EngineError):
    """vLLM refused the engine's arguments, or its platform could not be asked about them."""


class StorageError(SeedxBatchError):
    """The run directory cannot be written, or what it holds cannot be trusted."""

    exit_code = 74


class Stopped(SeedxBatchError):
    """The run ended before the job did; the same command goes on from there."""

    exit_code = 75


class RunDirectoryBusy(Stopped):
    """Another run holds the run directory."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a job: where it is, what it is, what to do about it."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f", {self.remedy}" if self.remedy else "")


class SpecError(SeedxBatchError):
    """The job cannot mean what it says; every fault that was found is in `faults`."""

    exit_code = 78

    def __init__(self, faults: Sequence[Fault] | Fault | str) -> None:
        if isinstance(faults, str):
            faults = Fault("job", faults)
        if isinstance(faults, Fault):
            faults = [faults]
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ModelUnavailable(SpecError):
    """The model that the job names is not on this machine and cannot be brought here."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(Fault("model.name", what, remedy))


class ResumeRefused(SpecError):
    """The run directory holds rows of a job that would have given other results."""


class RowRejected(SeedxBatchError):
    """One row cannot be admitted; `kind` is the word that statistics count it under."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {reason}")
