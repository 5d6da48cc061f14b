"""A model's tokenizer as its files describe it: the first token that it adds, and the chat template.

The files are read, no tokenizer is loaded; the engine looks at real tokens again when it starts.
"""

import json
from pathlib import Path
from typing import Any

from seedx_batch.doctor.findings import Finding
from seedx_batch.prompts import Prompts

_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
_OBEYS_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that add what tokenizer.json says; others of transformers add by add_bos_token."""


def examine(folder: Path, model: Path, prompts: Prompts) -> list[Finding]:
    """The checks of the tokenizer.

    Args:
        folder: where the tokenizer is.
        model: where the model is; its config has a say.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return [
            Finding(
                "tokenizer", "fault", f"none in {folder}", "tokenizer.json", "copy the model's tokenizer files there"
            )
        ]
    try:
        config = _json(folder / "tokenizer_config.json")
        kind = str(_json(model / "config.json").get("model_type", ""))
        template = prompts.chat_template or _template(folder, config)
        if prompts.is_chat:
            return [_chat_template(template, config, _wants_bos(config, kind))]
        return [_bos(folder, config, _wants_bos(config, kind))]
    except (ValueError, OSError, AttributeError) as error:
        return [Finding("tokenizer", "fault", f"its files cannot be read: {error}", "valid JSON", "fetch them again")]


def _wants_bos(config: dict[str, Any], kind: str) -> bool:
    """As the engine sees it: by the tokenizer's own word, and Gemma whatever it says."""
    return kind.startswith("gemma") or bool(config.get("add_bos_token"))


def _bos(folder: Path, config: dict[str, Any], wanted: bool) -> Finding:
    """Whether a prompt's text gets its first token."""
    if not (folder / "tokenizer.json").is_file():
        return Finding("first token", "note", "there is no tokenizer.json; the engine looks when it starts")
    added = _first_added(_section(folder / "tokenizer.json", "post_processor"))
    bos = _text(config.get("bos_token"))
    if not wanted:
        return Finding("first token", "ok", f"{added} is added" if added else "none is added, and none is wanted")
    if added and added == (bos or added):
        return Finding("first token", "ok", f"{added} is added")
    obeys = config.get("tokenizer_class") in _OBEYS_FILE
    remedy = (
        "let the post_processor in tokenizer.json add it" if obeys else "nothing yet: the engine looks when it starts"
    )
    return Finding(
        "first token",
        "fault" if obeys else "warn",
        f"tokenizer.json adds {added or 'none'}",
        bos or "the first token",
        remedy,
    )


def _chat_template(template: str, config: dict[str, Any], wants_bos: bool) -> Finding:
    if not template:
        remedy = "give prompt.chat_template, or use a preset that is a text, such as raw"
        return Finding("chat template", "fault", "the model has none", "one, as the preset makes messages", remedy)
    bos = _text(config.get("bos_token"))
    if wants_bos and "bos_token" not in template and bos not in template:
        remedy = "begin the template with {{ bos_token }}"
        return Finding("chat template", "warn", f"does not name {bos}, which the model wants first", bos, remedy)
    return Finding("chat template", "ok", f"{len(template):,} characters")


def _template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    given = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template") or ""
    return json.dumps(given) if isinstance(given, list) else str(given)  # a list of named ones


def _first_added(processor: Any) -> str | None:
    """The token that a post-processor puts before a text."""
    if not isinstance(processor, dict):
        return None
    kind = processor.get("type")
    if kind == "Sequence":
        return next((added for part in processor["processors"] if (added := _first_added(part))), None)
    if kind == "TemplateProcessing":
        first = (processor.get("single") or [{}])[0]
        return str(first["SpecialToken"]["id"]) if "SpecialToken" in first else None
    return str(processor["cls"][0]) if kind in ("BertProcessing", "RobertaProcessing") else None


def _section(path: Path, name: str) -> Any:
    """One part of a large JSON file, which is looked up by its first occurrence; quotes in texts are escaped."""
    text = path.read_text(encoding="utf-8")
    before = text.find(f'"{name}"')
    if before < 0:
        return None
    colon = text.index(":", before)
    start = colon + 1 + len(text[colon + 1 : colon + 100]) - len(text[colon + 1 : colon + 100].lstrip())
    return json.JSONDecoder().raw_decode(text, start)[0]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    tree: dict[str, Any] = json.loads(path.read_bytes())
    return tree


def _text(token: Any) -> str:
    """A token as text; older files have an object for it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
