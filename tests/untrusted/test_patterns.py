"""The gate for patterns: Python's own `re`, whatever they are, and in bounded time."""

import os
import re
import sys

import pytest

from lora_jax.errors import InputError
from lora_jax.untrusted import child, patterns

PARTS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
NAMES = [f"model.layers.{i}.{part}" for i in range(40) for part in PARTS] + ["model.embed_tokens", "lm_head"]

HONEST = [
    "q_proj", "lm_head", "model.embed_tokens", r"model\.layers\.3\.mlp\.down_proj", "model.layers.1..mlp.down_proj", "",
    ".*", r".*\.(q|v)_proj", r"model\.layers\.(0|2|1\d)\.(self_attn\.(q|v)|mlp\.down)_proj", "(?i).*Q_PROJ",
    r".*(?<!q)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward)\.(?:(?:k_proj|v_proj|q_proj)))",
    r"^model\.(?!layers\.[0-9]\.).*proj$", r".*layers\.(?P<n>\d)(?P=n)\..*", "lm_head|.*embed.*", "a{e}", "[[:alpha:]]",
    r"model\.layers\.\d++\.mlp.*", "|".join(re.escape(name) for name in NAMES * 3), "lm-head", r"lm_\w{4}", "\n",
    "lm_head$",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize("pattern", HONEST, ids=lambda pattern: ascii(pattern)[:20])
def test_what_matches_is_what_re_matches(pattern):
    assert patterns.fullmatch(pattern, NAMES) == [name for name in NAMES if re.fullmatch(pattern, name)]


KEYS = ["q_proj", r"layers\.[01]\..*", "model.layers.2.mlp.down_proj", "lm_head", ".*", "embed_tokens", "proj", "a|b",
        "(q|v)_proj", r"self_attn\.v_proj", "layers.1.mlp.down_proj", "^lm_head", "head$", ""]  # fmt: skip


def test_values_by_pattern_are_those_that_peft_reads():
    """Its rule, in `peft.utils.other.get_pattern_key`: the first key that matches the name or its last parts."""
    for keys in (KEYS, KEYS[::-1], KEYS[:3], KEYS[5:], ["zzz"], []):
        values = {key: number for number, key in enumerate(keys)}
        expected = {}
        for name in NAMES:
            key = next((key for key in keys if re.match(rf"(.*\.)?({key})$", name)), None)
            expected |= {} if key is None else {name: values[key]}
        assert patterns.resolve(values, NAMES) == expected


ENDLESS = [
    "(.+)+#", "(.*)*#", r"(\w+\.?)+!", r"(\w|.)*#", "((.*).*)*#", "(.*?)*?#", "(?:.|..)*#", r"([a-z_.0-9]+)*\d#",
    "(.{1,9}){1,9}#", "(?=(.+)+#).*", r"(.*)(.*)(.*)(.*)(.*)(.*)\1#", "(?:.?){30}" * 3 + "#",
]  # fmt: skip


@pytest.mark.parametrize("pattern", [ENDLESS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in ENDLESS[1:])])
def test_what_never_ends_is_a_sentence_within_a_second_of_the_processors_time(pattern):
    before = os.times()
    with pytest.raises(InputError, match=r"cannot be matched with names of modules: it took more than 1 s"):
        patterns.fullmatch(pattern, NAMES)
    spent = os.times()
    assert spent.children_user - before.children_user < 3 and spent.user - before.user < 1


def test_what_never_ends_among_others_by_name():
    with pytest.raises(InputError, match=r"one of '\(\.\+\)\+#', '\.\*' cannot be matched"):
        patterns.resolve({"q_proj": 1, "(.+)+#": 2, ".*": 3}, NAMES)


NONE = [
    "(",
    "[",
    "*",
    "a**b(",
    "\\",
    "(?P<a>.)(?P<a>.)",
    "(?<=a+)b",
    "a{99999999999999}",
    "(" * 5000,
    r"\p{L}",
    "(?R)",
    ")(",
]


@pytest.mark.parametrize("pattern", NONE, ids=lambda pattern: pattern[:20])
def test_what_is_no_pattern_is_a_sentence(pattern):
    with pytest.raises(InputError, match="is not a regular expression"):
        patterns.fullmatch(pattern, NAMES)
    with pytest.raises(InputError, match="is not a regular expression"):
        patterns.resolve({pattern: 1}, NAMES)


def test_a_key_that_is_one_only_within_what_is_put_round_it():
    with pytest.raises(InputError, match=r"'a\)\|\(b' is not a regular expression"):
        patterns.resolve({"a)|(b": 1}, NAMES)
    with pytest.raises(InputError, match=r"'\(\?i\)q' is not a regular expression"):
        patterns.resolve({"(?i)q": 1}, NAMES)


def test_a_pattern_that_is_too_long():
    with pytest.raises(InputError, match="has 100,001 characters, and a pattern may have 100,000"):
        patterns.fullmatch("a" * 100_001, NAMES)


def test_names_alone_start_no_process(monkeypatch):
    monkeypatch.setattr(child.Child, "_start", lambda *_: pytest.fail("a process was started"))
    patterns.fullmatch("model.layers.0.self_attn.q_proj", ["a"])
    patterns.resolve(dict.fromkeys(NAMES, 1), NAMES[:7])


PROGRAM = "import os, sys\ndef answer(question):\n    {}\n"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("while True: pass", "it took more than 0.2 s of the processor's time: it may never end"),
        ("return 'a' * 3_000_000_000", "it took more than 600 MB of memory"),
        ("x = 'a'\n    while True: x += x", "it took more than 600 MB of memory"),
        ("os.abort()", "it took more than 600 MB of memory"),  # as a library does that has none left
        ("os._exit(7)", "it ended the process that tried it, with status 7"),
        ("os.kill(os.getpid(), 11)", "it ended the process that tried it, with status -11"),
        ("raise ValueError('a\\nb')", "a b"),
        ("return object()", "not JSON serializable"),
        ("def f(): f()\n    f()", "maximum recursion depth exceeded"),
        ("os.close(1)", "it ended the process that tried it"),
    ],
)
def test_whatever_becomes_of_a_child_its_parent_goes_on(does, said, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(does))
    (tmp_path / "good.py").write_text(PROGRAM.format("return question"))
    with child.Child(tmp_path / "program.py") as one:
        for _ in range(2):
            with pytest.raises(child.Ended, match=re.escape(said)):
                one.ask({}, 3.0 if "MB" in said else 0.2)
        process = one._process
        one.program = str(tmp_path / "good.py")
        one.close()
        assert one.ask([1, "é\ud800"], 5) == [1, "é\ud800"]
    assert one._process is None and (process is None or process.poll() is not None)


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match="in a process of its own, and none could be started"):
        patterns.fullmatch("a+b", NAMES)
