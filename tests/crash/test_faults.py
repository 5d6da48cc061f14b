"""A disk that fails: every call by which a run changes its folder, each in turn, and what is left can go on."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedx_batch.validate import validate
from tests.crash.small import Small, small
from tests.crash.tap import NEEDS_SPACE
from tests.jobs import seedx_batch, write_job, write_rows

TOLD = {
    errno.ENOSPC: "No space left on device; free space there",
    errno.EDQUOT: "Disk quota exceeded; free space there, or have the quota raised",
    errno.EIO: "Input/output error; its disk or file server is at fault",
    errno.EROFS: "Read-only file system; make it writable, or choose another run_dir",
}


@pytest.fixture(scope="module")
def job() -> Iterator[Small]:
    """The small run, and the calls it makes."""
    with small() as made:
        yield made


def fail(job: Small, number: int, at: int) -> str | None:
    """Makes one call of a new run fail, then goes on with the run; what was wrong with that, None if nothing was."""
    job.clear()
    tap = job.new_tap(at, number)
    code, message = job.attempt(tap)
    call = tap.failed
    if call is None:
        return "no call failed" if code else None
    if code != 74 or "\n" in message.removesuffix(message[message.find("\nlog: ") :]):
        return f"exit {code}: {message}"
    if TOLD[number] not in message or str(job.root) not in message:
        return f"told as: {message}"
    if number != errno.EROFS and "run the same command again; finished rows are kept" not in message:
        return f"no way on: {message}"
    if call.name == "fsync" and any((again.name, again.path) == ("fsync", call.path) for again in tap.calls[at + 1 :]):
        return "a failed sync was tried again"
    job.visible_rows()
    code, message = job.attempt()
    if code or job.visible_rows() != job.rows:
        return f"the resume ended with {code}: {message}; rows {job.visible_rows()}"
    message, code = validate(job.run.path, repair=False)
    return message if code else None


def each_once(job: Small, numbers: dict[int, set[str] | None]) -> tuple[int, list[str]]:
    """Fails every call with these errors, where one can give them; how many were tried, and what was wrong."""
    tried, wrong = 0, []
    for at, call in enumerate(job.tap.calls):
        for number, names in numbers.items():
            if names is None or call.name in names:
                tried += 1
                fault = fail(job, number, at)
                if fault is not None:
                    wrong.append(f"{errno.errorcode[number]} at {at}, {call.name} {call.path}: {fault}")
    return tried, wrong


def test_every_call_fails_once(job: Small) -> None:
    """A full disk (a broken one, where no space is needed) at every call: 74, one line; a resume has every row."""
    tried, wrong = each_once(job, {errno.ENOSPC: NEEDS_SPACE, errno.EIO: {"fsync", "unlink", "close"}})
    assert wrong == []
    assert tried > 80


@pytest.mark.process
def test_every_call_fails_in_every_way(job: Small) -> None:
    """The same with EIO everywhere, with a quota, and with a file system that becomes read-only."""
    tried, wrong = each_once(job, {errno.EIO: {"open", *NEEDS_SPACE}, errno.EDQUOT: {"write"}, errno.EROFS: {"create"}})
    assert wrong == []
    assert tried > 80


def test_rows_outlive_their_ledger(job: Small) -> None:
    """Where only the ledger cannot be written, what has ended is saved before the run ends."""
    ledger = [at for at, call in enumerate(job.tap.calls) if call.name == "write" and call.path.endswith(".jsonl")]
    journal = next(at for at, call in enumerate(job.tap.calls) if call.name == "write" and "journal" in call.path)
    at = next(number for number in ledger if number > journal)
    job.clear()
    tap = job.new_tap(at, errno.EIO)
    code, message = job.attempt(tap)
    assert code == 74
    assert "rank-00000.jsonl: Input/output error" in message
    assert job.num_rows_kept() >= 1
    assert any(call.name == "fsync" and "journal" in call.path for call in tap.calls[at:])


def test_a_removed_folder(job: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory that is taken away in mid-run is told with 74; put back, the same command goes on."""
    from seedx_batch.journal import Journal

    job.clear()
    away = Path(f"{job.run.path}-away")
    append = Journal.append

    def take_away(journal: Journal, *arguments: object) -> None:
        append(journal, *arguments)  # type: ignore[arg-type]
        if job.run.path.exists():
            job.run.path.rename(away)

    monkeypatch.setattr(Journal, "append", take_away)
    code, message = job.attempt()
    assert code == 74
    assert "was moved or removed while the run went on" in message
    monkeypatch.undo()
    job.clear()
    away.rename(job.run.path)
    assert job.attempt()[0] == 0
    assert job.visible_rows() == job.rows


@pytest.mark.process
def test_a_worker_that_can_write_nothing_is_heard(tmp_path: Path) -> None:
    """What ends a worker reaches the user also where its ledger takes no line."""
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", ["a"]))
    ledger = tmp_path / "run/.state/ledger/rank-00000.jsonl"
    ledger.parent.mkdir(parents=True)
    ledger.write_bytes(b"{}\n" * 30_000)
    limits = (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    ended = seedx_batch("run", job, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert ended.returncode == 74, ended.stderr
    assert f"error: {ledger}: File too large; free space there, or raise the limit" in ended.stderr
    assert seedx_batch("run", job).returncode == 0
