"""Templates of protocols that would run for ever or fill the memory are refused within a second or two."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medbench.harness.cli.validate import faults_of
from medbench.harness.protocols.templates import ENVIRONMENT, TooMuch, render_bounded

DOUBLING = "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = %s %}{% endfor %}"
CONSTANT = "x" * 1000
ENDLESS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested constants": "".join(f"{{% for v{n} in '{CONSTANT}' %}}" for n in range(5)) + "{% endfor %}" * 5,
    "nested lists": "{% set r = range(99999)|list %}{% for a in r %}{% for b in r if b < 0 %}{% endfor %}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a macro in a set": "{% macro f(n) %}{% if n %}{% set x = f(n-1) + f(n-1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loops": "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "plus": DOUBLING.replace("%s", "ns.s + ns.s"),
    "tilde": DOUBLING.replace("%s", "ns.s ~ ns.s"),
    "times": DOUBLING.replace("%s", "ns.s * 9"),
    "lists": DOUBLING.replace("%s", "[ns.s, ns.s]") + "{{ ns.s }}",
    "lists as text": DOUBLING.replace("%s", "[ns.s, ns.s]") + "{{ ns.s|string|length }}",
    "join": DOUBLING.replace("%s", "[ns.s, ns.s]|join(ns.s)"),
    "replace": DOUBLING.replace("%s", "ns.s|replace('x', 'xx')"),
    "method": DOUBLING.replace("%s", "ns.s.replace('x', 'xx')"),
    "a captured block": "{% set s = 'x' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "numbers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a long text": "{{ 'x' * 10 ** 10 }}",
    "a long list": "{{ ([1] * 10 ** 10)|length }}",
    "center": "{{ 'x'|center(10 ** 10) }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "slices": "{{ 'x'|slice(10000000000)|list|length }}",
    "batch": "{{ 'x'|batch(10000000000, 'x')|list|length }}",
    "percent": "{{ '%010000000000d' % 1 }}",
    "percent from an argument": "{{ '%*d' % (10000000000, 1) }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "format filter": "{{ '%10000000000s'|format(1) }}",
    "rounding": "{{ 1.5|round(10000000000, 'ceil') }}",
    "lipsum": "{{ lipsum(10000000) }}",
    "indent": "{{ tojson|default({'a': 1})|tojson(10000000000) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_refused(name: str) -> None:
    started = time.process_time()
    with pytest.raises(Exception) as fault:
        render_bounded(ENVIRONMENT.from_string(ENDLESS[name]), {})
    assert isinstance(fault.value, TooMuch | RecursionError | MemoryError | ValueError | OverflowError), fault.value
    assert time.process_time() - started < 20


def test_validate_names_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f'name: p\nabout: p\nmethod: generate\nprompt: "{ENDLESS["nested ranges"]}"\n')
    _, (line,) = faults_of(path)
    assert "prompt: " in line
    assert "200,000 rounds of loops" in line


ORDINARY = [
    "{{ question }}\n{% for label, text in choices %}\n{{ loop.index }}/{{ loop.length }} {{ label }}. {{ text }}\n"
    "{% endfor %}",
    "{{ '100000 % of *{1}'|replace('1', '{2000000}') }}{{ '* % 1000000'.split('%') }}",
    "{% for c in choices if c[0] != 'A' %}{{ c|join(') ') }}{% else %}none{% endfor %}",
    "{{ 'a' ~ 1 ~ question }}{{ (question ~ '!')|upper }}{{ 2 * 3 }}{{ '-' * 20 }}{{ '%s: %05.2f' % ('a', 2) }}",
    "{{ choices|map(attribute=0)|join(', ') }}{{ choices|map('first')|list }}{{ question|replace('?', '!') }}",
    "{% macro line(c) %}{{ c[0] }}={{ c[1] }};{% endmacro %}{% for c in choices %}{{ line(c) }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for c in choices %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% if missing is defined %}{{ missing }}{% endif %}{{ missing|default('none') }}{{ {'a': 1}.items()|list }}",
    "{% set text %}{{ question }}{% endset %}{{ text|length }}{{ text.split()|last }}{{ range(3)|list }}{{ 7 % 2 }}",
    "{% filter upper %}{{ question }}{% endfilter %}{{ '{}-{}'.format(1, question) }}{{ question[::-1] }}",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_an_ordinary_template_renders_as_without_limits(source: str) -> None:
    values = {"question": "Which of these is iron?", "choices": [("A", "Fe"), ("B", "Zn")]}
    plain = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(source).render(values)
    assert render_bounded(ENVIRONMENT.from_string(source), values) == expected
    assert render_bounded(ENVIRONMENT.from_string(source), values) == expected


@pytest.mark.parametrize(
    "source", ["{{ ().__class__.__base__ }}", "{{ missing }}", "{% for a in missing %}{% endfor %}"]
)
def test_the_sandbox_and_undefined_names_are_as_before(source: str) -> None:
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        render_bounded(ENVIRONMENT.from_string(source), {})


@pytest.mark.slow
def test_memory_stays_small() -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from protocols.test_templates import ENDLESS, ENVIRONMENT, TooMuch, render_bounded\n"
        "for name, source in ENDLESS.items():\n"
        "    try: render_bounded(ENVIRONMENT.from_string(source), {})\n"
        "    except MemoryError: sys.exit(name)\n"
        "    except Exception: pass\n"
    )
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script, str(tests)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
