"""Failed rows that run again: which shards that concerns, and what is made ready before a worker starts.

A round begins with one atomic write of plan.json, and a shard of it is done when its part says the round's number.
Until then it has a journal, as no other committed shard has, with what has ended again. Must never know the engine.
"""

from collections.abc import Collection
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from seedx_batch import parts
from seedx_batch.durable import remove, sync_folder, writing
from seedx_batch.journal import Journal
from seedx_batch.plan import Plan, Retry
from seedx_batch.rundir import RunDirectory


def pending(run: RunDirectory, plan: Plan) -> set[int]:
    """The shards of the round whose part is still the one from before it.

    Raises:
        StorageError: a part cannot be read.
    """
    if plan.retry is None:
        return set()
    visible = run.visible(plan.earlier)
    shards = visible.keys() & plan.retry.shards.keys()
    return {index for index in shards if parts.read_footer(visible[index]).round < plan.retry.round}


def begin(run: RunDirectory, plan: Plan, statuses: Collection[str], completion: pa.Schema) -> Plan:
    """The plan with a round of its own for all rows that have ended with one of some statuses; it is yet to be written.

    Such rows are taken out of the journals at once: in a shard without a part nothing else is needed.

    Args:
        completion: from `plan.completion_schema`.

    Raises:
        StorageError: a part or a journal cannot be read or written.
    """
    footers = {index: parts.read_footer(path) for index, path in run.visible(plan.earlier).items()}
    counts = {
        index: sum(footer.stats.statuses.get(status, 0) for status in statuses) for index, footer in footers.items()
    }
    shards = {index: counts[index] for index in sorted(counts) if counts[index]}
    for index in run.journaled():
        _strip(run, index, statuses, plan.fingerprint, completion)
    for index in shards:
        with writing(run.journal(index)):
            run.journal(index).touch()
    with writing(run.journals):
        sync_folder(run.journals)
    remove(run.suspects(0))  # a row that killed engines is to have its chance too
    if not shards:
        return replace(plan, retry=None)
    before = [footer.round for footer in footers.values()] + ([plan.retry.round] if plan.retry else [])
    return replace(plan, retry=Retry(1 + max(before), tuple(statuses), shards))


def _strip(run: RunDirectory, index: int, statuses: Collection[str], fingerprint: str, completion: pa.Schema) -> None:
    """Leaves in a journal only the rows that ended otherwise, in one atomic step."""
    schema = parts.journal_schema(completion)
    batches = Journal(run.journal(index), schema, fingerprint).read()
    failed = pa.array(statuses, pa.string())
    kept = [batch.filter(pc.invert(pc.is_in(batch.column("status"), failed))) for batch in batches]
    if [batch.num_rows for batch in kept] == [batch.num_rows for batch in batches]:
        return
    temporary = run.temporary(run.journal(index).name)
    with writing(temporary):
        temporary.touch()
    stripped = Journal(temporary, schema, fingerprint)
    for batch in kept:
        stripped.append(batch)
    stripped.close()
    run.replace(temporary, run.journal(index))
