"""(IA)3 by hand: what is scaled, that it stands over the bias, and what it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small as tiny
from close import close, rounding

from lora_jax.adapters import ia3
from lora_jax.adapters.base import Adapted, attach, count, merge
from lora_jax.adapters.lora import LoRA
from lora_jax.errors import InputError
from lora_jax.weights import Biased

CONFIG, PARAMS = tiny.model()
DRAW = np.random.default_rng(6)


def drawn(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


X, W, B = drawn(5, 24), drawn(24, 36), drawn(36)
ONE = {"inputs": ia3.IA3(drawn(24), None), "outputs": ia3.IA3(None, drawn(36))}


@pytest.mark.parametrize("side", ONE)
@pytest.mark.parametrize("biased", [False, True])
def test_it_scales_inputs_or_outputs_and_the_bias_with_these(side, biased):
    w, b, one = Biased(W, B) if biased else W, B if biased else 0 * B, ONE[side]
    x, matrix, bias = (np.asarray(a, np.float64) for a in (X, W, b))
    scale = np.asarray(getattr(one, side), np.float64)
    expected = (x * scale) @ matrix + bias if side == "inputs" else (x @ matrix + bias) * scale
    close(X @ one.onto(w), expected, rounding(24 + 4))
    close(X @ one.merge(w), expected, rounding(24 + 4))
    assert isinstance(one.onto(w), Adapted)  # over the bias, where there is one


def test_lora_over_it_stands_over_it_and_merges_into_the_same():
    low_rank = LoRA(drawn(24, 3), drawn(3, 36), jnp.asarray(0.5))
    both = low_rank.onto(ONE["outputs"].onto(Biased(W, B)))
    close(X @ both.merged(), X @ both, rounding(2 * 24 + 8))


def test_the_default_trains_a_number_for_each_key_value_and_hidden_unit():
    adapters, _ = ia3.init(jax.random.key(0), PARAMS)
    assert count(adapters) == 3 * (28 + 28 + 36)  # layers; outputs of k and v, inputs of down
    assert adapters["layers"]["mlp"]["down_proj"].outputs is None
    assert adapters["layers"]["self_attn"]["k_proj"].inputs is None


def test_another_base_and_what_peft_cannot_hold_are_refused():
    adapters, constants = ia3.init(jax.random.key(0), PARAMS)
    _, wider = tiny.model(intermediate_size=40)
    with pytest.raises(InputError, match=r"down_proj: the adapter is for {'in': 36} and the base's .* {'in': 40"):
        attach(wider, adapters, constants)
    with pytest.raises(InputError, match=r"PEFT has no \(IA\)3 on embed_tokens"):
        ia3.tensors("model.embed_tokens", ONE["outputs"])
    mixed = {"model.layers.0.mlp.up_proj": ONE["inputs"], "model.layers.1.mlp.up_proj": ONE["outputs"]}
    with pytest.raises(InputError, match="up_proj is scaled at its inputs in some layers only"):
        ia3.settings(mixed, ["up_proj"])
    with pytest.raises(InputError, match=r"x\.ia3_l is missing"):
        ia3.from_peft("x", {}, {})
    with pytest.raises(InputError, match=r"x\.ia3_l has the shape \(2, 3\)"):
        ia3.from_peft("x", {"ia3_l": np.ones((2, 3))}, {})


def test_merged_it_is_a_plain_model_of_the_same_shapes():
    adapters, constants = ia3.init(jax.random.key(0), PARAMS, targets="all-linear")
    merged = merge(PARAMS, tiny.shaken(adapters), constants)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, PARAMS)
