"""The languages that presets name: codes, English, Chinese and own names, and what people write instead of them.

Must never know prompts: which model calls a language what, and which languages it has, is said by its preset.
"""

import difflib
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """One language.

    Args:
        code: ISO 639-1 where there is one, as the tags of Seed-X have it.
        name: in English, as Seed-X's table has it.
        zh: in Chinese.
        own: in the language itself.
        also: further words for it.
    """

    code: str
    name: str
    zh: str
    own: str
    also: tuple[str, ...] = ()


SEED_X = (
    Language("ar", "Arabic", "阿拉伯语", "العربية"),
    Language("cs", "Czech", "捷克语", "čeština"),
    Language("da", "Danish", "丹麦语", "dansk"),
    Language("de", "German", "德语", "Deutsch"),
    Language("en", "English", "英语", "English", ("英文",)),
    Language("es", "Spanish", "西班牙语", "español", ("Castilian",)),
    Language("fi", "Finnish", "芬兰语", "suomi"),
    Language("fr", "French", "法语", "français"),
    Language("hr", "Croatian", "克罗地亚语", "hrvatski"),
    Language("hu", "Hungarian", "匈牙利语", "magyar"),
    Language("id", "Indonesian", "印尼语", "Bahasa Indonesia", ("印度尼西亚语",)),
    Language("it", "Italian", "意大利语", "italiano"),
    Language("ja", "Japanese", "日语", "日本語"),
    Language("ko", "Korean", "韩语", "한국어", ("朝鲜语",)),
    Language("ms", "Malay", "马来语", "Bahasa Melayu"),
    Language("nb", "Norwegian Bokmal", "书面挪威语", "bokmål", ("Norwegian Bokmål",)),
    Language("nl", "Dutch", "荷兰语", "Nederlands"),
    Language("no", "Norwegian", "挪威语", "norsk"),
    Language("pl", "Polish", "波兰语", "polski"),
    Language("pt", "Portuguese", "葡萄牙语", "português"),
    Language("ro", "Romanian", "罗马尼亚语", "română"),
    Language("ru", "Russian", "俄语", "русский"),
    Language("sv", "Swedish", "瑞典语", "svenska"),
    Language("th", "Thai", "泰语", "ไทย"),
    Language("tr", "Turkish", "土耳其语", "Türkçe"),
    Language("uk", "Ukrainian", "乌克兰语", "українська"),
    Language("vi", "Vietnamese", "越南语", "Tiếng Việt"),
    Language(
        "zh", "Chinese", "中文", "中文", ("汉语", "简体中文", "Simplified Chinese", "Chinese (Simplified)", "Mandarin")
    ),
)
"""The 28 languages of Seed-X; the codes are its tags. Source: the tables of its README and of its report (Table 12)."""

_OTHERS = (
    Language("am", "Amharic", "阿姆哈拉语", "አማርኛ"),
    Language("az", "Azerbaijani", "阿塞拜疆语", "azərbaycan dili"),
    Language("bg", "Bulgarian", "保加利亚语", "български"),
    Language("bn", "Bengali", "孟加拉语", "বাংলা"),
    Language("bo", "Tibetan", "藏语", "བོད་སྐད།"),
    Language("ca", "Catalan", "加泰罗尼亚语", "català"),
    Language("el", "Greek", "希腊语", "ελληνικά", ("Modern Greek",)),
    Language("fa", "Persian", "波斯语", "فارسی", ("Farsi",)),
    Language("gu", "Gujarati", "古吉拉特语", "ગુજરાતી"),
    Language("he", "Hebrew", "希伯来语", "עברית", ("iw", "Modern Hebrew")),
    Language("hi", "Hindi", "印地语", "हिन्दी"),
    Language("hy", "Armenian", "亚美尼亚语", "հայերեն"),
    Language("is", "Icelandic", "冰岛语", "íslenska"),
    Language("jv", "Javanese", "爪哇语", "basa Jawa"),
    Language("ka", "Georgian", "格鲁吉亚语", "ქართული"),
    Language("kk", "Kazakh", "哈萨克语", "қазақ тілі"),
    Language("km", "Khmer", "高棉语", "ភាសាខ្មែរ", ("Central Khmer", "柬埔寨语")),
    Language("ky", "Kyrgyz", "吉尔吉斯语", "кыргызча", ("Kirghiz",)),
    Language("lo", "Lao", "老挝语", "ລາວ"),
    Language("mn", "Mongolian", "蒙古语", "монгол"),
    Language("mr", "Marathi", "马拉地语", "मराठी"),
    Language("my", "Burmese", "缅甸语", "မြန်မာဘာသာ"),
    Language("ne", "Nepali", "尼泊尔语", "नेपाली"),
    Language("ps", "Pashto", "普什图语", "پښتو"),
    Language("si", "Sinhala", "僧伽罗语", "සිංහල"),
    Language("sk", "Slovak", "斯洛伐克语", "slovenčina"),
    Language("sl", "Slovenian", "斯洛文尼亚语", "slovenščina", ("Slovene",)),
    Language("sw", "Swahili", "斯瓦希里语", "Kiswahili"),
    Language("ta", "Tamil", "泰米尔语", "தமிழ்"),
    Language("te", "Telugu", "泰卢固语", "తెలుగు"),
    Language("tg", "Tajik", "塔吉克语", "тоҷикӣ"),
    Language("tl", "Tagalog", "菲律宾语", "Tagalog", ("fil", "Filipino", "他加禄语")),
    Language("ug", "Uyghur", "维吾尔语", "ئۇيغۇرچە", ("Uighur",)),
    Language("ur", "Urdu", "乌尔都语", "اردو"),
    Language("uz", "Uzbek", "乌兹别克语", "oʻzbekcha"),
    Language("yue", "Cantonese", "粤语", "粵語", ("zh-yue", "Yue Chinese")),
    Language(
        "zh-Hant", "Traditional Chinese", "繁体中文", "繁體中文", ("zh-TW", "zh-HK", "zh-MO", "Chinese (Traditional)")
    ),
)
"""What other models' presets need beside them."""

LANGUAGES = SEED_X + _OTHERS

_MISTAKEN = {
    "at": "de",
    "br": "pt",
    "cn": "zh",
    "cz": "cs",
    "dk": "da",
    "gb": "en",
    "gr": "el",
    "il": "he",
    "ir": "fa",
    "jp": "ja",
    "kh": "km",
    "kr": "ko",
    "kz": "kk",
    "mx": "es",
    "se": "sv",
    "ua": "uk",
    "us": "en",
    "vn": "vi",
}
"""Codes of countries that are taken for codes of languages, where they are no code of another language above."""

_SUBTAGGED = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})+")


def key(word: str) -> str:
    """A word for a language in the form that words are compared in: `zh_CN` and `ZH-cn` give the same."""
    return unicodedata.normalize("NFKC", word).strip().casefold().replace("_", "-")


_KNOWN = {
    key(word): language
    for language in LANGUAGES
    for word in (language.code, language.name, language.zh, language.own, *language.also)
}


def find(code_or_name: str) -> Language | None:
    """The language of a code (`zh`, `zh-CN`, `pt_BR`) or a name (`Chinese`, `中文`), in any case; None if unknown."""
    word = key(code_or_name)
    if _SUBTAGGED.fullmatch(word):  # regions and scripts that are no language of their own here
        while word not in _KNOWN and "-" in word:
            word = word.rpartition("-")[0]
    return _KNOWN.get(word)


def suggest(code_or_name: str, among: Collection[str]) -> str | None:
    """The code, among those given, that an unknown word was probably meant for."""
    word = key(code_or_name)
    code = _MISTAKEN.get(word)
    if code is None:
        close = difflib.get_close_matches(word, _KNOWN, n=1, cutoff=0.75)
        code = _KNOWN[close[0]].code if close else None
    return code if code in among else None
