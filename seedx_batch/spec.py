"""The job: what job.yaml may say, read into frozen pydantic models with every fault found at once.

Knows the yaml and nothing else: no other file, no engine, not whether a preset or a column exists.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML

from seedx_batch import plain_yaml
from seedx_batch.errors import Fault, SpecError

RESULT_SECTIONS = ("input", "prompt", "model", "decoding", "output")
"""The sections that decide what a row's result is: a change in one of them refuses a resume."""

_MODEL_KEYS = {
    "model": "name",
    "tokenizer": "tokenizer",
    "revision": "revision",
    "tokenizer_revision": "tokenizer_revision",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "quantization": "quantization",
    "hf_overrides": "hf_overrides",
    "trust_remote_code": "trust_remote_code",
}
"""Keys of vLLM's EngineArgs that decide results, and what a job calls them in its section `model`."""


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def _is_name(value: Any) -> Any:
    text = str(value)
    if not text or text != text.strip() or _CONTROL.search(text):
        raise ValueError("must be a name: not empty, without control characters, and without blanks around it")
    return value


def _is_path(value: Any) -> Any:
    if not str(value) or "\0" in str(value):
        raise ValueError("must be a path: not empty, and without NUL")
    return value


Name = Annotated[str, AfterValidator(_is_name)]
"""Of a column of the output."""
PathText = Annotated[str, AfterValidator(_is_path)]
FilePath = Annotated[Path, AfterValidator(_is_path)]


class Section(BaseModel):
    """A part of a job: frozen, and a key that it does not have is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=False)


class Column(Section):
    """A value that comes from a column of the row: `{column: lang}`."""

    column: str


class InputSpec(Section):
    """Where the rows come from."""

    path: PathText | list[PathText] = Field(description="A file, a glob or a folder, or a list of them.")
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv"] = Field("auto", description="auto: by the file's name.")
    id: str | None = Field(
        None, description="Column that names a row; default: `id` if there is one, else file and row number."
    )
    columns: list[str] | dict[Name, str] | None = Field(
        None,
        description="Columns to carry to the output: a list, or {output name: input name}; default: all.",
    )
    limit: int | None = Field(None, ge=1, description="Only the first so many rows.")


class Example(Section):
    """One worked example of a few-shot prompt."""

    source: str
    translation: str


class PromptSpec(Section):
    """How a row becomes a prompt."""

    preset: PathText = Field(description="seed-x, few-shot, chat, raw, ... or the path of a preset file of your own.")
    text: str | None = Field(None, description="Column that holds the text; default: the preset's.")
    source_lang: str | Column | None = Field(None, description="Language code, or {column: name}.")
    target_lang: str | Column | None = Field(None, description="Language code, or {column: name}.")
    explain: bool = Field(
        False,
        description="Ask for an explanation too (seed-x: chain of thought), kept in a column of its own.",
    )
    examples: list[Example] | None = Field(
        None, description="few-shot: worked examples; default: the preset's for the languages."
    )
    messages: str | None = Field(None, description="chat: column with a list of {role, content}.")
    system: str | None = Field(None, description="chat: system text, a jinja template over the row's columns.")
    user: str | None = Field(None, description="chat: user text, a jinja template over the row's columns.")
    template: str | None = Field(None, description="raw: the whole prompt, a jinja template over the row's columns.")
    chat_template: FilePath | None = Field(
        None, description="A jinja file that replaces the model's own chat template."
    )


class ModelSpec(Section):
    """Which model, and how its weights are read."""

    name: PathText = Field(
        description="A hub name, a folder, `package:NAME`, or `simulated` for a rehearsal without a model."
    )
    tokenizer: PathText | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = Field(None, ge=2, description="Prompt and output together, in tokens.")
    quantization: str | None = None
    hf_overrides: dict[str, Any] | None = None
    trust_remote_code: bool = False


class MaxTokens(Section):
    """A budget of output tokens for each row: `min(max, ratio * source tokens + plus)`, or a column's value."""

    max: int = Field(ge=1, description="Never more than this.")
    ratio: float | None = Field(None, gt=0, description="Output tokens allowed for each token of the source text.")
    plus: int = Field(0, ge=0, description="Output tokens allowed beside the ratio.")
    column: str | None = Field(None, description="Column that holds the row's own budget; null there means `max`.")

    @model_validator(mode="after")
    def _one_rule(self) -> "MaxTokens":
        if self.column is not None and self.ratio is not None:
            raise ValueError("`column` and `ratio` are two rules; give one")
        return self


class StructuredOutputs(Section):
    """What the output must match (vLLM's StructuredOutputsParams); exactly one of them."""

    json_schema: dict[str, Any] | None = Field(None, alias="json", description="A JSON Schema.")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of json, regex, choice, grammar")
        return self


class RepetitionDetection(Section):
    """Ends a row whose output repeats itself (vLLM's RepetitionDetectionParams)."""

    max_pattern_size: int = Field(ge=0)
    min_pattern_size: int = Field(0, ge=0)
    min_count: int = Field(0, ge=0)


def _as_budget(value: object) -> object:
    return {"max": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class SampleDecoding(Section):
    """vLLM's SamplingParams under vLLM's names; greedy unless the temperature is raised."""

    method: Literal["sample"] = "sample"
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1, description="Texts for each row; more than one go to the column `candidates`.")
    max_tokens: MaxTokens = Field(MaxTokens(max=512), description="A number, or {max, ratio, plus}, or {max, column}.")
    min_tokens: int = Field(0, ge=0)
    stop: list[str] = Field([], description="Beside the preset's own stop strings.")
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    repetition_penalty: float = Field(1.0, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    bad_words: list[str] = []
    logprobs: int | None = Field(None, ge=0, description="Any number gives every candidate its score.")
    repetition_detection: RepetitionDetection | None = None
    structured_outputs: StructuredOutputs | None = None
    seed: int = Field(0, ge=0, description="The job's seed; every row's own is made from it and the row's id.")
    dedup: bool | None = Field(None, description="Answer identical requests once; default: only for greedy decoding.")

    _budget = field_validator("max_tokens", mode="before")(_as_budget)
    _stops = field_validator("stop", mode="before")(_as_list)

    @model_validator(mode="after")
    def _consistent(self) -> "SampleDecoding":
        if self.greedy and self.n > 1:
            raise ValueError("n > 1 with temperature 0 gives the same text n times; raise temperature")
        if self.min_tokens > self.max_tokens.max:
            raise ValueError("min_tokens is more than max_tokens allows")
        return self

    @property
    def greedy(self) -> bool:
        """Whether the same prompt always asks for the same text."""
        return self.temperature == 0

    @property
    def merges(self) -> bool:
        """Whether identical requests are answered once."""
        return self.greedy if self.dedup is None else self.dedup


class BeamDecoding(Section):
    """Beam search in the words, and with the meaning, of transformers' `generate(num_beams=...)`."""

    method: Literal["beam"]
    beam_width: int = Field(4, ge=1, le=64, description="Hypotheses that go on at the same time (num_beams).")
    max_tokens: MaxTokens = Field(MaxTokens(max=512), description="A number, or {max, ratio, plus}, or {max, column}.")
    length_penalty: float = Field(1.0, description="A score is the log-probability divided by length ** this.")
    length_normalizer: Literal["output", "sequence"] = Field(
        "output",
        description="Which length: output, as transformers; sequence, prompt and output, as vLLM's LLM.beam_search.",
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="A row ends with beam_width ended hypotheses: true, at once; false, when the best live one scores "
        "no better at its length now; never, when none can at any length.",
    )
    num_return: int = Field(1, ge=1, description="The best so many go to the column `candidates`.")
    stop: list[str] = Field([], description="Beside the preset's own stop strings.")
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    dedup: bool = Field(True, description="Answer identical requests once.")

    _budget = field_validator("max_tokens", mode="before")(_as_budget)
    _stops = field_validator("stop", mode="before")(_as_list)

    @model_validator(mode="after")
    def _consistent(self) -> "BeamDecoding":
        if self.num_return > self.beam_width:
            raise ValueError("num_return is more than beam_width; there are no more hypotheses")
        return self

    @property
    def counts_prompt(self) -> bool:
        """Whether hypotheses are ranked and ended as `LLM.beam_search` does, which counts the prompt's tokens too."""
        return self.length_normalizer == "sequence"

    @property
    def merges(self) -> bool:
        """Whether identical requests are answered once."""
        return self.dedup


class OutputSpec(Section):
    """What the parts look like."""

    rows_per_shard: int = Field(5000, ge=1, le=10_000_000)
    column: Name | None = Field(None, description="Name of the text column; default: the preset's.")


class EngineSpec(BaseModel):
    """Where and how the engine runs: `platform`, and any key of vLLM's EngineArgs."""

    model_config = ConfigDict(extra="allow", frozen=True)

    platform: Literal["auto", "ascend", "cpu", "cuda"] = "auto"
    max_num_seqs: int | None = Field(None, ge=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """What was given of vLLM's EngineArgs; null is vLLM's own default rather than the platform's."""
        return self.model_dump(exclude={"platform"}, exclude_unset=True)


class ExecutorSpec(Section):
    """Who starts the workers, and how they save and stop."""

    kind: Literal["local"] = "local"
    checkpoint_s: float = Field(2.0, gt=0, description="Finished rows are on disk after at most so many seconds.")
    grace_s: float = Field(20.0, ge=1, description="A stop signal is obeyed within so many seconds.")
    stall_s: float = Field(600.0, gt=0, description="An engine that is silent in a step for so many seconds is dead.")
    max_engine_restarts: int = Field(
        12, ge=0, description="Starts after deaths of the engine, at most, without one more row at its end."
    )
    max_error_rate: float | None = Field(
        0.05, ge=0, le=1, description="Stop when a larger share of the rows fails, of 200 or more; null: never."
    )


def _method_of(value: object) -> str:
    method = value.get("method", "sample") if isinstance(value, Mapping) else getattr(value, "method", "sample")
    return str(method)


Decoding = Annotated[
    Annotated[SampleDecoding, Tag("sample")] | Annotated[BeamDecoding, Tag("beam")], Discriminator(_method_of)
]


class JobSpec(Section):
    """A job: rows in, prompts, a model, decoding, parts out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    run_dir: FilePath | None = Field(None, description="Default: runs/NAME.")
    input: InputSpec
    prompt: PromptSpec
    model: ModelSpec
    decoding: Decoding = SampleDecoding()
    output: OutputSpec = OutputSpec()
    engine: EngineSpec = EngineSpec()
    executor: ExecutorSpec = ExecutorSpec()

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / self.name

    def results(self) -> dict[str, Any]:
        """The sections that decide the results, with defaults filled in, as JSON values."""
        return self.model_dump(mode="json", include=set(RESULT_SECTIONS), by_alias=True)

    def to_yaml(self) -> str:
        """The job as it was asked for, so that `parse` gives it back."""
        return as_yaml(given(self))


def given(job: JobSpec) -> dict[str, Any]:
    """What a job was asked for, without defaults, as JSON values."""
    return job.model_dump(mode="json", exclude_unset=True, by_alias=True)


def as_yaml(tree: Mapping[str, Any]) -> str:
    """JSON values as the text of a job."""
    text = StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # told as None
    # The writer leaves such signs as they are, and the reader takes them for ends of lines.
    writer.allow_unicode = not _LINE_ENDS.search(json.dumps(tree, ensure_ascii=False))
    writer.width = 120
    writer.dump(tree, text)
    return text.getvalue()


def load(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in a yaml file, with `section.key=value` overrides applied.

    Raises:
        SpecError: with every fault that was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(Fault(str(path), f"cannot be read: {error}")) from error
    return parse(text, str(path), overrides)


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in a yaml text; `where` names it in faults.

    Raises:
        SpecError: with every fault that was found.
    """
    tree = plain_yaml.read(text, where)
    if not isinstance(tree, dict):
        raise SpecError(Fault(where, "holds no mapping", "see jobs/quickstart.yaml for the form"))
    for override in overrides:
        _apply(override, tree)
    faults = _engine_faults(tree.get("engine"), where)
    try:
        job = JobSpec.model_validate(tree)
    except ValidationError as error:
        found = [_fault(entry, tree, where) for entry in error.errors(include_url=False)]
        faults += {fault.where: fault for fault in reversed(found)}.values()  # a union's members fault one place each
    if faults:
        raise SpecError(faults)
    return job


def schema() -> dict[str, Any]:
    """The JSON Schema of a job."""
    tree = JobSpec.model_json_schema(by_alias=True)
    engine = tree["$defs"]["EngineSpec"]
    for name, versions in _engine_arguments().items():
        if name not in _MODEL_KEYS:
            engine["properties"].setdefault(name, {"description": f"vLLM EngineArgs ({', '.join(versions)})"})
    engine["additionalProperties"] = False
    return tree


def _apply(override: str, tree: dict[str, Any]) -> None:
    name, equals, text = override.partition("=")
    where = f"--set {name}"  # the value may be a secret
    if not equals or not re.fullmatch(r"[A-Za-z_][\w]*(\.[\w-]+)*", name):
        raise SpecError(Fault(where, "is not of the form section.key=value"))
    *sections, key = name.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise SpecError(Fault(where, f"'{section}' is no section"))
        tree = branch
    tree[key] = plain_yaml.read(text, where, key)


def _engine_arguments() -> dict[str, list[str]]:
    text = resources.files("seedx_batch").joinpath("engine_args.json").read_text(encoding="utf-8")
    known: dict[str, list[str]] = json.loads(text)
    return known


def _engine_faults(section: object, where: str) -> list[Fault]:
    if not isinstance(section, dict):
        return []
    known = set(_engine_arguments())
    faults = []
    for key in section:
        place = f"{where}: engine.{key}"
        if key in _MODEL_KEYS:
            faults.append(Fault(place, "decides the results", f"write it as model.{_MODEL_KEYS[key]}"))
        elif key != "platform" and key not in known:
            faults.append(Fault(place, "no such key", _suggest(str(key), known | {"platform"})))
    return faults


def _suggest(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(sorted(known)[:30])


def _fault(entry: Any, tree: object, where: str) -> Fault:
    steps = _steps(entry["loc"], tree)
    place = f"{where}: " + (".".join(map(str, steps)) or "the job")
    kind, message = entry["type"], str(entry["msg"])
    if kind == "extra_forbidden":
        return Fault(place, "no such key", _suggest(str(steps[-1]), _siblings(steps)))
    if kind == "missing":
        return Fault(place, "is missing")
    if kind == "union_tag_invalid":
        return Fault(f"{place}.method", "no such method", "known: sample, beam")
    what = message.removeprefix("Value error, ")
    given = entry.get("input")
    shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return Fault(place, what[:1].lower() + what[1:] + shown)


def _steps(loc: Sequence[str | int], tree: object) -> list[str | int]:
    """The path of a fault without the names that pydantic adds for the members of unions."""
    steps: list[str | int] = []
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(tree, Mapping):
            if step in tree:
                tree = tree[step]
            elif not last or step in ("sample", "beam"):
                continue
        elif isinstance(tree, list) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
        else:
            continue
        steps.append(step)
    return steps


def _siblings(steps: Sequence[str | int]) -> set[str]:
    """The keys that the section around a path knows."""
    model: Any = JobSpec
    for step in steps[:-1]:
        if isinstance(step, int):
            continue
        members = [model.model_fields[step].annotation] if step in model.model_fields else []
        found = [section for member in members for section in _sections_in(member)]
        if not found:
            return set()
        model = found[0]
    return {field.alias or name for name, field in model.model_fields.items()}


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in _sections_in(part)]
