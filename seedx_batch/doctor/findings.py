"""What a check found, and all of it told to a person or as JSON.

Must never know what was looked at.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from seedx_batch.errors import SpecError

State = Literal["ok", "note", "warn", "fault"]
"""`note` is for what could not or need not be told; only a fault keeps a job from running."""

_NAME_WIDTH, _TEXT_WIDTH = 16, 93


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        found: what is here, in a few words or numbers.
        wanted: what is to be here, where that is not the same.
        remedy: what to do, where something is to be done.
    """

    name: str
    state: State
    found: str
    wanted: str = ""
    remedy: str = ""

    def lines(self) -> list[str]:
        """The finding in a table's lines, what to do about it last."""
        found = self.found + (f" (wanted: {self.wanted})" if self.wanted and self.state != "ok" else "")
        margin = " " * (_NAME_WIDTH + 11)
        head = f"  {self.state:<5}  {self.name:<{_NAME_WIDTH}}  "
        told = [f"{margin}{line}" for text in (found, self.remedy) for line in textwrap.wrap(text, _TEXT_WIDTH)]
        return [head + told[0].removeprefix(margin), *told[1:]]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found.

    Args:
        platform: what a job would run on.
        elsewhere: what an Ascend machine would need beside what is here; never a fault of this one.
    """

    platform: str
    findings: tuple[Finding, ...]
    elsewhere: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or that of a job that cannot run where there is a fault."""
        return SpecError.exit_code if has_fault(self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "platform": self.platform,
            "ready": not self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
            "missing_for_ascend": [asdict(finding) for finding in self.elsewhere],
        }

    def as_text(self) -> str:
        """All of it as a table, the verdict last."""
        lines = [line for finding in self.findings for line in finding.lines()]
        if self.elsewhere:
            lines.append("for Ascend, which is not this machine's platform, these would be missing:")
            lines += [line for finding in self.elsewhere for line in finding.lines()]
        states = [finding.state for finding in self.findings]
        num = {"fault": states.count("fault"), "warning": states.count("warn")}
        counted = [f"{count} {word}{'s' * (count > 1)}" for word, count in num.items() if count]
        verdict = f"{self.platform}: {'not ready' if num['fault'] else 'ready'}"
        return "\n".join([*lines, f"{verdict} ({', '.join(counted)})" if counted else verdict])


def has_fault(findings: Iterable[Finding]) -> bool:
    """Whether any of them keeps a job from running."""
    return any(finding.state == "fault" for finding in findings)
