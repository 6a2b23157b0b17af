# %% [markdown]
# # LoRA from scratch
#
# Notebook 02 worked out what full fine-tuning costs. LoRA pays less by a bet: that the *change* fine-tuning makes to a
# matrix is simpler than the matrix. Here you look at such a change first, and then write LoRA yourself.
#
# You will be able to
# - read off the spectrum of a change how many directions it really has, and what the others are worth;
# - write LoRA as a pytree that stands beside the model, and take `jax.grad` over it alone;
# - derive the gradients of both factors by hand, and check them;
# - merge the factors into the model, and say when that is exact and when it rounds.
#
# It runs in under three minutes on two cores; the last cell says how long it took. The five exercises take about fifty
# minutes more, and nothing below needs your answers. The first run fetches the poems, once.

# %% [markdown]
# The small model that writes stories comes with the package. `params` is a dict of arrays, its layers stacked in front.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import lora_jax as lj
from lora_jax.adapters.lora import LoRA
from lora_jax.exercises import check, hint, solution
from lora_jax.plots import COLOURS
from lora_jax.text import datasets
from lora_jax.text.packing import Batches

lj.keep_compiled_programs()  # on disk: what took long to compile once is there the next time
began = time.perf_counter()
config, params = lj.load_model("stories-2.8m")
tokenizer = lj.load_tokenizer("stories-2.8m")

# %% [markdown]
# ## 1. A change to look at
#
# First, full fine-tuning on poems: every number trains. We need what it *does* to the matrices, so a short run will do.

# %%
steps, length = 50, 128
verse, kept = datasets.verse(tokenizer, 4 * steps, length, held_out=16)
batches, held_out = Batches(verse, 4), Batches.in_order(kept, 16)


def full_loss(params, frozen, batch):
    return lj.loss(config, params, batch)


# %% [markdown]
# `frozen` is empty here: nothing is. The loss on held-out verse is taken before the first step and after the last.

# %%
tuned = lj.fit(
    full_loss,
    trainable=params,
    frozen=None,
    batches=batches,
    held_out=held_out,
    optimizer=optax.adamw(1e-3),
    steps=steps,
    progress=False,
)
(_, before), (_, after) = tuned.evaluations
print(f"loss on held-out verse: {before:.2f} -> {after:.2f} nats a token")

# %% [markdown]
# The change is a subtraction of two trees. It has the shape of the model, and as many numbers.

# %%
change = jax.tree.map(jnp.subtract, tuned.trainable, params)
query = change["layers"]["self_attn"]["q_proj"][3]  # (in, out), of the fourth layer
share = jnp.linalg.norm(query) / jnp.linalg.norm(params["layers"]["self_attn"]["q_proj"][3])
print(f"{lj.count(change):,} numbers; q_proj of layer 3 moved by {share:.1%} of its norm")

# %% [markdown]
# Any matrix is a sum of matrices of rank 1, $\sum_i \sigma_i\, u_i v_i^\top$, with $\sigma_1 \ge \sigma_2 \ge \dots$:
# its singular value decomposition. The squares of the $\sigma_i$ add up to the squared norm, so they say how much of
# the change each direction holds.
#
# **Predict:** the matrix has 192 rows and 192 columns. If all directions counted alike, how many would it take to hold
# half of the squared norm? How many do you think it takes?

# %%
values = np.asarray(jnp.linalg.svd(query, compute_uv=False))  # (192,), falling
noise = np.random.default_rng(0).standard_normal(query.shape)
noise *= np.linalg.norm(query) / np.linalg.norm(noise)
noise_values = np.linalg.svd(noise, compute_uv=False)
print("the first eight, the change:", values[:8].round(2), " noise:", noise_values[:8].round(2))
for name, found in (("the change", values), ("noise", noise_values)):
    shares = {rank: np.sum(found[:rank] ** 2) / np.sum(found**2) for rank in (24, 96)}
    print(f"{name}: the largest 24 hold {shares[24]:.0%} of the squared norm, the largest 96 {shares[96]:.0%}")
    assert (shares[24] > 0.5) == (name == "the change") and shares[96] > 0.5

# %% [markdown]
# <details><summary>How many it takes</summary>
#
# All alike, it would take half of them, 96. The change takes fewer than 24. Noise of the same norm lies between: it
# takes more than 24, but fewer than 96, since even noise does not spread its norm evenly.
# </details>
#
# The picture has both: the singular values, and the share that the largest hold together.

# %% tags=["figure"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for name, found, colour in (("the change", values, COLOURS["full"]), ("noise of its norm", noise_values, "#555555")):
    ranks = np.arange(1, len(found) + 1)
    left.plot(ranks, found, ".", color=colour, label=name)
    right.plot(ranks, np.cumsum(found**2) / np.sum(found**2), color=colour, label=name)
left.set(xlabel="rank", ylabel="singular value", title="The spectrum of what q_proj, layer 3, learned")
right.set(xlabel="rank", ylabel="share of the squared norm", title="What the largest hold together", ylim=(0, 1.02))
right.axhline(0.5, lw=0.8, ls=":", color="black")
for axes in (left, right):
    axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Exercise 3.1: the rank of a share (5 minutes, difficulty 1 of 3)
#
# Write the function that reads the right-hand picture: the smallest rank whose singular values hold a `share` of the
# squared norm. Stuck? Run `hint("3.1")` in a new cell; `solution("3.1")` shows one answer.


# %% tags=["exercise"]
def rank_for_share(singular_values, share):
    """The smallest rank whose singular values hold `share` of the squared norm; the values (n,) fall."""
    # solution
    sums = jnp.cumsum(singular_values**2)
    return int(jnp.argmax(sums >= share * sums[-1])) + 1
    # end of solution


# %%
check("3.1", rank_for_share)

# %% [markdown]
# Here is the same for every matrix of one layer, all seven, by one line of NumPy.

# %%
blocks = {**change["layers"]["self_attn"], **change["layers"]["mlp"]}
print(f"{'':10} {'shape':>10}  half of it  nine tenths")
for name, stacked in blocks.items():
    held = np.cumsum(np.linalg.svd(np.asarray(stacked[3]), compute_uv=False) ** 2)
    half, most = (int(np.searchsorted(held, part * held[-1])) + 1 for part in (0.5, 0.9))
    print(f"{name:10} {stacked[3].shape!s:>10}  rank {half:5}  rank {most:6}")
    assert half < min(stacked[3].shape) / 8 and most > 4

# %% [markdown]
# <details><summary>What the table says, and what it does not</summary>
#
# No change is of rank 1, and none is spread like noise: in each, fewer than an eighth of the directions hold half, and
# a long tail follows. Whether the tail matters for the *loss* is another question, and the one that counts. It is
# next.
# </details>
#
# ## 2. What the tail is worth
#
# Keep the first $r$ directions of every matrix's change, throw the rest away, and ask for the loss again. The
# embedding and the norms keep their change: LoRA is about matrices in the layers.

# %%
parts = {name: jnp.linalg.svd(stacked, full_matrices=False) for name, stacked in blocks.items()}


def with_rank(rank):
    """The tuned model, with the change of each matrix in the layers cut down to a rank."""
    layers = dict(tuned.trainable["layers"])
    for part in ("self_attn", "mlp"):
        cut = {name: parts[name] for name in layers[part]}
        cut = {name: (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank] for name, (u, s, v) in cut.items()}
        layers[part] = {name: params["layers"][part][name] + cut[name] for name in cut}
    return {**tuned.trainable, "layers": layers}


# %% [markdown]
# **Predict:** rank 0 throws every matrix's change away, rank 192 keeps it whole. How much of the way between the two
# does rank 8 go?

# %%
evaluate = jax.jit(full_loss)
ranks = (0, 1, 2, 4, 8, 16, 32, 64, 192)
losses = [float(evaluate(with_rank(rank), None, held_out[0])) for rank in ranks]
for rank, loss in zip(ranks, losses, strict=True):
    print(f"rank {rank:3}: {loss:.2f} nats a token, {(losses[0] - loss) / (losses[0] - losses[-1]):.0%} of the way")
assert losses[0] - losses[ranks.index(8)] > 0.9 * (losses[0] - losses[-1])
assert losses[0] - losses[ranks.index(1)] > 0.5 * (losses[0] - losses[-1])

# %% [markdown]
# The same as a picture, over the rank that was kept. The ranks stand at equal distances, not to scale.

# %% tags=["figure"]
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(range(len(ranks)), losses, "o-", color=COLOURS["full"])
axes.axhline(losses[-1], lw=0.8, ls=":", color="black")
axes.set_xticks(range(len(ranks)), ranks)
axes.set(xlabel="rank kept of each matrix's change", ylabel="loss on verse (nats a token)")
axes.set_title("The first few directions do nearly all the work")
plt.show()

# %% [markdown]
# <details><summary>How much, and why</summary>
#
# More than nine tenths of it; rank 1 alone goes more than half of the way. A gradient step moves a matrix by $x^\top
# dy$, which has at most as many directions as there are tokens in a batch, and far fewer that many tokens agree on.
# What they agree on adds up step by step and is what lowers the loss; the rest is probably mostly the noise of small
# batches, made large by Adam, which gives every entry a step of about the same size. That is one explanation of what
# the last cell showed, and is not tested here. So look for the change among matrices of low rank to begin with, and
# save the rest.
# </details>
#
# ## 3. LoRA
#
# LoRA (Hu and others, 2021) freezes $W$ and learns a change that *cannot* have more than $R$ directions, since it is
# a product:
#
# $$y = x W + s\,(x A) B, \qquad A: (\text{in}, R), \quad B: (R, \text{out}), \quad s = \alpha / R.$$
#
# ### Exercise 3.2: the product (5 minutes, difficulty 1 of 3)
#
# `alpha` says how loud the change is; dividing it by the rank keeps that from growing with $R$.


# %% tags=["exercise"]
def lora_product(x, w, a, b, alpha):
    """x (N, in), w (in, out), a (in, R), b (R, out) -> (N, out)."""
    # solution
    scaling = alpha / a.shape[1]
    return x @ w + scaling * (x @ a) @ b
    # end of solution


# %%
check("3.2", lora_product)

# %% [markdown]
# In the package a weight is anything you can right-multiply by. `Adapted(w, adapter)` is one, so the transformer goes
# on writing `x @ w` and never hears of LoRA. All sizes below differ, and `b` is not zero.

# %%
key = jax.random.split(jax.random.key(0), 5)
x, w = jax.random.normal(key[0], (6, 10)), jax.random.normal(key[1], (10, 14))
one = LoRA(a=jax.random.normal(key[2], (10, 3)), b=jax.random.normal(key[3], (3, 14)), scaling=jnp.float32(2.0))
y = x @ lj.Adapted(w, one)
assert jnp.abs(y - (x @ w + 2.0 * x @ (one.a @ one.b))).max() < 1e-4
print("differs from the dense product by rounding")

# %% [markdown]
# ### Exercise 3.3: a pytree of its own (15 minutes, difficulty 2 of 3)
#
# What trains is a tree of its own that stands *beside* the model: for every matrix a pair, and nothing else in it.
# Draw `a` uniformly between $\pm 1/\sqrt{\text{in}}$, each matrix from a key of its own, and let `b` be zero: then
# the product is zero, and training starts from the model as it is. All of it is float32. The seed decides: the same
# one gives the same numbers again, and another one gives every matrix other numbers.


# %% tags=["exercise"]
def lora_init(seed, shapes, rank):
    """shapes {name: (in, out)} -> {name: {"a": (in, R), "b": (R, out)}}: a uniform within 1/sqrt(in), b zero."""
    adapters = {}
    # solution
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    for key, (name, (d_in, d_out)) in zip(keys, shapes.items()):
        bound = d_in**-0.5
        a = jax.random.uniform(key, (d_in, rank), minval=-bound, maxval=bound)
        adapters[name] = {"a": a, "b": jnp.zeros((rank, d_out))}
    return adapters
    # end of solution


# %%
check("3.3", lora_init)

# %% [markdown]
# The package's `lora.init` does so for a whole model, and gives two trees: `adapters`, which train, and `constants`,
# which do not (the scaling). Both mirror the part of `params` that they belong to.
#
# **Predict** how many numbers train: seven matrices a layer, six layers, rank 8.

# %%
adapters, constants = lj.lora.init(jax.random.key(1), params, rank=8, alpha=16, targets="all-linear")
print(jax.tree.map(jnp.shape, adapters["layers"]["self_attn"]["q_proj"]))
print(f"{lj.count(adapters):,} of {lj.count(params):,} parameters train: {lj.count(adapters) / lj.count(params):.1%}")

# %% [markdown]
# The count by hand: each matrix costs $R\,(\text{in} + \text{out})$ a layer. And with `b` at zero the model is still
# the base.

# %%
by_hand = sum(w.shape[0] * 8 * (w.shape[1] + w.shape[2]) for w in blocks.values())
assert by_hand == lj.count(adapters) == 6 * 8 * 3392 == 162_816
start, base = lj.attach(params, adapters, constants), lj.forward(config, params, held_out[0]["tokens"])
print("the start is the base, to the bit:", bool(jnp.all(lj.forward(config, start, held_out[0]["tokens"]) == base)))
assert jnp.all(lj.forward(config, start, held_out[0]["tokens"]) == base)

# %% [markdown]
# <details><summary>How many train</summary>
#
# `q_proj` and `o_proj` have 192 + 192 rows and columns, `k_proj` and `v_proj` 192 + 64, the three of the feed-forward
# 192 + 512: together 3,392, times rank 8, times 6 layers: 162,816.
# </details>
#
# ## 4. The gradient, over the adapters alone
#
# `jax.grad` differentiates by the first argument. The adapters are that argument, so its result is a tree like
# theirs, and no gradient of a frozen weight ever exists: nothing is masked, nothing stopped.


# %%
def lora_loss(adapters, frozen, batch):
    params, constants = frozen
    return lj.loss(config, lj.attach(params, adapters, constants), batch)


gradients = jax.jit(jax.grad(lora_loss))(adapters, (params, constants), batches[0])
assert jax.tree.structure(gradients) == jax.tree.structure(adapters)
print(f"{lj.num_bytes(gradients) / 1e6:.1f} MB of gradients; full fine-tuning has {lj.num_bytes(params) / 1e6:.1f} MB")

# %% [markdown]
# **Predict:** at the start `b` is zero. Which of the two gradients is zero then, that of `a`, that of `b`, or both?

# %%
first = gradients["layers"]["self_attn"]["q_proj"]
print("largest entry of the gradient of a:", float(jnp.abs(first.a).max()))
print("is that of b zero?", not bool(jnp.any(first.b)))
assert not jnp.any(first.a) and jnp.any(first.b)

# %% [markdown]
# <details><summary>Why</summary>
#
# That of `a`. $A$ acts through $B$, and $B$ is zero: no change of $A$ changes anything yet. $B$ moves first, and from
# the second step on both do. Were both zero, nothing would ever move.
# </details>
#
# ### Exercise 3.4: the gradients by hand (15 minutes, difficulty 3 of 3)
#
# Let $dy$ be the gradient of the loss by $y = s\,(x A) B$. Write the gradients by $A$ and by $B$. Every factor that
# is known to you is an argument; the shapes leave little choice.


# %% tags=["exercise"]
def lora_gradients(x, a, b, scaling, dy):
    """x (N, in), a (in, R), b (R, out), dy (N, out) -> (gradient of a, gradient of b) of scaling * (x @ a) @ b."""
    # solution
    dh = scaling * dy @ b.T  # (N, R)
    return x.T @ dh, scaling * (x @ a).T @ dy
    # end of solution


# %%
check("3.4", lora_gradients)

# %% [markdown]
# With $G = x^\top dy$, the gradient that full fine-tuning would have for $W$, they are $s\,G B^\top$ and $s\,A^\top
# G$: two shadows of it. The cell asserts both against `jax.vjp`, the machine's own derivative.

# %%
dy = jax.random.normal(key[4], y.shape)
(found,) = jax.vjp(lambda lora: x @ lj.Adapted(w, lora), one)[1](dy)
G = x.T @ dy  # (in, out)
np.testing.assert_allclose(found.a, 2.0 * G @ one.b.T, rtol=1e-4, atol=1e-4)
np.testing.assert_allclose(found.b, 2.0 * one.a.T @ G, rtol=1e-4, atol=1e-4)
print("both identities hold")

# %% [markdown]
# ## 5. Train it
#
# The same `fit` as above, the same batches. Only what is passed as `trainable` differs, and the learning rate: adapters
# want a larger one.

# %%
poet = lj.fit(
    lora_loss,
    trainable=adapters,
    frozen=(params, constants),
    batches=batches,
    held_out=held_out,
    optimizer=optax.adamw(5e-3),
    steps=steps,
    progress=False,
)
print(f"LoRA: {poet.evaluations[0][1]:.2f} -> {poet.evaluations[1][1]:.2f} nats a token; full: {after:.2f}")
assert after < poet.evaluations[1][1] < poet.evaluations[0][1]

# %% [markdown]
# LoRA stays behind. Is that a matter of rank? Full fine-tuning also trained the embedding, which LoRA left alone here.
# Take the fully tuned model without its change to embedding and norms, and give it back a piece at a time: the
# embedding's row for the end of a line, then the whole embedding.

# %%
matrices_only = {
    **params,
    "layers": {**params["layers"], **{part: tuned.trainable["layers"][part] for part in ("self_attn", "mlp")}},
}
before, tuned_rows = params["embed_tokens"], tuned.trainable["embed_tokens"]  # (V, D)
end = tokenizer.encode("\n")[0]
tables = {"alone": before, "and one row": before.at[end].set(tuned_rows[end]), "and the embedding": tuned_rows}
found = {name: evaluate({**matrices_only, "embed_tokens": rows}, None, held_out[0]) for name, rows in tables.items()}
for name, value in found.items():
    print(f"full fine-tuning, the matrices' change {name:18}{value:.2f} nats a token")
assert found["alone"] > found["and one row"] > found["and the embedding"]
assert found["alone"] > poet.evaluations[1][1]

# %% [markdown]
# <details><summary>What the gap is</summary>
#
# Without its embedding, full fine-tuning is behind LoRA: it moved embedding and matrices together, and each relies on
# the other, while LoRA had only the matrices, and found what they can do alone. A story holds no line's end, so the
# embedding's row for it was never taught, and verse is full of it; but that row closes only a part of the gap. So rank
# is not all of it: what LoRA leaves alone matters too.
# </details>
#
# ## 6. The merge
#
# $xW + s\,(xA)B$ and $x\,(W + s A B)$ are the same, so a finished adapter can be folded into its matrix: plain arrays
# again, no latency left.
#
# ### Exercise 3.5: the merge (5 minutes, difficulty 2 of 3)
#
# Fold the factors in, all layers at once: `@` works on the last two axes and leaves the one in front alone.


# %% tags=["exercise"]
def lora_merge(w, a, b, alpha):
    """w (L, in, out), a (L, in, R), b (L, R, out) -> (L, in, out) in the dtype of w."""
    # solution
    scaling = alpha / a.shape[-1]
    return (w + scaling * a @ b).astype(w.dtype)
    # end of solution


# %%
check("3.5", lora_merge)

# %% [markdown]
# In exact numbers the two are equal to the bit. Small whole numbers are exact in float32, so the claim can be asserted.

# %%
whole = np.random.default_rng(1).integers(-4, 5, (6 * 10 + 10 * 14 + 10 * 3 + 3 * 14,)).astype(np.float32)
xs, ws, as_, bs = np.split(whole, np.cumsum([60, 140, 30]))
exact = LoRA(a=jnp.asarray(as_.reshape(10, 3)), b=jnp.asarray(bs.reshape(3, 14)), scaling=jnp.float32(2.0))
adapted = lj.Adapted(jnp.asarray(ws.reshape(10, 14)), exact)
assert jnp.all(xs.reshape(6, 10) @ adapted == xs.reshape(6, 10) @ adapted.merged())
print("attached and merged are equal to the bit")

# %% [markdown]
# Real numbers are rounded. In float32 that is harmless, as the logits show.

# %%
together = lj.forward(config, lj.attach(params, poet.trainable, constants), held_out[0]["tokens"])
merged = lj.merge(params, poet.trainable, constants)
apart = jnp.abs(lj.forward(config, merged, held_out[0]["tokens"]) - together).max() / jnp.abs(together).max()
assert apart < 1e-5
print("the logits differ by less than a thousandth of a percent of the largest")

# %% [markdown]
# **Predict:** bfloat16 keeps 8 bits of a number, so neighbours are up to one part in 128 apart. After how small a
# change does a weight still move? The cell merges into bfloat16 weights an update of several sizes, and asks how much
# arrives.

# %%
weight = params["layers"]["self_attn"]["q_proj"].astype(jnp.bfloat16)
learned = poet.trainable["layers"]["self_attn"]["q_proj"]
update = 2.0 * learned.a @ learned.b  # (L, in, out), float32
for size in (1e-1, 1e-2, 1e-3):
    small = update * size * jnp.linalg.norm(weight.astype(jnp.float32)) / jnp.linalg.norm(update)
    moved = (weight + small).astype(jnp.bfloat16) - weight
    lost = jnp.linalg.norm(moved.astype(jnp.float32) - small) / jnp.linalg.norm(small)
    print(f"an update of {size:.1%} of the weight: {jnp.mean(moved != 0):4.0%} of the entries move; error {lost:.0%}")
assert jnp.mean(moved != 0) < 0.5 < lost  # of the smallest
first, last = jnp.bfloat16(1.0), jnp.bfloat16(1.9921875)  # the first and the last before the spacing doubles, at 2
for number, moves, stays in ((first, 1 / 250, 1 / 256), (last, 1 / 500, 1 / 512)):
    after_it = [jnp.bfloat16(jnp.float32(number) * (1 + share)) for share in (moves, stays)]
    assert after_it[0] != number == after_it[1]

# %% [markdown]
# <details><summary>After how small a change, and what follows</summary>
#
# A weight moves if the change is more than half of the distance to its neighbour: one part in 256 just above a power
# of two, where neighbours are one part in 128 apart, and one part in 512 just below, where they are closer.
#
# So even added in float32 and rounded once, as here, the smallest of these updates arrives in bfloat16 as some entries
# that jump to their neighbour and more that do not move at all. Attached, the update is kept as it was trained, and is
# added to the product in float32. A small adapter that matters is better left attached, or merged into weights of
# float32.
# </details>
#
# ## What you saw
#
# - The change that full fine-tuning made has a few strong directions and a long tail, and the tail hardly shows in
#   the loss.
# - LoRA looks among changes of low rank alone. It is a tree beside the model, and its gradient is shaped like it.
# - The two gradients are shadows of the whole one, $s\,G B^\top$ and $s\,A^\top G$; `b` starts at zero and moves first.
# - Merged and attached are the same product, exactly so in exact numbers, and in float32 but for rounding.
#
# Next, notebook 04: what LoRA saves in memory, and what it does not.

# %% tags=["timing"]
print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
