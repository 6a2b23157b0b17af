"""What lies in memory at a peak, and what it is called: a program worked by hand, as XLA writes it."""

import re
from pathlib import Path

import pytest

from lora_jax.memory.compiled import buffers, components
from lora_jax.memory.compiled.components import Shapes

V, D, F, L = 112, 48, 80, 3

# A program of three temporary buffers, as XLA writes them. `stack` and what the loop carries are one place: 400 bytes.
# At time 3 the stack (400) and `late` (96) are alive: more than `early` (256) with the stack would be, were it still.
TEXTS = {
    "buffer-assignment.txt": """BufferAssignment:
allocation 0: size 64, parameter 1, shape |f32[16]| at ShapeIndex {}:
 value: <0 held @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 752, preallocated-temp:
 value: <1 early @0> (size=256,offset=400): f32[64]{0}
 value: <2 stack @0> (size=400,offset=0): f32[2,50]{1,0}
 value: <3 carried{1} (phi) @0> (size=400,offset=0): f32[2,50]{1,0}
 value: <4 late{} @0> (size=96,offset=656): f32[24]{0}
allocation 2: size 999, color 1, preallocated-temp:
 value: <5 elsewhere @0> (size=999,offset=0): s8[999]{0}
""",
    "live-range.txt": """HloLiveRange (max 5):
  BufferLiveRange:
    early{}:0-1
    stack{}:2-3
    carried{1}:3-5
    late{}:3-4
    elsewhere{}:0-5
""",
    "after_optimizations.txt": """HloModule jit_step

ENTRY %main {
  %held = f32[16]{0} parameter(1), metadata={op_name="trainable[\\'a\\']"}
  %stack = f32[2,50]{1,0} fusion(%held), metadata={op_name="jit(step)/jvp(loss)/layers/while/body/dynamic_update_slice"}
  %early = f32[64]{0} fusion(%held), metadata={op_name="jit(step)/jvp(loss)/layers/while/body/attention/exp"}
  %late = f32[24]{0} copy(%early)
}
""",
}


def write(folder, texts):
    for ending, text in texts.items():
        (folder / f"module_0001.jit_step.cpu_{ending}").write_text(text)


def test_the_peak_of_a_program_worked_by_hand(tmp_path):
    write(tmp_path, TEXTS)
    found = buffers.read(tmp_path, "jit_step")
    assert found.arguments == (("trainable['a']", 64),)
    assert found.temporary == 752
    assert [(b.name, b.shape, b.bytes) for b in found.peak] == [("stack", "f32[2,50]", 400), ("late", "f32[24]", 96)]
    stack, late = found.peak
    assert stack.paths == ("jit(step)/jvp(loss)/layers/while/body/dynamic_update_slice",)
    assert late.paths == ("jit(step)/jvp(loss)/layers/while/body/attention/exp",)  # a copy of `early`
    assert components.source(late) == "jvp(loss)/layers/attention/exp"
    assert components.buffer(stack, Shapes(2, frozenset(), frozenset()))[0] == "saved activations"
    assert components.buffer(late, Shapes(2, frozenset(), frozenset())) == ("workspace", "attention")


def test_the_peak_moves_where_a_buffer_lives_longer(tmp_path):
    write(tmp_path, TEXTS | {"live-range.txt": TEXTS["live-range.txt"].replace("early{}:0-1", "early{}:0-2")})
    assert [b.name for b in buffers.read(tmp_path, "jit_step").peak] == ["stack", "early"]


def test_texts_that_are_missing_are_missed(tmp_path):
    with pytest.raises(FileNotFoundError, match="0 files of jit_step end in after_optimizations"):
        buffers.read(tmp_path, "jit_step")


def test_what_nobody_names_is_known_by_what_has_its_shape(tmp_path):
    # `late` is now a fill with zeros, and far from it in time `early`, which has a path, is of its shape.
    program = TEXTS["after_optimizations.txt"].replace("copy(%early)", "broadcast()")
    assignment = TEXTS["buffer-assignment.txt"].replace("f32[64]", "f32[24]")
    write(tmp_path, TEXTS | {"after_optimizations.txt": program, "buffer-assignment.txt": assignment})
    assert buffers.read(tmp_path, "jit_step").peak[1].paths == ("jit(step)/jvp(loss)/layers/while/body/attention/exp",)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("jit(step)/jvp(loss)/layers/while/body/closed_call/self_attn/rope/mul", "rope"),
        ("jit(step)/transpose(jvp(loss))/layers/while/body/checkpoint/rematted_computation/mlp/dot_general", "mlp"),
        ("jit(step)/jvp(loss)/while/body/closed_call/transpose(jvp(lm_head))/dot_general", "lm_head"),
        ("jit(step)/transpose(jvp(loss/layers/norm))/mul", "norm"),  # a transformation of several scopes at once
        ("jit(step)/transpose(jvp(loss))/layers/norm/mul;checkpoint/self_attn/attention/exp", "attention"),  # joined
        ("jit(norm)/jvp(jit(loss))/add", ""),  # functions that happen to be called so
        ("jit(step)/mlp_of_another/normal", ""),
        ("", ""),
    ],
)
def test_the_innermost_scope_of_a_path(path, scope):
    assert components.scope(path) == scope


def test_the_scopes_are_those_of_the_model():
    package = Path(components.__file__).parents[2]
    found = [re.findall(r'named_scope\("(\w+)"\)', file.read_text()) for file in package.rglob("*.py")]
    assert {name for names in found for name in names} == set(components.SCOPES)


def a_buffer(shape, *paths):
    return buffers.Buffer("fusion", shape, 1, paths)


FORWARD, BACKWARD = "jit(step)/jvp(loss)/layers/while/body", "jit(step)/transpose(jvp(loss))/layers/while/body"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (a_buffer("bf16[3,48,80]", f"{BACKWARD}/dynamic_update_slice"), "gradients: layers"),
        (a_buffer("bf16[80,48]", f"{BACKWARD}/mlp/dot_general"), "gradients: mlp"),
        (a_buffer("bf16[1,48,80]", f"{BACKWARD}/dynamic_slice"), "workspace: copies of weights"),
        (a_buffer("bf16[80,48]", f"{FORWARD}/transpose"), "workspace: copies of weights"),
        (a_buffer("f32[112,48]", f"{BACKWARD}/transpose"), "workspace: copies of weights"),  # of what does not train
        (a_buffer("bf16[48,80]", f"{FORWARD}/mlp/dequantize/mul"), "workspace: dequantize"),
        (a_buffer("f32[3,96,48]", f"{FORWARD}/dynamic_update_slice"), "saved activations: "),
        (a_buffer("f32[3,96,48]", f"{FORWARD}/attention/while/body/dynamic_update_slice"), "workspace: attention"),
        (a_buffer("f32[36,112]", "jit(step)/jvp(loss)/while/body/jvp(lm_head)/dot"), "logits and loss: lm_head"),
        (a_buffer("f32[36,112]", "jit(step)/jvp()/add", "jit(step)/jvp(loss)/exp"), "logits and loss: loss"),
        (a_buffer("f32[7]", "jit(step)/optimizer/sqrt"), "workspace: optimizer"),
        (a_buffer("f32[9,9]"), "unnamed: "),
    ],
)
def test_a_buffer_is_named_by_its_shape_and_its_scopes(found, expected):
    shapes = Shapes(L, frozenset({(L, D, F)}), frozenset({(V, D)}))
    assert ": ".join(components.buffer(found, shapes)) == expected


def test_arguments_are_named():
    names = {
        "trainable['layers']['mlp']['up_proj'].a": "adapters",
        "opt_state[0].mu['norm']": "optimizer state",
        "frozen[0]['layers']['mlp']['up_proj'].codes": "weights",
        "frozen[0]['layers']['mlp']['up_proj'].constants.codes": "quantization constants",
        "frozen[1]['layers']['mlp']['up_proj'].scaling": "adapter constants",
        "batch['tokens']": "batch",
        "something": "unnamed",
    }
    assert {name: components.argument(name, full=False) for name in names} == names
    assert components.argument("trainable['norm']", full=True) == "weights"
