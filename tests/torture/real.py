"""Kills of whole runs on real vLLM with a tiny random model: the process group, at random moments, again and again.

Must never know how the figures are shown.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from seedx_batch import ledger
from seedx_batch.errors import RunDirectoryBusy, StorageError
from seedx_batch.rundir import RunDirectory
from tests.jobs import LEDGER, parts_of, seedx_batch, start, wait_for_rows, wait_until, write_job, write_rows
from tests.tiny_models import tiny_seed_x
from tests.torture.kills import End, Kill, saved

NUM_ROWS = 400
MAX_NUM_SEQS = 8
MAX_TOKENS = 48


def torture(seed: int, num_kills: int, folder: Path) -> Iterator[Kill | End]:
    """Kills runs until there were so many; a third while they load, the others after a random number of rows."""
    draw = random.Random(seed)
    model = tiny_seed_x(folder / "model")
    run = 0
    while num_kills > 0:
        run += 1
        job = _job(folder / f"run-{run}", model)
        for _ in range(min(num_kills, 5)):
            before = saved(job.parent / "run")
            earlier = {line["launch"] for line in ledger.read(job.parent / LEDGER)}
            process = start(job)
            if draw.random() < 1 / 3:
                where = f"{(seconds := draw.uniform(0, 8)):.1f} s after the start"
                time.sleep(seconds)
            else:
                least = draw.randrange(1, 60)
                wait_for_rows(job, least, earlier)
                where = f"{1000 * (seconds := draw.uniform(0, 0.3)):.0f} ms after {least} rows"
                time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            # A dead worker holds the run's lock until the system has taken its memory back.
            wait_until(partial(_is_free, RunDirectory(job.parent / "run")))
            num_kills -= 1
            yield _judge_kill(run, where, job.parent, before, earlier)
        done = seedx_batch("run", job)
        if done.returncode:
            raise RuntimeError(f"{job}: {done.stderr}")
        yield _judge_end(job.parent)
        shutil.rmtree(job.parent)


def _is_free(run: RunDirectory) -> bool:
    try:
        with run.lock():
            return True
    except RunDirectoryBusy:
        return False
    except StorageError:  # it was killed before there was a folder
        return True


def _job(folder: Path, model: Path) -> Path:
    rows = write_rows(folder / "rows.jsonl", [f"{number} {'x' * (number * 37 % 90)}" for number in range(NUM_ROWS)])
    return write_job(
        folder,
        rows,
        model={"name": str(model), "dtype": "float32", "max_model_len": 512},
        engine={"platform": "cpu", "max_num_seqs": MAX_NUM_SEQS},
        decoding={"max_tokens": MAX_TOKENS, "ignore_eos": True},
        output={"rows_per_shard": 32},
        executor={"checkpoint_s": 0.5},
    )


def _judge_kill(run: int, where: str, folder: Path, before: dict[tuple[int, int], int], earlier: set[str]) -> Kill:
    """What is not known here, because the engine's memory died with it, is taken for the most that it can be."""
    after = saved(folder / "run")
    told = [line for line in ledger.read(folder / LEDGER) if line["launch"] not in earlier]
    acknowledged = max((line["num_output_tokens"] for line in told if line["event"] == "checkpoint"), default=0)
    num_saved = sum(after.values()) - sum(before.values())
    lost_before = sum(number for row, number in before.items() if row not in after)
    ran = any(line["event"] == "loaded" for line in told)
    return Kill(
        run,
        where,
        len(after),
        MAX_NUM_SEQS * MAX_TOKENS if ran else 0,
        0,
        max(0, acknowledged - num_saved) + lost_before,
    )


def _judge_end(folder: Path) -> End:
    """Every row once, in order, with all of its tokens; which ones may differ, as a batch of another size rounds."""
    table = parts_of(folder / "run")
    ids = table["id"].to_pylist()
    wanted = [f"r{number}" for number in range(NUM_ROWS)]
    num_short = sum(number != MAX_TOKENS for number in table["num_output_tokens"].to_pylist())
    for path in (folder / "run" / "data").iterdir():
        pq.read_table(path, page_checksum_verification=True)
    return End(len(set(wanted) - set(ids)), len(ids) - len(set(ids)), num_short + (ids != wanted))
