"""Jinja texts, compiled in a sandbox and rendered strictly: what is undefined or null is an error, not a blank.

Must never know what the texts are for: no presets, no languages, no job.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from seedx_batch.errors import Fault, RowRejected
from seedx_batch.prompts.sandbox import Sandbox

_MAX_REASON = 200


class _Generation(Extension):
    """Chat templates mark what the assistant says with `{% generation %}`, which jinja itself does not know."""

    tags = {"generation"}  # noqa: RUF012  # jinja declares it without ClassVar

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the marks."""
        parser.stream.skip()
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = Sandbox()
_CHAT_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
)


class Template:
    """A compiled jinja text.

    Args:
        text: the jinja text.
        where: what faults and rejected rows call it.

    Attributes:
        needs: the variables that it reads and does not set.
    """

    __slots__ = ("_compiled", "_tree", "_where", "needs", "text")

    def __init__(self, text: str, where: str) -> None:
        _ENVIRONMENT.begin()
        tree = _ENVIRONMENT.parse(text)
        if any(True for _ in meta.find_referenced_templates(tree)):
            raise TemplateSyntaxError("it reads another template, which cannot be done here", 1)
        self.text = text
        self.needs = frozenset(meta.find_undeclared_variables(tree) - _ENVIRONMENT.globals.keys())
        self._compiled = _ENVIRONMENT.from_string(text)
        self._compiled.globals = dict(self._compiled.globals)  # jinja copies it for every text; its own kind is slow
        self._tree = tree
        self._where = where

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with the variables' values in it.

        Raises:
            RowRejected: the template cannot be rendered with these values.
        """
        _ENVIRONMENT.begin()
        try:
            return self._compiled.render(values)
        except Exception as error:  # a template is its author's program: it may raise anything, and it is about one row
            raise RowRejected("template", f"{self._where}: {_reason(error)}") from error

    def only_writes(self, name: str) -> bool:
        """Whether a variable is written as it is wherever it occurs, so that nothing else depends on it."""
        return _only_writes(self._tree, name)


def _only_writes(node: nodes.Node, name: str) -> bool:
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Name) and child.name == name:
            if not isinstance(node, nodes.Output):
                return False
        elif isinstance(child, nodes.Output | nodes.If | nodes.For):
            if not _only_writes(child, name):
                return False
        elif any(inner.name == name for inner in child.find_all(nodes.Name)):  # in a filter, a macro, a set block, ...
            return False
    return True


def compile_template(text: str, where: str, faults: list[Fault]) -> Template | None:
    """The compiled text, or None and a fault more."""
    try:
        return Template(text, where)
    except Exception as error:  # what a compiler says of nesting or of numbers is Python's, not jinja's
        faults.append(_fault(where, error))
        return None


def check_chat_template(text: str, where: str) -> Fault | None:
    """What is wrong with the syntax of a model's chat template."""
    try:
        _CHAT_ENVIRONMENT.compile(text)
    except Exception as error:  # as above
        return _fault(where, error)
    return None


def _fault(where: str, error: Exception) -> Fault:
    """What is wrong with a template, with the line that it is in if that is known."""
    if isinstance(error, TemplateSyntaxError):
        return Fault(where, f"is no valid jinja: line {error.lineno}: {error.message}")
    return Fault(where, f"is no valid jinja: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MAX_REASON]
