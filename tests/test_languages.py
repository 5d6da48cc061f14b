"""The table of languages, and how words for them are understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch import languages
from seedx_batch.languages import LANGUAGES, SEED_X, Language, find, suggest

CODES = [language.code for language in LANGUAGES]


def code_of(word: str) -> str | None:
    """The code that a word is understood as."""
    language = find(word)
    return None if language is None else language.code


def test_seed_x_tags_are_exactly_those_of_its_table() -> None:
    """The 28 tags and English names are those that Seed-X was trained with, letter for letter."""
    table = (
        "ar Arabic, cs Czech, da Danish, de German, en English, es Spanish, fi Finnish, fr French, hr Croatian, "
        "hu Hungarian, id Indonesian, it Italian, ja Japanese, ko Korean, ms Malay, nb Norwegian Bokmal, nl Dutch, "
        "no Norwegian, pl Polish, pt Portuguese, ro Romanian, ru Russian, sv Swedish, th Thai, tr Turkish, "
        "uk Ukrainian, vi Vietnamese, zh Chinese"
    )
    assert ", ".join(f"{language.code} {language.name}" for language in SEED_X) == table


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("Japanese", "ja"),
        ("日本語", "ja"),
        ("Croatian", "hr"),
        ("Czech", "cs"),
        ("Georgian", "ka"),
        ("Ukrainian", "uk"),
        ("no", "no"),
        ("nb-NO", "nb"),
        ("Norwegian Bokmål", "nb"),
        ("zh", "zh"),
        ("ZH", "zh"),
        ("zh-CN", "zh"),
        ("zh_cn", "zh"),
        ("zh-Hans-CN", "zh"),
        ("Chinese", "zh"),
        ("  chinese ", "zh"),
        ("中文", "zh"),
        ("Chinese (Simplified)", "zh"),
        ("zh-TW", "zh-Hant"),
        ("zh-Hant-HK", "zh-Hant"),
        ("zh-yue", "yue"),
        ("pt_BR", "pt"),
        ("en-US", "en"),
        ("españOL", "es"),
        ("espan\u0303ol", "es"),
    ],
)
def test_words_are_understood(word: str, code: str) -> None:
    """Codes with regions and scripts, and names in three languages, in any case, mean the language they name."""
    assert code_of(word) == code


@pytest.mark.parametrize("word", ["", " ", "-", "xx", "jp", "klingon", "<zh>", "zh <zh>", "en de", "Chinese-English"])
def test_other_words_are_not(word: str) -> None:
    """A word that names no language is None, never the nearest one."""
    assert find(word) is None


def test_every_word_means_one_language() -> None:
    """No code, name or further word in the table belongs to two languages, and none is blank."""
    owners: dict[str, Language] = {}
    for language in LANGUAGES:
        for word in (language.code, language.name, language.zh, language.own, *language.also):
            assert word.strip()
            assert owners.setdefault(languages.key(word), language) is language
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize(
    ("word", "code"),
    [("jp", "ja"), ("kr", "ko"), ("cz", "cs"), ("UA", "uk"), ("Chinse", "zh"), ("Portugese", "pt"), ("xx", None)],
)
def test_suggestions(word: str, code: str | None) -> None:
    """A country's code or a slip of the pen leads to the language that was meant; nonsense leads nowhere."""
    assert suggest(word, CODES) == code


def test_suggestions_stay_among_those_given() -> None:
    """What the preset does not have is not suggested."""
    assert suggest("gr", CODES) == "el"
    assert suggest("gr", ["de", "en"]) is None


def test_mistaken_codes_are_no_codes() -> None:
    """A country's code that is also a language's is never turned into another language."""
    assert not languages._MISTAKEN.keys() & {languages.key(code) for code in CODES}
    assert set(languages._MISTAKEN.values()) <= set(CODES)


@given(st.text(max_size=20))
def test_any_text_can_be_asked(word: str) -> None:
    """Whatever a row holds, the answer is a language of the table or None."""
    assert find(word) in (*LANGUAGES, None)
    assert suggest(word, CODES) in (*CODES, None)
