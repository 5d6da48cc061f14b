"""Greedy continuations and the logits of their places, by vLLM or by transformers, each in a process of its own.

Must never know a job or what is compared: `python -m seedx_batch.engine.scoring` reads one JSON object on standard
input (see `score`), writes logits into files, and answers with JSON lines: `{"said": ...}` on the way, then the answer.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedx_batch.engine.config_probe import standard_output_apart
from seedx_batch.errors import EngineError, SeedxBatchError, SpecError

_LOG_LINES = 15
_PR_SET_PDEATHSIG = 1


def score(asked: Mapping[str, Any], env: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """What an engine makes of prompts: `prompts` (token ids, greedy continuations and their texts), `dtype`,
    `device` and `versions`.

    In `folder` there is then for every prompt, by its number, `N.free`: the logits of each place of the greedy
    continuation; and, where tokens were given, `N.forced`: those of each of their places. Both are float32 rows.

    Args:
        asked: JSON values: `system` (vllm, transformers), `args` (vLLM's EngineArgs; the reference reads the model's),
            `chat_template`, `prompts` ([{prompt, token_ids or None}]), `forced` (tokens for each prompt, or None),
            `max_tokens`, `folder`.
        env: what the process has in its environment beside this one's.
        say: is told how far it is.

    Raises:
        EngineError: the process ended without an answer.
        SpecError: a prompt cannot be made into tokens as the model needs them.
    """
    command = [sys.executable, "-m", "seedx_batch.engine.scoring"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **env},
            start_new_session=True,
        )
        try:
            answer = _listen(process, json.dumps(asked), say)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that vLLM started
            process.wait()
        if answer is None:
            log.seek(0)
            said = "\n".join(f"  {line}" for line in log.read().splitlines()[-_LOG_LINES:])
            raise EngineError(f"{asked['system']} ended with exit code {process.returncode} and no answer:\n{said}")
    if "failed" in answer:
        raise (SpecError if answer["is_spec"] else EngineError)(answer["failed"])
    return answer


def _listen(process: subprocess.Popen[str], asked: str, say: Callable[[str], None]) -> dict[str, Any] | None:
    if process.stdin is None or process.stdout is None:
        raise EngineError("the engine's process has no pipes")
    with contextlib.suppress(BrokenPipeError):  # it has ended, and its log says why
        process.stdin.write(asked)
        process.stdin.close()
    for line in process.stdout:
        told: dict[str, Any] = json.loads(line)
        if "said" not in told:
            process.wait()
            return told
        say(told["said"])
    process.wait()
    return None


def main() -> None:
    """Answer what is asked on standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # with whoever asks
    asked = json.load(sys.stdin)
    with standard_output_apart() as output:

        def tell(told: Mapping[str, Any]) -> None:
            os.write(output, f"{json.dumps(told, ensure_ascii=True)}\n".encode())

        def say(message: str) -> None:
            tell({"said": message})

        try:
            answer = (_by_vllm if asked["system"] == "vllm" else _by_transformers)(asked, say)
        except SeedxBatchError as error:
            answer = {"failed": str(error), "is_spec": not isinstance(error, EngineError)}
        tell(answer)


def _by_transformers(asked: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    from seedx_batch.engine.reference import Reference

    say("loading")
    reference = Reference(asked["args"], asked["chat_template"])
    folder, forced = Path(asked["folder"]), asked["forced"]
    prompts = []
    for number, given in enumerate(asked["prompts"]):
        token_ids = given["token_ids"] or reference.encode(given["prompt"])
        output, logits = reference.greedy(token_ids, asked["max_tokens"])
        logits.tofile(folder / f"{number}.free")
        if forced is not None:
            reference.forced(token_ids, forced[number]).tofile(folder / f"{number}.forced")
        prompts.append(_prompt(token_ids, output, reference.decode))
        say(f"{number + 1} of {len(asked['prompts'])} prompts")
    return {"prompts": prompts, "dtype": reference.dtype, "device": "cpu", "versions": reference.versions}


def _by_vllm(asked: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    from seedx_batch.engine.vllm import VllmEngine  # first, as it says what is wrong where vLLM is not to be had

    from vllm.platforms import current_platform  # isort: skip
    from seedx_batch.engine import recorder  # isort: skip

    say("loading")
    args = {**asked["args"], "logits_processors": [recorder.NAME], "async_scheduling": False}
    engine = VllmEngine(args, asked["chat_template"])
    try:
        prompts = []
        for given in asked["prompts"]:
            token_ids = given["token_ids"] or engine.encode(given["prompt"])
            engine.check_prompt(given["prompt"], token_ids)
            prompts.append(token_ids)
        folder, forced = Path(asked["folder"]), asked["forced"]

        def ask(kind: str, given: Sequence[list[int] | None], ignore_eos: bool) -> list[list[int]]:
            params = [
                {
                    "temperature": 0.0,
                    "max_tokens": len(tokens) if tokens else asked["max_tokens"],
                    "ignore_eos": ignore_eos,
                    "detokenize": False,
                    "extra_args": {"record_to": str(folder / f"{number}.{kind}"), "forced": tokens},
                }
                for number, tokens in enumerate(given)
            ]
            return engine.continuations(prompts, params)

        say(f"{len(prompts)} prompts, free-running")
        outputs = ask("free", [None] * len(prompts), False)
        if forced is not None:
            say(f"{len(prompts)} prompts, the reference's tokens")
            if ask("forced", forced, True) != forced:
                raise EngineError("vLLM did not go on with the tokens it was given: it ignores logits processors here")
        if not all((folder / f"{number}.free").is_file() for number in range(len(prompts))):
            raise EngineError("vLLM recorded no logits: it ignores logits processors here")
        return {
            "prompts": [
                _prompt(token_ids, output, engine.decode) for token_ids, output in zip(prompts, outputs, strict=True)
            ],
            "dtype": engine.dtype,
            "device": current_platform.get_device_name(),
            "versions": dict(engine.versions),
        }
    finally:
        engine.close()


def _prompt(
    token_ids: list[int], output: list[int], decode: Callable[[Sequence[int], Sequence[int]], str]
) -> dict[str, Any]:
    return {"token_ids": token_ids, "output_token_ids": output, "text": decode(output, token_ids)}


if __name__ == "__main__":
    main()
