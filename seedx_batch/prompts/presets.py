"""Preset files: finding, reading and checking them; the keys are explained in presets/seed-x.yaml.

Must never know a job or a row; a preset is data, and what it says of a model is not known anywhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from seedx_batch import languages, plain_yaml
from seedx_batch.errors import Fault, SpecError
from seedx_batch.prompts.naming import Naming, Namings
from seedx_batch.prompts.sections import Section, closest
from seedx_batch.prompts.templates import Template, compile_template
from seedx_batch.spec import Example

JOB_TEMPLATES = ("system", "user", "template")
"""Keys of a job's prompt that are jinja texts over the row's columns."""

_TAKEN = ("source_lang", "target_lang", "explain", "examples", "messages", *JOB_TEMPLATES)
_KEYS = (
    *("name", "about", "source", "kind", "takes", "text", "languages", "names", "newlines"),
    *("template", "messages", "examples", "stop", "output", "explain"),
)

_VARIABLES = {
    "row": None,
    "text": "text",
    "explain": "explain",
    "examples": "examples",
    **{key: key for key in JOB_TEMPLATES},
    **{f"{side}_{part}": f"{side}_lang" for side in ("source", "target") for part in ("name", "tag", "zh")},
}
"""The variables of a preset's templates, and the key of the job that each comes from."""

_CODES = tuple(language.code for language in languages.LANGUAGES)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, or the whole prompt of a text preset, whose role is empty.

    Args:
        only_with: the job's template without whose text the turn is left out.
    """

    role: str
    template: Template
    only_with: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What becomes of the generated text.

    Args:
        marker: the result ends where this begins.
        rest_column: where what follows the marker goes; None: nowhere.
    """

    column: str
    stop: tuple[str, ...] = ()
    strip: bool = True
    marker: str | None = None
    rest_column: str | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset that was read.

    Args:
        takes: the job's keys that it understands, and whether each is required.
        text: default column of the text; None: rows have none.
        one_line: the lines of a text are joined by spaces.
        examples: worked examples by codes of source and target language.
        explained: what `output` is when the job asks for an explanation.
    """

    name: str
    about: str
    source: str
    is_chat: bool
    takes: Mapping[str, bool]
    text: str | None
    namings: Namings
    one_line: bool
    turns: tuple[Turn, ...]
    examples: Mapping[tuple[str, str], tuple[Example, ...]]
    output: Output
    explained: Output


def preset_names() -> list[str]:
    """The presets that come with the program."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def find(name: str) -> Preset:
    """The preset of a name, or in a yaml file of one's own.

    Raises:
        SpecError: there is none, or it is malformed; with every fault.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(Fault("prompt.preset", f"'{name}' cannot be read: {error}")) from error
        return parse(text, name, Path(name).stem)
    if name not in preset_names():
        remedy = closest(name, preset_names())
        if not remedy.startswith("did"):
            remedy += "; or the path of a .yaml file of your own"
        raise SpecError(Fault("prompt.preset", f"there is no preset '{name}'", remedy))
    return parse(_shipped().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}", name)


def parse(text: str, where: str, default_name: str) -> Preset:
    """The preset in a yaml text; `where` names it in faults.

    Raises:
        SpecError: with every fault that was found.
    """
    tree = plain_yaml.read(text, where)
    faults: list[Fault] = []
    preset = _read(Section(tree, where, faults, _KEYS), default_name)
    if faults:
        raise SpecError(faults)
    return preset


def _read(file: Section, default_name: str) -> Preset:
    name = file.text("name", default_name)
    is_chat = file.choice("kind", ("text", "chat"), None) == "chat"
    takes = file.section("takes", _TAKEN)
    output = _read_output(file, Output(column=""))
    preset = Preset(
        name=name,
        about=file.text("about"),
        source=file.text("source"),
        is_chat=is_chat,
        takes={key: takes.choice(key, ("required", "optional"), None) == "required" for key in takes.tree},
        text=file.text("text") or None,
        namings=Namings(name, _read_namings(file)),
        one_line=file.choice("newlines", ("keep", "space"), "keep") == "space",
        turns=_read_turns(file, is_chat),
        examples=_read_examples(file),
        output=output,
        explained=_read_output(file.section("explain", ("stop", "output")), output),
    )
    _check(file, preset)
    return preset


def _read_turns(file: Section, is_chat: bool) -> tuple[Turn, ...]:
    key, other = ("messages", "template") if is_chat else ("template", "messages")
    if other in file.tree:
        file.fault(other, f"a {'chat' if is_chat else 'text'} preset has '{key}' instead")
    if not is_chat:
        template = compile_template(file.text(key, required=True), f"{file.where}: {key}", file.faults)
        return () if template is None else (Turn("", template),)
    turns = []
    for index, entry in enumerate(file.get(key, list, "a list of {role, content}", [])):
        section = Section(entry, f"{file.where}: {key}[{index}]", file.faults, ("role", "content", "if"))
        role = section.text("role", required=True)
        template = compile_template(section.text("content", required=True), f"{section.where}: content", file.faults)
        only_with = section.choice("if", JOB_TEMPLATES, "") or None
        if template is not None:
            turns.append(Turn(role, template, only_with))
    if not turns:
        file.fault(key, "must be a list of {role, content}")
    return tuple(turns)


def _read_output(file: Section, default: Output) -> Output:
    """The output that a file or its section `explain` declares, and the default for what it does not say."""
    stop = file.texts("stop") if "stop" in file.tree else default.stop
    if "output" not in file.tree:
        if not default.column:
            file.fault("output", "is missing")
        return replace(default, stop=stop)
    output = file.section("output", ("column", "strip", "split"))
    column = output.text("column", required=True)
    marker = rest_column = None
    if output.tree.get("split") is not None:
        split = output.section("split", ("marker", "column"))
        marker, rest_column = split.text("marker", required=True), split.text("column") or None
        if rest_column == column:
            split.fault("column", "is the output's own column")
    return Output(column, stop, output.get("strip", bool, "true or false", True), marker or None, rest_column)


def _read_namings(file: Section) -> list[Naming]:
    """The languages in the file's order, or all that are known; `names` may rename them, and add others."""
    names = file.section("names")
    listed = file.tree.get("languages", "any")
    codes = _CODES if listed == "any" else file.texts("languages")
    namings = []
    for code in dict.fromkeys([*codes, *names.tree]):
        name = names.section(code, ("name", "tag", "zh"))
        known = languages.find(code)
        if known is not None and known.code == code:
            default = Naming(code, known.name, code, known.zh)
        elif name.tree:
            english = name.text("name", required=True)
            default = Naming(code, english, code, english)
        else:
            meant = known.code if known is not None else languages.suggest(code, _CODES)
            remedy = f"did you mean '{meant}'?" if meant else f"say what it is called: names: {{{code}: {{name: ...}}}}"
            file.fault("languages", f"unknown language '{code}'", remedy)
            continue
        namings.append(
            Naming(code, name.text("name", default.name), name.text("tag", default.tag), name.text("zh", default.zh))
        )
    return namings


def _read_examples(file: Section) -> dict[tuple[str, str], tuple[Example, ...]]:
    examples = {}
    by_source = file.section("examples")
    for source in by_source.tree:
        by_target = by_source.section(source)
        for target in by_target.tree:
            found = []
            for index, entry in enumerate(by_target.get(target, list, "a list of {source, translation}", [])):
                where = f"{by_target.where}: {target}[{index}]"
                example = Section(entry, where, file.faults, ("source", "translation"))
                found.append(
                    Example(
                        source=example.text("source", required=True),
                        translation=example.text("translation", required=True),
                    )
                )
            examples[source, target] = tuple(found)
    return examples


def _check(file: Section, preset: Preset) -> None:
    """Faults in what the parts of the file mean together."""
    used = {name for turn in preset.turns for name in turn.template.needs}
    given = set(preset.takes) | ({"text"} if preset.text else set())
    key = "messages" if preset.is_chat else "template"
    for name in sorted(used):
        if name not in _VARIABLES:
            file.fault(key, f"there is no variable '{name}'", closest(name, _VARIABLES))
        elif _VARIABLES[name] is not None and _VARIABLES[name] not in given:
            lack = "has no default column 'text'" if name == "text" else f"does not take '{_VARIABLES[name]}'"
            file.fault(key, f"uses '{name}', but the preset {lack}")
    for name in sorted(given & {"text", "examples", *JOB_TEMPLATES} - used):
        if preset.turns:  # else that is the fault
            file.fault(key, f"never uses '{name}'")
    for turn in preset.turns:
        if turn.only_with is not None and turn.only_with not in preset.takes:
            file.fault(key, f"if: {turn.only_with}: the preset does not take it")
    if "messages" in preset.takes and not preset.is_chat:
        file.fault("takes", "only a chat preset takes 'messages'")
    if "explain" in file.tree and "explain" not in preset.takes:
        file.fault("explain", "is there, but the preset does not take 'explain'")
    for pair in preset.examples:
        for code in pair:
            if code not in preset.namings.by_code:
                file.fault("examples", f"'{code}' is no language of the preset")


def _shipped() -> Any:
    return resources.files("seedx_batch").joinpath("presets")
