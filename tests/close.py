"""Numbers that must be equal but for rounding: one comparison for every test, and a record of the room that it had.

    close(found, expected, rounding(24))                    # sums of 24 products in float32
    close(found, expected, rounding(1, jnp.bfloat16))       # right but for one rounding to bfloat16
    close(found, expected, rounding(forward_pass(config, T)))
    close(found, expected, stated(0.02, "5 standard errors of 4,000 draws"))
    assert difference(found, expected) > 0.1                # two things that must not be the same

Trees are compared leaf by leaf; a difference is a share of the largest number of the leaf. **A tolerance follows from
what is computed, never from the error that a machine showed.** Sums run in another order on another processor. With u
half the dtype's eps, n roundings move a number by at most n * u of its size, and since their signs are as good as
random by about sqrt(n) * u (Higham and Mary, 2019, "A new approach to probabilistic rounding error analysis"); of many
thousand numbers the worst is at about four times that. Ten times the smaller of the two bounds is allowed, so that at
most a tenth is used. A wrong factor, a transposed matrix or a missing term is off by a hundredth and more.

What was used is listed with `SHARES=file python -m pytest ...`, then `python tests/close.py file`.
"""

import collections
import dataclasses
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

ROOM = 10


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The share of the largest number by which two may differ, and why."""

    share: float
    why: str


def rounding(count: int, dtype=jnp.float32) -> Tolerance:
    """What `count` roundings to `dtype`, one after another, may do; a sum of n terms has n."""
    unit = float(jnp.finfo(dtype).eps) / 2
    return Tolerance(ROOM * unit * min(count, 4 * math.sqrt(count)), f"{count} roundings to {jnp.dtype(dtype).name}")


def stated(share: float, why: str) -> Tolerance:
    """A tolerance that is not one of rounding: a number of draws, a step of a finite difference, a published digit."""
    return Tolerance(share, why)


def forward_pass(config, length: int, rank: int = 0) -> int:
    """How many roundings stand between a model's input and its logits: the sums of each layer, one after another.

    With a rank: of a model with adapters on its matrices, whose x @ A and @ B come on top.
    """
    D, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    matrices = D + heads + D + config.intermediate_size  # of q, k, v; o; gate, up; down
    adapters = matrices + 4 * rank if rank else 0
    layer = matrices + adapters + config.head_dim + 2 * length + 2 * D  # with scores, softmax, values and two norms
    return config.num_hidden_layers * layer + 2 * D  # the last norm, the head


def bfloat16_pass(config) -> int:
    """How many are to bfloat16 in a bfloat16 model, whose sums are in float32: the stream's, twice a layer."""
    return 2 * config.num_hidden_layers


def backward_pass(config, length: int, rows: int = 1) -> int:
    """And to a gradient: forward, back through products with both factors, and a sum over the tokens."""
    return 3 * forward_pass(config, length) + rows * length


def difference(found, expected, of=None) -> float:
    """The largest difference of two arrays as a share of the largest number in `of` (or in what is expected)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"shape {found.shape}, not {expected.shape}"
    apart = np.abs(found - expected).max(initial=0.0)
    largest = np.abs(expected if of is None else np.asarray(of, np.float64)).max(initial=0.0)
    if not np.isfinite(apart):
        return math.inf
    return float(apart / largest) if largest else (math.inf if apart else 0.0)


def close(found, expected, tolerance: Tolerance, of=None) -> None:
    """Assert that two trees are of one form and equal within the tolerance, leaf by leaf."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        apart = difference(one, other, of)
        _record(apart, tolerance)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        allowed = f"{tolerance.share:.1e} is allowed for {tolerance.why}"
        assert apart <= tolerance.share, f"{name or 'it'} differs by {apart:.1e} of its largest; {allowed}"


def _record(apart: float, tolerance: Tolerance) -> None:
    """A line in the file that SHARES names: appended in one write, so that many processes may."""
    if not os.environ.get("SHARES"):
        return
    frame = sys._getframe(2)
    while not os.path.basename(frame.f_code.co_filename).startswith("test_") and frame.f_back:
        frame = frame.f_back
    site = f"{os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno}"
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].split(" ")[0]
    line = f"{apart / tolerance.share:.3e}\t{site}\t{apart:.2e}\t{tolerance.share:.2e}\t{tolerance.why}\t{test}\n"
    with open(os.environ["SHARES"], "a") as file:
        file.write(line)


def worst(path: str) -> list[list[str]]:
    """Of each place that compares, the line with the largest share; the largest first."""
    found = collections.defaultdict(list)
    with open(path) as file:
        for line in file:
            row = line.rstrip("\n").split("\t")
            found[row[1]].append(row)
    return sorted((max(rows, key=lambda row: float(row[0])) for rows in found.values()), key=lambda row: -float(row[0]))


if __name__ == "__main__":
    print("share used\twhere\tdifference\tallowed\tfor\ttest")
    for row in worst(sys.argv[1]):
        print("\t".join([f"{float(row[0]):.4f}", *row[1:]]))
