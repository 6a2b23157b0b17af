# %% [markdown]
# # What full fine-tuning costs
#
# Notebook 01 took a small model from stories to poems by training every weight. Here you work out what the same step
# costs when the model is large. You will be able to
#
# - turn a model's `config.json` into parameters, and parameters into bytes;
# - name everything else that lies in memory during a step of full fine-tuning, and count most of it to the byte;
# - find the moment of a step at which its memory is fullest, and estimate what lies there;
# - have a compiler confirm the count for a model that no laptop could hold;
# - say how long a checkpoint is on its way to the disk, and time your own disk;
# - read the price of the ticket: how many cards, at how many dollars an hour.
#
# The cells run in about a minute on two cores; the exercises take about an hour. Nothing is downloaded, no GPU is
# needed.

# %% [markdown]
# ## 1. From parameters to bytes
#
# We start with a model that fits anywhere: the small one that lies beside the package.

# %%
import math
import tempfile
import time
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import lora_jax as lj
from lora_jax.exercises import check, hint, solution
from lora_jax.files import checkpoint
from lora_jax.memory import activations, hardware, peak, planner, steps, zoo
from lora_jax.memory.checkpoints import checkpoint as checkpoint_of
from lora_jax.memory.checkpoints import transfers
from lora_jax.memory.compiled import compiler
from lora_jax.memory.estimate import estimate
from lora_jax.memory.ledger import Ledger
from lora_jax.memory.setup import Setup
from lora_jax.memory.units import dollars, duration, size
from lora_jax.plots import COLOURS
from lora_jax.tuning import optimizers

config, params = lj.load_model("stories-2.8m")
print(f"{lj.count(params):,} parameters in {len(jax.tree.leaves(params))} arrays")

# %% [markdown]
# A parameter is one number, and its dtype says how many bytes it takes. `float32` is what a CPU likes; large models are
# stored and trained in `bfloat16`, which keeps float32's range and drops most of its digits.
#
# **Predict:** the arrays above are in float32. How many MB are they?

# %%
for name in ("float32", "bfloat16", "int8"):
    each = jnp.dtype(name).itemsize
    print(f"{name:10}{each} bytes a number{each * lj.count(params) / 1e6:>10.2f} MB")
print("the arrays in memory:", f"{lj.num_bytes(params):,} bytes")
assert lj.num_bytes(params) == 4 * lj.count(params) == 11_020_032

# %% [markdown]
# <details><summary>How many</summary>
#
# Four bytes each: 11.02 MB. Half of that in bfloat16.
# </details>
#
# Where do the parameters sit? `jax.eval_shape` asks a function for the shapes of what it would return, and makes
# nothing: so the arrays of any model follow from its config alone. Layers are stacked, so that the first number of a
# block's shape is the number of layers.


# %%
def arrays(config):
    """Every array of a model's weights by its path, as a shape with a dtype."""
    shapes = jax.eval_shape(lambda key: lj.init(key, config, jnp.bfloat16), jax.random.key(0))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


for name, leaf in arrays(config).items():
    print(f"{name:42}{leaf.shape!s:18}{leaf.size:>10,}")

# %% [markdown]
# ### Exercise 2.1: the parameters of a config (15 minutes, difficulty 2 of 3)
#
# Write the sum for any Llama-like model. Its config is a dict with the names of Hugging Face's `config.json`:
# `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`,
# `head_dim` and `tie_word_embeddings`; all are there, and there are no biases. Three
# things differ from model to model: the keys and values may have fewer heads than the queries; all heads together need
# not be as wide as the model; and the head is either the embedding itself (`tie_word_embeddings`) or a matrix of its
# own, `lm_head`.


# %% tags=["exercise"]
def parameters(config):
    """How many numbers a model is, from a dict with the names of `config.json`: an int."""
    # solution
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    Q = config["num_attention_heads"] * config["head_dim"]
    KV = config["num_key_value_heads"] * config["head_dim"]
    block = 2 * D * Q + 2 * D * KV + 3 * D * F + 2 * D
    head = 0 if config["tie_word_embeddings"] else D * V
    return V * D + config["num_hidden_layers"] * block + D + head
    # end of solution


# %% [markdown]
# The check draws configs of its own, and says what is wrong where something is. Take the `#` off a line for a hint, or
# for the solution.

# %%
check("2.1", parameters)
# hint("2.1")
# solution("2.1")

# %% [markdown]
# The package has the same sum, and a list of models by name. One of them, `100b`, is made up: a Llama-like shape chosen
# so that it has a round number of parameters.
#
# **Predict:** how many GB is it in bfloat16?

# %%
big = zoo.config("100b")
print(f"{steps.parameters(big):,} parameters")
print(f"{2 * steps.parameters(big):,} bytes in bfloat16")
assert 2 * steps.parameters(big) == 200 * 10**9

# %% [markdown]
# <details><summary>How many</summary>
#
# Two bytes each: 200 GB. No card that `hardware.py` lists has so much.
# </details>
#
# Two units are in use, and they are easily mixed. A GB is $10^9$ bytes, and disks are sold by it. A GiB is $2^{30}$
# bytes; the memory of cards is built in powers of two, and tools that report it mostly count so, whatever they call the
# unit.

# %%
weights = 2 * steps.parameters(big)
print(f"{size(weights)}, {size(weights, binary=True)}")
print(f"one GiB is {2**30 / 1e9 - 1:.1%} more than a GB")
assert weights > max(card.memory for card in hardware.CARDS.values())

# %% [markdown]
# ## 2. What training adds
#
# To *run* a model the weights are nearly all. To *train* it, a step also holds a gradient for every weight, and what
# the optimizer remembers. Here are both for the small model: the shapes of its gradients, and AdamW's real state.
#
# **Predict:** weights, gradients and AdamW's state together are how many times the weights?


# %%
def loss(params, frozen, batch):
    return lj.loss(config, params, batch)


tokens = jax.ShapeDtypeStruct((8, 256), jnp.int32)
gradients = jax.eval_shape(jax.grad(loss), params, None, {"tokens": tokens})
state = optax.adamw(1e-3).init(params)
for name, tree in {"weights": params, "gradients": gradients, "optimizer state": state}.items():
    print(f"{name:18}{lj.num_bytes(tree):>14,} bytes{lj.num_bytes(tree) / lj.num_bytes(params):>8.2f} x")
assert sum(map(lj.num_bytes, (params, gradients, state))) == 4 * lj.num_bytes(params) + 4  # the count of steps

# %% [markdown]
# <details><summary>Why four times?</summary>
#
# `jax.grad` returns a tree shaped like what it differentiates: one gradient for each weight, in the weight's dtype.
# AdamW keeps two running means for each weight, of the gradient (`mu`) and of its square (`nu`); optax gives both the
# dtype of what trains. The few bytes beyond are the count of steps, one int32, which AdamW's bias correction needs.
# </details>
#
# In bfloat16 there is a catch. So few digits are kept that a small update to a weight is rounded away altogether. Many
# runs therefore keep a float32 *master copy* of the weights in the optimizer's state: AdamW works on the copy, in
# float32, and hands rounded weights to the model.

# %%
weight, update = jnp.bfloat16(1.0), jnp.bfloat16(0.001)
print("bfloat16:", weight + update, "  float32:", jnp.float32(weight) + jnp.float32(update))
assert weight + update == weight

# %% [markdown]
# A copy costs 4 bytes a weight. *Stochastic rounding* does without: the sum is rounded up or down by chance, the nearer
# number the likelier, so that it is right on average. Here $2^{-9}$, a quarter of a step of bfloat16, is added to 1 a
# thousand times. **Predict** the three results: the exact sum is $1 + 1000 / 512 \approx 2.95$.

# %%
nearest, master, by_chance = jnp.bfloat16(1.0), jnp.float32(1.0), jnp.bfloat16(1.0)
for key in jax.random.split(jax.random.key(0), 1000):
    nearest = nearest + jnp.bfloat16(2**-9)
    master = master + 2**-9
    by_chance = optimizers.round_stochastically(key, jnp.float32(by_chance) + 2**-9)
print(f"nearest {nearest}, master {master.astype(jnp.bfloat16)}, by chance {by_chance}")
assert nearest == 1 and abs(master.astype(jnp.bfloat16) - 2.953) < 0.01 and abs(by_chance - 2.953) < 0.5

# %% [markdown]
# <details><summary>What the three do</summary>
#
# To the nearest, each sum is 1 again: the run stands still. The master adds up in float32, and its rounded value is
# used. By chance one sum in four goes a whole step up (above 2, where steps are twice as long, one in eight). The
# result has an error of its own, which does not grow as fast as the sum.
#
# `train --method full --dtype bfloat16` keeps a master copy, `--rounding stochastic` does not, and `--rounding nearest`
# shows what goes wrong. docs/memory.md has all three, measured.
# </details>

# %% [markdown]
# ### Exercise 2.2: the bytes that AdamW holds (10 minutes, difficulty 2 of 3)
#
# `P` weights are stored in bfloat16. Count the bytes of weights, gradients and optimizer state, with and without a
# float32 master copy. With the copy, AdamW's moments are float32 too, since they have the dtype of what it works on;
# the gradients stay as `jax.grad` made them. Do not forget the count of steps.


# %% tags=["exercise"]
def training_bytes(P, master):
    """Bytes of a step over P bfloat16 weights: a dict of "weights", "gradients", "optimizer state".

    `master`: whether AdamW works on a float32 copy of the weights, which is then part of its state.
    """
    # solution
    state = 3 * 4 * P if master else 2 * 2 * P
    return {"weights": 2 * P, "gradients": 2 * P, "optimizer state": state + 4}
    # end of solution


# %% [markdown]
# Your dict is checked row by row.

# %%
check("2.2", training_bytes)
# hint("2.2")
# solution("2.2")

# %% [markdown]
# The package describes a step as a `Setup`, and `estimate` writes its *ledger*: bytes by name. These are the
# static rows, which no batch changes, for full fine-tuning of the large model. From here on we count the step without
# a copy, the cheapest there is: what `train` and `plan` do, unless told otherwise, holds the second column.

# %%
setup = Setup(big, method="full", rounding="nearest", batch=1, length=2048, remat=True)
ledger = estimate(setup)
copied = estimate(replace(setup, rounding="master"))
for row in ("weights", "gradients", "optimizer state"):
    print(f"{row:18}{size(ledger[row]):>12}{size(copied[row]):>12} with a master copy")
print(f"{'static, in all':18}{size(ledger.static):>12}{size(copied.static):>12}")

# %% [markdown]
# ## 3. What a batch adds
#
# The backward pass needs what the forward pass computed. These *saved activations* grow with the batch and the length.
# The package decides which arrays a block keeps, and `activations.kept` lists them; here those of the small model's
# blocks. They are the same in all layers, which are stacked in front.

# %%
small = Setup(config, method="full", batch=8, length=256, dtype="float32")
for one in activations.kept(small, steps.build(small).trainable):
    if one.shape and one.shape[0] == config.num_hidden_layers:
        print(f"{one.role:14}{one.shape!s:28}{size(one.bytes):>10}")

# %% [markdown]
# <details><summary>What these arrays are</summary>
#
# `block input` and `stream` are the stream of tokens before a block and between its halves; `q`, `k` and `v` go into
# attention, `mixed` comes out of it, and `log_sum_exp` is all of the softmax that has to be remembered; `gate` and `up`
# are the wide products of the feed-forward. Attention works in blocks of the sequence and stores `mixed` in its own
# order.
# </details>
#
# With *rematerialized* blocks (`remat=True`) only the first row is kept, and each block is computed a second time in
# the backward pass: memory is bought with time. The picture sets both against what is held anyway, for SmolLM2-135M,
# the model that notebook 05 tunes, in bfloat16 with a batch of five sequences.
#
# **Predict:** from about which length on do the saved activations take more than weights, gradients and optimizer state
# together? Then read it off.

# %% tags=["figure"]
BATCH, lengths = 5, range(64, 2049, 64)


def at_length(length, remat=False):
    return estimate(
        Setup(zoo.config("smollm2-135m"), "full", rounding="nearest", batch=BATCH, length=length, remat=remat)
    )


held = at_length(1)
figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
axes.axhline(held.static / 1e9, color=COLOURS["full"], label="weights, gradients and optimizer state")
axes.axhline(held["weights"] / 1e9, color=COLOURS["full"], ls="--", label="weights alone")
for remat, style, name in ((False, "-", "saved activations"), (True, ":", "saved, blocks rematerialized")):
    saved = [at_length(length, remat)["saved activations"] / 1e9 for length in lengths]
    axes.plot(lengths, saved, color="black", ls=style, label=name)
axes.set(xlabel="length of a sequence, in tokens", ylabel="GB (1e9 bytes), exact", xlim=(0, 2048), ylim=(0, None))
axes.set(title=f"SmolLM2-135M, full fine-tuning, batch of {BATCH}", xticks=range(0, 2049, 256))
axes.set_xticks(range(0, 2049, 64), minor=True)
axes.grid(alpha=0.3)
axes.legend(loc="upper left")
plt.show()
assert at_length(576)["saved activations"] < held.static < at_length(640)["saved activations"]
assert at_length(2048, remat=True)["saved activations"] < held.static

# %% [markdown]
# <details><summary>From which length on</summary>
#
# From between 576 and 640 tokens on: there the black line crosses the upper one. With rematerialized blocks it
# does not get there at all in this picture.
# </details>
#
# ## 4. The fullest moment
#
# A step's arguments (weights, AdamW's state, the batch) lie there from its beginning to its end. Beside them arrays
# come and go, and a card needs room for the fullest moment. It is one of three: the *update*, the *loss*, or
# somewhere in the *layers*, while the gradient goes back through them. They do not add up, since one begins when
# another has ended.
#
# You work out all three for the large model: eight sequences, blocks rematerialized. The letters are those of
# `memory/peak.py`, which holds what follows on one page.

# %%
eight = replace(setup, batch=8)
step, N, e = steps.build(eight), eight.batch * eight.length, 2  # shapes alone; tokens; bytes of a bfloat16
D, F, V = big.hidden_size, big.intermediate_size, big.vocab_size
Q, K = (heads * big.head_dim for heads in (big.num_attention_heads, big.num_key_value_heads))
arguments = sum(lj.num_bytes(tree) for tree in step.arguments)
print(f"arguments: {size(arguments)}")

# %% [markdown]
# **The update.** All gradients are there, and the new weights and moments are written over the old ones. **Predict:** a
# gradient is shaped like its weight. Do they take just as many bytes as the weights?

# %%
layers, head, embedding = lj.num_bytes(step.trainable["layers"]), 4 * V * D, e * V * D
update = layers + head + embedding
print(f"{size(layers)} + {size(head)} + {size(embedding)} = {size(update)}; the weights: {size(ledger['weights'])}")
assert head == 2 * embedding and update > ledger["weights"]

# %% [markdown]
# <details><summary>Which gradient is larger than its weight</summary>
#
# They take more: the head's is larger. Chunks of the loss are added up to it, one after the other, and a sum of so
# many terms is kept in float32, 4 bytes a number; it is rounded when it is whole. The embedding's gradient comes last,
# when the gradient has gone back through all layers.
# </details>
#
# **The loss.** The last product of the model is the widest: *logits*, a number for every token of the vocabulary at
# every position. **Predict:** how many GB are they in float32, for the vocabulary of 84,000 and these eight
# sequences?

# %%
_, chunk = activations.even(N)  # how many tokens' logits the package makes at a time
print(f"float32 logits, whole:              {4 * N * V / 1e9:6.2f} GB, and their gradient as much again")
print(f"of a chunk of {chunk} tokens:          {4 * chunk * V / 1e9:6.2f} GB")
saved = activations.kept_by_layers(eight, step.trainable)
zeros = layers + embedding  # what is still to be filled
at_loss = saved + 3 * N * D * e + 2 * chunk * V * e + head + e * V * D + zeros
print(f"saved by the layers {size(saved)}; with all that the loss adds {size(at_loss)}")
assert (N, V) == (16_384, 84_000)

# %% [markdown]
# <details><summary>Why a chunk is enough, and what the loss adds</summary>
#
# All of them are 16,384 times 84,000 numbers of four bytes, 5.51 GB. But the loss of one position needs only that
# position's logits. The package's loss (`cross_entropy.py`) makes them for some hundred positions at a time, forms
# their part of the gradient at once, adds it to the gradient of the head and forgets them. Other implementations make
# all logits at once; then they are often the largest single array of a step.
#
# So these lie there: all that the layers saved; three arrays as wide as the stream (what leaves the last block, its
# norm, and the gradient that will go back); the logits of one chunk with their gradient, in bfloat16; the head's
# gradient, and in bfloat16 what one chunk adds to it.
#
# And the gradients that are still to come, of the layers and of the embedding: they are filled piece by piece, so that
# they begin as arrays of zeros, and the compiler makes these before the loss.
# </details>
#
# **The layers.** Now the gradient goes back through them, the last one first. The loop over layers writes the
# gradients of each into the arrays that have room for those of all. The saved activations are free only when the loop
# has ended. To both comes what belongs to one layer: its own gradients, before they are put into their place, and its
# *working set*.
#
# ### Exercise 2.3: the working set of a layer (15 minutes, difficulty 2 of 3)
#
# Attention has one and the feed-forward has one, which is the larger of the two in this step. Going forward, it makes
#
# ```python
# gate, up = h @ w_gate, h @ w_up  # (N, F) each
# product = silu(gate) * up  # (N, F), not kept in any case: going back, it is made again
# out = product @ w_down  # (N, D)
# ```
#
# Going back, `d_out` comes in, and the gradients of all that stands there are worked out, of the weights too. Which
# arrays as wide as $F$ lie there at once, if nothing is freed before the layer is done? Beside them count four as
# wide as $D$: the gradient of the stream, the two normed inputs of the block, and `d_h`.
#
# With rematerialized blocks all that is otherwise saved is made again, and counts too: the arrays in the table of
# section 3 but for the block's input, which is there already, and `log_sum_exp`, which is small.


# %% tags=["exercise"]
def working_set(N, D, F, Q, K, size, remat):
    """Bytes that the feed-forward of one layer needs going back, N tokens, `size` bytes a number; everything trains.

    D width, F feed-forward width, Q and K what all heads of queries and of keys are wide; `remat`: blocks made again.
    """
    # solution
    numbers = 4 * F + 4 * D
    if remat:
        numbers += 2 * F + D + 2 * Q + 2 * K
    return N * size * numbers
    # end of solution


# %% [markdown]
# Where your count is off, the check says by which array.

# %%
check("2.3", working_set)
# hint("2.3")
# solution("2.3")

# %% [markdown]
# Here six arrays as wide as $F$ lie there: the gradients of `gate`, of `up` and of `product`; `product` itself,
# without which `down_proj` would get no gradient; and `gate` and `up`, since blocks are rematerialized. Now all three
# moments, and the package's own estimate.
#
# **Predict:** which is the fullest?

# %%
matrices = (3 * D * F + 2 * D * Q + 2 * D * K) * e  # the gradients of one layer
at_layers = saved + layers + head + matrices + N * e * (6 * F + 5 * D + 2 * Q + 2 * K)
moments = {"layers": at_layers, "loss": at_loss, "update": update}
for name, number in moments.items():
    print(f"{name:8}{size(number):>10}, with the arguments {size(arguments + number):>10}")
fullest = max(moments, key=moments.get)
assert (fullest, moments[fullest]) == peak.temporary(eight, step.trainable)
print(f"the package's estimate: {size(estimate(eight).total)}")
assert fullest == "layers" and peak.temporary(setup, step.trainable)[0] == "loss"

# %% [markdown]
# <details><summary>Which it is, and what else stands on that page</summary>
#
# The layers here; with one sequence it is the loss, since less is saved. The page also has attention's working set,
# and other ways to train, which notebook 04 comes to. In a ledger gradients and saved activations have rows of their
# own, which are exact, and what the fullest moment takes beyond both is called workspace.
# </details>
#
# Now everything together, for the large model. We take the ledger apart: AdamW's state is its two moments `mu` and
# `nu`, and what does not follow from shapes alone is the estimate.


# %%
def parts(setup):
    """Bytes of a step of full fine-tuning by name."""
    rows = estimate(setup)
    exact = {name: rows[name] for name in ("weights", "gradients", "saved activations")}
    moments = {"mu": rows["optimizer state"] / 2, "nu": rows["optimizer state"] / 2}
    return exact | moments | {"estimate": sum(row.bytes for row in rows if not row.exact)}


# %% [markdown]
# **Predict:** with sequences of 2,048 tokens, which parts change from one sequence to eight, and which when nothing
# is rematerialized? Each dotted line of the picture is as many bytes as one more H100 holds: a measure of size, and
# not yet a count of cards, since the grey part cannot be shared out over cards, as section 7 says. The hatched part
# is the estimate.

# %% tags=["figure"]
card, orange = hardware.card("h100"), COLOURS["full"]
bars = {"1 sequence": setup, "8 sequences": eight}
bars |= {"8 sequences,\nnothing rematerialized": replace(eight, remat=False)}
alphas = {"weights": 1, "gradients": 0.65, "mu": 0.4, "nu": 0.2}
looks = {part: {"color": orange, "alpha": alpha} for part, alpha in alphas.items()}
looks |= {"saved activations": {"color": "lightgrey"}, "estimate": {"color": "white", "hatch": "////"}}
figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
for y, one in enumerate(bars.values()):
    start = 0.0
    for part, style in looks.items():
        width = parts(one)[part] / 1e9
        drawn = axes.barh(y, width, 0.6, left=start, ec="black", lw=0.5, label=None if y else part, **style)
        axes.bar_label(drawn, [f"{width:.0f} GB" if width > 100 else ""], label_type="center")
        start += width
for number in range(1, 14):
    axes.axvline(number * card.usable / 1e9, color="black", ls=":", lw=0.8, zorder=0)
axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.45, 1), frameon=False)
axes.set_yticks(range(len(bars)), list(bars))
axes.set(xlabel=f"GB (1e9 bytes); a dotted line every {card.usable / 1e9:.1f} GB: one more H100")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# Which parts differ from one bar to the next, by program:

# %%
found = [parts(one) for one in bars.values()]
for before, now in pairwise(found):
    print([part for part in looks if before[part] != now[part]])
assert found[2]["saved activations"] > 5 * found[1]["saved activations"]

# %% [markdown]
# <details><summary>Why these</summary>
#
# Weights, gradients and moments are as many as there are parameters, whatever the batch. Eight times the tokens are
# eight times what is saved of them; and where nothing is rematerialized, each block saves all its arrays instead of
# one. The estimate is of what comes and goes, so that it changes too.
# </details>
#
# ## 5. Compiled, not only multiplied out
#
# A count can be wrong. So we hand the real training step of the large model, the same `make_step` that notebook 01
# used, to XLA, JAX's compiler, and ask what it plans. It needs shapes, not arrays: nothing of that size is allocated,
# no GPU is there, and the layers are scanned, so that the program is no longer than that of a small model.

# %% tags=["timing"]
plan = compiler.plan(setup, "cpu")
print(f"compiled for this machine's CPU in {plan.seconds:.1f} s")

# %% [markdown]
# **Predict:** the step takes the weights, AdamW's state and a batch of token ids. By how many bytes will the compiled
# program's arguments differ from the count?

# %%
print(f"{'':18}{'counted':>18}{'compiled':>18}")
for row in ("weights", "optimizer state", "batch"):
    print(f"{row:18}{ledger[row]:>18,}{plan.ledger[row]:>18,}")
arguments = ledger["weights"] + ledger["optimizer state"] + ledger["batch"]
print(f"{'all arguments':18}{arguments:>18,}{plan.argument:>18,}")
assert plan.argument == arguments
print(f"the difference: {plan.argument - arguments} bytes; written in place of what came in: {plan.alias:,} bytes")

# %% [markdown]
# <details><summary>What was compared, and what was not</summary>
#
# By none. The arguments are exact: their shapes and dtypes decide, and the compiler has no say. The new weights and
# the new state are written where the old ones were, because the step *donates* them; without that, both would be there
# twice.
#
# What the step needs between its arguments and its results (gradients, activations, workspaces) is the compiler's own
# plan, and a CPU's is not a GPU's: it works bfloat16 products in float32, and needs room for that.
# </details>
#
# The estimate is of plans for NVIDIA GPUs. In float32 a CPU's plan can be laid beside it, for the step whose moments
# you worked out, and for the same with nothing rematerialized. **Predict:** a number is twice as wide. Is the whole
# peak twice as large?

# %% tags=["timing"]
for name, one in {"8 sequences": eight, "nothing rematerialized": replace(eight, remat=False)}.items():
    wide = replace(one, dtype="float32", rounding=None)
    planned, ours = compiler.plan(wide, "cpu"), estimate(wide).total
    off = f"{ours / planned.needed - 1:+.2%}"
    print(f"{name:24}plan {size(planned.needed, ',.2f')}, estimate {size(ours, ',.2f')}: {off}")
    held = sum(number for role, number in planned.roles.items() if role.startswith("gradients"))
    print(f"    {ours / estimate(one).total:.3f} times the bfloat16 estimate; the plan has {size(held)} of gradients")
    assert 1.98 < ours / estimate(one).total < 2 and 4 * steps.parameters(big) == 400 * 10**9

# %% [markdown]
# <details><summary>Why nearly twice, and where a CPU's plan is another</summary>
#
# Nearly all arrays of a step have the model's dtype; the head's gradient is float32 either way. All gradients together
# are 400 GB in float32. Where a CPU's plan has more for them, some lie there a second time, and the estimate, which is
# of plans for GPUs, falls short of it. Notebook 04 goes on from here:
# to how far off the estimate is from plans for a GPU, and to what a device really used.
# </details>
#
# ## 6. The road of a checkpoint
#
# A run that costs money is saved on the way. To *use* the result, the weights are enough; to *go on* training after a
# crash, the optimizer's state is needed too.
#
# **Predict:** ten checkpoints of the weights alone: how many TB?

# %%
stored = checkpoint_of(steps.build(setup))
copied = checkpoint_of(steps.build(replace(setup, rounding="master")))
kinds = {"weights alone": stored.bytes, "to go on": stored.resumable, "to go on, with a master copy": copied.resumable}
for name, number in kinds.items():
    print(f"{name:30} one {size(number):>9}   ten {size(10 * number):>9}")
assert 10 * stored.bytes == 2 * 10**12 and stored.resumable > 2.9 * stored.bytes

# %% [markdown]
# <details><summary>How many</summary>
#
# Ten times 200 GB, which is 2 TB. To go on from a checkpoint takes three times as much: AdamW's two moments besides.
# </details>
#
# On its way a checkpoint leaves the card for the host's memory, and the memory for a disk, or for a network.
# `hardware.py` holds the speeds, each with its source and date; some were measured by somebody, others are what a
# specification promises.

# %%
print(f"{'':30}{'GB/s':>8}{'one':>10}{'ten':>10}{'to go on':>10}")
for one in transfers(stored, ["pcie4", "pcie5"]):
    times = f"{duration(one.one):>10}{duration(one.ten):>10}{duration(one.resumable):>10}"
    print(f"{one.hop.name:30}{one.hop.speed / 1e9:>8.4g}{times}  {one.hop.kind}, {one.hop.source.date}")

# %% [markdown]
# ### Exercise 2.4: piece by piece (15 minutes, difficulty 3 of 3)
#
# Must the disk wait until the last byte has left the card? Not if the checkpoint is cut into equal pieces: while one
# piece goes from memory to disk, the next can come from the card. A hop moves one piece at a time; it takes the next as
# soon as it is free and that piece has arrived. When is the last piece over the last hop? With one piece nothing
# overlaps.


# %% tags=["exercise"]
def save_seconds(size, speeds, pieces):
    """Seconds until the last of `pieces` equal pieces of `size` bytes is over the last hop.

    `speeds`: bytes a second of each hop, in order. A hop takes a piece as soon as it is free and the piece is there.
    """
    # solution
    each = [size / pieces / speed for speed in speeds]
    return sum(each) + (pieces - 1) * max(each)
    # end of solution


# %% [markdown]
# Draw two rows of boxes on paper if the formula does not come at once; any number of hops and pieces may be asked for.

# %%
check("2.4", save_seconds)
# hint("2.4")
# solution("2.4")

# %% [markdown]
# The picture moves the pieces one by one, with no formula: each starts when it is there and the hop is free. The card
# hands over by PCIe 5, and a Gen 5 disk takes it.

# %% tags=["figure"]
hops = [hardware.LINKS["pcie5"], hardware.DISKS["gen 5"]]
figure, panels = plt.subplots(1, 2, figsize=(10, 2.6), sharey=True, sharex=True, layout="constrained")
for axes, pieces in zip(panels, (1, 6), strict=True):
    free = [0.0 for _ in hops]
    for piece in range(pieces):
        there = 0.0
        for row, hop in enumerate(hops):
            start = max(there, free[row])
            there = free[row] = start + stored.bytes / pieces / hop.speed
            axes.barh(row, there - start, 0.6, left=start, color=orange, alpha=1 - 0.12 * piece, ec="white")
    axes.set(xlabel="seconds", title=f"{pieces} piece{'s' if pieces > 1 else ''}: {there:.1f} s")
    axes.set_yticks(range(len(hops)), [hop.name for hop in hops])
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# <details><summary>What overlapping buys</summary>
#
# In the limit of many pieces only the slowest hop is left. That helps most where the hops are about equally fast, and
# hardly at all where one is much slower than the others: with an ordinary disk at the end, the disk's time is the
# answer.
# </details>
#
# So how fast is *your* disk? We write a checkpoint the size of SmolLM2-135M three times, with the package's own
# `checkpoint.save`, which works out a checksum first and returns only when the disk has confirmed every byte (`fsync`).
# The numbers are random bits, less the one that would make some of them infinite: zeros might be stored in no room at
# all. For comparison, the same bytes are copied within memory.

# %% tags=["timing"]
draw = np.random.default_rng(0)
shapes = arrays(zoo.config("smollm2-135m"))
finite = np.uint16(0b1011_1111_1111_1111)
bits = {
    name: (draw.integers(0, 2**16, leaf.shape, np.uint16) & finite).view(jnp.bfloat16) for name, leaf in shapes.items()
}
written = sum(array.nbytes for array in bits.values())
taken = []
with tempfile.TemporaryDirectory(dir=".") as folder:  # here, since a system's own temporary folder may lie in memory
    for i in range(3):
        began = time.perf_counter()
        checkpoint.save(f"{folder}/{i}.safetensors", bits, {})
        taken.append(time.perf_counter() - began)
began = time.perf_counter()
copies = [array.copy() for array in bits.values()]
copying = written / (time.perf_counter() - began)
disk = written / sorted(taken)[1]
print(f"{written:,} bytes in", ", ".join(f"{t:.2f}" for t in taken), "s")
print(f"to this disk {disk / 1e9:.2f} GB/s (the middle one); within this memory {copying / 1e9:.2f} GB/s")

# %% [markdown]
# **Predict,** from that speed: how long would this machine take to write the large model once, if its disk had the room
# and kept the pace? And to save all that is needed to go on?

# %% tags=["timing"]
for name, number in kinds.items():
    print(f"{name:30}{duration(number / disk):>10}, ten {duration(10 * number / disk):>10}")
assert math.isclose(stored.resumable / stored.bytes, 3, rel_tol=1e-6)

# %% [markdown]
# <details><summary>How to work it out</summary>
#
# Bytes over bytes a second. Only the speed is your machine's: to save all that is needed to go on takes three times as
# long on any, since the two moments go along with the weights.
# </details>
#
# Your disk beside the others. The scale is logarithmic: each labelled tick is ten times the one before.

# %% tags=["timing", "figure"]
stated = [hardware.LINKS["pcie5"], *hardware.DISKS.values(), *hardware.NETWORKS.values()]
speeds = {"this machine's memory": copying, "this machine's disk": disk} | {hop.name: hop.speed for hop in stated}
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
for name, speed in speeds.items():
    colour = "black" if "this machine" in name else orange
    axes.plot(speed / 1e9, name, "o", color=colour)
    axes.annotate(f"{speed / 1e9:.3g}", (speed / 1e9, name), xytext=(8, -4), textcoords="offset points")
axes.set(xscale="log", xlabel="GB/s", title="Black: timed just now. Colour: as stated in hardware.py")
axes.invert_yaxis()
axes.grid(axis="x", alpha=0.3)
axes.margins(x=0.15)
plt.show()

# %% [markdown]
# ## 7. The price of the seat
#
# No card holds the large model's step, so that it takes several. Weights, gradients and optimizer state can be shared
# out evenly over them (*sharding*); the activations of its own batch lie whole on every card. A colleague has written
# this estimate on the back of an envelope, for cards that are sold with 80 GB, which are GiB.


# %%
def colleagues_cards(P, whole, card_gib):
    """Cards for full fine-tuning of P bfloat16 weights with AdamW; `whole` bytes lie on each in any case."""
    held = P * (2 + 2 + 2)  # weights, mu, nu
    return math.ceil((held + whole) / (card_gib * 1e9))


print("the colleague's H100s:", colleagues_cards(steps.parameters(big), ledger["saved activations"], 80))

# %% [markdown]
# ### Exercise 2.5: find the mistakes (10 minutes, difficulty 2 of 3)
#
# Mend the estimate: there are three mistakes in it. `whole` is what lies on each card in any case, in bytes, and is
# always less than a card has.


# %% tags=["exercise"]
def cards_needed(P, whole, card_gib):
    """Cards for full fine-tuning of P bfloat16 weights with AdamW: an int, rounded up.

    Weights, gradients and both moments, all bfloat16 and with no master copy, are shared out evenly; `whole` bytes
    lie on each card of `card_gib` GiB.
    """
    # solution
    held = P * (2 + 2 + 2 + 2)
    room = card_gib * 2**30 - whole
    return -(-held // room)
    # end of solution


# %% [markdown]
# A mistake that is still there is named.

# %%
check("2.5", cards_needed)
# hint("2.5")
# solution("2.5")

# %% [markdown]
# `planner.cards_needed` is the package's own, and `hardware.py` holds what a program was told it may have of each card.
# Here is the fare, at the prices that stand there too: one third party's listing of one day, so take them for an
# example and put in your own. Only exact rows are counted, and workspaces come on top: these are the fewest cards that
# could do.

# %%
exact = Ledger("exact rows", tuple(row for row in ledger if row.exact))
fares = {}
for name, price in hardware.PRICES.items():
    one = hardware.card(name)
    number = planner.cards_needed(exact, one.usable)
    fares[name] = number * price.dollars
    fare = f"{number:>4} at ${price.dollars:.2f}: ${fares[name]:.2f} an hour"
    print(f"{one.name:12}{size(one.usable):>9} usable{fare}")
print("prices:", price.source.what, price.source.date)

# %% [markdown]
# Look back at the picture of section 4. Its grey parts lie whole on each card: how many H100s does each of its bars
# take?

# %%
for name, one in bars.items():
    rows = Ledger(name, tuple(row for row in estimate(one) if row.exact))
    number = planner.cards_needed(rows, card.usable)
    print(f"{' '.join(name.split()):36}{'no number is enough' if number is None else f'{number} H100s'}")

# %% [markdown]
# Cards that wait are paid for as well. Suppose the run stops for each save until all that is needed to go on has
# reached the slowest disk of the table, and saves ten times.

# %%
slowest = min(hardware.DISKS.values(), key=lambda hop: hop.speed)
one_save = stored.resumable / slowest.speed
waiting = planner.run_dollars(fares["h100"], one_save, 10)
print(f"{slowest.name}: {duration(one_save)} a save; ten saves keep the H100s waiting for ${dollars(waiting)}")

# %% [markdown]
# For a model and a card of your own, the command line writes the whole plan, with the estimate included:
#
# ```sh
# python -m lora_jax plan 100b --method full --rounding nearest --remat --length 2048 --for h100
# ```
#
# ## The question
#
# Full fine-tuning flies business class: for every weight that sits down, a gradient and two moments take a seat as
# well, and the moments travel again with every checkpoint that a run can go on from. The last cell asks what the ticket
# would be if only the weights and the activations had to be carried, and nothing had to be kept for training them.

# %%
rows = tuple(row for row in exact if row.name not in ("gradients", "optimizer state"))
number = planner.cards_needed(Ledger("nothing trains", rows), card.usable)
print(f"business class: {planner.cards_needed(exact, card.usable)} H100s, at least ${fares['h100']:.2f} an hour")
print(f"nothing trains: {number} H100s, at least ${number * hardware.PRICES['h100'].dollars:.2f} an hour")

# %% [markdown]
# That second ticket is a bound: nothing trains. How close can one come and still go from stories to poems? How few
# numbers would have to train, and which? Notebook 03 builds the answer, *low rank*, from scratch. Notebook 04 prints
# its ticket, the sleeper's row, and shows what it does not save: look again at which part of the bars grew with the
# batch.
#
# **What you saw.**
#
# - Parameters follow from the config, and bytes from the dtype; GB and GiB are different units.
# - AdamW makes the static memory of a step four times the weights, or eight times with a float32 master copy.
# - Saved activations grow with batch and length, and in a small model soon pass all the rest; rematerializing blocks
#   trades them for time. Logits need not be there all at once.
# - A step's peak is its arguments and the fullest of three moments: the layers, the loss or the update.
# - The compiler, asked for the real step of the large model, agreed on its arguments to the byte.
# - A checkpoint's time is nearly that of the slowest hop: a disk or a network, not the way off the card. Waiting cards
#   are paid for too.
