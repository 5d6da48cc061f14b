"""The writing thread: order, bounds, and failures that nobody can miss."""

import threading

import pytest

from seedx_batch.errors import StorageError
from seedx_batch.writer import Writer


def fail() -> None:
    """As a full disk does."""
    raise StorageError("no space")


def test_jobs_run_in_order_elsewhere() -> None:
    """Jobs run one after another, in the order asked for, in one thread that is not the caller's."""
    writer, ran = Writer(), list[tuple[int, int]]()
    for number in range(20):
        writer.begin(lambda number=number: ran.append((number, threading.get_ident())))  # type: ignore[misc]
    writer.wait()
    writer.close()
    assert [number for number, _ in ran] == list(range(20))
    assert {thread for _, thread in ran} == {ran[0][1]} != {threading.get_ident()}


def test_the_caller_goes_on_meanwhile() -> None:
    """Asking for a job does not wait for it; asking for a third while two have not ended does."""
    writer, go, begun = Writer(), threading.Event(), threading.Event()
    writer.begin(go.wait)  # type: ignore[arg-type]
    writer.begin(lambda: None)

    def ask() -> None:
        writer.begin(lambda: None)
        begun.set()

    third = threading.Thread(target=ask)
    third.start()
    assert not begun.wait(0.05)
    go.set()
    third.join()
    assert begun.is_set()
    writer.wait()
    writer.close()


def test_it_is_busy_until_its_jobs_have_ended() -> None:
    """Busy from the moment of asking; no longer when the job has ended; a failure is told here too."""
    writer, go = Writer(), threading.Event()
    assert not writer.is_busy
    writer.begin(go.wait)  # type: ignore[arg-type]
    assert writer.is_busy
    go.set()
    writer.wait()
    assert not writer.is_busy
    writer.begin(fail)
    writer.close()
    with pytest.raises(StorageError, match="no space"):
        _ = writer.is_busy


def test_a_failure_is_raised_by_every_later_call() -> None:
    """A job's exception reaches the caller as it is, and keeps doing so."""
    writer = Writer()
    writer.begin(fail)
    for _ in range(2):
        with pytest.raises(StorageError, match="no space"):
            writer.wait()
    with pytest.raises(StorageError, match="no space"):
        writer.begin(lambda: None)
    writer.close()


def test_nothing_is_written_after_a_failure() -> None:
    """A job that was asked for behind the one that fails is dropped."""
    writer, go, ran = Writer(), threading.Event(), list[int]()

    def fail_then() -> None:
        go.wait()
        fail()

    writer.begin(fail_then)
    writer.begin(lambda: ran.append(1))
    go.set()
    with pytest.raises(StorageError):
        writer.wait()
    writer.close()
    assert not ran


def test_closing_waits_for_what_was_begun() -> None:
    """What was asked for before the end is done, also when nobody waits for it."""
    writer, ran = Writer(), list[int]()
    writer.begin(lambda: ran.append(1))
    writer.begin(lambda: ran.append(2))
    writer.close()
    assert ran == [1, 2]
