"""The sandbox that jinja texts are rendered in: values only, never Python's objects, and only so much work.

Must never know what the texts are for. Work is counted, not timed, so that a row ends alike on every machine.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateRuntimeError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import do_indent, do_tojson, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

MOST_WORK = 100_000_000
"""What one rendering may do: the characters that its steps take and give, and some for each step."""

_STEP = 50
"""What a round of a loop, a call, a filter or an element of a list counts beside its characters."""

_CALL = 2_000
"""What a call counts."""

_MOST_OF_NUMBER = 10_000
_MOST_OF_TEXT = 1_000
_MOST_BITS = 16_384

_FILTERS = (
    "abs capitalize count d default dictsort e escape first float groupby indent int items join last length list lower "
    "map max min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim truncate "
    "unique upper wordcount"
)
"""Those of jinja's filters that give the same each time and whose work is by what they take and give."""

_METHODS = (
    "capitalize casefold count date endswith find get index isalnum isalpha isdigit islower isoformat isspace isupper "
    "items join keys lower lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase time title upper values"
)
_CALLABLE = frozenset(_METHODS.split())
_OWNERS = (str, list, tuple, Mapping, date, time)
"""Whose methods may be called."""

_FREE_ARGUMENTS = frozenset(["d", "default", "replace", "join", "get"])
"""Filters and methods whose arguments may be long; the others might search every character for many, or fill up."""

_ROUNDS, _COUNTED = "(rounds)", "(counted)"
"""Filters that no template can name."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Where the templates of jobs and presets are compiled and rendered, one at a time."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=self._written, optimized=False)
        self._left = MOST_WORK
        del self.globals["lipsum"]
        self._functions = {id(function) for function in self.globals.values()}
        own: dict[str, Any] = {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "tojson": self._to_json,
        }
        known: dict[str, Any] = {**self.filters, **own}
        self.filters = {
            **{name: self._bounded(known[name], name in _FREE_ARGUMENTS) for name in _FILTERS.split()},
            _ROUNDS: self._rounds,
            _COUNTED: self._counted,
        }
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._bounded(test, True) for name, test in tests.items()}

    def begin(self) -> None:
        """Lets what comes next do all the work again."""
        self._left = MOST_WORK

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A value's attribute; of a row or another mapping first the value of that name: `items` may be a column."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What stands in a value, or a plain attribute; a method is no value, it can only be called."""
        value = super().getitem(obj, argument)
        if callable(value) and not isinstance(value, Undefined):
            raise SecurityError(f"the function {argument!r} is no value; call it")
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether it is a method that may be called, or a plain value of anything but a row."""
        allowed = self.is_safe_callable(value) if callable(value) else not isinstance(obj, Mapping)
        return allowed and super().is_safe_attribute(obj, attr, value)

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether it is a macro, one of the few global functions, or a method that cannot make much of little."""
        if isinstance(obj, Macro | Joiner) or id(obj) in self._functions:
            return True
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, LoopContext | Cycler):
            return name in ("cycle", "changed", "next", "reset")
        return isinstance(owner, _OWNERS) and name in _CALLABLE

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: `format` is no method that may be called."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # jinja's names
        """What a call in a template gives."""
        __self._spend(_CALL)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if name not in _FREE_ARGUMENTS and owner is not None:
            _check_arguments([*args, *kwargs.values()])
        if isinstance(owner, str):
            __self._spend(len(owner))
            if name == "replace":
                return __self._counted(__self._replace(owner, *args, **kwargs))
            if name == "join":
                return __self._counted(__self._join(args[0], owner))
        return __self._counted(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """What an operator makes of two values."""
        if operator == "**":
            raise SecurityError("'**' cannot be used here")
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("'%' cannot format a text here; put its pieces together with '~'")
        if operator == "*":
            for values, number in ((left, right), (right, left)):
                if isinstance(values, str | bytes | list | tuple) and isinstance(number, int):
                    self._spend(_length(values) * max(0, number))
        return self._counted(super().call_binop(context, operator, left, right))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Python's text of a template, in which work is counted."""
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise TemplateRuntimeError(f"it does more work than {MOST_WORK:,} characters")

    def _written(self, value: Any) -> Any:
        """A value that is about to be written."""
        if value is None:
            raise TemplateRuntimeError("it writes a null value; give it a default, as in {{ column or '' }}")
        is_object = isinstance(value, Iterator) or (isinstance(value, Mapping) and not isinstance(value, dict))
        if is_object or (callable(value) and not isinstance(value, Undefined)):
            raise TemplateRuntimeError(f"it writes a {type(value).__name__}, which is no text, number or list")
        return self._counted(value)

    def _counted(self, value: Any) -> Any:
        """The value, once its size is spent: all that it holds, as often as it is in there."""
        found = [value]
        while found:
            each = found.pop()
            self._spend(_length(each))
            if isinstance(each, dict):
                found += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple | set):
                found += each
            elif isinstance(each, int) and each.bit_length() > _MOST_BITS:
                raise TemplateRuntimeError("a number in it is too large")
        return value

    def _rounds(self, values: Iterable[Any], cost: int) -> Iterator[Any]:
        """What a loop goes through, each for its cost."""
        self._spend(_length(values))
        for value in values:
            self._spend(_STEP + cost)
            yield value

    def _bounded(self, function: Callable[..., Any], has_free_arguments: bool) -> Callable[..., Any]:
        """A filter or a test that counts what it takes and gives."""
        first = int(hasattr(function, "jinja_pass_arg"))

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._spend(_STEP + sum(map(_length, args[first:])))
            if not has_free_arguments:
                _check_arguments([*args[first + 1 :], *kwargs.values()])
            return self._counted(function(*args, **kwargs))

        return bounded

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(text), str(old), str(new)
        self._spend(text.count(old) * len(new))
        return str(text.replace(old, new, -1 if count is None else count))

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        chosen = values if attribute is None else map(make_attrgetter(self, attribute), values)
        texts = [self._counted(str(value)) for value in chosen]
        self._spend(len(texts) * len(str(d)))
        return str(d).join(texts)

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self._spend((text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
        return do_indent(text, width, first, blank)

    def _to_json(self, value: Any, indent: int | None = None) -> str:
        for _ in range(1 + 8 * (indent or 0)):
            self._counted(value)
        return do_tojson(EvalContext(self), value, indent)


class _Counting(NodeTransformer):
    """Puts the counting into a parsed template: of rounds, of what is put together, compared or cut."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja calls it so
        """A round costs the text that stands in the loop."""
        self.generic_visit(node)
        cost = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, _ROUNDS, nodes.Const(cost))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Counted piece by piece, before they are one."""
        self.generic_visit(node)
        node.nodes = [_filtered(piece, _COUNTED) for piece in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Long values take long to compare."""
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _COUNTED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _COUNTED)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        """Here, and only here, an attribute may be a method."""
        called = node.node
        if not isinstance(called, nodes.Getattr):
            return self.generic_visit(node)
        called.node = self.visit(called.node)
        node.node = nodes.Const(None)
        self.generic_visit(node)
        node.node = called
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802
        """A plain attribute."""
        self.generic_visit(node)
        return nodes.Getitem(node.node, nodes.Const(node.attr), node.ctx, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """A slice is a copy."""
        self.generic_visit(node)
        return _filtered(node, _COUNTED) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        """What holds a value twice may be twice as long when it is written."""
        self.generic_visit(node)
        return _filtered(node, _COUNTED)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """As a list; but not the names that a loop or a `set` fills."""
        self.generic_visit(node)
        return _filtered(node, _COUNTED) if node.ctx == "load" else node


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _length(value: Any) -> int:
    """What a value counts by itself."""
    if isinstance(value, str | bytes):
        return len(value)
    return _STEP * (1 + len(value)) if isinstance(value, list | tuple | set | dict) else _STEP


def _check_arguments(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MOST_OF_NUMBER:
            raise SecurityError(f"a number over {_MOST_OF_NUMBER:,} is no argument here")
        if isinstance(value, str) and len(value) > _MOST_OF_TEXT:
            raise SecurityError(f"a text of over {_MOST_OF_TEXT:,} characters is no argument here")
