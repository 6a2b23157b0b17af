"""Chat templates that never end, take all memory or crash: each is one sentence, and the next template is rendered."""

import os
import threading
import time

import pytest

from lora_jax.errors import InputError
from lora_jax.files import chat_template

MESSAGES = [{"role": "user", "content": "a & b"}]
GOOD = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
MILLION = "{% for a in range(1000) %}{% for b in range(1000) %}"


def ascii_start(value):
    return ascii(value)[:20]


HOSTILE = {
    # Loops without end, as far as anybody can wait.
    "loops": MILLION * 2 + "{% endfor %}" * 4,
    "loops_over_strings": "{% set s = 'x' * 99999 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive_loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "sums": MILLION + "{{ range(99999) | sum }}" + "{% endfor %}" * 2,
    "power": "{{ (10 ** (10 ** 10)) % 7 }}",
    "digits": "{{ (7 ** 9999999) | string }}",
    "generation": "{% generation %}" + MILLION * 2 + "{% endfor %}" * 4 + "{% endgeneration %}",
    "sorting": MILLION + "{{ range(99999) | sort | unique | list | length }}" + "{% endfor %}" * 2,
    "urls": MILLION + "{{ ('http://' * 999) | urlize }}" + "{% endfor %}" * 2,
    # Memory: operators, filters, methods, and growing step by step.
    "times": "{{ 'a' * 3000000000 }}",
    "times_a_list": "{{ ([1] * 3000000000) | length }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format_method": "{{ '{:>1000000000}'.format(1) }}",
    "format_filter": "{{ '%01000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(3 * 10 ** 9) }}",
    "indent": "{{ 'a\\nb' | indent(3 * 10 ** 9) }}",
    "json_indent": "{{ [1, 2] | tojson(indent=3 * 10 ** 9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2 * 10 ** 9) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "batch": "{{ [1] | batch(3 * 10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 10) | list | length }}",
    "doubling": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adding": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "lists": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "lipsum": "{{ lipsum(n=99999999) }}",
    "range": "{{ range(10 ** 10) | list }}",
    "output": MILLION + "0123456789012345678901234567890123456789012345678901234567890" + "{% endfor %}" * 2,
    # Depth, of what is read and of what is run.
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists_in_lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "minus": "{{ " + "-" * 100000 + "1 }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "blocks": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "endless_macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "caller": "{% macro f() %}{% call f() %}{% endcall %}{{ caller() }}{% endmacro %}{{ f() }}",
    "deep_list": "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
}  # fmt: skip


LONG = [
    "loops_over_strings",
    "macros",
    "recursive_loop",
    "sums",
    "digits",
    "generation",
    "sorting",
    "urls",
    "slice",
    "lipsum",
]
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in HOSTILE]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_template_is_a_sentence_and_the_next_one_is_rendered(name):
    before = os.times()
    with pytest.raises(InputError) as refusal:
        chat_template.render(HOSTILE[name], MESSAGES, names={})
    said = str(refusal.value)
    assert "chat template" in said and len(said) < 1500 and "\n" not in said
    assert os.times().user - before.user < 1  # it did not run here
    assert chat_template.render(GOOD, MESSAGES, names={}) == "a & b"


def test_what_ends_a_template_is_said():
    for name, said in (("loops", "more than 1 s of the processor's time"), ("times", "more than 600 MB of memory"),
                       ("output", "may write 50,000,000"), ("range", "Range too big")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            chat_template.render(HOSTILE[name], MESSAGES, names={})


def test_templates_of_many_threads_do_not_mix():
    found = {}

    def render(i):
        for _ in range(20):
            found.setdefault(i, set()).add(chat_template.render(GOOD, [{"role": "user", "content": str(i)}], names={}))

    threads = [threading.Thread(target=render, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: {str(i)} for i in range(8)}


def test_a_child_that_was_ended_from_outside_is_started_again():
    chat_template.render(GOOD, MESSAGES, names={})
    chat_template._renderer()._process.kill()
    time.sleep(0.05)
    assert chat_template.render(GOOD, MESSAGES, names={}) == "a & b"


@pytest.mark.parametrize(
    "content", ["\ud800", "\0", "\u2028", "😀" * 1000, "x" * 5_000_000, ["a", ("b", 1.5)], {"a": None}]
)
def test_whatever_a_message_holds_arrives(content):
    found = chat_template.render("{{ messages[0].content }}", [{"role": "user", "content": content}], names={})
    assert found == str(content)


def test_what_no_other_process_can_be_given_is_told():
    with pytest.raises(InputError, match="a message holds what is no plain data"):
        chat_template.render(GOOD, [{"role": "user", "content": lambda: 1}], names={})
