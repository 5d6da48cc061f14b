"""Preset files: what the shipped ones say, what one of one's own may say, and how faults in it are told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seedx_batch.errors import SpecError
from seedx_batch.languages import LANGUAGES, SEED_X
from seedx_batch.prompts import Prompts, preset_names, presets
from seedx_batch.records import Row, RowKey
from seedx_batch.spec import Column, Example, PromptSpec

SIDES = ("source_lang", "target_lang")
OUTPUT = "explain: {}\noutput: {column: translation}\n"
PRESETS = Path(presets.__file__).parent.parent / "presets"


def row(**fields: object) -> Row:
    """A row with these columns."""
    return Row(RowKey(0, 0), "r", fields)


def own(folder: Path, text: str) -> str:
    """The path of a preset file with this text."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(text: str, folder: Path) -> list[str]:
    """The lines of the refusal of a preset file, without the path."""
    path = own(folder, text)
    with pytest.raises(SpecError) as refusal:
        presets.find(path)
    return [line.removeprefix(f"{path}: ") for line in str(refusal.value).splitlines()]


@pytest.mark.parametrize("name", preset_names())
def test_shipped_presets_are_whole(name: str) -> None:
    """Every preset that ships can be read, bears its file's name, and says what it is for and where that is written."""
    preset = presets.find(name)
    assert preset.name == name
    assert preset.about
    assert preset.source
    assert "\n" not in preset.about


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"chat", "raw"}))
@pytest.mark.parametrize("pair", [("zh", "en"), ("en", "zh")])
def test_cut_prompts_are_the_same(name: str, pair: tuple[str, str]) -> None:
    """A prompt that is put together from its pieces is the one that the templates give, to the letter."""
    source, target = (None if key not in presets.find(name).takes else pair[place] for place, key in enumerate(SIDES))
    prompts = Prompts.build(PromptSpec(preset=name, source_lang=source, target_lang=target))
    by_template = replace(prompts, _turns=None)
    assert prompts._turns is not None
    for text in ("你好 {{ text }}", "a\n\n b ", "\0the text\0", "%s {0}"):
        assert prompts.render(row(source=text)) == by_template.render(row(source=text))
    assert prompts.render_empty(row()) == by_template.render_empty(row())


@pytest.mark.parametrize(
    ("template", "is_cut"),
    [
        ("{{ text }}", True),
        ("{% if explain %}x{% endif %}{{ text }}\n{{ text }}", True),
        ("{% for example in [1, 2] %}{{ text }}{{ example }}{% endfor %}", True),
        ("{{ text | upper }}", False),
        ("{{ text ~ '.' }}", False),
        ("{% if text == 'a' %}x{% endif %}{{ text }}", False),
        ("{% for text in text %}{{ text }}{% endfor %}", False),
        ("{% set t %}{{ text }}{% endset %}{{ t | upper }}", False),
        ("{% filter upper %}{{ text }}{% endfilter %}", False),
        ("{% macro m() %}{{ text }}{% endmacro %}{{ m() | upper }}{{ text }}", False),
        ("{{ row.x }}{{ text }}", False),
        ("\0the text\0{{ text }}", False),
        ("{{ 1 // 0 }}{{ text }}", False),
    ],
)
def test_what_is_cut(template: str, is_cut: bool, tmp_path: Path) -> None:
    """Only a prompt of which nothing but the text, as it is, depends on the row is put together from pieces."""
    quoted = json.dumps(template)
    path = own(tmp_path, f"kind: text\ntakes: {{explain: optional}}\ntext: source\n{OUTPUT}template: {quoted}\n")
    prompts = Prompts.build(PromptSpec(preset=path))
    assert (prompts._turns is not None) == is_cut
    if "//" not in template:
        by_template = replace(prompts, _turns=None)
        for text in ("a", "some text"):
            assert prompts.render(row(source=text, x="x")) == by_template.render(row(source=text, x="x"))


def test_preset_names_are_the_files() -> None:
    """Every file in the folder is a preset, and the presets that a job may name are these."""
    assert preset_names() == sorted(path.name.removesuffix(".yaml") for path in PRESETS.iterdir())
    assert {"seed-x", "few-shot", "chat", "raw", "hunyuan-mt", "hy-mt1.5"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_data(name: str, tmp_path: Path) -> None:
    """A copy of a shipped preset under another name gives the same prompts: no code knows the presets by name."""
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").replace(f"name: {name}\n", "name: another\n")
    given = {"source_lang": "zh", "target_lang": "en", "user": "{{ source }}?", "template": "{{ source }}!"}
    given = {key: value for key, value in given.items() if key in presets.find(name).takes}
    ours = Prompts.build(PromptSpec(preset=name, **given))
    theirs = Prompts.build(PromptSpec(preset=own(tmp_path, text), **given))
    assert theirs.render(row(source="你好")) == ours.render(row(source="你好"))
    assert theirs.finish(" a [COT] b ") == ours.finish(" a [COT] b ")
    assert theirs.identity() == ours.identity()
    assert theirs.stop == ours.stop


def test_seed_x_has_its_languages() -> None:
    """The preset's languages are the 28 of Seed-X's table, each with its own code as tag."""
    namings = presets.find("seed-x").namings.by_code
    assert [(naming.name, naming.tag) for naming in namings.values()] == [(one.name, one.code) for one in SEED_X]


GOLDEN = [
    ("alma", "de", "en", "Translate this from German to English:\nGerman: TEXT\nEnglish:"),
    ("gemmax2", "zh", "en", "Translate this from Chinese to English:\nChinese: TEXT\nEnglish:"),
    (
        "milmmt",
        "zh",
        "zh-Hant",
        "Translate this from Chinese (Simplified) to Chinese (Traditional):\n"
        "Chinese (Simplified): TEXT\nChinese (Traditional):",
    ),
    (
        "translategemma",
        "en",
        "zh",
        "<start_of_turn>user\nYou are a professional English (en) to Chinese (zh) translator. Your goal is to "
        "accurately convey the meaning and nuances of the original English text while adhering to Chinese grammar, "
        "vocabulary, and cultural sensitivities.\nProduce only the Chinese translation, without any additional "
        "explanations or commentary. Please translate the following English text into Chinese:\n\n\nTEXT"
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    ("hunyuan-mt", "zh", "en", "把下面的文本翻译成英语，不要额外解释。\n\nTEXT"),
    ("hunyuan-mt", "fr", "zh", "把下面的文本翻译成中文，不要额外解释。\n\nTEXT"),
    ("hunyuan-mt", "en", "zh-Hant", "把下面的文本翻译成繁体中文，不要额外解释。\n\nTEXT"),
    (
        "hunyuan-mt",
        "en",
        "tl",
        "Translate the following segment into Filipino, without additional explanation.\n\nTEXT",
    ),
    ("hy-mt1.5", "ja", "zh", "将以下文本翻译为中文，注意只需要输出翻译后的结果，不要额外解释：\n\nTEXT"),
    (
        "hy-mt1.5",
        "en",
        "ko",
        "Translate the following segment into Korean, without additional explanation.\n\nTEXT",
    ),
    ("lmt-60", "en", "zh", "Translate the following text from English into Chinese:\nEnglish: TEXT\nChinese:"),
    (
        "tower-plus",
        "en",
        "pt",
        "Translate the following English source text to Portuguese:\nEnglish: TEXT\nPortuguese: ",
    ),
]


@pytest.mark.parametrize(("name", "source", "target", "prompt"), GOLDEN)
def test_golden_prompts(name: str, source: str, target: str, prompt: str) -> None:
    """The prompts of the other models are, to the letter, those that their makers give."""
    built = Prompts.build(PromptSpec(preset=name, source_lang=source, target_lang=target))
    wanted: object = [{"role": "user", "content": prompt}] if built.is_chat else prompt
    assert built.render(row(source="TEXT")) == wanted
    assert built.render_empty(row(source="TEXT")) == (
        [{"role": "user", "content": prompt.replace("TEXT", "")}] if built.is_chat else prompt.replace("TEXT", "")
    )


def test_few_shot_golden() -> None:
    """Worked examples, a blank line between them, then the text on one line, and nothing after the colon."""
    spec = PromptSpec(
        preset="few-shot",
        source_lang="de",
        target_lang="fr",
        examples=[Example(source="Ja.", translation="Oui."), Example(source="Guten\nTag!", translation="Bonjour\n!")],
    )
    built = Prompts.build(spec)
    assert built.render(row(source=" Wie\n\n geht\r\nes? ")) == (
        "German: Ja.\nFrench: Oui.\n\nGerman: Guten Tag!\nFrench: Bonjour !\n\nGerman: Wie geht es?\nFrench:"
    )
    assert built.stop == ("\n",)


@pytest.mark.parametrize(("source", "target"), [("zh", "en"), ("en", "zh")])
def test_few_shot_comes_with_examples(source: str, target: str) -> None:
    """Chinese and English have five examples each way, every one on a line of its own."""
    built = Prompts.build(PromptSpec(preset="few-shot", source_lang=source, target_lang=target))
    prompt = built.render(row(source="x"))
    assert isinstance(prompt, str)
    assert prompt.count("\n\n") == 5
    assert len(prompt.splitlines()) == 5 * 3 + 2


def test_few_shot_without_examples_for_a_pair() -> None:
    """Another pair of languages is refused until the job gives examples; none at all may be meant."""
    with pytest.raises(SpecError, match=r"prompt\.examples: .*none for these languages \(it has them for zh to en, en"):
        Prompts.build(PromptSpec(preset="few-shot", source_lang="de", target_lang="fr"))
    zero = Prompts.build(PromptSpec(preset="few-shot", source_lang="de", target_lang="fr", examples=[]))
    assert zero.render(row(source="Ja.")) == "German: Ja.\nFrench:"


def test_few_shot_examples_are_of_one_pair() -> None:
    """Examples of the job's own cannot serve rows that choose their languages."""
    with pytest.raises(SpecError, match=r"prompt\.examples: are of one pair"):
        Prompts.build(
            PromptSpec(
                preset="few-shot",
                source_lang=Column(column="lang"),
                target_lang="en",
                examples=[Example(source="a", translation="b")],
            )
        )


MINE = """
kind: text
takes: {target_lang: required, explain: optional}
text: line
languages: [de, tlh, "no"]
names: {tlh: {name: Klingon}, de: {name: High German, tag: deu}}
template: "{{ row.title }}|{{ text }} => {{ target_name }} {{ target_tag }} {{ target_zh }}{% if explain %}?{% endif %}"
stop: ["###", "END"]
output: {column: out, strip: false, split: {marker: "--", column: note}}
explain: {stop: []}
"""


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    """A yaml file is all that a new preset takes, even for a language that the program has never heard of."""
    path = own(tmp_path, MINE)
    built = Prompts.build(PromptSpec(preset=path, target_lang="Klingon"))
    assert built.render(row(title="T", line="qapla'")) == "T|qapla' => Klingon tlh Klingon"
    assert (built.text_column, built.extra_columns, built.stop) == ("out", ("note",), ("###", "END"))
    assert built.input_columns == frozenset({"line"})
    assert built.finish(" a --b") == (" a ", {"note": "b"})
    german = Prompts.build(PromptSpec(preset=path, target_lang="de-AT", text="other", explain=True))
    assert german.render(row(title="T", other="x")) == "T|x => High German deu 德语?"
    assert (german.stop, german.extra_columns) == ((), ("note",))
    norwegian = Prompts.build(PromptSpec(preset=path, target_lang="no"))
    assert norwegian.languages == ("no",)


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("kind: text", "kind: txt", "kind: must be one of text, chat"),
        ("kind: text", "", "kind: is missing"),
        ("text: line", "txet: line", "txet: no such key, did you mean 'text'?"),
        ("text: line", "", "template: uses 'text', but the preset has no default column 'text'"),
        ("{{ text }}", "{{ txt }}", "template: there is no variable 'txt', did you mean 'text'?"),
        ("{{ text }}", "{text}", "template: never uses 'text'"),
        ("{target_lang: required, ", "{", "template: uses 'target_name', but the preset does not take 'target_lang'"),
        ("target_lang: required", "target_lang: yes", "takes: target_lang: must be one of required, optional"),
        ("target_lang: required", "goal: required", "takes: goal: no such key"),
        ("explain: optional", "messages: optional", "takes: only a chat preset takes 'messages'"),
        ("{% if explain %}", "{% if explain %", "template: is no valid jinja: line 1: "),
        ("=>", "{{ 1 | nofilter }}", "template: is no valid jinja: line 1: No filter named 'nofilter'."),
        ("=>", "{% include 'x' %}", "template: is no valid jinja: line 1: it reads another template"),
        ("template: ", "messages: ", "messages: a text preset has 'template' instead"),
        ("[de, tlh", "[jp, tlh", "languages: unknown language 'jp', did you mean 'ja'?"),
        ("[de, tlh", "[zh-CN, tlh", "languages: unknown language 'zh-CN', did you mean 'zh'?"),
        ("[de, tlh", "[xyzzy, tlh", "languages: unknown language 'xyzzy', say what it is called: names: {xyzzy:"),
        ("tlh: {name: Klingon}", "tlh: {tag: t}", "names: tlh: name: is missing"),
        ("tlh: {name: Klingon}", "5: {tag: t}", "names.5: must be a text: put it in quotes"),
        ("[de, tlh", "[5, tlh", "languages: must be a list of texts"),
        ('["###", "END"]', '"###"', "stop: must be a list of texts"),
        ('["###", "END"]', '[""]', "stop: must be a list of texts"),
        ("output: {column: out, ", "output: {", "output: column: is missing"),
        ("output:", "x:", "output: is missing"),
        ("strip: false", "strip: no", "output: strip: must be true or false"),
        ('marker: "--", ', "", "output: split: marker: is missing"),
        ("column: note", "column: out", "output: split: column: is the output's own column"),
        ("explain: {stop: []}", "explain: 5", "explain: must be a mapping"),
        ("explain: {stop: []}", "newlines: no", "newlines: must be one of keep, space"),
        (", explain: optional", "", "explain: is there, but the preset does not take 'explain'"),
        ("explain: {stop: []}", "examples: {de: {fr: []}}", "examples: 'fr' is no language of the preset"),
        (
            "explain: {stop: []}",
            "examples: {de: {tlh: [{source: a}]}}",
            "examples: de: tlh[0]: translation: is missing",
        ),
    ],
)
def test_faults_in_a_preset_file(was: str, now: str, told: str, tmp_path: Path) -> None:
    """What is wrong in a preset file is told with its place, and with a remedy where there is one."""
    assert was in MINE
    assert any(line.startswith(told) for line in faults(MINE.replace(was, now, 1), tmp_path))


CHAT = """
kind: chat
takes: {user: required, system: optional}
messages:
- {role: system, content: "{{ system }}", if: system}
- {role: user, content: "{{ user }}"}
output: {column: answer}
"""


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("role: user, ", "", "messages[1]: role: is missing"),
        ('{role: user, content: "{{ user }}"}', "hello", "messages[1]: must be a mapping"),
        ("if: system", "if: weather", "messages[0]: if: must be one of system, user, template"),
        (", system: optional", "", "messages: if: system: the preset does not take it"),
        ('"{{ user }}"', '"{{ user"', "messages[1]: content: is no valid jinja: line 1: "),
        ('"{{ user }}"', '"hello"', "messages: never uses 'user'"),
        ("messages:\n", "template: x\nmessages:\n", "template: a chat preset has 'messages' instead"),
    ],
)
def test_faults_in_a_chat_preset_file(was: str, now: str, told: str, tmp_path: Path) -> None:
    """Faults in messages are told with their place in the list."""
    assert was in CHAT
    assert any(line.startswith(told) for line in faults(CHAT.replace(was, now, 1), tmp_path))


def test_every_fault_of_a_file_at_once(tmp_path: Path) -> None:
    """Several faults in one file are all told, and nothing that only follows from another."""
    told = faults(MINE.replace("kind: text", "kind: txt").replace("{{ text }}", "{{ text"), tmp_path)
    assert [line.split(": ")[0] for line in told] == ["kind", "template"]


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "kind: text\nkind: chat", "plain"])
def test_files_that_are_no_preset(text: str, tmp_path: Path) -> None:
    """A file that is no mapping, no YAML, or names a key twice is refused by its path."""
    with pytest.raises(SpecError, match=r"mine\.yaml: "):
        presets.find(own(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and a file in another encoding are faults of prompt.preset."""
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(SpecError, match=r"prompt\.preset: .* cannot be read"):
            presets.find(f"{path}/" if path.is_dir() else str(path))


def test_unknown_presets() -> None:
    """A wrong name leads to the right one, or to the list and to files."""
    with pytest.raises(SpecError, match="there is no preset 'seedx', did you mean 'seed-x'"):
        presets.find("seedx")
    with pytest.raises(SpecError, match=r"known: alma, .*; or the path of a \.yaml file of your own"):
        presets.find("zzz")


def test_any_language_means_all_that_are_known() -> None:
    """A preset for `any` language has every one in the table."""
    assert list(presets.find("few-shot").namings.by_code) == [language.code for language in LANGUAGES]
