"""Chat templates as `transformers` renders them: by hand, and in an environment with it byte for byte."""

import json
from datetime import datetime

import pytest
import tokenizers_of_many_kinds as kinds

from lora_jax.errors import InputError
from lora_jax.files.chat_template import PLAIN, generated, render

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'h\u00e9llo <&> "x"\n'},
    {"role": "assistant", "content": " yo "},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
]
TODAY = datetime.now().strftime("%d %b %Y")
EACH = "{%% for m in messages %%}%s{%% endfor %%}"
CASES = {  # template -> what it writes of MESSAGES
    EACH % "{{ m['content'] | tojson }}": "".join(json.dumps(m["content"], ensure_ascii=False) for m in MESSAGES),
    EACH % "{{ m['content'] | tojson(ensure_ascii=True) }}": "".join(json.dumps(m["content"]) for m in MESSAGES),
    EACH % "{{ m | tojson(ensure_ascii=False, indent=2, sort_keys=True) }}": "".join(
        json.dumps(m, ensure_ascii=False, indent=2, sort_keys=True) for m in MESSAGES
    ),
    EACH % "{{ m | tojson(separators=(',', ':')) }}": "".join(
        json.dumps(m, ensure_ascii=False, separators=(",", ":")) for m in MESSAGES
    ),
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}": TODAY,
    "{% if tools is none and documents is none %}none{% else %}some{% endif %}": "none",
    "{% if tools is defined %}defined{% endif %}{% if tools %}some{% endif %}": "defined",
    "{% if pad_token is defined %}pad{% else %}no pad{% endif %}{{ bos_token }}{{ unk_token }}": "no pad<s>",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "5",
    EACH % "{% if loop.first %}{% continue %}{% endif %}{% if loop.last %}{% break %}{% endif %}{{ m.role }} ":
        "user assistant user ",
    "  {% if true %}\n  a\n  {% endif %}\nb\n": "  a\nb",
    "{{ messages[0]['content'] }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}": "Be brief.2",
    "{{ messages[1:] | map(attribute='role') | join(',') }}": "user,assistant,user,assistant",
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}{{ turn(messages[2]) }}": "<assistant>yo",
    "{% generation %}a{{ bos_token }}{% endgeneration %}{%- generation -%} b {%- endgeneration -%}": "a<s>b",
    "{% set x %}{% generation %} a {% endgeneration %}{% endset %}{{ x | trim }}": "a",
    "{{ dict(a=1) | tojson }}{{ raise_exception is defined }}": '{"a": 1}True',
    "{{ messages[0].missing }}{{ messages[0].missing is defined }}": "False",
}  # fmt: skip


@pytest.mark.parametrize("template", CASES)
def test_what_templates_may_use(template):
    assert render(template, MESSAGES, **NAMES) == CASES[template]


@pytest.mark.parametrize(
    "template", [*CASES, PLAIN, kinds.CHATML, kinds.ZEPHYR, kinds.LLAMA3, kinds.TAGGED, kinds.AS_JSON]
)
@pytest.mark.parametrize("opened", [False, True])
def test_transformers_writes_the_same(template, opened):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.utils.chat_template_utils.render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=opened, **NAMES
    )
    assert render(template, MESSAGES, opened, **NAMES) == theirs[0][0]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (EACH % "{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}", None),
        (EACH % "{% if m.role == 'assistant' %}[{% generation %}{{ m.content }}</s>{% endgeneration %}]{% endif %}",
         [" yo </s>", "2</s>"]),
        (EACH % "{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }} {%- endgeneration +%}\n{% endif %}",
         [" yo ", "2"]),
        (EACH % "{{ m.content }}", "untagged"),
        ("{% if false %}{% generation %}x{% endgeneration %}{% endif %}", "untagged"),
        ("{% set x %}{% generation %}abc{% endgeneration %}{% endset %}{{ x | upper }}!", ["ABC"]),
        ("{% set x %}{% generation %}abc{% endgeneration %}{% endset %}{{ x | length }}", "untagged"),
    ],
)  # fmt: skip
def test_where_the_answers_stand(template, expected):
    found = generated(template, MESSAGES, **NAMES)
    if expected == "untagged":
        assert found is None
    else:
        text = render(template, MESSAGES, **NAMES)
        expected = expected or [m["content"] for m in MESSAGES]
        assert [text[start:end] for start, end in found] == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"^line 1 of the chat template cannot be read by Jinja \(Unexpected end"),
        ("a\n{{ 'b' ", r"^line 2 of the chat template cannot be read by Jinja"),
        ("{{ raise_exception('system role not supported') }}", r"refused these messages \(system role not supported\)"),
        ("{{ pad_token + 'x' }}", r"refused these messages \('pad_token' is undefined\)"),
        ("{{ messages[0].content / 2 }}", r"refused these messages \(unsupported operand"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"refused these messages \(.*unsafe"),
        ("a\n\n{{ 1 +\n 'b' }}", r"^line [34] of the chat template refused these messages \(unsupported operand"),
        ("{{ messages.append(1) }}", r"refused these messages"),
        ("{{ 1 // 0 }}", r"refused these messages \(integer division"),
        ("{{ messages[9].role.x }}", r"refused these messages"),
        ("{% include 'x' %}", r"refused these messages \(no loader"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template, message):
    with pytest.raises(InputError, match=message) as error:
        render(template, MESSAGES, **NAMES)
    assert "\n" not in str(error.value)


def test_no_message_is_refused():
    with pytest.raises(InputError, match="no message"):
        render(PLAIN, [])
