"""Prompts: rows in, exact prompts out, every kind of bad row told apart, and answers cut where the marker is."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seedx_batch.errors import RowRejected
from seedx_batch.languages import SEED_X
from seedx_batch.prompts import Prompts
from seedx_batch.records import Row, RowKey
from seedx_batch.spec import Column, Example, PromptSpec

SEED_X_TARGETS = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nb": "Norwegian Bokmal",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}


def row(**fields: object) -> Row:
    """A row with these columns."""
    return Row(RowKey(0, 0), "r", fields)


def build(**keys: Any) -> Prompts:
    """The prompts of a job's section."""
    return Prompts.build(PromptSpec(**keys))


def seed_x(**keys: Any) -> Prompts:
    """Seed-X, to English unless told otherwise."""
    return build(**{"preset": "seed-x", "target_lang": "en", **keys})


def rejected(prompts: Prompts, fields: dict[str, object]) -> tuple[str, str]:
    """The kind and the whole message of a row's refusal."""
    with pytest.raises(RowRejected) as refusal:
        prompts.render(Row(RowKey(0, 0), "r", fields))
    return refusal.value.kind, str(refusal.value)


@pytest.mark.parametrize(("code", "name"), SEED_X_TARGETS.items())
def test_seed_x_golden(code: str, name: str) -> None:
    """Each of the 28 targets gives the four prompts of Seed-X's README to the letter, the tag last."""
    sentence = row(source="May the force be with you")
    assert seed_x(target_lang=code).render(sentence) == (
        f"Translate the following sentence into {name}:\nMay the force be with you <{code}>"
    )
    assert seed_x(target_lang=code, source_lang="en").render(sentence) == (
        f"Translate the following English sentence into {name}:\nMay the force be with you <{code}>"
    )
    assert seed_x(target_lang=code, explain=True).render(sentence) == (
        f"Translate the following sentence into {name} and explain it in detail:\nMay the force be with you <{code}>"
    )
    assert seed_x(target_lang=code, source_lang="en", explain=True).render(sentence) == (
        f"Translate the following English sentence into {name} and explain it in detail:\n"
        f"May the force be with you <{code}>"
    )


@pytest.mark.parametrize(("code", "name"), SEED_X_TARGETS.items())
def test_seed_x_sources(code: str, name: str) -> None:
    """Each of the 28 languages can be translated from, and is called by its English name."""
    prompt = seed_x(source_lang=code, target_lang="zh").render(row(source="x"))
    assert prompt == f"Translate the following {name} sentence into Chinese:\nx <zh>"


@pytest.mark.parametrize(
    ("word", "tag"), [("Japanese", "ja"), ("日语", "ja"), ("Croatian", "hr"), ("Czech", "cs"), ("Chinese", "zh")]
)
def test_seed_x_tags_that_others_get_wrong(word: str, tag: str) -> None:
    """A language's name gives the tag of that language: Japanese is ja, not ka; Croatian is hr, not cs."""
    prompt = seed_x(target_lang=word).render(row(source="x"))
    assert isinstance(prompt, str)
    assert prompt.endswith(f" <{tag}>")


def test_seed_x_stops() -> None:
    """A translation stops at the marker; an explanation that was asked for does not."""
    plain, explained = seed_x(), seed_x(explain=True)
    assert (plain.stop, plain.text_column, plain.extra_columns) == (("[COT]",), "translation", ())
    assert (explained.stop, explained.text_column, explained.extra_columns) == ((), "translation", ("explanation",))
    assert (plain.is_chat, plain.chat_template, plain.input_columns) == (False, None, frozenset({"source"}))


@pytest.mark.parametrize(
    ("generated", "translation", "explanation"),
    [
        (" 愿原力与你同在\n \n [COT] 这句话…\n很有名。 ", "愿原力与你同在", "这句话…\n很有名。"),
        ("真倒霉！\n\n[COT] 好的", "真倒霉！", "好的"),
        ("[COT] only this", "", "only this"),
        ("a [COT] b [COT] c", "a", "b [COT] c"),
        ("a [COT]", "a", ""),
        (" no marker ", "no marker", None),
        ("a [CO", "a [CO", None),
        ("", "", None),
    ],
)
def test_cutting_at_the_marker(generated: str, translation: str, explanation: str | None) -> None:
    """The translation is what precedes the first marker; the explanation, where wanted, is all that follows it."""
    assert seed_x(explain=True).finish(generated) == (translation, {"explanation": explanation})
    assert seed_x().finish(generated) == (translation, {})


SEED_X_ZH = seed_x(source_lang="en", target_lang="zh")
SEED_X_EXPLAINED = seed_x(explain=True)
CONVERSATIONS = build(preset="chat", messages="m")


@given(st.text(), st.booleans(), st.text())
def test_finish_loses_nothing_before_the_marker(before: str, marked: bool, after: str) -> None:
    """Whatever was generated, all of it that precedes the first marker is the result, but for outer whitespace."""
    whole = before + ("[COT]" if marked else "") + after
    kept = whole[: whole.index("[COT]")] if "[COT]" in whole else whole
    text, extra = SEED_X_EXPLAINED.finish(whole)
    assert text == kept.strip()
    explanation = extra["explanation"]
    assert (explanation is not None) == ("[COT]" in whole)
    assert explanation is None or whole[len(kept) + len("[COT]") :].strip() == explanation


def test_raw_completions_are_kept_as_they_are() -> None:
    """The preset raw does not touch what was generated."""
    assert build(preset="raw", template="{{ a }}").finish(" x [COT] \n") == (" x [COT] \n", {})


@given(st.text().filter(lambda text: bool(text.strip())))
@example("{{ source }}{% if %}{# <en>")
@example("a\r\nb\u2028c\x00 ")
def test_any_text_is_rendered_verbatim(text: str) -> None:
    """No character of a text is changed, jinja in it is not evaluated, and the tag is still last."""
    prompt = SEED_X_ZH.render(row(source=text))
    assert prompt == f"Translate the following English sentence into Chinese:\n{text} <zh>"


@pytest.mark.parametrize("attack", ["{{ 7 * 7 }}", "{% for x in row %}{% endfor %}", "{{ ''.__class__ }}", "{#"])
def test_rows_are_never_templates(attack: str) -> None:
    """Jinja that stands in a row's column is text, in every place that a column can reach."""
    chat = build(preset="chat", system="S {{ a }}", user="{{ a }} {{ row['a'] }}")
    assert chat.render(row(a=attack)) == [
        {"role": "system", "content": f"S {attack}"},
        {"role": "user", "content": f"{attack} {attack}"},
    ]
    assert build(preset="raw", template="<{{ a }}>").render(row(a=attack)) == f"<{attack}>"
    few_shot = build(
        preset="few-shot", source_lang="de", target_lang="fr", examples=[Example(source=attack, translation=attack)]
    )
    assert few_shot.render(row(source=attack)) == (f"German: {attack}\nFrench: {attack}\n\nGerman: {attack}\nFrench:")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ row.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(a) }}",
        "{{ row.update({'a': 1}) }}",
        "{{ row['l'].append(1) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'a' * 10 ** 19 }}",
        "{{ 1 / 0 }}",
        "{{ a + 1 }}",
        "{{ row.nothing }}",
        "{{ none }}",
        "{{ nul }}",
    ],
)
def test_templates_are_confined(template: str) -> None:
    """A template that leaves its sandbox, changes the row, explodes, or writes what is not there fails the row."""
    fields: dict[str, object] = {"a": "x", "l": [], "nul": None}
    kind, told = rejected(build(preset="raw", template=template), fields)
    assert kind == "template"
    assert told.startswith("template: prompt.template: ")
    assert fields == {"a": "x", "l": [], "nul": None}


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({}, "no_text", "column 'source' is absent"),
        ({"source": None}, "no_text", "column 'source' is null"),
        ({"source": ""}, "empty_text", "column 'source' is empty"),
        ({"source": " \n\u3000"}, "empty_text", "column 'source' is only whitespace"),
        ({"source": 5}, "not_text", "column 'source' holds a value of type int, not text"),
        ({"source": ["a"]}, "not_text", "column 'source' holds a value of type list, not text"),
        ({"source": b"a"}, "not_text", "column 'source' holds a value of type bytes, not text"),
    ],
)
def test_bad_texts(fields: dict[str, object], kind: str, told: str) -> None:
    """A row without a usable text is an error of its own kind that names the column."""
    assert rejected(seed_x(), fields) == (kind, f"{kind}: {told}")


def test_languages_from_columns() -> None:
    """Each row has the languages that it names, by code or name; a missing source is left out where it may be."""
    prompts = seed_x(source_lang=Column(column="from"), target_lang=Column(column="to"))
    assert prompts.input_columns == frozenset({"source", "from", "to"})
    assert prompts.languages == ()
    assert prompts.render(row(source="x", **{"from": "Chinese", "to": "no"})) == (
        "Translate the following Chinese sentence into Norwegian:\nx <no>"
    )
    assert prompts.render(row(source="x", **{"from": None, "to": "zh-CN"})) == (
        "Translate the following sentence into Chinese:\nx <zh>"
    )
    fixed = seed_x(source_lang=Column(column="from"), target_lang="de")
    assert fixed.languages == ("de",)
    assert str(fixed.render(row(source="x", **{"from": "fr"}))).endswith("French sentence into German:\nx <de>")


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({"source": "x"}, "missing_column", "the row has no column 'to'"),
        ({"source": "x", "to": None}, "unknown_language", "column 'to' holds null, not a language"),
        ({"source": "x", "to": 5}, "unknown_language", "column 'to' holds a value of type int, not a language"),
        ({"source": "x", "to": "jp"}, "unknown_language", "column 'to': unknown language 'jp'"),
        (
            {"source": "x", "to": "ka"},
            "unknown_language",
            "column 'to': 'ka' (Georgian) is no language of the preset 'seed-x'",
        ),
    ],
)
def test_bad_languages_in_rows(fields: dict[str, object], kind: str, told: str) -> None:
    """A row whose language is missing or unknown is an error, never a prompt with a wrong tag."""
    assert rejected(seed_x(target_lang=Column(column="to")), fields) == (kind, f"{kind}: {told}")


def test_few_shot_with_languages_from_columns() -> None:
    """Rows take the preset's examples for their own pair of languages, and are refused where it has none."""
    prompts = build(preset="few-shot", source_lang=Column(column="from"), target_lang="en")
    assert str(prompts.render(row(source="x", **{"from": "zh"}))).count("Chinese: ") == 6
    assert rejected(prompts, {"source": "x", "from": "de"})[0] == "no_examples"


def test_chat_from_templates() -> None:
    """System and user texts are filled from the row's columns; an empty system text is left out."""
    prompts = build(preset="chat", system="{{ row.get('style') or '' }}", user="{{ n }}: {{ row['two words'] }}\n")
    assert (prompts.is_chat, prompts.text_column, prompts.input_columns) == (True, "response", frozenset({"n"}))
    assert prompts.render(row(n=1, style="Short.", **{"two words": "x"})) == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "1: x\n"},
    ]
    assert prompts.render(row(n=1, **{"two words": "x"})) == [{"role": "user", "content": "1: x\n"}]
    assert prompts.render_empty(row(n=1, **{"two words": "x"})) is None


@pytest.mark.parametrize("key", ["user", "template"])
def test_templates_that_come_out_empty(key: str) -> None:
    """A prompt of nothing but whitespace is an error, as an empty text is."""
    prompts = build(preset={"user": "chat", "template": "raw"}[key], **{key: "{{ a }}\n"})
    assert rejected(prompts, {"a": " "}) == ("empty_text", f"empty_text: prompt.{key} gives nothing but whitespace")
    assert rejected(prompts, {"b": "x"}) == ("missing_column", "missing_column: the row has no column 'a'")
    assert rejected(prompts, {"a": None})[1] == (
        f"template: prompt.{key}: it writes a null value; give it a default, as in {{{{ column or '' }}}}"
    )


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "Go on"}]


@pytest.mark.parametrize("value", [TURNS, json.dumps(TURNS), [{**turn, "name": None} for turn in TURNS]])
def test_messages_from_a_column(value: object) -> None:
    """A conversation, or a JSON text of one, goes to the model as it is."""
    prompts = build(preset="chat", messages="conversation")
    assert prompts.input_columns == frozenset({"conversation"})
    assert prompts.render(row(conversation=value)) == TURNS
    assert prompts.render_empty(row(conversation=value)) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "is null"),
        (5, "holds a value of type int, not a list of {role, content}"),
        ({"role": "user", "content": "x"}, "holds a value of type dict"),
        ("hello", "holds a text that is no JSON"),
        ("", "holds a text that is no JSON"),
        ("[" * 200_000, "holds a text that is no JSON"),
        ("null", "is null"),
        ([], "is an empty list"),
        (["hello"], "turn 1 is no {role, content}"),
        ([{"content": "x"}], "turn 1 has no role"),
        ([{"role": 5, "content": "x"}], "turn 1 has no role"),
        ([TURNS[0], {"role": "user"}], "turn 2 has no content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "turn 1: its content is no text"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "turn 1 has tool_calls, which is not understood"),
        ([{"role": "user", "content": " "}], "has no text in it"),
    ],
)
def test_bad_messages(value: object, told: str) -> None:
    """What is no conversation is an error that says which turn is wrong and how."""
    kind, message = rejected(build(preset="chat", messages="m"), {"m": value})
    assert kind == "bad_messages"
    assert message.startswith(f"bad_messages: column 'm' {told}")


def test_missing_messages() -> None:
    """A row without the column of messages is an error."""
    assert rejected(build(preset="chat", messages="m"), {"x": 1})[0] == "missing_column"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    )
)
def test_any_messages_value_is_a_prompt_or_a_rejected_row(value: object) -> None:
    """Whatever the column holds, the row is rendered or rejected; nothing else is raised."""
    with contextlib.suppress(RowRejected):
        prompt = CONVERSATIONS.render(row(m=value))
        assert all(turn["role"] and isinstance(turn["content"], str) for turn in prompt if isinstance(turn, dict))


def test_raw() -> None:
    """The prompt is the job's template and nothing else, with its last newline."""
    prompts = build(preset="raw", template="Q: {{ q }}\n{% if row.get('hint') %}({{ row.hint }})\n{% endif %}A:\n")
    assert (prompts.is_chat, prompts.text_column, prompts.input_columns) == (False, "completion", frozenset({"q"}))
    assert prompts.render(row(q="why?")) == "Q: why?\nA:\n"
    assert prompts.render(row(q="why?", hint="h")) == "Q: why?\n(h)\nA:\n"
    assert prompts.render_empty(row(q="why?")) is None


def test_render_empty() -> None:
    """The frame around an empty text is what the prompt has beside its text."""
    prompts = seed_x(source_lang="zh")
    assert prompts.render_empty(row(source="你好")) == "Translate the following Chinese sentence into English:\n <en>"
    assert prompts.render_empty(row()) == prompts.render_empty(row(source="x"))


def test_every_seed_x_language_is_in_the_goldens() -> None:
    """The golden prompts above cover the whole table."""
    assert list(SEED_X_TARGETS) == [language.code for language in SEED_X]
