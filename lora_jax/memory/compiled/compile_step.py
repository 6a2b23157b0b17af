"""The process that compiles: `python -m lora_jax.memory.compiled.compile_step FOLDER`, started by `compiler.plan`.

It reads FOLDER/question.json (a target and a setup) and writes FOLDER/answer.json: the compiler's own numbers, the
arguments by row, and the buffers alive at the peak, named. A plug-in for absent hardware is loaded here and nowhere
else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.errors import InputError
from lora_jax.memory import steps
from lora_jax.memory.compiled import buffers, components, targets
from lora_jax.memory.setup import Setup
from lora_jax.rope import RopeScaling
from lora_jax.transformer import Config
from lora_jax.untrusted import json_text
from lora_jax.weights import is_weight

PROGRAM = "jit_step"


def setup_from_json(found: Mapping[str, Any]) -> Setup:
    """The setup that `dataclasses.asdict` described."""
    config = dict(found["config"])
    if config["rope_scaling"] is not None:
        config["rope_scaling"] = RopeScaling(**config["rope_scaling"])
    return Setup(**{**found, "config": Config(**config | {"biases": tuple(config["biases"])})})


def placed(target: str, tree: Any) -> Any:
    """The shapes in `tree`, each on the absent device of the target."""
    if target == "cpu":
        return tree
    from jax.experimental import topologies

    if target in targets.CARDS:
        text = targets.CARDS[target].text()
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="1x1x1", topology="1x1x1", target_config=text
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=targets.TPUS[target])
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("device",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def answer(folder: Path, target: str, setup: Setup) -> dict[str, Any]:
    """Compile the step of `setup`, with XLA's texts going to `folder`, and read the plan."""
    step = steps.build(setup)
    arguments = placed(target, step.arguments)
    began = time.perf_counter()
    jitted: Any = step.step
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    seconds = time.perf_counter() - began
    sizes = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in ("argument", "output", "alias", "temp")}
    assignment = buffers.read(folder, PROGRAM)
    # libtpu's number is more than the main memory: 19.8 GB seen where 16.9 GB is all there is.
    if target in targets.TPUS:
        sizes["temp"] = assignment.temporary
    dims = {
        name: frozenset(leaf.shape for part in (is_weight, None) for leaf in jax.tree.leaves(tree, is_leaf=part))
        for name, tree in (("trains", step.trainable), ("held", step.frozen))
    }
    shapes = components.Shapes(setup.config.num_hidden_layers, **dims)
    full = step.frozen is None
    parts = [(*components.buffer(b, shapes), b.name, b.shape, b.bytes, components.source(b)) for b in assignment.peak]
    return {
        "sizes": sizes,
        "seconds": seconds,
        "arguments": [[components.argument(name, full), size] for name, size in assignment.arguments],
        "assigned": assignment.temporary,
        "parts": parts,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    asked = json_text.load_object(folder / "question.json", non_finite=True)
    try:
        found = answer(folder, asked["target"], setup_from_json(asked["setup"]))
    except InputError as error:
        found = {"input error": str(error)}
    except jax.errors.JaxRuntimeError as error:  # what the compiler says is an answer too
        found = {"refused": str(error)}
    (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
