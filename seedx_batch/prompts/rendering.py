"""The prompts of one job: rows in, texts or messages out, and generated texts cut into the job's columns.

Must never know the engine, the tokenizer, or the files that rows come from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seedx_batch.errors import Fault, RowRejected, SpecError
from seedx_batch.prompts import presets
from seedx_batch.prompts.messages import read_messages
from seedx_batch.prompts.naming import Naming
from seedx_batch.prompts.presets import Preset
from seedx_batch.prompts.templates import Template, check_chat_template, compile_template
from seedx_batch.records import Message, Prompt, Row
from seedx_batch.spec import Column, Example, PromptSpec

Fields = Mapping[str, Any]
Side = Naming | Column | None
"""A language of the job: fixed, from a column of the row, or not told."""

Turns = list[tuple[str, list[str]]]
"""The role of each turn, and the pieces of it that stand before, between and behind the text."""

_TEXT = "\0the text\0"
"""Stands for the text where a prompt is cut; a prompt in which it occurs otherwise is not cut."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes a job's prompts; built once, never changed.

    Args:
        is_chat: prompts are messages, for the model's chat template or `chat_template`.
        text_column: default name of the output's column.
        extra_columns: further columns of the output, which `finish` fills.
        stop: the preset's stop strings.
        input_columns: columns that every row needs.
        chat_template: a jinja text in place of the model's own.
        languages: codes of the languages that are known before a row is read.
    """

    is_chat: bool
    text_column: str
    extra_columns: tuple[str, ...]
    stop: tuple[str, ...]
    input_columns: frozenset[str]
    chat_template: str | None
    languages: tuple[str, ...]
    _preset: Preset
    _output: presets.Output
    _text: str | None
    _messages: str | None
    _source: Side
    _target: Side
    _examples: tuple[Example, ...] | None
    _templates: Mapping[str, Template]
    _fixed: Mapping[str, Any]
    _turns: Turns | None = None

    @classmethod
    def build(cls, spec: PromptSpec) -> "Prompts":
        """The prompts that a job asks for.

        Raises:
            SpecError: the job cannot mean what it says, or its preset is malformed; with every fault.
        """
        faults: list[Fault] = []
        templates = _job_templates(spec, faults)
        chat_template = _read_chat_template(spec, faults)
        try:
            preset = presets.find(spec.preset)
        except SpecError as error:
            raise SpecError([*error.faults, *faults]) from error
        faults += _key_faults(spec, preset)
        source = _side(spec.source_lang, "source_lang", preset, faults)
        target = _side(spec.target_lang, "target_lang", preset, faults)
        if not faults:
            faults += _example_faults(spec, preset, source, target)
        if faults:
            raise SpecError(faults)
        output = preset.explained if spec.explain else preset.output
        has_messages = spec.messages is not None
        text = None if preset.text is None or has_messages else spec.text or preset.text
        examples = None if spec.examples is None else tuple(spec.examples)
        prompts = cls(
            is_chat=preset.is_chat,
            text_column=output.column,
            extra_columns=() if output.rest_column is None else (output.rest_column,),
            stop=output.stop,
            input_columns=_input_columns(text, spec.messages, (source, target), templates),
            chat_template=chat_template,
            languages=tuple(dict.fromkeys(side.code for side in (source, target) if isinstance(side, Naming))),
            _preset=preset,
            _output=output,
            _text=text,
            _messages=spec.messages,
            _source=source,
            _target=target,
            _examples=examples,
            _templates=templates,
            _fixed={
                **dict.fromkeys(presets.JOB_TEMPLATES),
                "explain": spec.explain,
                **_pair_values(preset, examples, source, target),
            },
        )
        return replace(prompts, _turns=prompts._cut())

    def render(self, row: Row) -> Prompt:
        """The row's prompt.

        Raises:
            RowRejected: missing_column, no_text, empty_text, not_text, unknown_language, no_examples, bad_messages,
                or template.
        """
        fields = row.fields
        if self._messages is not None:
            return read_messages(_field(fields, self._messages), self._messages)
        values = self._frame(fields) if self._turns is None else {}
        if self._text is not None:
            text = _read_text(fields, self._text)
            values["text"] = _one_line(text) if self._preset.one_line else text
        return self._fill(values)

    def render_empty(self, row: Row) -> Prompt | None:
        """The row's prompt around an empty text; None where the preset has no text.

        Raises:
            RowRejected: as `render` does.
        """
        if self._text is None:
            return None
        values = self._frame(row.fields) if self._turns is None else {}
        values["text"] = ""
        return self._fill(values)

    def finish(self, text: str) -> tuple[str, dict[str, str | None]]:
        """A generated text's result and further columns; these are null where the marker is absent."""
        output = self._output
        found, rest = "", ""
        if output.marker is not None:
            text, found, rest = text.partition(output.marker)
        if output.strip:
            text, rest = text.strip(), rest.strip()
        return text, {} if output.rest_column is None else {output.rest_column: rest if found else None}

    def identity(self) -> dict[str, object]:
        """What decides the prompts and how answers are cut: JSON values, readable, with digests of what is long."""
        preset, output = self._preset, self._output
        sides = {"source": self._source, "target": self._target}
        identity: dict[str, object] = {
            "template": [
                {"role": turn.role, "content": turn.template.text, "if": turn.only_with} for turn in preset.turns
            ],
            "text": self._text,
            "newlines": "space" if preset.one_line else "keep",
            "stop": list(output.stop),
            "output": {
                "strip": output.strip,
                "marker": output.marker,
                "columns": [self.text_column, *self.extra_columns],
            },
            "languages": {name: _side_identity(side, preset) for name, side in sides.items() if side is not None},
        }
        if "examples" in preset.takes:
            examples = self._fixed["examples"]
            if examples is None:  # the rows decide which
                examples = {"-".join(pair): _plain(found) for pair, found in preset.examples.items()}
            identity["examples"] = {"digest": _digest(examples), "texts": examples}
        if self.chat_template is not None:
            identity["chat_template"] = {"digest": _digest(self.chat_template), "text": self.chat_template}
        return identity

    def _cut(self) -> Turns | None:
        """The prompt in pieces, where nothing of it but the text depends on the row: rows are then quickly rendered."""
        turns = [turn for turn in self._preset.turns if turn.only_with is None or self._fixed[turn.only_with]]
        sides = (self._source, self._target)
        if self._text is None or self._templates or any(isinstance(side, Column) for side in sides):
            return None
        if any("row" in turn.template.needs or not turn.template.only_writes("text") for turn in turns):
            return None
        values = {**self._fixed, "row": {}}
        try:
            around = [turn.template.render({**values, "text": ""}) for turn in turns]
            texts = [turn.template.render({**values, "text": _TEXT}) for turn in turns]
        except RowRejected:  # every row will be told why
            return None
        if any(_TEXT in text for text in around):
            return None
        return [(turn.role, text.split(_TEXT)) for turn, text in zip(turns, texts, strict=True)]

    def _frame(self, fields: Fields) -> dict[str, Any]:
        """The variables of the preset's templates, except the text."""
        values = {**self._fixed, "row": fields}
        if isinstance(self._source, Column) or isinstance(self._target, Column):
            source = self._read_language(fields, self._source, "source_lang")
            target = self._read_language(fields, self._target, "target_lang")
            values.update(_pair_values(self._preset, self._examples, source, target))
            if values.get("examples", ()) is None:
                pair = f"{source.code if source else None} to {target.code if target else None}"
                raise RowRejected("no_examples", f"the preset '{self._preset.name}' has none for {pair}")
        for key, template in self._templates.items():
            values[key] = self._render_job_template(key, template, fields)
        return values

    def _fill(self, values: Mapping[str, Any]) -> Prompt:
        if self._turns is not None:
            text: str = values["text"]
            if self._preset.is_chat:
                return [Message(role=role, content=text.join(pieces)) for role, pieces in self._turns]
            return text.join(self._turns[0][1])
        turns = self._preset.turns
        if not self._preset.is_chat:
            return turns[0].template.render(values)
        return [
            Message(role=turn.role, content=turn.template.render(values))
            for turn in turns
            if turn.only_with is None or values[turn.only_with]
        ]

    def _render_job_template(self, key: str, template: Template, fields: Fields) -> str:
        for column in template.needs:
            if column != "row":
                _field(fields, column)
        text = template.render({"row": fields, **fields})
        if text.strip():
            return text
        if key == "system":  # the one that may be left out
            return ""
        raise RowRejected("empty_text", f"prompt.{key} gives nothing but whitespace")

    def _read_language(self, fields: Fields, side: Side, key: str) -> Naming | None:
        if not isinstance(side, Column):
            return side
        word = _field(fields, side.column)
        if word is None and not self._preset.takes[key]:
            return None
        if not isinstance(word, str):
            raise RowRejected("unknown_language", f"column '{side.column}' holds {_kind(word)}, not a language")
        naming = self._preset.namings.find(word)
        if naming is None:
            raise RowRejected("unknown_language", f"column '{side.column}': {self._preset.namings.refusal(word)[0]}")
        return naming


def _job_templates(spec: PromptSpec, faults: list[Fault]) -> dict[str, Template]:
    texts = {key: getattr(spec, key) for key in presets.JOB_TEMPLATES}
    compiled = {key: compile_template(text, f"prompt.{key}", faults) for key, text in texts.items() if text is not None}
    return {key: template for key, template in compiled.items() if template is not None}


def _read_chat_template(spec: PromptSpec, faults: list[Fault]) -> str | None:
    path = spec.chat_template
    if path is None:
        return None
    where = "prompt.chat_template"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(where, f"'{path}' cannot be read: {error}"))
        return None
    fault = check_chat_template(text, f"{where}: '{path}'")
    if fault is not None:
        faults.append(fault)
    return text


def _key_faults(spec: PromptSpec, preset: Preset) -> list[Fault]:
    """Keys that the preset does not take, and required ones that are missing."""
    taken, beside = set(preset.takes), ""
    if preset.text is not None:
        taken.add("text")
    if spec.messages is not None and "messages" in taken:
        taken, beside = {"messages"}, " beside prompt.messages"  # the rows bring whole conversations
    if preset.is_chat:
        taken.add("chat_template")
    given = {key for key in type(spec).model_fields if key != "preset" and getattr(spec, key) not in (None, False)}
    faults = [
        Fault(
            f"prompt.{key}",
            f"the preset '{preset.name}' does not take it{beside}",
            "it takes: " + ", ".join(sorted(taken)),
        )
        for key in sorted(given - taken)
    ]
    instead = ", or prompt.messages instead" if "messages" in preset.takes else ""
    faults += [
        Fault(f"prompt.{key}", "is missing", f"the preset '{preset.name}' needs it{instead}")
        for key, required in preset.takes.items()
        if required and key in taken and key not in given
    ]
    return faults


def _side(given: str | Column | None, key: str, preset: Preset, faults: list[Fault]) -> Side:
    if given is None or isinstance(given, Column) or key not in preset.takes:
        return None if isinstance(given, str) else given
    naming = preset.namings.find(given)
    if naming is None:
        faults.append(Fault(f"prompt.{key}", *preset.namings.refusal(given)))
    return naming


def _example_faults(spec: PromptSpec, preset: Preset, source: Side, target: Side) -> list[Fault]:
    if "examples" not in preset.takes:
        return []
    if isinstance(source, Column) or isinstance(target, Column):
        if not spec.examples:
            return []
        remedy = "fix source_lang and target_lang, or leave the examples out"
        return [
            Fault("prompt.examples", "are of one pair of languages, and the job takes languages from columns", remedy)
        ]
    if spec.examples is None and _pair_values(preset, None, source, target)["examples"] is None:
        pairs = ", ".join(" to ".join(pair) for pair in preset.examples)
        what = f"the preset '{preset.name}' has none for these languages (it has them for {pairs})"
        return [Fault("prompt.examples", what, "give a list of {source, translation}")]
    return []


def _input_columns(
    text: str | None, messages: str | None, sides: tuple[Side, Side], templates: Mapping[str, Template]
) -> frozenset[str]:
    columns = {column for column in (text, messages) if column is not None}
    columns |= {side.column for side in sides if isinstance(side, Column)}
    return frozenset(columns.union(*(template.needs - {"row"} for template in templates.values())))


def _pair_values(preset: Preset, examples: tuple[Example, ...] | None, source: Side, target: Side) -> dict[str, Any]:
    """The variables that two languages decide; null where a language is not told or comes from a column."""
    namings = {"source": source, "target": target}
    values: dict[str, Any] = {}
    for name, side in namings.items():
        known = side if isinstance(side, Naming) else None
        for part in ("name", "tag", "zh"):
            values[f"{name}_{part}"] = None if known is None else getattr(known, part)
    if "examples" in preset.takes:
        if examples is None and isinstance(source, Naming) and isinstance(target, Naming):
            examples = preset.examples.get((source.code, target.code))
        one_line = _one_line if preset.one_line else str
        values["examples"] = (
            None
            if examples is None
            else [
                {"source": one_line(example.source), "translation": one_line(example.translation)}
                for example in examples
            ]
        )
    return values


def _field(fields: Fields, column: str) -> Any:
    if column not in fields:
        raise RowRejected("missing_column", f"the row has no column '{column}'")
    return fields[column]


def _read_text(fields: Fields, column: str) -> str:
    text = fields.get(column)
    if not isinstance(text, str):
        if text is None:
            raise RowRejected("no_text", f"column '{column}' is {'null' if column in fields else 'absent'}")
        raise RowRejected("not_text", f"column '{column}' holds {_kind(text)}, not text")
    if not text or text.isspace():
        raise RowRejected("empty_text", f"column '{column}' is {'only whitespace' if text else 'empty'}")
    return text


def _one_line(text: str) -> str:
    return " ".join(line for line in map(str.strip, text.splitlines()) if line)


def _kind(value: object) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"


def _plain(examples: tuple[Example, ...]) -> list[dict[str, str]]:
    return [{"source": example.source, "translation": example.translation} for example in examples]


def _side_identity(side: Side, preset: Preset) -> object:
    if isinstance(side, Naming):
        return {"name": side.name, "tag": side.tag, "zh": side.zh}
    names = {code: [naming.name, naming.tag, naming.zh] for code, naming in preset.namings.by_code.items()}
    return {"column": None if side is None else side.column, "names_digest": _digest(names)}


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
