"""The division of an engine's time, on a clock that the tests make up."""

from seedx_batch.occupancy import Occupancy


def seconds(occupancy: Occupancy) -> tuple[float, float, float]:
    """At work, idle, tail; all times here are sums of powers of two, so that they are exact."""
    return occupancy.busy_s, occupancy.idle_s, occupancy.tail_s


def test_an_engine_in_this_process_stands_still_between_steps() -> None:
    """What the host does between two steps is idle time, with rows left and without."""
    occupancy = Occupancy(2, since=100.0)
    occupancy.stepped(101.0, 103.0, num_unfinished=4, rows_left=True)
    occupancy.stepped(103.5, 105.5, num_unfinished=4, rows_left=False)
    assert seconds(occupancy) == (4.0, 1.5, 0.0)


def test_an_engine_of_its_own_is_idle_only_where_it_lacks_requests() -> None:
    """Steps that follow one another without a gap are no idle time, however long the host takes to look."""
    occupancy = Occupancy(2, since=100.0)
    for began in (100.0, 101.0, 102.0):
        occupancy.stepped(began, began + 1, num_unfinished=4, rows_left=True)
    assert seconds(occupancy) == (3.0, 0.0, 0.0)


def test_free_sequences_count_in_proportion() -> None:
    """One of four sequences free for a step is a quarter of it: idle while rows are left, tail when none are."""
    occupancy = Occupancy(4, since=0.0)
    occupancy.stepped(0.0, 1.0, num_unfinished=3, rows_left=True)
    occupancy.stepped(1.0, 2.0, num_unfinished=1, rows_left=False)
    assert seconds(occupancy) == (1.0, 0.25, 0.75)


def test_a_request_that_came_late_was_not_there() -> None:
    """What was sent after a step had begun is not in it, but in the next one."""
    occupancy = Occupancy(2, since=0.0)
    occupancy.sent(0.0)
    occupancy.sent(0.5)
    occupancy.stepped(0.0, 1.0, num_unfinished=2, rows_left=True)
    occupancy.stepped(1.0, 2.0, num_unfinished=2, rows_left=True)
    assert seconds(occupancy) == (1.5, 0.5, 0.0)


def test_before_the_clock_began_nothing_counts() -> None:
    """A step that ended before the time to be divided begins, as a trial of parameters may, is left out."""
    occupancy = Occupancy(2, since=10.0)
    occupancy.stepped(1.0, 2.0, num_unfinished=1, rows_left=True)
    occupancy.stepped(2.0, 12.0, num_unfinished=2, rows_left=True)
    assert seconds(occupancy) == (2.0, 0.0, 0.0)
