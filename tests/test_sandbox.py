"""The sandbox of templates: what they cannot reach, and that none works or grows without bound."""

import time

import pytest

from seedx_batch.errors import Fault, RowRejected
from seedx_batch.prompts import sandbox
from seedx_batch.prompts.templates import Template, compile_template

LONG = "x" * 100_000
ROW = {"text": LONG, "batch": 1, "items": "column", "xs": [[1, [2]]] * 9, "number": 3}

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ range(10**9) | list }}",
    "{% for i in range(99999) %}{{ text }}{% endfor %}",
    "{% for i in range(99999) %}{% if text == text ~ 'a' %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% if text[1:] %}{% endif %}{% endfor %}",
    "{% set a %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{% for x in xs recursive %}{{ loop(xs) }}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}x{% endmacro %}{{ f(60) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * [text] }}",
    "{{ 2 ** 10 ** 8 }}",
    "{% set a = 7 %}" + "{% set a = a * a %}" * 40,
    "{% set a = 'a' %}" + "{% set a = a ~ a %}" * 40,
    "{% set a = 'a' %}" + "{% set a = a + a %}" * 40,
    "{% set a = 'a' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = (a, a) %}" * 60 + "{{ a == a }}",
    "{% set a = [1] %}" + "{% set a = {'x': a, 'y': a} %}" * 60 + "{{ a | tojson }}",
    "{% set n = namespace(a='a') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "{{ text ~ text ~ text" + " ~ text" * 999 + " }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ text.replace('x', text) }}",
    "{{ text | replace('', text) }}",
    "{{ text.join(text) }}",
    "{{ text | join(text) }}",
    "{{ text.strip(text) }}",
    "{{ text | trim(text) }}",
    "{{ (text | replace('x', '\n')) | indent(9999) }}",
    "{{ xs | tojson(indent=99999) }}",
    "{{ range(9999) | map('replace', '', text) | list }}",
    "{{ text | map('upper') | list | list | list | list | join(text) }}",
]
"""Would run for hours or fill the memory."""

OUTSIDE = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ range.__self__ }}",
    "{{ ['{0.__class__}'] | map(attribute='format') | first }}",
    "{{ ['{0.__class__}'.format] | first }}",
    "{% set f = '{0.__class__}'.format %}{{ f(number) }}",
    "{{ '{0.__class__}'.format_map({'0': 1}) }}",
    "{{ ''.upper }}",
    "{{ [text.upper] }}",
    "{{ text.upper ~ '' }}",
    "{{ text['upper'] | string }}",
    "{{ ([text] | map(attribute='upper') | list) }}",
    "{% set f = text.upper %}{{ {'f': f} }}",
    "{{ [1] | map('upper') }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop }}",
    "{% for x in xs %}{{ loop._iterable.gi_frame }}{% endfor %}",
    "{{ ([1] | map('upper')).gi_frame }}",
    "{{ ([1] | map('upper')).throw }}",
    "{{ xs.append(1) }}",
    "{{ lipsum.__globals__ }}",
    "{{ row.keys.__self__ }}",
    "{{ caller.__globals__ }}",
]


def render(template: str) -> str:
    """What comes of a template over the row."""
    return Template(template, "t").render({**ROW, "row": ROW})


@pytest.mark.parametrize("template", ENDLESS, ids=lambda template: template[:40])
def test_work_is_bounded(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless loops, doubling values and formatting widths end as a rejected row, soon where little work is allowed."""
    monkeypatch.setattr(sandbox, "MOST_WORK", 1_000_000)
    began = time.process_time()
    with pytest.raises(RowRejected, match=r"^template: t: "):
        render(template)
    assert time.process_time() - began < 2


def test_the_whole_work_takes_seconds() -> None:
    """With the work that is really allowed, the slowest template known ends within a bounded time."""
    began = time.process_time()
    with pytest.raises(RowRejected, match="more work than 100,000,000"):
        render("{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}")
    assert time.process_time() - began < 30


@pytest.mark.parametrize("template", OUTSIDE)
def test_objects_are_out_of_reach(template: str) -> None:
    """No attribute chain, format string or function leads from a row's values to Python's objects."""
    with pytest.raises(RowRejected, match=r"^template: t: "):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% extends 'x' %}",
        "{% from 'x' import y %}",
        "{{ 'a' | center(9) }}",
        "{{ 'a' | attr('x') }}",
        "{{ [1, 2] | random }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 200 + "{% endif %}" * 200,
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ 1" + "0" * 9999 + " }}",
        "{{ " + "-" * 9999 + "1 }}",
    ],
    ids=lambda template: template[:40],
)
def test_what_does_not_compile_is_a_fault(template: str) -> None:
    """Other files, filters that are not there, and texts that are too much for the compiler are faults of the job."""
    faults: list[Fault] = []
    assert compile_template(template, "prompt.user", faults) is None
    assert str(faults[0]).startswith("prompt.user: is no valid jinja: ")
    assert len(str(faults[0])) < 300


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ row.batch }} {{ row.items }} {{ row['batch'] }}", "1 column 1"),
        ("{{ row.get('none', 'a') }}{{ row.keys() | list | length }}", "a5"),
        ("{{ 'a,b'.split(',') | join('-') }} {{ ' x '.strip() }} {{ 'aba'.replace('a', 'cc', 1) }}", "a-b x ccba"),
        ("{% for x in xs %}{{ loop.index }}/{{ loop.length }}{% if not loop.last %}, {% endif %}{% endfor %}", None),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", "a1b2"),
        ("{% macro q(x) %}<{{ x }}>{% endmacro %}{{ q(number) }}{{ q(q('a')) }}", "<3><<a>>"),
        ("{% set ns = namespace(n=0) %}{% for x in xs %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "9"),
        ("{{ number * 2 - 1 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ [1] + [2] }}", "5 3 3 abab [1, 2]"),
        ("{{ xs[:2] }} {{ 'b' in 'abc' }} {{ 1 < number <= 3 }}", "[[1, [2]], [1, [2]]] True True"),
        ("{{ xs[0] | tojson }} {{ none | default('d', true) }} {{ 'a\nb' | indent(2) }}", "[1, [2]] d a\n  b"),
        ("{{ [{'a': 'x'}, {'a': 'y'}] | map(attribute='a') | join('+') }}", "x+y"),
        ("{{ text | length }} {{ text | upper | truncate(5) }} {{ 'a' is in ['a'] }}", "100000 XX... True"),
        ("{% if text | length > 9 %}long{% elif text %}short{% endif %}", "long"),
    ],
)
def test_what_prompts_need_is_there(template: str, text: str | None) -> None:
    """Columns, loops, macros, conditions, the usual filters and methods do what jinja does."""
    if text is None:
        text = ", ".join(f"{number}/9" for number in range(1, 10))
    assert render(template) == text


def test_a_cell_of_ten_megabytes_is_rendered() -> None:
    """A text of 10 MB, of any character, goes through a template unchanged."""
    text = "\0\x1b[31m\u202e😀\r\n" * 800_000
    assert Template("<{{ text }}>", "t").render({"text": text}) == f"<{text}>"
