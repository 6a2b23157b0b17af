"""The main job, whole: SmolLM2 learns verse in 80 steps (minutes), and figures are the same to the byte each time."""

import json
from pathlib import Path

import pytest

from lora_jax import load_adapter, load_model, plots
from lora_jax.commands import demo

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.assets
def test_the_demo_teaches_verse(tmp_path):
    said = []
    table = demo.demo(out=tmp_path / "demo", say=said.append)
    (at, first), *_, (last_at, last) = table["evaluations"]
    assert (at, last_at, table["held_out"]) == (0, 80, 128)
    assert first - last >= 0.4
    assert all(old != new for old, new in zip(table["before"], table["after"], strict=True))
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"adapter", "demo.json", "demo.png"}
    _, params = load_model(demo.MODEL)
    load_adapter(tmp_path / "demo" / "adapter", base=params)
    assert f"{first:.3f} -> {last:.3f}" in "\n".join(said)


@pytest.mark.parametrize("draw", [plots.demo, plots.growth, plots.small_model])
def test_a_figure_is_the_same_each_time(draw, tmp_path):
    table = json.loads((ROOT / "figures" / "data" / f"{draw.__name__}.json").read_text())
    for name in ("one.png", "two.png"):
        draw(table, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_bytes_are_those_of_the_trees():
    """SmolLM2 in float32, rank 16 on seven matrices: worked by hand."""
    table = json.loads((ROOT / "figures" / "data" / "demo.json").read_text())["bytes"]
    D, F, KV, V, L, R = 576, 1536, 192, 49152, 30, 16
    matrices = 2 * D * D + 2 * D * KV + 3 * D * F
    weights = 4 * (V * D + L * (matrices + 2 * D) + D)
    adapter = 4 * L * R * (2 * (D + D) + 2 * (D + KV) + 3 * (D + F))
    scalings = 4 * 7 * L
    assert table["full"] == {
        "weights": weights,
        "adapters": 0,
        "gradients": weights,
        "optimizer state": 2 * weights + 4,
    }
    assert table["lora"] == {
        "weights": weights,
        "adapters": adapter + scalings,
        "gradients": adapter,
        "optimizer state": 2 * adapter + 4,
    }
