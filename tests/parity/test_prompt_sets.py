"""Prompt sets: those that come with the program, and files of one's own."""

import json
from pathlib import Path

import pytest

from seedx_batch.errors import InputError
from seedx_batch.parity import prompt_sets
from seedx_batch.spec import PromptSpec


def test_the_cards_prompts() -> None:
    """The card's four inputs are there, word for word."""
    prompts = {one.name: one.prompt for one in prompt_sets.load("card").prompts}
    assert prompts == {
        "continuation": "Hello, my name is",
        "fact": "The capital of France is",
        "arithmetic": "If x = 5, then 2x + 3 =",
        "chinese": "请用三句话介绍人工智能",
    }


def test_translations_as_seed_x_was_trained_on_them() -> None:
    """The translation set is rendered by the preset seed-x, and by the job's own where there is a job."""
    texts = [one.prompt for one in prompt_sets.load("translation").prompts]
    assert len(texts) == 8
    assert texts[0] == (
        "Translate the following Chinese sentence into English:\n周末打算带孩子去动物园，顺便在附近野餐。 <en>"
    )
    job = PromptSpec(preset="few-shot", source_lang="zh", target_lang="en")
    assert str(prompt_sets.load("translation", job).prompts[0].prompt).endswith("\nEnglish:")


def test_files_of_ones_own(tmp_path: Path) -> None:
    """Texts and messages, in YAML, JSON and JSON lines, named or numbered."""
    messages = [{"role": "user", "content": "Hi"}]
    (tmp_path / "a.yaml").write_text("prompts: [One, {name: two, prompt: Two}]")
    (tmp_path / "b.json").write_text(json.dumps(["One", {"messages": messages}]))
    (tmp_path / "c.jsonl").write_text('{"prompt": "One"}\n\n{"id": "two", "prompt": "Two"}\n')
    found = {name: prompt_sets.load(str(tmp_path / name)) for name in ("a.yaml", "b.json", "c.jsonl")}
    assert [(one.name, one.prompt) for one in found["a.yaml"].prompts] == [("1", "One"), ("two", "Two")]
    assert [(one.name, one.prompt) for one in found["b.json"].prompts] == [("1", "One"), ("2", messages)]
    assert found["c.jsonl"].mark == found["a.yaml"].mark != found["b.json"].mark


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompts: []", "holds no `prompts`"),
        ("prompts: [{name: x}]", "number 1: no text"),
        ("prompts: [", "cannot be read"),
        ("{prompt: {preset: seed-x, target_lang: en}, rows: [{name: x}]}", "row 1: no_text"),
        ("{prompt: {presett: seed-x}, rows: [{name: x}]}", "no usable section"),
    ],
)
def test_what_is_no_set_is_told(tmp_path: Path, text: str, told: str) -> None:
    """A set that cannot be read says where and why."""
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(InputError, match=told):
        prompt_sets.load(str(tmp_path / "set.yaml"))


def test_an_unknown_set_names_the_known_ones() -> None:
    """A name that is neither a set nor a file is told with the sets that there are."""
    with pytest.raises(InputError, match="card, translation"):
        prompt_sets.load("cards")
