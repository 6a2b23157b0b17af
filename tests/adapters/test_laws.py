"""The laws of an adaptation method, over every row of the registry; and that each law can be broken.

No method is named here: what options a method is tried with, its row says (`Option.examples`).
"""

import dataclasses
import functools
import json
import re
import runpy
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small as tiny
from close import close, difference, rounding
from rows import CASES, describe
from small import quick_compilation  # noqa: F401

from lora_jax import transformer
from lora_jax.adapters import METHODS, placement
from lora_jax.adapters.base import (
    Adapted,
    Adapter,
    attach,
    combine,
    count,
    is_adapter,
    merge,
    num_bytes,
    partition,
    parts_of,
)
from lora_jax.adapters.method import Method, Option
from lora_jax.adapters.placement import unstack
from lora_jax.errors import InputError
from lora_jax.files import checkpoint
from lora_jax.training import make_step
from lora_jax.weights import dense, pytree

STEPS = 3
CONFIG, PARAMS = tiny.model()
TOKENS = tiny.tokens()
forward = jax.jit(functools.partial(transformer.forward, CONFIG))


class Case:
    """One method with one set of options: its adapters at the start, shaken, and after a few steps."""

    def __init__(self, row, options):
        self.row, self.options, self.params = row, options, PARAMS
        self.adapters, self.constants = row.init(jax.random.key(3), self.params, **options)
        self.shaken = tiny.shaken(self.adapters)
        self.batch = {"tokens": TOKENS, "key": jax.random.key(5)}
        self.traces = 0

        def loss(adapters, frozen, batch):
            self.traces += 1
            return tiny.adapter_loss(CONFIG)(adapters, frozen, batch)

        self.optimizer = optax.chain(tiny.gradient_as_state(), optax.adam(1e-2))
        self.step = make_step(loss, self.optimizer)
        self.start = jax.jit(lambda adapters: (jax.tree.map(jnp.copy, adapters), self.optimizer.init(adapters)))

    def attached(self, adapters):
        return attach(self.params, adapters, self.constants)

    def steps(self, adapters, constants, steps):
        """The adapters after some steps, and the gradient of the last."""
        adapters, state = self.start(adapters)
        for _ in range(steps):
            adapters, state, *_ = self.step(adapters, state, (self.params, constants), self.batch)
        return adapters, state[0]

    def places(self):
        """Each adapted weight of the layers with an adapter on it: `(weight, adapter)`."""

        def walk(params, node):
            if is_adapter(node):
                yield from ((params, part) for part in parts_of(node))
                return
            for name in node:
                yield from walk(params[name], node[name])

        return list(walk(self.params["layers"], combine(self.shaken, self.constants).get("layers", {})))


# The laws.


def at_the_start_the_adapted_model_is_the_base(case):
    """Which, where the method puts a prompt in front of the text, has read the same rows in front."""
    attached = case.attached(case.adapters)
    front = attached.get("prompt", np.zeros((0, CONFIG.hidden_size), np.float32))  # (P, D)
    text = case.params["embed_tokens"][TOKENS]  # (B, T, D)
    rows = jnp.concatenate([jnp.broadcast_to(front, (len(text), *front.shape)), text], axis=1)
    close(forward(attached, TOKENS), forward(case.params, rows)[:, len(front) :], tiny.FORWARD)


def the_merged_model_equals_the_attached_one(case):
    attached = forward(case.attached(case.shaken), TOKENS)
    merged = merge(case.params, case.shaken, case.constants)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(merged))
    assert not any(isinstance(w, Adapted) for w in jax.tree.leaves(merged, is_leaf=lambda x: isinstance(x, Adapted)))
    close(forward(merged, TOKENS), attached, tiny.FORWARD)
    assert difference(forward(case.params, TOKENS), attached) > 1e-2  # the shaken model is not the base


def gradients_are_a_tree_like_the_adapters_and_reach_all_of_it(case):
    _, gradient = case.steps(case.adapters, case.constants, STEPS)
    assert jax.tree.structure(gradient) == jax.tree.structure(case.adapters)
    assert jax.tree.leaves(gradient)
    for found, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(case.adapters), strict=True):
        assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
        over_layers = np.abs(np.asarray(found)).reshape(found.shape[0], -1).max(axis=1)
        assert np.all(over_layers > 0)


def every_trainable_leaf_moves_and_the_base_does_not_by_one_byte(case):
    before = tiny.raw((case.params, case.constants))
    moved, _ = case.steps(case.adapters, case.constants, STEPS)
    assert tiny.raw((case.params, case.constants)) == before
    assert all(one != other for one, other in zip(tiny.raw(moved), tiny.raw(case.adapters), strict=True))


def structure_shapes_and_dtypes_are_the_same_after_steps(case):
    like = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), case.adapters)
    moved, _ = case.steps(case.adapters, case.constants, STEPS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), moved) == like


def values_are_data_so_that_others_trace_no_second_time(case):
    case.steps(case.adapters, case.constants, 2)
    before = case.traces
    assert before >= 1  # the counter counts
    numbers = {name: 1.5 * value for name, value in case.options.items() if isinstance(value, float)}
    others = case.row.init(jax.random.key(4), case.params, **case.options | numbers)
    case.steps(case.shaken, others[1], 2)
    assert case.traces == before


def a_file_gives_back_the_same_bytes(case, folder):
    tree = (case.shaken, case.constants)
    checkpoint.save(folder / "one", tree, {"is": "mine"})
    found, about = checkpoint.load(folder / "one", jax.eval_shape(lambda: (case.adapters, case.constants)))
    assert about == {"is": "mine"}
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert tiny.raw(found) == tiny.raw(tree)


def counts_are_exact(case, folder):
    """`count` and `num_bytes` against the file: its length beyond its header is what the adapters hold, unpadded."""
    checkpoint.save(folder / "one", case.adapters, {})
    data = (folder / "one").read_bytes()
    header = int.from_bytes(data[:8], "little")
    entries = {name: entry for name, entry in json.loads(data[8 : 8 + header]).items() if name != "__metadata__"}
    assert num_bytes(case.adapters) == len(data) - 8 - header
    assert count(case.adapters) == sum(int(np.prod(entry["shape"])) for entry in entries.values())
    named = unstack(case.params, case.adapters, case.constants).values()
    assert count(case.adapters) + count(case.constants) == sum(count(adapter) for adapter in named)


def the_product_has_the_dtype_of_x(case):
    """Also where the adapters' numbers are float32 beside a bfloat16 base."""
    for dtype in (jnp.bfloat16, jnp.float32):

        def logits(dtype=dtype):
            base = jax.tree.map(lambda x: x.astype(dtype), case.params)
            attached = attach(base, case.shaken, case.constants)
            for w in jax.tree.leaves(attached, is_leaf=lambda x: isinstance(x, Adapted)):
                if isinstance(w, Adapted):
                    w = jax.tree.map(lambda leaf: leaf[0], w) if len(w.shape) == 3 else w
                    assert w.dtype == w.dense().dtype == dtype
                    product = jnp.ones((2, 3, w.shape[0]), dtype) @ w
                    assert product.dtype == dtype
            return transformer.forward(CONFIG, attached, TOKENS)

        assert jax.eval_shape(logits).dtype == dtype


def every_leaf_of_a_stacked_adapter_leads_with_the_layers(case):
    attached = attach(case.params, case.shaken, case.constants, jax.random.key(0))
    stacked = [leaf.shape[0] for leaf in jax.tree.leaves(attached["layers"])]
    assert set(stacked) == {CONFIG.num_hidden_layers}


def the_identity_leaves_its_weight_as_it_is(case):
    for w, part in case.places():
        identity = part.identity(w)
        assert jax.tree.structure(identity) == jax.tree.structure(part)
        shapes = [(3, *leaf.shape[1:]) for leaf in jax.tree.leaves(part)]
        assert [leaf.shape for leaf in jax.tree.leaves(identity)] == shapes
        x = np.random.default_rng(0).standard_normal((3, 4, w.shape[1])).astype("float32")
        matrix, *products = jax.jit(jax.vmap(both_ways))(x, Adapted(w, identity))
        close(matrix, w, rounding(2 + w.shape[1]))
        for product in products:
            close(product, x @ np.asarray(w, np.float64), rounding(3 * w.shape[1]))


def both_ways(x, w):
    merged = w.merged()
    return dense(merged), x @ merged, x @ w


def each_matrix_is_changed_by_its_own_adapter_alone(case):
    """So is each layer of it: adapters of other shapes on other layers do not touch it.

    Looked at through a product, since a method may change the bias and leave the matrix.
    """
    merged = placement.matrices(merge(case.params, case.shaken, case.constants))
    adapted = unstack(case.params, case.shaken, case.constants)
    for name, weight in placement.matrices(case.params).items():
        w = weight()
        x = np.random.default_rng(0).standard_normal((9, w.shape[0])).astype("float32")
        found, before = x @ merged[name](), x @ w
        if name in adapted:
            assert difference(found, before) > 1e-3
            close(found, x @ adapted[name].merge(w), rounding(4 * w.shape[0]))
        else:
            close(found, before, rounding(3 * w.shape[0]))


LAWS = (
    at_the_start_the_adapted_model_is_the_base,
    the_merged_model_equals_the_attached_one,
    gradients_are_a_tree_like_the_adapters_and_reach_all_of_it,
    every_trainable_leaf_moves_and_the_base_does_not_by_one_byte,
    structure_shapes_and_dtypes_are_the_same_after_steps,
    values_are_data_so_that_others_trace_no_second_time,
    a_file_gives_back_the_same_bytes,
    counts_are_exact,
    the_product_has_the_dtype_of_x,
    every_leaf_of_a_stacked_adapter_leads_with_the_layers,
    the_identity_leaves_its_weight_as_it_is,
    each_matrix_is_changed_by_its_own_adapter_alone,
)
IN_A_FOLDER = (a_file_gives_back_the_same_bytes, counts_are_exact)


def hold(law, case, folder):
    law(case, folder) if law in IN_A_FOLDER else law(case)


@pytest.fixture(scope="module", params=CASES, ids=describe)
def case(request):
    name, options = request.param
    return Case(METHODS[name], options)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, case, tmp_path):
    hold(law, case, tmp_path)


# Each law can be broken: a small method that keeps them all, and for each law the same method with one mistake.


@pytree
class Scale(Adapter):
    """`(x @ W) * (1 + gain * factor)`, by output."""

    factor: Any  # (..., out), trained
    gain: Any  # (...,)

    @property
    def scale(self):
        return 1 + self.gain[..., None] * self.factor

    def matmul(self, x, w):
        return ((x @ w) * self.scale).astype(x.dtype)

    def merge(self, w):
        return (w * self.scale[..., None, :]).astype(w.dtype)

    def identity(self, w):
        return jax.tree.map(lambda leaf: jnp.zeros((w.shape[0], *leaf.shape[1:]), leaf.dtype), self)


def scale_init(key, params, *, targets="all-linear", gain=1.0, kind=Scale, start=jnp.zeros):
    shapes = placement.shapes(params)

    def make(names):
        n, d_out = len(names), shapes[names[0]][1]
        return kind(start((n, d_out), jnp.float32), jnp.full((n,), gain, jnp.float32))

    tree = placement.build(params, {name: shapes[name] for name in placement.select(params, targets)}, make)
    return partition(tree, lambda field: field != "gain")


def scales(**changes):
    """A row of the small method, with a mistake in its adapter or its start."""
    (METHOD, *_), options = METHODS.values(), {"targets": placement.TARGETS, "gain": Option("how far", float, (2.0,))}
    init = functools.partial(scale_init, **changes)
    return Method("Scale", "none", "(x @ W) * scale", init, changes.get("kind", Scale), options, 1e-3, METHOD.peft)


def mistaken(**methods):
    return {"kind": pytree(type("Mistaken", (Scale,), {"__annotations__": {}, **methods}))}


@dataclasses.dataclass(frozen=True)
class Static(Scale):
    """Its gain is no data: another one is another program."""

    @property
    def scale(self):
        return 1 + self.gain * self.factor


jax.tree_util.register_dataclass(Static, data_fields=["factor"], meta_fields=["gain"])


def static_init(key, params, *, gain=1.0, **options):
    adapters, _ = scale_init(key, params, **options)
    kinds = {"is_leaf": lambda x: isinstance(x, Scale)}
    whole = jax.tree.map(lambda a: Static(a.factor, gain), adapters, **kinds)
    return whole, jax.tree.map(lambda a: Static(None, gain), whole, **kinds)


def shared_gain(key, params, **options):
    """One gain for all layers, without L in front."""
    adapters, constants = scale_init(key, params, **options)
    return adapters, jax.tree.map(lambda leaf: leaf[0], constants)


def uncounted(key, params, **options):
    """A number that stands at no weight and under no name."""
    adapters, constants = scale_init(key, params, **options)
    return adapters | {"layers": adapters["layers"] | {"more": jnp.ones(1)}}, constants | {
        "layers": constants["layers"] | {"more": None}
    }


def weak(shape, dtype):
    return 0 * jnp.broadcast_to(jnp.asarray(1.0), shape)


def own(init, kind=Scale):
    return dataclasses.replace(scales(), init=init, adapter=kind)


DEAD = mistaken(scale=property(lambda self: jax.lax.stop_gradient(Scale.scale.fget(self))))
BROKEN = {
    at_the_start_the_adapted_model_is_the_base: scales(start=jnp.ones),
    the_merged_model_equals_the_attached_one: scales(
        **mistaken(merge=lambda self, w: w * self.scale[..., None, :] + 0.1)
    ),
    gradients_are_a_tree_like_the_adapters_and_reach_all_of_it: scales(**DEAD),
    every_trainable_leaf_moves_and_the_base_does_not_by_one_byte: scales(**DEAD),
    structure_shapes_and_dtypes_are_the_same_after_steps: scales(start=weak),
    values_are_data_so_that_others_trace_no_second_time: own(static_init, Static),
    a_file_gives_back_the_same_bytes: scales(start=lambda shape, dtype: jnp.zeros(shape, jnp.int4)),
    counts_are_exact: own(uncounted),
    the_product_has_the_dtype_of_x: scales(
        **mistaken(matmul=lambda self, x, w: (x @ w).astype(jnp.float32) * self.scale)
    ),
    every_leaf_of_a_stacked_adapter_leads_with_the_layers: own(shared_gain),
    the_identity_leaves_its_weight_as_it_is: scales(
        **mistaken(identity=lambda self, w: jax.tree.map(jnp.ones_like, self))
    ),
    each_matrix_is_changed_by_its_own_adapter_alone: scales(
        **mistaken(identity=lambda self, w: jax.tree.map(lambda x: jnp.ones((w.shape[0], *x.shape[1:])), self))
    ),
}
PARTS = {"targets": placement.TARGETS.examples[0], "gain": 1.0}  # some layers of some matrices


def test_a_method_without_a_mistake_keeps_every_law(tmp_path):
    for options in ({"gain": 2.0}, PARTS):
        case = Case(scales(), options)
        for law in LAWS:
            hold(law, case, tmp_path)


def test_the_method_of_the_docs_keeps_every_law(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "block.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(METHODS):
        row = runpy.run_path("block.py")["METHOD"]
    for options in ({}, {"targets": placement.TARGETS.examples[0]}):
        case = Case(row, options)
        for law in LAWS:
            hold(law, case, tmp_path)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_is_broken_by_a_mistake(law, tmp_path):
    case = Case(BROKEN[law], PARTS)
    with pytest.raises((AssertionError, InputError)):
        hold(law, case, tmp_path)


# The rows.


def test_rows_say_what_they_are():
    for name, row in METHODS.items():
        assert name.isidentifier() and name == name.lower()
        assert row.title and row.paper and row.change and row.rate > 0
        whole = jax.eval_shape(lambda row=row: combine(*row.init(jax.random.key(0), PARAMS)))
        kinds = {type(leaf) for leaf in jax.tree.leaves(whole, is_leaf=lambda x: isinstance(x, Adapter))}
        assert kinds == {row.adapter}
        for option in row.options:
            row.default(option)  # `init` has it, with a default
        fields = {field.name for field in dataclasses.fields(row.adapter)}
        assert set(row.rates) <= fields and row.peft.trains <= fields


def test_a_word_means_the_same_in_every_row():
    found = {}
    for row in METHODS.values():
        for name, option in row.options.items():
            assert found.setdefault(name, option) is option, name
