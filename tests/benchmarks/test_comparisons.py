"""What the comparisons make of their records."""

from typing import Any

import bare_engine
import peers


def _bare(system: bare_engine.System, number: int, seconds: float, num_steps: int) -> dict[str, Any]:
    return {
        "round": number,
        "system": system.name,
        "whole_s": seconds + 10,
        "phase_s": seconds,
        "num_steps": num_steps,
        "num_output_tokens": 100,
        "num_computed_tokens": 150,
    }


def test_the_bare_engine_is_the_measure() -> None:
    """Ratios are taken to one `generate` in the same round, and above 1 is faster."""
    records = [
        _bare(bare_engine.ALL, 0, 10, 7),
        _bare(bare_engine.OURS, 0, 8, 7),
        _bare(bare_engine.ALL, 1, 30, 7),
        _bare(bare_engine.OURS, 1, 30, 6),
    ]
    lines = bare_engine.table(records).splitlines()
    ours = next(line for line in lines if line.startswith(f"| {bare_engine.OURS.name} |"))
    assert ours.endswith("| 19.0 (8.0 to 30.0) | 1.12 (1.00 to 1.25) | 6 or 7 |")


def test_other_work_is_no_comparison() -> None:
    """Every system has to generate what was asked for, from prompts of the same length."""
    same = [_bare(bare_engine.ALL, 0, 10, 7), _bare(bare_engine.OURS, 0, 8, 7)]
    assert bare_engine.did_the_same(same, 100)
    assert not bare_engine.did_the_same(same, 99)
    assert not bare_engine.did_the_same([*same, {**same[0], "num_computed_tokens": 151}], 100)


def _killed(system: peers.System, num_tokens_again: int, **values: Any) -> dict[str, Any]:
    whole = {"complete": True, "in_order": True, "num_duplicates": 0}
    figures = {"num_tokens": 1000, "num_rows_finished": 60, "num_rows_again": 2}
    return {"round": 0, "system": system.name, "num_tokens_again": num_tokens_again, **figures, **whole, **values}


def test_what_a_kill_costs_is_told() -> None:
    """Tokens done again are a share of the job's; lost order and rows that came twice are told."""
    ours, other = peers.SYSTEMS[0], peers.SYSTEMS[-1]
    lines = peers.kill_table([_killed(ours, 55), _killed(other, 400, in_order=False, num_duplicates=3)]).splitlines()
    assert lines[2] == f"| {ours.name} | 1 | 5.5 | 60 | 2 | complete, in order |"
    assert lines[3] == f"| {other.name} | 1 | 40.0 | 60 | 2 | complete, rows twice |"
