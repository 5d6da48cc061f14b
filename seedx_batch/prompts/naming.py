"""What a preset calls its languages, and how a job's or a row's word for one of them is understood.

Must never know templates or rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from seedx_batch import languages

_MAX_LISTED = 60


@dataclass(frozen=True, slots=True)
class Naming:
    """How a model is told of a language: by its English name, its tag, its Chinese name."""

    code: str
    name: str
    tag: str
    zh: str


class Namings:
    """The languages of one preset."""

    def __init__(self, preset: str, namings: Iterable[Naming]) -> None:
        self._preset = preset
        self.by_code = {naming.code: naming for naming in namings}
        self._by_word = {
            languages.key(word): naming for naming in self.by_code.values() for word in (naming.name, naming.code)
        }

    def find(self, word: str) -> Naming | None:
        """What the preset calls the language of a code or name; None if it does not have it."""
        known = self._by_word.get(languages.key(word))
        if known is not None:
            return known
        language = languages.find(word)
        return None if language is None else self.by_code.get(language.code)

    def refusal(self, word: str) -> tuple[str, str]:
        """Why a word is refused, and what to write instead."""
        listed = "it has: " + ", ".join(list(self.by_code)[:_MAX_LISTED])
        language = languages.find(word)
        if language is not None:
            return f"'{word}' ({language.name}) is no language of the preset '{self._preset}'", listed
        meant = languages.suggest(word, self.by_code)
        remedy = listed if meant is None else f"did you mean '{meant}' ({self.by_code[meant].name})?"
        return f"unknown language '{word[:40]}'", remedy
