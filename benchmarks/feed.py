"""The order of rows and the window of requests: steps, and what the engine idles: python benchmarks/feed.py

First on the simulated engine, whose steps are exact. Then on vLLM with forced lengths, in this process and in one of
its own, with a random model whose steps take milliseconds, as an accelerator's do (or `--model`): there every run does
the same work through the real shelf, and its tokens are counted. `--simulated` leaves vLLM out.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from seedx_batch import launch, models, plan, platforms
from seedx_batch.ahead import Ahead, num_rows_ahead
from seedx_batch.decoding import Admitted
from seedx_batch.decoding.sample import SampleDecoder
from seedx_batch.engine import Engine
from seedx_batch.engine.simulated import SimulatedEngine
from seedx_batch.flight import Flight
from seedx_batch.intake import Intake
from seedx_batch.loop import Counters, Loop
from seedx_batch.records import Completion, EngineOutput, Request, Row, RowKey
from seedx_batch.rundir import RunDirectory
from seedx_batch.shelf import Imprint, Shelf
from seedx_batch.sources import Reader
from seedx_batch.spec import SampleDecoding

WINDOWS = (1.0, 1.25, 1.5, 2.0, 4.0)
ORDERS = ("file order", "ours", "oracle")
MAX_TOKENS = 512


class Forgetful:
    """Stands where the shelf stands, and where rows in flight are noted."""

    def put(self, completion: Completion) -> None: ...

    def write(self) -> None: ...

    def enter(self, key: RowKey) -> None: ...

    def leave(self, key: RowKey) -> None: ...

    def begin_step(self) -> None: ...

    def end_step(self) -> None: ...

    def save(self, then: Callable[[], None]) -> None:
        then()

    def publish_full(self) -> None: ...

    def wait(self) -> None: ...


class LateSimulated(SimulatedEngine):
    """As an engine in a process of its own: what is sent after a step has ended comes too late for the next one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: list[Request] = []
        self._known: list[Request] = []

    @property
    def num_unfinished(self) -> int:
        return super().num_unfinished + len(self._late) + len(self._known)

    def add(self, request: Request) -> None:
        self._late.append(request)

    def step(self) -> list[EngineOutput]:
        arrived, self._known, self._late = self._known, self._late, []
        for request in arrived:
            super().add(request)
        return super().step()


def texts(num_rows: int, corpus: int = 0) -> list[str]:
    """Texts of lognormal length, as sentences of a corpus have."""
    draw = random.Random(1000 * num_rows + corpus)
    return ["w" * max(4, round(4 * draw.lognormvariate(3.2, 0.7))) for _ in range(num_rows)]


def translated(num_prompt_tokens: int, drawn: float) -> int:
    """An output of 1.3 times its source, give or take a normal spread of 25 %."""
    spread = statistics.NormalDist().inv_cdf(min(max(drawn, 1e-9), 1 - 1e-9))
    return max(1, round(1.3 * num_prompt_tokens * (1 + 0.25 * spread)))


LENGTHS: dict[str, Callable[[int, float], int] | None] = {"as translations": translated, "unlike the prompt": None}

WINDOW_LENGTHS: dict[str, Callable[[int, float], int]] = {
    "as translations": translated,
    "short (1 to 8)": lambda num_prompt_tokens, drawn: 1 + int(8 * drawn),
    "of one length (20)": lambda num_prompt_tokens, drawn: 20,
}


def simulate(sources: list[str], engine: SimulatedEngine, order: str, window: float) -> SimulatedEngine:
    """The engine after a loop over all rows."""

    def admit(row: Row) -> Admitted:
        # A number before the text makes all texts, and so what is drawn for them, different.
        ids = engine.encode(f"{row.key.position:<8}{row.fields['text']}")
        params = {"max_tokens": MAX_TOKENS, "temperature": 0}
        return Admitted(SampleDecoder(row.key, ids, params, lambda text: (text, {})), ids, params)

    rows = [Row(RowKey(0, number), str(number), {"text": text}) for number, text in enumerate(sources)]
    if order == "oracle":
        true = {row.key: length for row, length in zip(rows, true_lengths(rows, admit, engine), strict=True)}
        rows.sort(key=lambda row: true[row.key], reverse=True)
    ahead = Ahead(iter(rows), admit, num_rows_ahead(engine.max_num_seqs) if order == "ours" else 0)
    forgetful = Forgetful()
    num_sequences = round(window * engine.max_num_seqs)
    Loop(ahead, engine, forgetful, forgetful, num_sequences, None, 1e9, lambda: None, lambda counters: None).run()
    return engine


def true_lengths(rows: list[Row], admit: Callable[[Row], Admitted], engine: SimulatedEngine) -> list[int]:
    """What the engine will give, by asking another one like it."""
    other = SimulatedEngine(len(rows), length=engine.length)
    for row in rows:
        other.add(admit(row).decoder.start()[0])
    lengths = [0] * len(rows)
    while other.num_unfinished:
        for output in other.step():
            lengths[output.request_id.row.position] = output.candidates[0].num_output_tokens
    return lengths


def steps_of(size: int, corpus: int, max_num_seqs: int, length: Callable[[int, float], int] | None) -> list[int]:
    """Steps in the orders of ORDERS."""
    return [
        simulate(texts(size, corpus), SimulatedEngine(max_num_seqs, length=length), order, 1.25).num_steps
        for order in ORDERS
    ]


def print_simulated(sizes: list[int], num_corpora: int) -> None:
    """Steps by order, then by window."""
    print(f"Steps by the order of rows, window 1.25, medians of {num_corpora} corpora (in brackets: to file order)\n")
    print("| outputs | rows | max_num_seqs | file order | ours | oracle |\n|---|---:|---:|---:|---:|---:|")
    for kind, length in LENGTHS.items():
        for size in sizes:
            for max_num_seqs in (16, 32, 64):
                counts = [steps_of(size, corpus, max_num_seqs, length) for corpus in range(num_corpora)]
                told = [
                    f"{statistics.median(count[order] for count in counts):,.0f} "
                    f"({statistics.median(count[order] / count[0] for count in counts):.3f})"
                    for order in range(len(ORDERS))
                ]
                print(f"| {kind} | {size:,} | {max_num_seqs} | {' | '.join(told)} |")
    print("\nSteps by window, in units of max_num_seqs, 2,048 rows in file order, to one call with all rows\n")
    print("| engine | outputs | max_num_seqs | " + " | ".join(f"{window:g}" for window in WINDOWS) + " |")
    print("|---|---|---:|" + "---:|" * len(WINDOWS))
    for name, make in (("in this process", SimulatedEngine), ("in its own (a step late)", LateSimulated)):
        for kind, length in WINDOW_LENGTHS.items():
            for max_num_seqs in (16, 64, 256):
                ratios = window_ratios(make, max_num_seqs, length)
                print(f"| {name} | {kind} | {max_num_seqs} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |")


def window_ratios(
    make: Callable[..., SimulatedEngine], max_num_seqs: int, length: Callable[[int, float], int]
) -> list[float]:
    """Steps with each of WINDOWS, to those of an engine in this process that has all rows at once."""
    sources = texts(2048)
    whole = simulate(sources, SimulatedEngine(max_num_seqs, length=length), "file order", 1e9).num_steps
    return [
        simulate(sources, make(max_num_seqs, length=length), "file order", window).num_steps / whole
        for window in WINDOWS
    ]


def write_job(folder: Path, model: str, num_rows: int, max_num_seqs: int) -> Path:
    """A job whose budgets force the lengths of its outputs."""
    draw = random.Random(7)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            num_words = max(3, min(60, round(draw.lognormvariate(2.6, 0.6))))
            budget = max(2, min(250, round(4 * num_words * draw.lognormvariate(0, 0.25))))
            words = " ".join(draw.choices(["the", "world", "learn", "language", "hello", "text"], k=num_words))
            file.write(json.dumps({"id": f"r{number}", "source": words, "budget": budget}) + "\n")
    job = {
        "name": "feed",
        "run_dir": str(folder / "run"),
        "input": {"path": str(folder / "rows.jsonl")},
        "prompt": {"preset": "raw", "template": "{{ source }}"},
        "model": {"name": model, "max_model_len": 1024},
        "decoding": {
            "temperature": 0,
            "ignore_eos": True,
            "dedup": False,
            "max_tokens": {"column": "budget", "max": 250},
        },
        "output": {"rows_per_shard": 500},
        "engine": {"platform": "cpu", "max_num_seqs": max_num_seqs, "enable_prefix_caching": False},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    return folder / "job.yaml"


def run_rows(engine: Engine, job: Path, order: str, window: float) -> dict[str, float]:
    """One run of the job on a real engine, from its rows to its parts, and what its ledger would say."""
    with tempfile.TemporaryDirectory(dir=job.parent) as folder:
        spec = launch.load(job, [f"run_dir={folder}"], None)
        decoding = spec.decoding
        if not isinstance(decoding, SampleDecoding):
            raise SystemExit("the job of this benchmark samples")
        prompts, model = launch.understand(spec, fetch=False)
        run = RunDirectory(folder)
        run.create()
        made = plan.make(spec, prompts, model)
        schemas = plan.part_schema(made.columns, spec, prompts), plan.completion_schema(spec, prompts)
        imprint = Imprint(*schemas, made.columns, len(made.shards), made.fingerprint, "", "rank-00000", {})
        with (
            Reader(made.files, made.id_column) as reader,
            closing(Shelf(run, made.shards, reader, imprint)) as shelf,
            closing(Flight(run.flight(0))) as flight,
        ):
            rows: Iterator[Row] = shelf.rows()
            if order == "oracle":
                rows = iter(sorted(rows, key=lambda row: -int(row.fields["budget"])))
            num_ahead = num_rows_ahead(engine.max_num_seqs) if order == "ours" else 0
            loop = Loop(
                Ahead(rows, Intake(prompts, decoding, engine), num_ahead),
                engine,
                shelf,
                flight,
                round(window * engine.max_num_seqs),
                None,
                spec.executor.checkpoint_s,
                lambda: None,
                lambda counters: None,
                counters := Counters(),
            )
            began, steps = time.monotonic(), engine.num_steps
            loop.run()
            seconds = time.monotonic() - began
        if len(run.committed()) != len(made.shards):
            raise SystemExit("a part is missing")
    steady_s = counters.busy_s + counters.idle_s
    return {
        "seconds": seconds,
        "steps": engine.num_steps - steps,
        "tokens": counters.num_output_tokens,
        "idle": counters.idle_s / steady_s,
        "tail": counters.tail_s / (steady_s + counters.tail_s),
        "host": counters.host_s / seconds,
    }


def serve(job: Path, plans: list[tuple[str, float]], rounds: int) -> None:
    """Prints the figures of every order and window, interleaved, on one engine of this process: a line of JSON each."""
    spec = launch.load(job, [], None)
    model = launch.understand(spec, fetch=False)[1]
    settings = platforms.settings(spec.model, spec.engine, model.folder, 1, models.cache_folder(), os.environ)
    absent = platforms.missing(settings, os.environ)
    if absent:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **absent})
    from seedx_batch.engine.vllm import VllmEngine

    engine = VllmEngine(settings.args)
    run_rows(engine, job, "file order", 2)  # what a first run compiles is no part of the comparison
    for _ in range(rounds):
        for order, window in plans:
            figures = run_rows(engine, job, order, window)
            print(json.dumps({"order": order, "window": window, **figures}), flush=True)
    engine.close()


def measure(job: Path, plans: list[tuple[str, float]], rounds: int, own_process: bool) -> list[dict[str, Any]]:
    """What `serve` prints in a process of its own: the process model is decided when one starts."""
    environ = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_process)), "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--serve", str(job), json.dumps(plans), "--rounds", str(rounds)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the engine could not be measured:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"order"')]


def print_real(model: str, num_rows: int, rounds: int, sizes: Sequence[int]) -> None:
    """Steps, time and idleness on vLLM, by order and by window, in both process models."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model == "random":
            from tests.tiny_models import tiny_seed_x

            model = str(tiny_seed_x(folder / "model"))
        plans = [("ours", window) for window in WINDOWS] + [("file order", 1.25), ("oracle", 1.25)]
        for max_num_seqs in sizes:
            job = write_job(folder, model, num_rows, max_num_seqs)
            print(f"\nvLLM, {num_rows:,} rows, max_num_seqs {max_num_seqs}, medians of {rounds} rounds\n")
            print("| process | order | window | steps | time, ratio | idle % | tail % | host % |")
            print("|---|---|---:|---:|---:|---:|---:|---:|")
            for own_process in (False, True):
                figures = measure(job, plans, rounds, own_process)
                if len({figure["tokens"] for figure in figures}) != 1:
                    raise SystemExit("the runs did not do the same work")
                median = {
                    (order, window): {
                        key: statistics.median(
                            figure[key] for figure in figures if (figure["order"], figure["window"]) == (order, window)
                        )
                        for key in ("steps", "seconds", "idle", "tail", "host")
                    }
                    for order, window in plans
                }
                first = median["file order", 1.25]["seconds"]
                for (order, window), row in median.items():
                    print(
                        f"| {'its own' if own_process else 'this'} | {order} | {window:g} | {row['steps']:,.0f} "
                        f"| {row['seconds'] / first:.2f} | {100 * row['idle']:.2f} | {100 * row['tail']:.1f} "
                        f"| {100 * row['host']:.1f} |"
                    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--corpora", type=int, default=5, help="how many different sets of texts")
    parser.add_argument("--rows", type=int, default=300, help="rows of a run on vLLM")
    parser.add_argument("--max-num-seqs", type=int, nargs="+", default=[32], help="of the runs on vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="random")
    parser.add_argument("--simulated", action="store_true", help="leave vLLM out")
    parser.add_argument("--serve", nargs=2, metavar=("JOB", "PLANS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), [tuple(entry) for entry in json.loads(options.serve[1])], options.rounds)
        return
    print_simulated(options.sizes, options.corpora)
    if not options.simulated:
        print_real(options.model, options.rows, options.rounds, options.max_num_seqs)


if __name__ == "__main__":
    main()
