"""A record gives back what was written, and a file that is none is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seedx_batch.errors import InputError, StorageError
from seedx_batch.parity import recording
from seedx_batch.parity.recording import Record
from tests.parity.made import header, logits, recorded, write


@pytest.mark.parametrize("num_kept", [None, 10])
def test_gives_back_what_was_written(tmp_path: Path, num_kept: int | None) -> None:
    """Header, tokens and numbers come back bit by bit, whole or the likeliest tokens alone."""
    written = [recorded(logits(seed), num_kept=num_kept) for seed in (1, 2)]
    record = write(tmp_path / "a.parquet", written, num_kept=num_kept)
    assert record.header == header(num_kept=num_kept)
    assert len(record) == 2
    for number, one in enumerate(written):
        found = record[number]
        for name in ("name", "prompt", "prompt_token_ids", "output_token_ids", "output_text", "scored_token_ids"):
            assert getattr(found, name) == getattr(one, name)
        assert np.array_equal(found.likeliest.logprobs, one.likeliest.logprobs)
        if num_kept is None:
            assert found.kept is None
            assert np.array_equal(found.logits, one.logits)  # type: ignore[arg-type]
        else:
            assert found.logits is None
            assert np.array_equal(found.kept.token_ids, one.kept.token_ids)  # type: ignore[union-attr]
    assert [one.output_token_ids for one in record.prompts()] == [one.output_token_ids for one in written]


def test_likeliest_tokens_are_in_order() -> None:
    """The likeliest come first with their log-probabilities, which are of the whole vocabulary."""
    scores = logits(1)
    found = recording.likeliest(scores, 5)
    probabilities = np.exp(scores.astype(float)) / np.exp(scores.astype(float)).sum(axis=1, keepdims=True)
    for place, row in enumerate(probabilities):
        assert found.token_ids[place].tolist() == np.argsort(-row)[:5].tolist()
        assert np.exp(found.logprobs[place]) == pytest.approx(row[found.token_ids[place]], rel=1e-5)


def test_an_unfinished_record_is_none(tmp_path: Path) -> None:
    """A record whose making fails leaves nothing behind."""
    unwritable = replace(recorded(logits(1)), output_token_ids=["no number"])
    with pytest.raises(pa.ArrowInvalid), recording.writing(tmp_path / "a.parquet", header()) as writer:
        writer.add(unwritable)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot be written"), recording.writing(tmp_path / "no/a", header()):
        pass


def test_other_files_are_told(tmp_path: Path) -> None:
    """No file, a text, another parquet file and a torn record are refused with what is wrong."""
    with pytest.raises(InputError, match="cannot be read"):
        Record(tmp_path / "none")
    (tmp_path / "text").write_text("no record")
    with pytest.raises(InputError, match="cannot be read"):
        Record(tmp_path / "text")
    with pytest.raises(InputError, match="no record of this program's format"):
        Record(Path(__file__).parents[2] / "data/zh_en.parquet")
    path = write(tmp_path / "a.parquet", [recorded(logits(1))]).path
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        Record(path)[0]
