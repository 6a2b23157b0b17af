"""What lies in memory at a peak, and what it is called: a program worked by hand, as XLA writes it."""

import pytest

from lora_jax.memory import buffers, components
from lora_jax.memory.components import Shapes

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
FileNames
1 "/x/attention.py"
2 "/x/transformer.py"

FunctionNames
1 "scores"
2 "hidden_states"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7}
2 {file_name_id=2 function_name_id=2 line=9}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

ENTRY %main {
  %held = f32[16]{0} parameter(1), metadata={op_name="trainable[\\'a\\']"}
  %stack = f32[2,50]{1,0} fusion(%held), metadata={op_name="jit(step)/while/dynamic_update_slice" stack_frame_id=1}
  %early = f32[64]{0} fusion(%held), metadata={op_name="jit(step)/jvp()/dot" stack_frame_id=2}
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
    assert [frame.function for frame in stack.origins[0].frames] == ["hidden_states"]
    assert [frame.function for frame in late.origins[0].frames] == ["scores", "hidden_states"]  # a copy of `early`
    assert components.buffer(stack, Shapes(2, frozenset(), frozenset()))[0] == "saved activations"
    assert components.buffer(late, Shapes(2, frozenset(), frozenset())) == ("workspace", "attention")


def test_the_peak_moves_where_a_buffer_lives_longer(tmp_path):
    write(tmp_path, TEXTS | {"live-range.txt": TEXTS["live-range.txt"].replace("early{}:0-1", "early{}:0-2")})
    assert [b.name for b in buffers.read(tmp_path, "jit_step").peak] == ["stack", "early"]


def test_texts_that_are_missing_are_missed(tmp_path):
    with pytest.raises(FileNotFoundError, match="0 files of jit_step end in after_optimizations"):
        buffers.read(tmp_path, "jit_step")


def a_buffer(shape, path="", *frames):
    origin = buffers.Origin(path, tuple(buffers.Frame(*frame) for frame in frames))
    return buffers.Buffer("fusion", shape, 1, (origin,) if path else ())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (a_buffer("bf16[3,48,80]", "transpose(jvp())/while"), "gradients: backward"),
        (a_buffer("bf16[1,48,80]", "transpose(jvp())/while/body/dynamic_slice"), "workspace: copies of weights"),
        (a_buffer("bf16[80,48]", "jvp()/while/body/transpose"), "workspace: copies of weights"),
        (a_buffer("f32[112,48]", "transpose(jvp())/while"), "workspace: copies of weights"),  # of what does not train
        (a_buffer("bf16[48,80]", "jvp()", ("/x/quantize.py", "dense", 1)), "workspace: dequantized weights"),
        (a_buffer("f32[36,112]", "jvp()", ("/x/cross_entropy.py", "one", 1)), "logits and loss: head and loss"),
        (a_buffer("f32[7]", "jit(step)", ("/y/optax/transform.py", "update", 1)), "workspace: optimizer"),
        (a_buffer("f32[9,9]"), "unnamed: "),
    ],
)
def test_a_buffer_is_named_by_its_shape_and_its_maker(found, expected):
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
