"""The first token and the chat template, told from a tokenizer's files as the engine will see them."""

import json
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.doctor import Finding, tokenizer
from seedx_batch.prompts import Prompts
from seedx_batch.spec import PromptSpec
from tests.tiny_models import CHAT_TEMPLATE

TEXT = Prompts.build(PromptSpec(preset="seed-x", target_lang="en"))
CHAT = Prompts.build(PromptSpec(preset="chat", user="{{ prompt }}"))
ADDS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
NOTHING = {"type": "ByteLevel", "add_prefix_space": True}


def write(folder: Path, processor: Any, model_type: str = "mistral", **config: Any) -> Path:
    """The files of a tokenizer, whose vocabulary holds a word that looks like a key."""
    tree = {
        "added_tokens": [{"content": '"post_processor": {}'}],
        "post_processor": processor,
        "model": {"vocab": {"post_processor": 7}},
    }
    described = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>"} | config
    for name, value in (
        ("tokenizer.json", tree),
        ("tokenizer_config.json", described),
        ("config.json", {"model_type": model_type}),
    ):
        (folder / name).write_text(json.dumps(value, indent=1))
    return folder


def look(folder: Path, prompts: Prompts) -> Finding:
    """The one finding."""
    (finding,) = tokenizer.examine(folder, folder, prompts)
    return finding


@pytest.mark.parametrize(
    ("processor", "model_type", "config", "state"),
    [
        (ADDS, "mistral", {"add_bos_token": True}, "ok"),
        (ADDS, "mistral", {"add_bos_token": True, "bos_token": {"content": "<s>"}}, "ok"),
        ({"type": "Sequence", "processors": [NOTHING, ADDS]}, "mistral", {"add_bos_token": True}, "ok"),
        ({"type": "RobertaProcessing", "cls": ["<s>", 1]}, "mistral", {"add_bos_token": True}, "ok"),
        (None, "mistral", {}, "ok"),
        (NOTHING, "qwen2", {"add_bos_token": False}, "ok"),
        # A class of transformers that adds by the flag whatever the file says: only the engine can tell.
        (None, "mistral", {"add_bos_token": True}, "warn"),
        (None, "mistral", {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}, "fault"),
        (NOTHING, "gemma3_text", {"tokenizer_class": "PreTrainedTokenizerFast"}, "fault"),
        (ADDS, "gemma3_text", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>"}, "fault"),
    ],
)
def test_first_token(tmp_path: Path, processor: Any, model_type: str, config: dict[str, Any], state: str) -> None:
    """Where the model wants its first token before a text, the tokenizer must add that one."""
    finding = look(write(tmp_path, processor, model_type, **config), TEXT)
    assert (finding.name, finding.state) == ("first token", state)


@pytest.mark.parametrize(
    ("template", "config", "state"),
    [
        ("", {}, "fault"),
        (CHAT_TEMPLATE, {}, "ok"),
        ("{{ bos_token }}{% for m in messages %}", {"add_bos_token": True}, "ok"),
        ("<s>{% for m in messages %}", {"add_bos_token": True}, "ok"),
        ("{% for m in messages %}", {"add_bos_token": True}, "warn"),
    ],
)
def test_chat_template(tmp_path: Path, template: str, config: dict[str, Any], state: str) -> None:
    """A preset that makes messages needs a template, wherever it lies; one that makes a text needs none."""
    write(tmp_path, ADDS, **config)
    assert look(tmp_path, TEXT).name == "first token"
    if not template:
        assert look(tmp_path, CHAT).state == state
        return
    for name, text in (
        ("tokenizer_config.json", json.dumps({"bos_token": "<s>", "chat_template": template} | config)),
        ("chat_template.jinja", template),
        ("chat_template.json", json.dumps({"chat_template": template})),
    ):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (write(folder, ADDS, **config) / name).write_text(text)
        finding = look(folder, CHAT)
        assert (finding.name, finding.state) == ("chat template", state)


def test_the_jobs_own_template_counts(tmp_path: Path) -> None:
    """A template that the job gives replaces one that is missing."""
    (tmp_path / "mine.jinja").write_text(CHAT_TEMPLATE)
    prompts = Prompts.build(PromptSpec(preset="chat", user="{{ prompt }}", chat_template=tmp_path / "mine.jinja"))
    assert look(write(tmp_path, ADDS), prompts).state == "ok"


def test_no_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    """A folder without a tokenizer, and files that are no JSON, are faults; sentencepiece's is left to the engine."""
    assert look(tmp_path, TEXT).state == "fault"
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    assert look(tmp_path, TEXT).state == "note"
    write(tmp_path, ADDS, add_bos_token=True)
    (tmp_path / "tokenizer.json").write_text('{"post_processor": {"type"')
    assert look(tmp_path, TEXT).state == "fault"
