"""A whole run over hostile cells, in an environment full of secrets: what comes out, and what must not."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs import ask, parts_of, seedx_batch, write_job

SECRETS = {
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanary01",
    "AWS_SECRET_ACCESS_KEY": "Canary/secret+canary/0123456789abcdefghi",
    "AWS_SESSION_TOKEN": "canary-session-0123456789",
    "OPENAI_API_KEY": "sk-canary-0123456789abcdefgh",
    "DB_PASSWORD": "canary-password-77",
    "HTTPS_PROXY": "http://canary-user:canary-pass@127.0.0.1:9",
}
CANARIES = (*list(SECRETS.values())[:-1], "canary-pass@")
CELLS = [
    "".join(map(chr, range(0x20))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "a\0b",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "\u202egnp.exe\u2066\u200f\u061c\u2028\u2029\ufeff\ufffe\uffff",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1-1",
    "\r\n\r \t",
    "😀e\u0301\U0010ffff",
    "{{ 7 * 7 }}{% for x in y %}",
    "x\0\x1b😀" * 1_500_000,
]


@pytest.mark.process
def test_cells_survive_and_secrets_do_not(tmp_path: Path) -> None:
    """Cells of any character and of 10 MB are in part and dataset as they were; no file or message has a secret."""
    import datasets

    source = tmp_path / "rows\x1b[31m\u202e.jsonl"
    rows = [
        {"id": f"\x1b{number}\u202e", "source": f"text {number}", "cell": cell} for number, cell in enumerate(CELLS)
    ]
    rows.append({"id": "control", "source": CELLS[0] + CELLS[2], "cell": ""})
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.append('{"id": "half", "source": "\\ud800", "cell": "\\udc00"}')
    source.write_text("\n".join(lines), encoding="utf-8", newline="")
    job = write_job(tmp_path, source, output={"rows_per_shard": 5})
    ended = seedx_batch("run", job, env=SECRETS)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "run"
    table = parts_of(run)
    assert table["cell"].to_pylist()[:-1] == [row["cell"] for row in rows]
    assert table["source"].to_pylist()[:-1] == [row["source"] for row in rows]
    assert table["id"].to_pylist()[:-1] == [row["id"] for row in rows]
    assert table["error"].to_pylist()[-1] == "invalid_utf8: half a surrogate pair, which no text can hold"
    assert table["status"].to_pylist()[:-1].count("error") == 0
    loaded = datasets.load_dataset(str(run), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["cell"][:] == table["cell"].to_pylist()
    told = ended.stdout + ended.stderr
    for canary in CANARIES:
        assert canary not in told
        for path in run.rglob("*"):
            if path.is_file():
                assert canary.encode() not in path.read_bytes(), path
                assert path.suffix != ".parquet" or canary not in repr(pq.read_table(path).to_pydict())
    assert not set(told) & {"\x1b", "\u202e", "\x07", "\0"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "job.yaml", source.name, "cache"}


@pytest.mark.parametrize(
    ("where", "value", "secret"),
    [
        ("model.name", "https://user:pass-canary@host/model", "pass-canary"),
        ("model.name", "hf_CanaryCanaryCanaryCanary01", "Canary"),
        ("model.name", "https://canary-token@host/model", "canary-token"),
        ("input.path", "s3://AKIACANARYCANARYCAN:sec/ret-canary@bucket/rows.jsonl", "canary"),
        ("input.path", "hf://user:canary@datasets/a/b.jsonl", "canary"),
        ("input.path", "https://host/rows.jsonl?X-Amz-Signature=canary0", "canary"),
        ("engine.hf_token", "canary-of-no-known-form", "canary"),
        ("engine.model_loader_extra_config", {"aws_secret_access_key": "canary"}, "canary"),
        ("model.hf_overrides", {"list": [{"api_key": ["canary"]}]}, "canary"),
        ("prompt.target_lang", "the-canary-of-the-environment", "canary"),
    ],
)
@pytest.mark.parametrize("by_set", [False, True], ids=["file", "--set"])
def test_a_secret_in_a_job_is_refused(
    where: str,
    value: object,
    secret: str,
    by_set: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Credentials in a URL, tokens, and values of secret keys or variables are refused and not told."""
    monkeypatch.setenv("SOME_TOKEN", "the-canary-of-the-environment")
    section, key = where.split(".")
    job = write_job(tmp_path, "rows.jsonl", **({} if by_set else {section: {key: value}}))
    ended, out, message = ask(capsys, "run", job, *(["--set", f"{where}={json.dumps(value)}"] if by_set else []))
    assert ended == 78, message
    assert where in message
    assert "holds a secret, take it out and put it into the environment" in message
    assert secret not in out + message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "no\x1b[2J\u202e.yaml"], 78),
        (["\x1b[2J"], 64),
        (["run", "--\x1b[2J"], 64),
        (["status", "\x1b[2J"], 78),
        (["prepare", "\x1b[2J"], 78),
        (["run", "job.yaml", "--set", "\x1b[2J"], 78),
        (["run", "job.yaml", "--set", 'model.name="\x1b[2J"'], 78),
        (["run", "job.yaml", "--set", 'input.path="/no\\u001b[2J"'], 66),
        (["run", "job.yaml", "--set", 'prompt.target_lang="\\u001b[2J"'], 78),
        (["plan", "job.yaml"], 0),
        (["plan", "job.yaml", "--json"], 0),
    ],
    ids=str,
)
def test_no_escape_sequence_reaches_the_terminal(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments, file names, values of a job and a plan's first prompt are shown with their escapes written out."""
    monkeypatch.chdir(tmp_path)
    Path("rows\x1b[2J.jsonl").write_text(json.dumps({"id": "\x1b[2J", "source": "\x1b[2J\x9b2J\u202e"}) + "\n" * 2)
    write_job(tmp_path, "rows\x1b[2J.jsonl")
    ended, out, message = ask(capsys, *arguments)
    assert ended == code, message
    assert "1b[2J" in out + message or "is no valid YAML" in message
    assert not set(out + message) & set("\x1b\x9b\u202e\r")
    if "--json" in arguments:
        assert "\x1b[2J\x9b2J\u202e" in json.loads(out)["sample"]["first_prompt"]


@pytest.mark.parametrize(
    "sections",
    [
        {"output": {"column": "a\x1b[2J"}},
        {"output": {"column": ""}},
        {"output": {"column": " translation"}},
        {"output": {"column": "id"}},
        {"output": {"column": "status"}},
        {"output": {"column": "num_output_tokens"}},
        {"input": {"columns": {"status": "number"}}},
        {"input": {"columns": {"x\n": "number"}}},
        {"input": {"columns": ["number", "number"]}},
        {"input": {"path": "rows.jsonl\0"}},
        {"prompt": {"preset": "./x\0.yaml"}},
        {"model": {"name": ""}},
    ],
    ids=str,
)
def test_names_that_cannot_be_columns_or_paths(
    sections: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that clash, are empty or hold control characters, and paths with NUL are refused at once."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "source": "b", "number": 1}\n')
    ended, _, message = ask(capsys, "run", write_job(tmp_path, rows, **sections))
    assert ended == 78, message
    assert not list(tmp_path.glob("run/data/*"))


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/b", ".hidden", "a\nb", "a\0", "x" * 101, "", "~"])
def test_a_name_is_no_path(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job's name, which names its folder, cannot lead out of runs/."""
    job = write_job(tmp_path, "rows.jsonl")
    job.write_text(json.dumps(json.loads(job.read_text()) | {"name": name}))
    assert ask(capsys, "run", job)[0] == 78


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run_dir that holds files and no run, such as a repository with its README.md, is refused and untouched."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    job = write_job(tmp_path, "rows.jsonl")
    for run_dir in (str(folder), f"{folder}/x/.."):
        ended, _, message = ask(capsys, "run", job, "--set", f"run_dir={run_dir}")
        assert (ended, [path.name for path in folder.iterdir()]) == (78, ["README.md"])
        assert "holds files, and none of a run" in message


def test_ids_are_no_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row whose id is a path is a row like any other; what is written is named by numbers."""
    from seedx_batch.rundir import RunDirectory

    run = RunDirectory(tmp_path)
    for path in (run.part(7, 9), run.journal(7), run.ledger(7), run.log(7)):
        assert path.resolve().is_relative_to(tmp_path)
