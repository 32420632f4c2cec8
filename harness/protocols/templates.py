"""Jinja for templates from outside: sandboxed, and with limits on steps and text, so that none hangs or fills memory.

    print(render_bounded(ENVIRONMENT.from_string("{{ 6 * 7 }}"), {}))

Rounds of loops and calls count as steps. What operators, filters and calls get and give is measured, since each of
them can make a text as long as the product of two others. The limits are far above what a prompt needs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from itertools import islice
from math import prod
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateRuntimeError, nodes, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 200_000
"""Rounds of loops, and calls, in one rendering."""
LARGEST_TEXT = 2_000_000
"""Characters that one rendering writes, or that one value has."""
LARGEST_PRODUCT = 100_000_000
"""Of the lengths of all texts and lists that one filter or call gets."""
LARGEST_NUMBER = 100_000
"""As an argument: widths, counts, ranges, repetitions."""
WIDE_FORMAT = re.compile(r"\d{6}|\*")
"""A width or precision above LARGEST_NUMBER, or one that is taken from an argument."""


class TooMuch(TemplateRuntimeError):
    """The template goes beyond a limit, which the message names."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts one rendering at a time; renderings in several threads share their limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.steps = self.written = 0
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters |= {"_counted": _counted, "_written": _written, "_joined": _bounded(_joined)}

    def add(self, *, filters: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
        """Take what another environment has added to jinja's own filters and functions, or has put in their place."""
        new = {name: one for name, one in filters.items() if one is not FILTERS.get(name)}
        self.filters |= {name: _bounded(one) for name, one in new.items()}
        self.globals |= {name: one for name, one in functions.items() if name not in self.globals}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                raise TooMuch("a recursive loop, which has no limit: write it without `recursive`")
            loop.iter = _through("_counted", loop.iter)
        for parent in [tree, *tree.find_all(nodes.Node)]:
            _replace_concatenations(parent)
        for output in tree.find_all(nodes.Output):
            output.nodes = [
                part if isinstance(part, nodes.TemplateData) else _through("_written", part) for part in output.nodes
            ]
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.step(1)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        bound = getattr(method, "__self__", None)
        if getattr(method, "__name__", "") in ("format", "format_map"):
            _check_format(bound)
        _check_arguments(bound, *args, *kwargs.values())
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int | float) and isinstance(right, int | float):
            most = 100 if operator == "**" else 10**12
            if max(abs(left), abs(right)) > most:
                raise TooMuch(f"a number above {most:,} as an operand of {operator}")
        elif operator == "%":
            _check_format(left)
            _check_arguments(left, right)
        elif operator == "*":
            _check_arguments(left, right)
            if prod(abs(each) if isinstance(each, int) else _size(each) for each in (left, right)) > LARGEST_TEXT:
                raise TooMuch(f"a text of more than {LARGEST_TEXT:,} characters")
        return _checked(super().call_binop(context, operator, left, right))

    def step(self, n: int) -> None:
        self.steps += n
        if self.steps > MOST_STEPS:
            raise TooMuch(f"more than {MOST_STEPS:,} rounds of loops and calls")

    def write(self, n: int) -> None:
        self.written += n
        if self.written > LARGEST_TEXT:
            raise TooMuch(f"a text of more than {LARGEST_TEXT:,} characters")


def render_bounded(template: Template, values: Mapping[str, Any]) -> str:
    """Raises TooMuch at a limit, and whatever a template can raise."""
    environment = template.environment
    assert isinstance(environment, BoundedEnvironment)
    environment.steps = environment.written = 0
    return template.render(values)


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _replace_concatenations(parent: nodes.Node) -> None:
    """`a ~ b` is no operator that jinja lets an environment intercept; a filter is."""

    def replaced(value: Any) -> Any:
        if not isinstance(value, nodes.Concat):
            return value
        return _through("_joined", nodes.List(value.nodes, lineno=value.lineno))

    for field in parent.fields:
        value = getattr(parent, field, None)
        setattr(parent, field, [replaced(one) for one in value] if isinstance(value, list) else replaced(value))


def _joined(values: list[Any]) -> str:
    return "".join(map(str, values))


# With a context, a filter is not applied to constants while the template is compiled, which would not count.
@pass_context
def _counted(context: Context, values: Any) -> list[Any]:
    found = list(islice(values, MOST_STEPS + 1))
    context.environment.step(len(found))  # type: ignore[attr-defined]
    return found


@pass_context
def _written(context: Context, value: Any) -> Any:
    context.environment.write(_size(value))  # type: ignore[attr-defined]
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps jinja's mark for filters that take the context
    def measured(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ == "do_format":
            _check_format(args[0])
        _check_arguments(*args, *kwargs.values())
        return _checked(function(*args, **kwargs))

    return measured


def _check_arguments(*values: Any) -> None:
    numbers = [value for value in values if isinstance(value, int | float)]
    if any(abs(number) > LARGEST_NUMBER for number in numbers):
        raise TooMuch(f"a number above {LARGEST_NUMBER:,} as an argument")
    sized = [value for value in values if isinstance(value, str | bytes | list | tuple | dict)]
    if prod(max(1, _size(_checked(value))) for value in sized) > LARGEST_PRODUCT:
        raise TooMuch(f"texts that may give one of more than {LARGEST_PRODUCT:,} characters")


def _check_format(value: Any) -> None:
    if isinstance(value, str) and WIDE_FORMAT.search(value):
        raise TooMuch(f"a format with a width above {LARGEST_NUMBER:,}")


def _checked(value: Any) -> Any:
    if _size(value) > LARGEST_TEXT:
        raise TooMuch(f"a text of more than {LARGEST_TEXT:,} characters")
    return value


def _size(value: Any) -> int:
    """About how long `value` is as text; stops counting above LARGEST_TEXT."""
    total, waiting = 0, [value]
    while waiting and total <= LARGEST_TEXT:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            total += 2
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            total += 2
            waiting += one
        else:
            total += 1
    return total


ENVIRONMENT = BoundedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
"""For the templates of protocols: a name that is not defined is an error."""
