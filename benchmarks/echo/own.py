"""This program with an engine that answers at once: python own.py ROWS.jsonl FOLDER

All of it is here but the second process: plan, journals, parts, statistics, card. Prints how long each took.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from seedx_batch import card, launch, plan, worker
from seedx_batch.engine import simulated
from seedx_batch.records import Candidate, EngineOutput, Prompt, Request, RequestId
from seedx_batch.rundir import RunDirectory

MAX_NUM_SEQS = 256
_CHARS_PER_TOKEN = 4

pauses: list[float] = []
"""Seconds between one step's end and the next one's beginning: what an engine in this process would wait."""


class EchoEngine(simulated.SimulatedEngine):
    """Answers every request with its prompt, in the next step; a prompt's tokens are its number, many times."""

    def __init__(self, max_num_seqs: int, max_model_len: int, **faults: None) -> None:
        super().__init__(MAX_NUM_SEQS, max_model_len)
        self._prompts: dict[int, str] = {}
        self._added: list[Request] = []
        self._number = 0
        self._stepped_at = time.monotonic()
        pauses.clear()

    @property
    def num_unfinished(self) -> int:
        """Requests that the next step answers."""
        return len(self._added)

    def encode(self, prompt: Prompt) -> list[int]:
        """As many tokens as a tokenizer would give, at no cost."""
        self._number += 1
        self._prompts[self._number] = str(prompt)
        return [self._number] * (len(prompt) // _CHARS_PER_TOKEN + 1)

    def add(self, request: Request) -> None:
        """Takes a request in."""
        self._added.append(request)

    def step(self) -> list[EngineOutput]:
        """All answers."""
        pauses.append(time.monotonic() - self._stepped_at)
        outputs = []
        for request in self._added:
            ids = request.prompt_token_ids
            text = self._prompts.pop(ids[0])
            outputs.append(EngineOutput(request.id, (Candidate(text, "stop", len(ids)),), len(ids), 0))
            self.num_output_tokens += len(ids)
        self._added = []
        self.num_steps += 1
        self._stepped_at = time.monotonic()
        return outputs

    def abort(self, requests: Iterable[RequestId]) -> None:
        """Nothing is in flight between steps for long."""


def main() -> None:
    """Plans, works and finishes, as a launch does."""
    rows, folder = Path(sys.argv[1]), Path(sys.argv[2])
    simulated.SimulatedEngine = EchoEngine  # type: ignore[assignment,misc]  # what a worker builds for `simulated`
    folder.mkdir(parents=True)
    job = {
        "name": "echo",
        "run_dir": str(folder / "run"),
        "input": {"path": str(rows)},
        "prompt": {"preset": "seed-x", "source_lang": "en", "target_lang": "zh"},
        "model": {"name": "simulated"},
        "decoding": {"temperature": 0, "max_tokens": 96},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    spec = launch.load(folder / "job.yaml", [], None)
    prompts, model = launch.understand(spec, fetch=False)
    run = RunDirectory(spec.directory)
    run.create()
    times = [time.monotonic()]
    cpu = [time.process_time()]

    def note() -> None:
        times.append(time.monotonic())
        cpu.append(time.process_time())

    planned = plan.make(spec, prompts, model)
    run.write_text(run.plan, planned.to_json())
    run.write_text(run.job, spec.to_yaml())
    note()
    if worker.work(run.path, 0, 1):
        raise SystemExit("the worker did not finish")
    note()
    card.finalize(run.path)
    note()
    phases = ("plan", "work", "finalize")
    told = {f"{name}_s": times[at + 1] - times[at] for at, name in enumerate(phases)}
    told |= {f"{name}_cpu_s": cpu[at + 1] - cpu[at] for at, name in enumerate(phases)}
    told |= {"waits_s": sum(pauses[1:]), "longest_wait_s": max(pauses[1:], default=0.0)}
    print(json.dumps(told | {"num_rows": planned.num_rows}))


if __name__ == "__main__":
    main()
