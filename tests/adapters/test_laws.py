"""The laws of an adaptation method, over every row of the registry. No method is named but in the table of options."""

import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model as tiny
from close import close, difference, rounding
from small_model import quick_compilation  # noqa: F401

import lora_jax.adapters
from lora_jax import transformer
from lora_jax.adapters import METHODS
from lora_jax.adapters.base import Adapted, Adapter, ByLayer, attach, combine, count, is_adapter, merge, num_bytes
from lora_jax.adapters.placement import unstack
from lora_jax.files import checkpoint
from lora_jax.training import make_step

# What every method must bear, and what one method has of its own.
ANY = ({}, {"targets": r"layers\.(0|2)\.(self_attn\.(q|o)|mlp\.down)_proj"}, {"targets": ["lm_head", "k_proj"]})
OWN = {
    "lora": (
        {"targets": ["q_proj", "v_proj", "down_proj"], "alpha": 3.0, "alpha_pattern": {"v_proj": 9.0}}
        | {"rank": 5, "rank_pattern": {r"layers\.1\..*": 2, "down_proj": 7}},
        {"targets": "attention", "freeze_a": True, "rank_stabilized": True, "dropout": 0.25},
    )
}
CASES = [(method, options) for method in METHODS for options in (*ANY, *OWN.get(method, ()))]
STEPS = 3
CONFIG, PARAMS = tiny.model()
forward = jax.jit(functools.partial(transformer.forward, CONFIG))


class Case:
    """One method with one set of options: its adapters at the start, shaken, and after a few steps."""

    def __init__(self, method, options):
        self.config, self.params = CONFIG, PARAMS
        self.adapters, self.constants = METHODS[method].init(jax.random.key(3), self.params, **options)
        self.shaken = tiny.shaken(self.adapters)
        self.batch = {"tokens": tiny.tokens(), "key": jax.random.key(5)}
        self.traces = 0

        def loss(adapters, frozen, batch):
            self.traces += 1
            return tiny.adapter_loss(self.config)(adapters, frozen, batch)

        self.optimizer = optax.chain(tiny.gradient_as_state(), optax.adam(1e-2))
        self.step = make_step(loss, self.optimizer)
        self.start = jax.jit(lambda adapters: (jax.tree.map(jnp.copy, adapters), self.optimizer.init(adapters)))

    def logits(self, adapters):
        return forward(attach(self.params, adapters, self.constants), self.batch["tokens"])

    def steps(self, adapters, constants, steps):
        """The adapters after some steps, and the gradient of the last."""
        adapters, state = self.start(adapters)
        for _ in range(steps):
            adapters, state, *_ = self.step(adapters, state, (self.params, constants), self.batch)
        return adapters, state[0]

    def places(self, tree=None):
        """Each adapted weight in `params` with its node of adapters: `(weight, adapter or ByLayer)`."""

        def walk(params, node):
            if is_adapter(node):
                yield params, node
                return
            for name in node:
                yield from walk(params[name], node[name])

        return list(walk(self.params, combine(self.shaken, self.constants) if tree is None else tree))


def describe(case):
    method, options = case
    return "-".join([method, *(f"{name}={value}" for name, value in options.items() if not isinstance(value, dict))])


@pytest.fixture(scope="module", params=CASES, ids=describe)
def case(request):
    return Case(*request.param)


def test_at_the_start_the_adapted_model_is_the_base(case):
    close(case.logits(case.adapters), forward(case.params, case.batch["tokens"]), tiny.FORWARD)


def test_the_merged_model_equals_the_attached_one(case):
    attached = case.logits(case.shaken)  # the same program as at the start: other values
    merged = merge(case.params, case.shaken, case.constants)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(merged))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(lambda x: (x.shape, x.dtype), case.params)
    close(forward(merged, case.batch["tokens"]), attached, tiny.FORWARD)
    assert difference(forward(case.params, case.batch["tokens"]), attached) > 1e-2  # the shaken model is not the base


def test_gradients_are_a_tree_like_the_adapters_and_reach_all_of_it(case):
    _, gradient = case.steps(case.adapters, case.constants, STEPS)
    assert jax.tree.structure(gradient) == jax.tree.structure(case.adapters)
    for found, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(case.adapters), strict=True):
        assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
        over_layers = np.abs(np.asarray(found)).reshape(found.shape[0], -1).max(axis=1)
        assert np.all(over_layers > 0)


def test_every_trainable_leaf_moves_and_the_base_does_not_by_one_byte(case):
    before = tiny.raw((case.params, case.constants))
    moved, _ = case.steps(case.adapters, case.constants, STEPS)
    assert tiny.raw((case.params, case.constants)) == before
    assert all(one != other for one, other in zip(tiny.raw(moved), tiny.raw(case.adapters), strict=True))


def test_structure_shapes_and_dtypes_are_the_same_after_steps(case):
    like = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), case.adapters)
    moved, _ = case.steps(case.adapters, case.constants, STEPS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), moved) == like


def test_two_steps_and_two_adapters_of_other_values_trace_once(case):
    case.steps(case.adapters, case.constants, 2)
    before = case.traces
    assert before >= 1  # the counter counts
    others = jax.tree.map(lambda x: x * 1.5 if jnp.issubdtype(x.dtype, jnp.floating) else x, case.constants)
    case.steps(case.shaken, others, 2)
    assert case.traces == before


def test_a_file_gives_back_the_same_bytes(case, tmp_path):
    tree = (case.shaken, case.constants)
    checkpoint.save(tmp_path / "one", tree, {"is": "mine"})
    found, about = checkpoint.load(tmp_path / "one", jax.eval_shape(lambda: (case.adapters, case.constants)))
    assert about == {"is": "mine"}
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert tiny.raw(found) == tiny.raw(tree)


def test_counts_are_exact(case, tmp_path):
    """`count` and `num_bytes` against the file: its length beyond its header is what the adapters hold, unpadded."""
    checkpoint.save(tmp_path / "one", case.adapters, {})
    data = (tmp_path / "one").read_bytes()
    header = int.from_bytes(data[:8], "little")
    entries = {name: entry for name, entry in json.loads(data[8 : 8 + header]).items() if name != "__metadata__"}
    assert num_bytes(case.adapters) == len(data) - 8 - header
    assert count(case.adapters) == sum(int(np.prod(entry["shape"])) for entry in entries.values())
    named = unstack(case.params, case.adapters, case.constants).values()
    assert count(case.adapters) + count(case.constants) == sum(count(adapter) for adapter in named)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_product_has_the_dtype_of_x(case, dtype):
    """Also where the adapters' numbers are float32 beside a bfloat16 base."""

    def products():
        base = jax.tree.map(lambda x: x.astype(dtype), case.params)
        for w in jax.tree.leaves(attach(base, case.shaken, case.constants), is_leaf=lambda x: isinstance(x, Adapted)):
            if isinstance(w, Adapted):
                w = jax.tree.map(lambda leaf: leaf[0], w) if len(w.shape) == 3 else w
                assert w.dtype == w.dense().dtype == dtype
                yield jnp.ones((2, 3, w.shape[0]), dtype) @ w

    shapes = jax.eval_shape(lambda: list(products()))
    assert shapes and {product.dtype for product in shapes} == {jnp.dtype(dtype)}


def test_every_leaf_of_a_stacked_adapter_leads_with_the_layers(case):
    attached = attach(case.params, case.shaken, case.constants, jax.random.key(0))
    stacked = [leaf.shape[0] for leaf in jax.tree.leaves(attached["layers"])]
    assert set(stacked) == {case.config.num_hidden_layers}


def test_the_neutral_adapter_leaves_its_weight_as_it_is(case):
    for w, node in case.places():
        if len(w.shape) == 3:
            for part in node.parts if isinstance(node, ByLayer) else (node,):
                neutral = part.neutral(w)
                assert jax.tree.structure(neutral) == jax.tree.structure(part)
                shapes = [(3, *leaf.shape[1:]) for leaf in jax.tree.leaves(part)]
                assert [leaf.shape for leaf in jax.tree.leaves(neutral)] == shapes
                x = np.random.default_rng(0).standard_normal((3, 4, w.shape[1])).astype("float32")
                merged, product = jax.jit(jax.vmap(lambda x, w: (w.merged(), x @ w)))(x, Adapted(w, neutral))
                close(merged, w, rounding(2))
                close(product, x @ np.asarray(w, np.float64), rounding(3 * w.shape[1]))


@pytest.mark.parametrize("method", METHODS)
def test_adapters_on_some_layers_leave_the_others_as_they_are(method):
    adapters, constants = METHODS[method].init(jax.random.key(0), PARAMS, targets=r"layers\.(0|2)\..*\.(q|up)_proj")
    merged = merge(PARAMS, tiny.shaken(adapters), constants)
    for name in tiny.MATRICES:
        part = "mlp" if name in PARAMS["layers"]["mlp"] else "self_attn"
        for layer in range(3):
            one, other = (np.asarray(tree["layers"][part][name][layer]) for tree in (merged, PARAMS))
            if name in ("q_proj", "up_proj") and layer != 1:
                assert difference(one, other) > 1e-2
            else:
                close(one, other, rounding(2))


# The registry is whole.


def adapters_without_a_row(modules, methods):
    """The adapter types that a module defines and no row names."""
    rows = {method.adapter for method in methods.values()}
    defined = [
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Adapter) and kind is not Adapter and kind.__module__ == module.__name__
    ]
    return [f"{kind.__module__}.{kind.__name__}" for kind in defined if kind not in rows]


def modules_of_adapters():
    found = pkgutil.iter_modules(lora_jax.adapters.__path__, "lora_jax.adapters.")
    return [importlib.import_module(module.name) for module in found]


def test_every_adapter_in_the_folder_has_a_row():
    assert adapters_without_a_row(modules_of_adapters(), METHODS) == []


def test_a_missing_row_is_seen():
    fake = types.ModuleType("lora_jax.adapters.fake")
    fake.Fake = type("Fake", (Adapter,), {"__module__": fake.__name__})
    assert adapters_without_a_row([*modules_of_adapters(), fake], METHODS) == ["lora_jax.adapters.fake.Fake"]
    name, row = next(iter(METHODS.items()))
    others = {other: method for other, method in METHODS.items() if method.adapter is not row.adapter}
    assert name not in others
    assert any(row.adapter.__name__ in found for found in adapters_without_a_row(modules_of_adapters(), others))


def test_rows_say_what_they_are():
    for name, row in METHODS.items():
        assert row.title and name == name.lower()
        assert {field.name for field in dataclasses.fields(row)} == {"init", "adapter", "title"}
        whole = jax.eval_shape(lambda row=row: combine(*row.init(jax.random.key(0), PARAMS)))
        kinds = {type(leaf) for leaf in jax.tree.leaves(whole, is_leaf=lambda x: isinstance(x, Adapter))}
        assert kinds == {row.adapter}
    assert set(OWN) <= set(METHODS)
