"""`validate`: every changed byte of a part or a journal is found, nothing else is, and `--repair` mends it."""

import random
import shutil
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import parts, seal
from seedx_batch.journal import Journal
from seedx_batch.plan import Plan, Retry
from seedx_batch.rundir import RunDirectory
from seedx_batch.validate import validate
from tests.jobs import ask, parts_of, run_here, write_job, write_rows

NUM_ROWS = 35
FLIPS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job of four shards that was stopped: two parts, and two journals of several frames."""
    folder = tmp_path_factory.mktemp("made")
    write_rows(folder / "rows.jsonl", [f"text {number}" * (number % 3 + 1) for number in range(NUM_ROWS)])
    # Paths from the folder itself, so that it can be copied.
    job = write_job(folder, "rows.jsonl", engine={"max_num_seqs": 4})
    job.write_text(job.read_text().replace(str(folder / "run"), "run"))
    with chdir(folder):
        assert run_here(job).exit_code == 0
    run = RunDirectory(folder / "run")
    for index in (1, 3):
        journal_of(run, index)
    return folder


def journal_of(run: RunDirectory, index: int) -> None:
    """Puts a shard's journal, in frames of three rows and without its last row, in the place of its part."""
    plan = Plan.from_json(run.read_text(run.plan), "plan.json")
    part = run.part(index, len(plan.shards))
    completion = pa.schema(list(pq.read_schema(part).remove_metadata())[1 + len(plan.columns) :])
    table = parts.examine(part.read_bytes())[1].select(completion.names)
    journal = Journal(run.journal(index), parts.journal_schema(completion), plan.fingerprint)
    for start in range(0, table.num_rows - 1, 3):
        rows = table.slice(start, min(3, table.num_rows - 1 - start)).combine_chunks().to_batches()[0]
        positions = pa.array(range(start, start + rows.num_rows), pa.int32())
        journal.append(pa.RecordBatch.from_arrays([positions, *rows.columns], schema=parts.journal_schema(completion)))
    journal.close()
    part.unlink()


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to damage."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(run: Path) -> list[Path]:
    """The parts and journals."""
    return sorted([*run.glob("data/*.parquet"), *run.glob(".state/journal/*.journal")])


def flips() -> Iterator[tuple[int, float, int]]:
    """Which file, where in it (from 0 to 1), and which bits; always the same ones."""
    draw = random.Random(4)
    for _ in range(FLIPS):
        yield draw.randrange(4), draw.random(), draw.randrange(1, 256)


def test_a_good_run_is_silent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with nothing wrong is one line and exit 0, also with a journal's torn tail, and nothing in it changes."""
    run = folder / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, told = ask(capsys, "validate", run)
    assert (code, told.count("\n")) == (0, 1)
    assert "no damage in 2 of 4 parts with 20 rows, 2 journals with 13" in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_a_killed_launch_left_to_do_is_no_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts that are yet to be renamed after rows were added belong to the run; nobody is told to move them away."""
    run = RunDirectory(folder / "run")
    plan = Plan.from_json(run.read_text(run.plan), "plan.json")
    run.write_text(run.plan, replace(plan, earlier=(3,)).to_json())
    run.part(0, 4).rename(run.part(0, 3))
    code, _, told = ask(capsys, "validate", run.path)
    assert (code, "no damage in 2 of 4 parts with 20 rows, 2 journals" in told) == (0, True), told


def test_the_journal_of_rows_that_run_again_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard whose failed rows run again has a part and a journal, and both are looked at."""
    run = RunDirectory(folder / "run")
    plan = Plan.from_json(run.read_text(run.plan), "plan.json")
    whole = run.part(0, 4).read_bytes()
    journal_of(run, 0)
    run.part(0, 4).write_bytes(whole)
    content = bytearray(run.journal(0).read_bytes())
    content[30] ^= 1
    run.journal(0).write_bytes(content)
    assert ask(capsys, "validate", run.path)[0] == 0  # a leftover, as nothing runs again
    run.write_text(run.plan, replace(plan, retry=Retry(1, ("error",), {0: 1})).to_json())
    code, _, told = ask(capsys, "validate", run.path)
    assert code == 65
    assert f"{run.journal(0)}: is damaged" in told


def test_every_flip_is_found(folder: Path) -> None:
    """Of 200 random flips of a byte in parts and journals 200 are found, and the right file is named."""
    run = folder / "run"
    paths = files_of(run)
    assert len(paths) == 4
    missed = []
    for number, where, bits in flips():
        path = paths[number]
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[int(where * len(content))] ^= bits
        path.write_bytes(damaged)
        told, code = validate(run, repair=False)
        if code != 65 or not told.startswith(f"{path}: is damaged"):
            missed.append((path.name, where, bits, told))
        path.write_bytes(content)
    assert missed == []
    assert validate(run, repair=False)[1] == 0


def test_a_torn_journal_is_no_damage(folder: Path) -> None:
    """What a crash leaves at a journal's end is not told, wherever the frame is torn."""
    path = folder / "run/.state/journal/shard-00001.journal"
    content = path.read_bytes()
    for cut in (1, 30, 300):
        path.write_bytes(content[:-cut])
        assert validate(folder / "run", repair=False)[1] == 0


def test_repair_redoes_exactly_what_is_damaged(folder: Path) -> None:
    """Damaged parts are moved away and made again; of a damaged journal only the damaged frame is; all else stays."""
    run = RunDirectory(folder / "run")
    good, bad, journal = run.part(0, 4), run.part(2, 4), run.journal(1)
    for path in (bad, journal):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    before = good.stat().st_mtime_ns
    told, code = validate(run.path, repair=True)
    assert code == 65
    lines = told.splitlines()
    assert lines[0].startswith(f"{bad}: is damaged")
    assert "10 rows, from row 20 of" in lines[0]
    assert lines[1].startswith(f"{journal}: is damaged: the rows in its bytes")
    assert "6 are not" in lines[1]
    assert lines[2].endswith(
        "2 damaged files beside 1 of 4 parts with 10 rows, 2 journals with 10 (repaired: run the run's own command now)"
    )
    assert len(list(run.damaged.iterdir())) == 2
    assert validate(run.path, repair=False)[1] == 0
    assert run_here(folder / "job.yaml").exit_code == 0
    assert parts_of(run.path)["number"].to_pylist() == list(range(NUM_ROWS))
    assert good.stat().st_mtime_ns == before
    assert validate(run.path, repair=False)[1] == 0


def reseal(path: Path, table: pa.Table) -> None:
    """Writes other rows under a part's own footer, with checksums and seal that are right."""
    metadata = pq.read_metadata(path).metadata
    path.write_bytes(parts.sealed(table, {b"seedx_batch": metadata[b"seedx_batch"]}))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("id", "other", "its rows 0 to 9 are other ids"),
        ("number", 77, "column 'number' of its rows 0 to 9 is not the input's"),
        ("num_output_tokens", 1000, "its statistics are not those of its rows"),
        ("status", "error", "its statistics are not those of its rows"),
    ],
)
def test_rows_are_compared_with_input_and_footer(folder: Path, column: str, value: object, told: str) -> None:
    """A part whose bytes are in order but whose rows are not those of its place is found."""
    path = RunDirectory(folder / "run").part(0, 4)
    table = parts.read_part(path)
    values = [value, *table[column].to_pylist()[1:]]
    place = table.column_names.index(column)
    reseal(path, table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)))
    said, code = validate(folder / "run", repair=False)
    assert code == 65
    assert told in said


def test_parts_in_each_others_place(folder: Path) -> None:
    """Two parts that were swapped are both found."""
    run = RunDirectory(folder / "run")
    first, second = run.part(0, 4).read_bytes(), run.part(2, 4).read_bytes()
    run.part(0, 4).write_bytes(second)
    run.part(2, 4).write_bytes(first)
    said, code = validate(run.path, repair=False)
    assert (code, said.count("it holds the rows of Shard(")) == (65, 2)


def test_a_strange_part(folder: Path) -> None:
    """A parquet file that load_dataset would read with the parts is named, and not moved: it may be somebody's."""
    strange = folder / "run/data/mine.parquet"
    shutil.copy(RunDirectory(folder / "run").part(0, 4), strange)
    said, code = validate(folder / "run", repair=True)
    assert code == 65
    assert said.startswith(f"{strange}: is no part of this run")
    assert strange.exists()


@pytest.mark.parametrize("name", ["plan.json", "job.yaml", "stats.parquet"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_damage_beside_the_parts(folder: Path, name: str, where: float) -> None:
    """A changed byte in plan, job or statistics is found, and after the repair the file is made again."""
    path = folder / "run" / name
    content = path.read_bytes()
    place = int(where * len(content))
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    parts_before = {part: part.read_bytes() for part in (folder / "run/data").iterdir()}
    said, code = validate(folder / "run", repair=True)
    assert code == 65
    assert said.startswith(f"{path}: is damaged")
    assert run_here(folder / "job.yaml").exit_code == 0
    assert validate(folder / "run", repair=False)[1] == 0
    seal.check(path.read_bytes())
    assert all(part.read_bytes() == before for part, before in parts_before.items())


def test_a_lost_plan_does_not_mix_jobs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without plan.json the same job goes on from its parts, and another one is refused."""
    (folder / "run/plan.json").unlink()
    assert validate(folder / "run", repair=False)[1] == 65
    job = folder / "job.yaml"
    text = job.read_text()
    job.write_text(text.replace('"max_tokens": 16', '"max_tokens": 17'))
    code, _, told = ask(capsys, "run", job)
    assert code == 78
    assert "is a part of another job" in told
    job.write_text(text)
    assert run_here(job).exit_code == 0
    assert parts_of(folder / "run")["number"].to_pylist() == list(range(NUM_ROWS))


def test_a_changed_input_is_a_note(folder: Path) -> None:
    """Parts are good without their input; that they were not compared with it is said."""
    (folder / "rows.jsonl").unlink()
    said, code = validate(folder / "run", repair=False)
    assert code == 0
    assert "the input has changed" in said


def test_a_run_that_is_going_on_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a run holds the folder validate says who, with 75; while validate reads, no run begins."""
    run = RunDirectory(folder / "run")
    with run.lock():
        for arguments in (["validate", run.path], ["validate", run.path, "--repair"]):
            code, _, told = ask(capsys, *arguments)
            assert code == 75
            assert "holds it since" in told
    with run.still(), run.still():
        assert ask(capsys, "run", folder / "job.yaml")[0] == 75


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a run is refused."""
    assert ask(capsys, "validate", tmp_path)[0] == 78


def test_what_cannot_be_read_is_no_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that may not be read is told with 74, and moved nowhere."""
    path = RunDirectory(folder / "run").part(0, 4)
    path.unlink()
    path.mkdir()
    code, _, told = ask(capsys, "validate", folder / "run", "--repair")
    assert code == 74
    assert "make it readable" in told
    assert path.exists()
