"""Which files a job's input is."""

import os
from pathlib import Path

import pytest
from input_files import write, write_jsonl

from seedx_batch import sources
from seedx_batch.errors import InputError
from seedx_batch.spec import InputSpec


def found(path: Path | str | list[str], **spec: str) -> list[Path]:
    """The files of an input."""
    return sources.find(InputSpec(path=path if isinstance(path, list) else str(path), **spec))


def touch(folder: Path, *names: str) -> None:
    """Files with these names."""
    for name in names:
        write(folder / name, b"{}\n")


def test_a_file(tmp_path: Path) -> None:
    """A file is itself, whatever its name looks like to a glob."""
    touch(tmp_path, "a[1].jsonl")
    assert found(tmp_path / "a[1].jsonl") == [tmp_path / "a[1].jsonl"]


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet"],
        ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.ndjson.gz", "a.ndjson.zst", "b.JSONL"],
        ["a.csv", "a.csv.gz", "a.csv.zst"],
        ["a.tsv", "a.tsv.gz", "a.tsv.zst"],
    ],
)
def test_a_folder(tmp_path: Path, names: list[str]) -> None:
    """A folder gives every input file below it, in order, and neither hidden nor private nor other ones."""
    for folder in ("", "sub", "sub/deeper"):
        touch(tmp_path / folder, *names, "README.md", "a.json", f".{names[0]}", f"_{names[0]}", "a.parquet.gz", "gz")
    touch(tmp_path / ".hidden", *names)
    touch(tmp_path / "_temporary", *names)
    expected = [tmp_path / folder / name for folder in ("", "sub", "sub/deeper") for name in names]
    assert found(tmp_path) == sorted(expected)


def test_a_folder_follows_links_once(tmp_path: Path) -> None:
    """A linked folder counts, and one that leads back to itself ends."""
    touch(tmp_path / "elsewhere", "b.jsonl")
    touch(tmp_path / "in", "a.jsonl")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert found(tmp_path / "in") == [tmp_path / "in" / "a.jsonl", tmp_path / "in" / "linked" / "b.jsonl"]


def test_a_glob(tmp_path: Path) -> None:
    """A glob gives the files that it matches, with ** from every depth."""
    touch(tmp_path, "a.jsonl", "b.jsonl", "c.csv", "sub/d.jsonl")
    assert found(tmp_path / "*.jsonl") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert found(tmp_path / "**" / "*.jsonl") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "sub/d.jsonl"]


def test_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list every file comes once, in order, however it is spelled."""
    touch(tmp_path, "b.jsonl", "sub/a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert found(["sub", "b.jsonl", "./b.jsonl", str(tmp_path / "b.jsonl"), "*.jsonl"]) == [
        Path("b.jsonl"),
        Path("sub/a.jsonl"),
    ]


def test_a_given_format(tmp_path: Path) -> None:
    """A format that the job names decides over the name of a file, and picks among those of a folder."""
    touch(tmp_path, "rows.txt", "a.csv", "a.jsonl", "a.jsonl.gz")
    assert found(tmp_path / "rows.txt", format="jsonl") == [tmp_path / "rows.txt"]
    assert found(tmp_path, format="jsonl") == [tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("rows.json", "there is no such file or folder"),
        ("rows.json", "did you mean '{folder}/rows.jsonl'?"),
        ("none/rows", "there is no such file or folder"),
        ("*.parquet", "matches no file"),
        ("empty", "no input file in this folder"),
        ("notes.txt", "its name does not tell its format"),
        ("not*", "its name does not tell its format"),
        ("pipe", "is neither a file nor a folder"),
        ("mixed", "more than one format"),
        ("mixed", "mixed/a.csv is csv"),
    ],
)
def test_nothing_to_read(tmp_path: Path, pattern: str, told: str) -> None:
    """A path that gives no rows is refused with where, what, and what to do."""
    touch(tmp_path, "rows.jsonl", "empty/notes.txt", "notes.txt", "mixed/a.csv", "mixed/b.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as refusal:
        found(tmp_path / pattern)
    message = str(refusal.value)
    assert message.startswith("input.path: ")
    assert told.format(folder=tmp_path) in message
    assert pattern.rstrip("*") in message
    assert "; " in message


def test_an_empty_list() -> None:
    """A list without a path is refused."""
    with pytest.raises(InputError, match="an empty list"):
        found([])


def test_a_file_without_the_right_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is named (tests may run as root, who may read anything)."""
    path = write_jsonl(tmp_path / "a.jsonl", [{}])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"a\.jsonl: there is no right to read it"):
        found(path)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below the input that cannot be listed is an error, not rows that are silently missing."""
    touch(tmp_path, "a.jsonl", "closed/b.jsonl")
    scandir = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match="closed: Permission denied"):
        found(tmp_path)
