"""What is run for a comparison: engines on the same prompts, each in a process of its own, and their records.

Must never know vLLM, torch or transformers, nor what figures are made of records.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seedx_batch import __version__, durable, models, platforms, spec
from seedx_batch.engine.scoring import score
from seedx_batch.errors import Fault, SpecError
from seedx_batch.identity import fingerprint
from seedx_batch.models import Model
from seedx_batch.parity import comparison, recording
from seedx_batch.parity.comparison import Thresholds
from seedx_batch.parity.prompt_sets import NamedPrompt, PromptSet
from seedx_batch.parity.recording import Header, Record, Recorded
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import EngineSpec, JobSpec

REFERENCES = {"transformers-fp32": "float32", "transformers-bf16": "bfloat16"}
"""What an engine may be compared with, beside a record, and the dtype it computes in."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What is compared: a job's model as its engine computes it, or a model by its name.

    Args:
        job: a model by its name has one too, without prompts or rows that would mean anything.
        is_job: whether the job is one of the user's.
    """

    job: JobSpec
    model: Model
    is_job: bool

    def place(self) -> Path | None:
        """Where the run's parity.json goes: there is a run directory, and so something that it says something of."""
        run = RunDirectory(self.job.directory)
        return run.path / "parity.json" if self.is_job and run.plan.is_file() else None


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask, for what.

    Args:
        system: vllm or transformers.
        dtype: None for the job's own.
        num_kept: tokens to keep of each scored place; None for the whole vocabulary.
    """

    system: str
    dtype: str | None
    prompts: PromptSet
    max_tokens: int
    num_kept: int | None = None

    @property
    def label(self) -> str:
        """What progress calls it."""
        return " ".join(filter(None, (self.system, self.dtype)))


def find(name: str, overrides: Sequence[str] = ()) -> Target:
    """What a name means: a job's file, or a model.

    Raises:
        SpecError: it is neither, or the model is not on this machine.
    """
    is_job = Path(name).suffix in (".yaml", ".yml") or Path(name).is_file()
    if is_job:
        job = spec.load(Path(name), overrides)
    else:
        tree = {"name": "parity", "input": {"path": "-"}, "prompt": {"preset": "seed-x"}, "model": {"name": name}}
        job = spec.parse(json.dumps(tree), name, overrides)
    model = models.resolve(job.model, fetch=True)
    if model.is_simulated:
        raise SpecError(Fault("model.name", "is simulated", "name a model"))
    return Target(job, model, is_job)


def record(target: Target, asked: Asked, path: Path, say: Say, reference: Record | None = None) -> Record:
    """Runs an engine and writes its record.

    Args:
        reference: its prompts' tokens are used as they are, and its greedy continuations are scored; otherwise the
            engine's own are.

    Raises:
        StorageError: the file cannot be written, which is seen before the engine starts.
        EngineError, SpecError: see engine/scoring.py.
    """
    durable.check_place(path)
    with tempfile.TemporaryDirectory(prefix="seedx-batch-parity-") as workshop:
        request, env, where = _request(target, asked, Path(workshop), reference)
        answer = score(request, env, lambda said: say(f"{asked.label}: {said}"))
        header = _header(target, asked, answer, where, Path(workshop), reference)
        with recording.writing(path, header) as writer:
            for number, (named, told) in enumerate(zip(asked.prompts.prompts, answer["prompts"], strict=True)):
                scored = None if reference is None else request["forced"][number]
                writer.add(_recorded(named, told, Path(workshop), number, asked.num_kept, scored))
    return Record(path)


def check(
    target: Target,
    against: str,
    prompts: PromptSet,
    max_tokens: int,
    thresholds: Thresholds,
    say: Say,
    floor: Path | None = None,
) -> dict[str, Any]:
    """Compares vLLM's engine with a reference, on this machine or recorded, and with the noise floor beside it.

    Args:
        against: a key of REFERENCES, or a record's file, whose prompts and max_tokens are then used.
        floor: with a record as reference, the record of transformers in the engine's dtype; otherwise it is made.

    Returns:
        comparison.report's values.
    """
    with tempfile.TemporaryDirectory(prefix="seedx-batch-parity-") as folder:
        room = Path(folder)
        if against not in REFERENCES:
            reference = Record(Path(against))
            prompts, max_tokens = prompts_of(reference), reference.header.max_tokens
            engine = record(target, Asked("vllm", None, prompts, max_tokens), room / "vllm", say, reference)
            noise = None if floor is None else Record(floor)
            say("comparing")
            return comparison.report(reference, engine, noise, None, thresholds)

        def by_transformers(dtype: str, reference: Record | None) -> Record:
            asked = Asked("transformers", dtype, prompts, max_tokens)
            return record(target, asked, room / dtype, say, reference)

        reference = by_transformers(REFERENCES[against], None)
        others = [by_transformers(dtype, reference) for name, dtype in REFERENCES.items() if name != against]
        engine = record(target, Asked("vllm", None, prompts, max_tokens), room / "vllm", say, reference)
        say("comparing")
        return comparison.report(reference, engine, others[0], others[0], thresholds)


def prompts_of(reference: Record) -> PromptSet:
    """The prompts that a record was made of."""
    prompts = tuple(NamedPrompt(one.name, one.prompt) for one in reference.prompts())
    return PromptSet(reference.header.prompts, prompts)


def _request(
    target: Target, asked: Asked, folder: Path, reference: Record | None
) -> tuple[dict[str, Any], dict[str, str], str]:
    """What the engine's process is asked, what it needs in its environment, and the platform it runs on."""
    job = target.job
    model = job.model if asked.dtype is None else job.model.model_copy(update={"dtype": asked.dtype})
    # The reference computes on the CPU whatever the job's engine does.
    engine = job.engine if asked.system == "vllm" else EngineSpec(platform="cpu")
    num_tokens = len(asked.prompts.prompts) * asked.max_tokens
    settings = platforms.settings(model, engine, target.model.folder, num_tokens, models.cache_folder(), os.environ)
    known = None if reference is None else reference.prompts()
    prompts = [
        {"prompt": named.prompt, "token_ids": None if known is None else known[number].prompt_token_ids}
        for number, named in enumerate(asked.prompts.prompts)
    ]
    request = {
        "system": asked.system,
        "args": settings.args,
        "chat_template": asked.prompts.chat_template,
        "prompts": prompts,
        "forced": None if known is None else [one.output_token_ids for one in known],
        "max_tokens": asked.max_tokens,
        "folder": str(folder),
    }
    return request, platforms.missing(settings, os.environ), settings.platform


def _header(
    target: Target, asked: Asked, answer: dict[str, Any], where: str, folder: Path, reference: Record | None
) -> Header:
    first = len(answer["prompts"][0]["output_token_ids"])
    vocab_size = (folder / "0.free").stat().st_size // (4 * first)
    name = f"{asked.system} {answer['dtype']}"
    mark = asked.prompts.mark
    versions = {**answer["versions"], "seedx-batch": __version__}
    signature = {
        "model": f"{target.job.model.name.rsplit('/', 1)[-1]}@{fingerprint(target.model.identity)[:4]}",
        "engine": f"{asked.system}:{answer['dtype']}:{where}",
        "prompts": f"{asked.prompts.name}@{mark}",
        "dec": "greedy",
        "max": str(asked.max_tokens),
        **{package: versions[package] for package in ("vllm", "transformers") if package in versions},
        "v": __version__,
    }
    return Header(
        name=name,
        engine=asked.system,
        dtype=answer["dtype"],
        model=target.job.model.name,
        identity=target.model.identity,
        prompts=asked.prompts.name,
        mark=mark,
        max_tokens=asked.max_tokens,
        scored="own" if reference is None else reference.header.name,
        vocab_size=vocab_size,
        num_kept=asked.num_kept,
        versions=versions,
        hardware={
            "platform": where,
            "device": answer["device"],
            "machine": platform.machine(),
            "processor": _processor(),
            "num_cpus": len(os.sched_getaffinity(0)),
        },
        signature="|".join(f"{name}:{value}" for name, value in signature.items()),
    )


def _recorded(
    named: NamedPrompt, told: dict[str, Any], folder: Path, number: int, num_kept: int | None, scored: list[int] | None
) -> Recorded:
    output = told["output_token_ids"]
    free = _logits(folder / f"{number}.free", len(output))
    logits = free if scored is None else _logits(folder / f"{number}.forced", len(scored))
    return Recorded(
        name=named.name,
        prompt=named.prompt,
        prompt_token_ids=told["token_ids"],
        output_token_ids=output,
        output_text=told["text"],
        likeliest=recording.likeliest(free, recording.NUM_LIKELIEST),
        scored_token_ids=output if scored is None else scored,
        logits=logits if num_kept is None else None,
        kept=None if num_kept is None else recording.likeliest(logits, num_kept),
    )


def _logits(path: Path, num_places: int) -> recording.Floats:
    return np.fromfile(path, np.float32).reshape(num_places, -1)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return named[0] if named else platform.processor()
