"""What vLLM and its platform plugin make of an engine's arguments, asked in a process of its own, without an engine.

Must never know a job, a model's weights or a device: `python -m seedx_batch.engine.config_probe` reads
`{"args": {...}, "env": {...}}` on standard input and answers with one JSON object, its only line on standard output.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from importlib import metadata
from typing import Any

from seedx_batch.errors import EngineConfigError

_SECTIONS = {
    "model_config": ("dtype", "max_model_len", "enforce_eager"),
    "cache_config": ("block_size", "enable_prefix_caching"),
    "parallel_config": ("worker_cls", "tensor_parallel_size"),
    "scheduler_config": ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "async_scheduling"),
    "load_config": ("load_format",),
    "compilation_config": ("cudagraph_mode", "cudagraph_capture_sizes"),
}
"""What is told of the engine's configuration, by the section of vLLM's VllmConfig that holds it."""

_PACKAGES = ("vllm-ascend", "torch", "torch-npu")
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|\*{3,}|^\s*\*\s", re.MULTILINE)
"""Colours and frames of asterisks in warnings."""
_MAX_REASON_CHARS = 400


def probe(args: Mapping[str, Any], env: Mapping[str, str], timeout_s: float = 300) -> dict[str, Any]:
    """The configuration that an engine would have, as JSON values: what counts of it, and what was not asked for.

    Beside the values under vLLM's names: `platform_class`, `versions`, `changed_args` and `changed_env` (what became of
    them: {name: [asked, got]}, {name: [before, after]}), `warnings` (what vLLM and its plugin warned of, each once).

    Args:
        args: vLLM's EngineArgs by name.
        env: variables that are set before vLLM is imported.

    Raises:
        EngineConfigError: vLLM refuses the arguments, is not there or does not answer in time.
    """
    command = [sys.executable, "-m", "seedx_batch.engine.config_probe"]
    asked = json.dumps({"args": dict(args), "env": dict(env)}, default=str)
    try:
        ended = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineConfigError(
            f"vLLM did not answer within {timeout_s:.0f} s what it makes of the arguments"
        ) from error
    lines = ended.stdout.splitlines()
    if not lines:
        said = "\n".join(ended.stderr.splitlines()[-5:])
        raise EngineConfigError(f"the process that asks vLLM ended with {ended.returncode} and no answer:\n{said}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "refused" in answer:
        raise EngineConfigError(f"vLLM refuses the engine's arguments: {answer['refused']}")
    return answer


def main() -> None:
    """Answer what is asked on standard input."""
    asked = json.load(sys.stdin)
    with standard_output_apart() as output:
        os.environ.update(asked["env"])
        before = dict(os.environ)
        warnings = _collect_warnings()
        try:
            answer = _configuration(asked["args"])
        except Exception as error:  # whatever vLLM, a plugin or a model's files can break
            answer = {"refused": _reason(error)}
        else:
            answer |= {"changed_env": _changes(before, {**os.environ, **_set_in_vllm()}), "warnings": warnings}
        os.write(output, f"{json.dumps(answer)}\n".encode())


def _configuration(args: Mapping[str, Any]) -> dict[str, Any]:
    import vllm
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    # LLM's own context: defaults such as max_num_batched_tokens depend on it.
    given = dict(args)
    if isinstance(transfer := given.get("kv_transfer_config"), Mapping):  # as LLM itself does
        given["kv_transfer_config"] = KVTransferConfig(**transfer)
    config = EngineArgs(**given).create_engine_config(UsageContext.LLM_CLASS)
    platform = type(current_platform)
    return {
        "platform_class": f"{platform.__module__}.{platform.__qualname__}",
        **{name: _plain(getattr(getattr(config, section), name)) for section, name in _told()},
        "versions": {"vllm": vllm.__version__, **_versions()},
        "changed_args": _changed_args(args, config),
    }


def _told() -> Iterator[tuple[str, str]]:
    return ((section, name) for section, names in _SECTIONS.items() for name in names)


def _changed_args(args: Mapping[str, Any], config: Any) -> dict[str, list[Any]]:
    """What the configuration has otherwise than it was asked for: {name: [asked, got]}."""
    sections = [config, *(getattr(config, field.name) for field in fields(config))]
    changed: dict[str, list[Any]] = {}
    for name, asked in args.items():
        owner = next((section for section in sections if hasattr(section, name)), None)
        got = getattr(owner, name, asked)
        if isinstance(asked, Mapping) and not isinstance(got, Mapping):  # such as compilation_config
            pairs = [(f"{name}.{key}", value, getattr(got, key, value)) for key, value in asked.items()]
        else:
            pairs = [(name, asked, got)]
        changed |= {place: [wish, _plain(value)] for place, wish, value in pairs if not _is_as_asked(wish, value)}
    return changed


def _is_as_asked(asked: Any, got: Any) -> bool:
    import torch

    if asked is None or asked == "auto":
        return True
    if isinstance(got, torch.dtype):
        return bool(getattr(torch, str(asked), None) == got)
    return bool(got == asked or _plain(got) == asked)


def _plain(value: Any) -> Any:
    """A JSON value: a name for an enum's member, vLLM's spelling for a dtype."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(member) for member in value]
    return str(value).removeprefix("torch.")


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str | None]]:
    names = sorted({*before, *after})
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}


def _set_in_vllm() -> dict[str, str]:
    """Variables that a plugin set in `vllm.envs` only: vLLM reads them there, whatever the environment has."""
    from vllm import envs

    return {name: str(vars(envs)[name]) for name in envs.environment_variables if name in vars(envs)}


def _collect_warnings() -> list[str]:
    """A list that fills with what vLLM and vllm-ascend warn of from now on, each text once.

    Taken where records are made: vLLM configures its loggers anew when it is imported, and drops handlers then.
    """
    texts: list[str] = []
    make = logging.getLogRecordFactory()

    def collect(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] in ("vllm", "vllm_ascend"):
            text = " ".join(_DECORATION.sub(" ", record.getMessage()).split())
            if text not in texts:
                texts.append(text)
        return record

    logging.setLogRecordFactory(collect)
    return texts


@contextlib.contextmanager
def standard_output_apart() -> Iterator[int]:
    """The descriptor of standard output, while whatever else is printed there goes to standard error."""
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        yield output
    finally:
        os.close(output)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _reason(error: Exception) -> str:
    """What was said, in one line; of pydantic's faults where and what, without the arguments and addresses."""
    details = getattr(error, "errors", None)
    said = "; ".join(map(_fault, details())) if callable(details) else str(error)
    return textwrap.shorten(said or type(error).__name__, _MAX_REASON_CHARS, placeholder=" ...")


def _fault(detail: Mapping[str, Any]) -> str:
    place = ".".join(map(str, detail["loc"]))
    return (f"{place}: " if place else "") + str(detail["msg"]).removeprefix("Value error, ")


if __name__ == "__main__":
    main()
