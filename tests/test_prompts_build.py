"""Prompts as a job asks for them: every fault of its section told at once, its chat template read, its identity."""

import json
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.errors import SpecError
from seedx_batch.prompts import Prompts
from seedx_batch.spec import PromptSpec


def build(**keys: Any) -> Prompts:
    """The prompts of a job's section."""
    return Prompts.build(PromptSpec(**keys))


def seed_x(**keys: Any) -> Prompts:
    """Seed-X, to English unless told otherwise."""
    return build(**{"preset": "seed-x", "target_lang": "en", **keys})


def refused(**keys: Any) -> list[str]:
    """The lines of a job's refusal."""
    with pytest.raises(SpecError) as refusal:
        build(**keys)
    return str(refusal.value).splitlines()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("ka", "'ka' (Georgian) is no language of the preset 'seed-x', it has: ar, cs, da"),
        ("jp", "unknown language 'jp', did you mean 'ja' (Japanese)?"),
        ("el", "'el' (Greek) is no language of the preset 'seed-x'"),
        ("zh-TW", "'zh-TW' (Traditional Chinese) is no language of the preset 'seed-x'"),
        ("<zh>", "unknown language '<zh>', it has: ar, cs"),
    ],
)
def test_seed_x_refuses_other_languages(target: str, told: str) -> None:
    """A tag that Seed-X never saw stops the job before it starts."""
    assert any(line.startswith(f"prompt.target_lang: {told}") for line in refused(preset="seed-x", target_lang=target))


NOT_TAKEN = "the preset 'seed-x' does not take it, it takes: explain, source_lang, target_lang, text"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"preset": "seed-x"}, ["prompt.target_lang: is missing, the preset 'seed-x' needs it"]),
        (
            {"preset": "seed-x", "target_lang": "zh", "template": "{{ a }}"},
            [f"prompt.template: {NOT_TAKEN}"],
        ),
        (
            {"preset": "chat"},
            ["prompt.user: is missing, the preset 'chat' needs it, or prompt.messages instead"],
        ),
        (
            {"preset": "chat", "messages": "m", "system": "s", "user": "u"},
            [
                "prompt.system: the preset 'chat' does not take it beside prompt.messages, it takes: "
                "chat_template, messages",
                "prompt.user: the preset 'chat' does not take it beside prompt.messages, it takes: "
                "chat_template, messages",
            ],
        ),
        (
            {"preset": "raw", "text": "t", "explain": True},
            [
                "prompt.explain: the preset 'raw' does not take it, it takes: template",
                "prompt.text: the preset 'raw' does not take it, it takes: template",
                "prompt.template: is missing, the preset 'raw' needs it",
            ],
        ),
        (
            {"preset": "chat", "system": "{{ a", "user": "x\n{% if %}"},
            [
                "prompt.system: is no valid jinja: line 1: unexpected end of template, expected 'end of print "
                "statement'.",
                "prompt.user: is no valid jinja: line 2: Expected an expression, got 'end of statement block'",
            ],
        ),
        (
            {"preset": "raw", "template": "{% import 'x' as y %}"},
            ["prompt.template: is no valid jinja: line 1: it reads another template, which cannot be done here"],
        ),
        (
            {"preset": "few-shot", "source_lang": "de", "target_lang": "qq", "user": "{{"},
            [
                "prompt.user: is no valid jinja: line 1: unexpected 'end of template'",
                "prompt.user: the preset 'few-shot' does not take it, it takes: examples, source_lang, target_lang, "
                "text",
            ],
        ),
        (
            {"preset": "nosuch", "system": "{{ 1 | what }}"},
            ["prompt.system: is no valid jinja: line 1: No filter named 'what'."],
        ),
    ],
)
def test_faults_of_a_job(keys: dict[str, Any], told: list[str]) -> None:
    """Every fault of the section is told at once: keys that are not taken, that are missing, that cannot be read."""
    lines = refused(**keys)
    assert [line for line in lines if line in told] == told


def test_faults_are_all_told_and_no_more() -> None:
    """Two wrong languages and a foreign key are three lines."""
    lines = refused(preset="seed-x", source_lang="jp", target_lang="ka", messages="m")
    assert sorted(line.split(":")[0] for line in lines) == [
        "prompt.messages",
        "prompt.source_lang",
        "prompt.target_lang",
    ]


def test_chat_template_file(tmp_path: Path) -> None:
    """A chat template is read whole, with the words that chat templates may have, and not rendered."""
    path = tmp_path / "chat.jinja"
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}\n"
    path.write_text(text, encoding="utf-8")
    assert build(preset="chat", user="{{ a }}", chat_template=path).chat_template == text
    assert build(preset="chat", messages="m", chat_template=path).chat_template == text
    assert build(preset="hunyuan-mt", source_lang="zh", target_lang="en", chat_template=path).chat_template == text
    assert refused(preset="seed-x", target_lang="en", chat_template=path) == [f"prompt.chat_template: {NOT_TAKEN}"]


def test_chat_template_faults(tmp_path: Path) -> None:
    """A chat template that is missing, in another encoding or no jinja is told with its path, and its line."""
    missing, latin, broken = (tmp_path / name for name in ("none.jinja", "latin.jinja", "broken.jinja"))
    latin.write_bytes(b"\xe9")
    broken.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}", encoding="utf-8")
    for path in (missing, latin):
        (line,) = refused(preset="chat", user="u", chat_template=path)
        assert line.startswith(f"prompt.chat_template: '{path}' cannot be read: ")
    (line,) = refused(preset="chat", user="u", chat_template=broken)
    assert line.startswith(f"prompt.chat_template: '{broken}': is no valid jinja: line 2: ")


def test_languages_for_the_card() -> None:
    """The codes that are known before a row is read, source first, each once."""
    assert seed_x(source_lang="Chinese").languages == ("zh", "en")
    assert seed_x().languages == ("en",)
    assert build(preset="raw", template="x").languages == ()


IDENTITIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"target_lang": "en"}, {"target_lang": "de"}),
    ({"target_lang": "en"}, {"target_lang": "en", "source_lang": "zh"}),
    ({"target_lang": "en"}, {"target_lang": "en", "explain": True}),
    ({"target_lang": "en"}, {"target_lang": {"column": "to"}}),
    ({"preset": "few-shot", "source_lang": "zh"}, {"preset": "few-shot", "source_lang": "zh", "examples": []}),
]


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_identity_tells_prompts_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    """What gives other prompts or cuts answers elsewhere has another identity; the same job has the same."""
    assert seed_x(**one).identity() == seed_x(**one).identity()
    assert seed_x(**one).identity() != seed_x(**other).identity()


def test_identity_is_json_and_holds_the_template(tmp_path: Path) -> None:
    """The identity survives JSON, shows the texts, and follows the content of the chat template."""
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    first = build(preset="chat", user="{{ a }}", chat_template=path).identity()
    assert json.loads(json.dumps(first)) == first
    assert "{{ messages }}" in json.dumps(first)
    path.write_text("{{ messages }} ", encoding="utf-8")
    assert build(preset="chat", user="{{ a }}", chat_template=path).identity() != first
    assert "Translate the following" in json.dumps(seed_x().identity())


MINE = "name: a\nabout: b\nsource: c\nkind: text\ntext: t\ntemplate: '{{ text }}'\noutput: {column: o}\n"


@pytest.mark.parametrize("one_word", ["about: ", "source: ", "name: "])
def test_identity_leaves_out_what_decides_nothing(one_word: str, tmp_path: Path) -> None:
    """Another description of a preset does not make finished rows worthless."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    before = build(preset=str(path)).identity()
    path.write_text(MINE.replace(one_word, f"{one_word}x"), encoding="utf-8")
    assert build(preset=str(path)).identity() == before


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("'{{ text }}'", "'{{ text }}.'"),
        ("text: t", "text: u"),
        ("kind:", "newlines: space\nkind:"),
        ("kind:", "stop: [x]\nkind:"),
        ("{column: o}", "{column: o, strip: false}"),
        ("{column: o}", "{column: o, split: {marker: x}}"),
    ],
)
def test_identity_follows_a_preset_file(was: str, now: str, tmp_path: Path) -> None:
    """A change in a preset file that gives other prompts or other answers is another identity."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    before = build(preset=str(path)).identity()
    assert was in MINE
    path.write_text(MINE.replace(was, now), encoding="utf-8")
    assert build(preset=str(path)).identity() != before
