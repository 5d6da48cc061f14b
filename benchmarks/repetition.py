"""Repetition in real text: what merging identical rows and caching prefixes spare: python benchmarks/repetition.py

Package descriptions (apt's Translation-en) and LibreOffice's help, fetched by apt by name and kept in .cache/bench. The
engine is vLLM with a model's own tokenizer and one layer of random weights: which tokens are cached depends on nothing
else. Every row of a sample of consecutive ones generates one token.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from seedx_batch.models import cache_folder

BENCH = cache_folder() / "bench"
PRESETS = ("seed-x", "few-shot")
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "neither": (False, {"enable_prefix_caching": False}),
    "identical rows merged": (True, {"enable_prefix_caching": False}),
    "prefixes cached, blocks of 128": (False, {"enable_prefix_caching": True, "block_size": 128}),
    "both, blocks of 128": (True, {"enable_prefix_caching": True, "block_size": 128}),
    "both, blocks of 32": (True, {"enable_prefix_caching": True, "block_size": 32}),
}


class Paragraphs(HTMLParser):
    """The text of the paragraphs and headings of a help page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._tag: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begins a paragraph where an element's id says that it is one."""
        if self._tag is None and re.match(r"(par|hd)_id", dict(attrs).get("id") or ""):
            self._tag = tag
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        """Ends the paragraph."""
        if tag == self._tag:
            self._tag = None

    def handle_data(self, data: str) -> None:
        """Adds to the paragraph."""
        if self._tag is not None:
            self.texts[-1] += data


def run(*command: str | Path, **options: Any) -> bytes:
    """What a command prints."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, **options
    )
    return done.stdout


def fetch_descriptions() -> list[str]:
    """The first lines and the paragraphs of all packages' descriptions."""
    folder = BENCH / "apt"
    lists = folder / "lists"
    if not list(lists.glob("*Translation-en*")):
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        options = ["Acquire::Languages=en", f"Dir::State::Lists={lists}", f"Dir::Cache={folder / 'cache'}"]
        run("apt-get", *(f"-o{option}" for option in options), "update")
    # The release's own list; those of its updates repeat it.
    largest = max(lists.glob("*Translation-en*"), key=lambda path: path.stat().st_size)
    return list(_paragraphs(run("/usr/lib/apt/apt-helper", "cat-file", largest).decode()))


def _paragraphs(text: str) -> Iterator[str]:
    """A description is a line and then indented ones, in which a dot alone parts paragraphs."""
    for first, others in re.findall(r"^Description-en: (.*)\n((?: .*\n)*)", text, re.MULTILINE):
        yield first
        for paragraph in re.split(r"^ \.\n", others, flags=re.MULTILINE):
            if words := paragraph.split():
                yield " ".join(words)


def fetch_help() -> list[str]:
    """The paragraphs of LibreOffice's help."""
    folder = BENCH / "libreoffice-help"
    if not list(folder.glob("*.deb")):
        folder.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", "libreoffice-help-en-us", cwd=folder, stderr=subprocess.DEVNULL)
        run("dpkg-deb", "-x", next(folder.glob("*.deb")), folder)
    texts = []
    for page in sorted(folder.rglob("*.html")):
        parser = Paragraphs()
        parser.feed(page.read_text(encoding="utf-8"))
        texts += [" ".join(text.split()) for text in parser.texts if text.strip()]
    return texts


def count(texts: list[str], preset: str, model: str, merged: bool, engine: dict[str, Any]) -> dict[str, int]:
    """Tokens of prompts, and of those the ones that the engine worked for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"id": str(number), "source": text} for number, text in enumerate(texts)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        job = {
            "name": "repetition",
            "run_dir": str(folder / "run"),
            "input": {"path": str(folder / "rows.jsonl")},
            "prompt": {"preset": preset, "source_lang": "en", "target_lang": "zh"},
            "model": {"name": model, "max_model_len": 2048, "hf_overrides": {"num_hidden_layers": 1}},
            "decoding": {"temperature": 0, "max_tokens": 1, "dedup": merged},
            "engine": {"platform": "cpu", "max_num_seqs": 64, "load_format": "dummy", **engine},
        }
        (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "seedx_batch", "run", str(folder / "job.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            raise SystemExit(f"the run failed:\n{done.stderr[-2000:]}")
        table = pq.read_table(folder / "run/data").to_pylist()
    worked_for = [row for row in table if not row["deduplicated"]]
    return {
        "rows": len(table),
        "prompt": sum(row["num_prompt_tokens"] for row in table),
        "generated": len(worked_for),
        "cached": sum(row["num_cached_tokens"] for row in worked_for),
        "computed": sum(row["num_prompt_tokens"] - row["num_cached_tokens"] for row in worked_for),
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="consecutive rows of each corpus that the engine gets")
    parser.add_argument("--model", default="package:smollm2-135m", help="whose tokenizer and shape")
    options = parser.parse_args()
    corpora: dict[str, list[str]] = {}
    for name, fetch in (("package descriptions", fetch_descriptions), ("help texts", fetch_help)):
        try:
            corpora[name] = fetch()
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{name} are not here: {error}")
    print("| text | paragraphs | different | repeated |\n|---|---:|---:|---:|")
    for name, texts in corpora.items():
        print(f"| {name} | {len(texts):,} | {len(set(texts)):,} | {1 - len(set(texts)) / len(texts):.1%} |")
    print(f"\nPrompt tokens that the engine works for, {options.rows:,} consecutive paragraphs from the middle\n")
    print("| text | preset | case | rows generated | prompt tokens | from the cache | computed | ratio |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for name, texts in corpora.items():
        middle = max(0, (len(texts) - options.rows) // 2)
        for preset in PRESETS:
            first = 0
            for case, (merged, engine) in CASES.items():
                told = count(texts[middle : middle + options.rows], preset, options.model, merged, engine)
                first = first or told["computed"]
                print(
                    f"| {name} | {preset} | {case} | {told['generated']:,} | {told['prompt']:,} | {told['cached']:,} "
                    f"| {told['computed']:,} | {told['computed'] / first:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
