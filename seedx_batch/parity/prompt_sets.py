"""The prompts that engines are compared on: sets that come with the program, and files of one's own.

Must never know engines or tokenizers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from seedx_batch.errors import InputError, RowRejected
from seedx_batch.identity import fingerprint
from seedx_batch.prompts import Prompts
from seedx_batch.records import Prompt, Row, RowKey
from seedx_batch.spec import PromptSpec

_FOLDER = "prompt_sets"


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """One prompt: a text or messages, and what tables call it."""

    name: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts to compare on; `mark` is equal for equal prompts.

    Args:
        chat_template: a jinja text in place of the model's own, for prompts that are messages.
    """

    name: str
    prompts: tuple[NamedPrompt, ...]
    chat_template: str | None = None

    @property
    def mark(self) -> str:
        """Eight hex digits."""
        return fingerprint({"prompts": [[one.name, one.prompt] for one in self.prompts]})[:8]


def names() -> list[str]:
    """The sets that come with the program."""
    folder = resources.files("seedx_batch").joinpath(_FOLDER)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(name: str, job_prompt: PromptSpec | None = None) -> PromptSet:
    """A set by its name or its file.

    A file is YAML or JSON with `prompts: [...]`, or JSON lines; each prompt is a text, or `{name, prompt}` where prompt
    is a text or a list of messages. In place of `prompts` there may be `rows`, and `prompt`, a job's section that
    renders them.

    Args:
        job_prompt: the job's own section `prompt`: its preset takes the place of the set's, and its chat template that
            of the model.

    Raises:
        InputError: there is no such set, or it is none.
        SpecError: the set's section `prompt` cannot mean what it says.
    """
    if name in names():
        text = resources.files("seedx_batch").joinpath(_FOLDER, f"{name}.yaml").read_text(encoding="utf-8")
        return _read(name, _parse(text, name), job_prompt)
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: '{name}' is no set ({', '.join(names())}) and no readable file: {error}") from error
    if path.suffix == ".jsonl":
        return _read(
            path.stem, {"prompts": [_parse(line, name) for line in text.splitlines() if line.strip()]}, job_prompt
        )
    return _read(path.stem, _parse(text, name), job_prompt)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text) if where.endswith((".json", ".jsonl")) else YAML(typ="safe", pure=True).load(text)
    except (YAMLError, json.JSONDecodeError) as error:
        raise InputError(f"prompts: '{where}' cannot be read: {' '.join(str(error).split())}") from error


def _read(name: str, tree: Any, job_prompt: PromptSpec | None) -> PromptSet:
    if isinstance(tree, list):
        tree = {"prompts": tree}
    if not isinstance(tree, Mapping) or not (tree.get("prompts") or tree.get("rows")):
        raise InputError(f"prompts: '{name}' holds no `prompts` and no `rows`")
    if tree.get("rows"):
        return _rendered(name, tree, job_prompt)
    prompts = tuple(_named(number, given, name) for number, given in enumerate(tree["prompts"], 1))
    return PromptSet(name, prompts, None if job_prompt is None else Prompts.build(job_prompt).chat_template)


def _named(number: int, given: Any, where: str) -> NamedPrompt:
    if isinstance(given, str):
        return NamedPrompt(str(number), given)
    prompt: Any = given.get("prompt", given.get("messages")) if isinstance(given, Mapping) else None
    is_chat = isinstance(prompt, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in prompt
    )
    if not (isinstance(prompt, str) or is_chat):
        raise InputError(f"prompts: '{where}', number {number}: no text and no list of messages")
    return NamedPrompt(str(given.get("name", given.get("id", number))), prompt)


def _rendered(name: str, tree: Mapping[str, Any], job_prompt: PromptSpec | None) -> PromptSet:
    try:
        spec = PromptSpec.model_validate(tree.get("prompt"))
    except ValidationError as error:
        raise InputError(f"prompts: '{name}' has no usable section `prompt`: {error}") from error
    if job_prompt is not None:
        spec = spec.model_copy(update={"preset": job_prompt.preset, "chat_template": job_prompt.chat_template})
    rendering = Prompts.build(spec)
    prompts = []
    for number, fields in enumerate(tree["rows"], 1):
        row = Row(RowKey(0, number), str(fields.get("name", number)), fields)
        try:
            prompts.append(NamedPrompt(row.id, rendering.render(row)))
        except RowRejected as error:
            raise InputError(f"prompts: '{name}', row {number}: {error}") from error
    return PromptSet(name, tuple(prompts), rendering.chat_template)
