"""What npu-smi prints, read: the table of cards, and the name of a chip.

Must never know what is wanted of them.
Source: outputs in reports to vllm-ascend, of npu-smi 23.0 to 26.0: #834 and #3403 (A2), #1047 (910ProB); an A3 card has
two chips and the column Phy-ID.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from seedx_batch.doctor.machine import Machine

_LIMIT_S = 20.0
_FIRST = re.compile(r"(\d+)\s+(\S+)")
_SECOND = re.compile(r"(\d+)(?:\s+(\d+))?")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Card:
    """One chip that computes.

    Args:
        number: that of its device node, /dev/davinci<number>.
        npu: the card that it is on, in npu-smi's words.
        chip: its place there.
        name: as npu-smi has it; of an A3 chip with the NPU's own name behind it.
        used_mib: memory in use; of an idle card some is too.
    """

    number: int
    npu: int
    chip: int
    name: str
    health: str
    used_mib: int
    total_mib: int


@dataclass(frozen=True, slots=True)
class Told:
    """What npu-smi said: the driver's version, the cards, and why there are none."""

    version: str | None
    cards: tuple[Card, ...]
    reason: str = ""


def ask(machine: Machine) -> Told:
    """The cards that npu-smi knows."""
    answer = machine.run(("npu-smi", "info"), _LIMIT_S)
    if answer.code:
        return Told(None, (), answer.reason)
    banner = re.search(r"\bVersion:\s*(\S+)", answer.text)
    cards = tuple(_cards(answer.text))
    if any(card.name == "Ascend910" for card in cards):
        # Only tables of A3 cards have the column.
        name = _npu_name(machine, cards[0]) or ("93" if "Phy-ID" in answer.text else None)
        cards = tuple(replace(card, name=f"{card.name}_{name}") if name else card for card in cards)
    return Told(banner[1] if banner else None, cards, "" if cards else "npu-smi lists no cards")


def _cards(text: str) -> Iterator[Card]:
    """Each has two rows: `| 0  910B3 | OK | ...` and `| 0 | 0000:C1:00.0 | ... 3318 / 65536 |`.

    The table of processes below has more columns.
    """
    above: tuple[int, str, str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:
            continue
        if above is None:
            first = _FIRST.fullmatch(cells[0])
            above = (int(first[1]), first[2], cells[1]) if first else None
            continue
        second, usages = _SECOND.fullmatch(cells[0]), _USAGE.findall(cells[2])
        if second and usages:
            (npu, name, health), (used, total) = above, usages[-1]
            number = int(second[2]) if second[2] else npu
            yield Card(number, npu, int(second[1]), name, health, int(used), int(total))
        above = None


def _npu_name(machine: Machine, card: Card) -> str | None:
    """Which 910_93 an A3 chip is: npu-smi's table names all of them Ascend910."""
    answer = machine.run(("npu-smi", "info", "-t", "board", "-i", str(card.npu), "-c", str(card.chip)), _LIMIT_S)
    told = re.search(r"NPU Name\s*:\s*(\S+)", answer.text)
    return told[1] if told and not answer.code else None
