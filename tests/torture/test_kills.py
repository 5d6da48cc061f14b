"""The harness of `make torture`, on a few kills: what it counts, and that it sees what it is there to see."""

from pathlib import Path

import pytest

from tests.torture import kills
from tests.torture.kills import End, Kill

pytestmark = pytest.mark.process


def test_a_few_kills_cost_what_is_promised(tmp_path: Path) -> None:
    """Nothing that was written is done again, nothing is lost, and no kill costs more than what is in flight."""
    found = list(kills.torture(7, 8, tmp_path))
    killed = [one for one in found if isinstance(one, Kill)]
    assert len(killed) == 8
    assert all(one.num_broken == 0 for one in killed)
    assert all(0 <= one.num_in_flight <= kills.MAX_NUM_SEQS * kills.MAX_TOKENS for one in killed)
    assert any(0 < one.num_saved < kills.NUM_ROWS for one in killed)
    assert {one for one in found if isinstance(one, End)} == {End(0, 0, 0)}


def test_what_is_lost_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With journals that write nothing, checkpoints tell of rows that are not on disk, and the harness says so."""
    monkeypatch.setattr("seedx_batch.journal.Journal.append", lambda journal, batch: None)
    monkeypatch.setattr(kills, "ROWS_PER_SHARD", kills.NUM_ROWS)  # so that no part tells of them either
    assert any(isinstance(one, Kill) and one.num_broken for one in kills.torture(8, 12, tmp_path))
