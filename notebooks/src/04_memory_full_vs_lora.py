# %% [markdown]
# # Memory: full fine-tuning against LoRA and QLoRA
#
# Notebook 02 ended with a bound: the ticket if nothing had to be kept for training. Notebook 03 built LoRA, which comes
# close to it. Here you see how close, and how such a claim is checked. You will be able to
#
# - climb the *ladder of evidence*: count a step's memory from shapes, confirm it by autodiff, then by the compiler,
#   then on a device, and say what each rung can and cannot show;
# - count what LoRA and QLoRA hold, to the byte;
# - say what LoRA does not save, and from which batch on that matters more than what it saves;
# - estimate the peak of a step with adapters, and say how far off the estimate may be;
# - recognize three traps that cost the memory that was to be saved;
# - choose the seat: which method, on which card, at how many dollars an hour.
#
# The cells run in about a minute and a half on two cores; the exercises take about fifty minutes. Nothing is
# downloaded. No GPU is needed; where there is one, rung 4 is measured on it.

# %% [markdown]
# JAX takes most of a GPU's memory at its start unless it is told not to, and the processes that measure need it.

# %%
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from IPython.display import Image

import lora_jax as lj
from lora_jax import quantize
from lora_jax.exercises import check, hint, solution
from lora_jax.exercises.memory import at_batch, brought
from lora_jax.memory import activations, explorer, hardware, peak, planner, residuals, steps, zoo
from lora_jax.memory.compiled import compiler
from lora_jax.memory.estimate import estimate
from lora_jax.memory.measured import device
from lora_jax.memory.plots import bar
from lora_jax.memory.setup import Setup, ways
from lora_jax.memory.units import dollars, duration, size
from lora_jax.plots import COLOURS, TITLES

# %% [markdown]
# We follow two steps up the ladder: one of the small model, which this machine can run, and one of the large model of
# notebook 02, which it cannot. `ways` gives the same step by full fine-tuning, by LoRA, and by LoRA over a base whose
# matrices are stored in four bits, `lora nf4`: that is *QLoRA*, and section 5 says how. Full fine-tuning in bfloat16 is
# counted as in notebook 02, without a master copy (`rounding="nearest"`): with one it would hold twice as much.

# %%
small = Setup(zoo.config("stories-2.8m"), options={"rank": 16}, batch=8, length=512, dtype="float32")
large = Setup(zoo.config("100b"), "full", rounding="nearest", batch=1, length=2048, remat=True)
print(*ways(small), sep="; ")

# %% [markdown]
# ## 1. The first rung: arithmetic
#
# **Predict:** LoRA of rank 16 on all matrices of the large model. By what factor do gradients and optimizer state
# shrink: 20, 200, 2,000? And the weights?

# %%
ledgers = {way: estimate(setup) for way, setup in ways(large).items()}
print(f"{'':24}" + "".join(f"{TITLES[way]:>18}" for way in ledgers))
for row in ("weights", "quantization constants", "adapters", "gradients", "optimizer state"):
    print(f"{row:24}" + "".join(f"{size(ledger[row]) if ledger[row] else '-':>18}" for ledger in ledgers.values()))
print(f"gradients: {ledgers['full']['gradients'] / ledgers['lora']['gradients']:.0f} times less")
assert all(150 < ledgers["full"][row] / ledgers["lora"][row] < 250 for row in ("gradients", "optimizer state"))

# %% [markdown]
# <details><summary>What the rows say</summary>
#
# Gradients and optimizer state shrink about two hundred times, the weights not at all. LoRA holds one gradient and two moments
# for each number *that trains*, and hardly any do. Its weights are those of the base: frozen, they are still read in
# every step. QLoRA goes at that row, which is all that is left to go at.
# </details>
#
# ### Exercise 4.1: what LoRA trains, in bytes (10 minutes, difficulty 1 of 3)
#
# Write three of these rows. A target of shape (in, out) gets $A$ (in, $R$) and $B$ ($R$, out) in every layer; adapters,
# gradients and moments are float32; AdamW also has its count of steps, an int32.


# %% tags=["exercise"]
def lora_rows(shapes, layers, targets, rank):
    """Bytes of what LoRA trains: a dict of "adapters", "gradients", "optimizer state" (AdamW, all float32).

    `shapes`: (in, out) of each matrix of a block by name; `targets`: the names that get a LoRA, in every layer.
    """
    # solution
    n = layers * sum(rank * (shapes[name][0] + shapes[name][1]) for name in targets)
    return {"adapters": 4 * n, "gradients": 4 * n, "optimizer state": 2 * 4 * n + 4}
    # end of solution


# %% [markdown]
# The check draws shapes of its own. Take the `#` off a line for a hint, or for the solution.

# %%
check("4.1", lora_rows)
# hint("4.1")
# solution("4.1")

# %% [markdown]
# The package counts the shapes of the adapters that it would make. The LoRA paper speaks of "35 MB" for GPT-3 at rank
# 4 on q and v in 16 bits, a round number: ours should come near. For Llama-3.1-8B at rank 16 on all matrices PEFT
# prints a count of its own, and that must be equal.


# %%
def trains(model, **options):
    """How many numbers train in a LoRA of a model."""
    return lj.count(steps.build(Setup(zoo.config(model), options=options)).trainable)


paper = trains("gpt3-175b", rank=4, targets=["q_proj", "v_proj"])
peft = trains("llama3.1-8b", rank=16)
print(f"GPT-3: {paper:,} parameters, {2 * paper / 1e6:.1f} MB or {2 * paper / 2**20:.1f} MiB")
print(f"Llama-3.1-8B: {peft:,} parameters")
assert peft == 41_943_040  # PEFT's

# %% [markdown]
# ## 2. The second rung: autodiff
#
# The count also says which arrays the backward pass finds. JAX knows that without running anything: `jax.vjp` returns
# a function that holds them, and `jax.eval_shape` gives their shapes. `residuals.kept` names them. Here is what a block
# of the small model keeps under LoRA; layers are stacked in front.

# %%
found = residuals.kept(small)
for one in found:
    if one.shape and one.shape[0] == small.config.num_hidden_layers:
        print(f"{one.role:14}{one.shape!s:24}{one.dtype:10}{size(one.bytes):>10}")

# %% [markdown]
# <details><summary>How to read the shapes</summary>
#
# 4,096 tokens are 8 sequences of 512. `q` has six heads of 32, `k` and `v` two. `mixed` and `log_sum_exp` come from
# blockwise attention, 256 tokens a block: two blocks, each with 8 sequences, 2 key/value heads, and for each of these
# 3 query heads of 256 tokens. Taken together they are as many numbers as tokens times query heads (times 32).
# </details>
#
# ### Exercise 4.2: what a block keeps (10 minutes, difficulty 2 of 3)
#
# Turn the table into a formula, for one block and $N$ tokens. Assume $N$ small enough for a single block of attention,
# so that nothing is padded.


# %% tags=["exercise"]
def kept_by_block(N, D, F, H, K, C, size):
    """Bytes that a block keeps of N tokens, `size` bytes a number; log_sum_exp is float32 whatever the rest is.

    D width, F feed-forward width; H query heads and K key/value heads of C numbers each.
    """
    # solution
    numbers = 2 * D + 2 * H * C + 2 * K * C + 2 * F
    return N * (size * numbers + 4 * H)
    # end of solution


# %% [markdown]
# Where your count is off, the check says by which array.

# %%
check("4.2", kept_by_block)
# hint("4.2")
# solution("4.2")

# %% [markdown]
# **Predict:** for the same batch, how many per cent fewer bytes does LoRA keep than full fine-tuning? The count and
# autodiff are asked separately, for both models and all three methods.

# %%
for name, setup in {"stories-2.8m": small, "100b": large}.items():
    for way, one in ways(setup).items():
        ledger, kept = estimate(one), residuals.residuals(one)
        print(f"{name:14}{way:8}{ledger['saved activations']:>16,} counted", end="")
        print(f"{kept['saved activations']:>16,} by autodiff")
        assert ledger["saved activations"] == kept["saved activations"]
    full, lora = (estimate(ways(setup)[way])["saved activations"] for way in ("full", "lora"))
    tokens, numbers = setup.batch * setup.length, setup.config.hidden_size * jnp.dtype(setup.dtype).itemsize
    assert full - lora == tokens * numbers + 4 * tokens  # the normed stream, and an int32 for each token
    assert 0.01 < 1 - lora / full < 0.02

# %% [markdown]
# <details><summary>Why LoRA keeps nearly as much</summary>
#
# It keeps between 1 and 2 % less. To reach an adapter in the first layer, the gradient passes back through every layer
# above it, frozen or not, and needs what those layers computed. Full fine-tuning keeps two arrays more, both outside
# the layers: the normed stream behind the last block, and the token ids, which say whose row of the embedding gets a
# gradient.
# </details>
#
# What this rung cannot show: how much the compiler needs *beyond* what is kept.
#
# ## 3. The third rung: the compiler
#
# XLA plans the memory of a step before any of it runs, from shapes alone. We hand it the large model's step, by full
# fine-tuning and by LoRA; nothing of that size is allocated.

# %% tags=["timing"]
plans = {way: compiler.plan(setup) for way, setup in ways(large).items() if way in ("full", "lora")}
for way, plan in plans.items():
    print(f"{TITLES[way]:18} compiled for this machine's CPU in {plan.seconds:.1f} s")

# %% [markdown]
# What the compiled program takes as arguments is exact, so the count must agree to the byte.

# %%
for way, plan in plans.items():
    print(f"{TITLES[way]:24}{'counted':>18}{'compiled':>18}")
    for row in ("weights", "adapters", "adapter constants", "optimizer state", "batch"):
        print(f"{row:24}{ledgers[way][row]:>18,}{plan.ledger[row]:>18,}")
        assert ledgers[way][row] == plan.ledger[row]

# %% [markdown]
# The rest of the plan is the compiler's own choice. For the large model a CPU's is of no use: XLA works bfloat16
# products in float32 here and plans room for it, which a GPU does not need. In float32 the plan means something, so
# here is the small model's, by what the buffers alive at its fullest moment are for: not all that is ever kept need
# be there just then. It differs a little between releases of JAX. The last line is the estimate of notebook 02, which
# is of plans for NVIDIA GPUs, and of larger steps; section 7 takes it up again.

# %% tags=["timing"]
plan = compiler.plan(small)
for role, number in plan.roles.items():
    print(f"{role:52}{size(number):>12}")
print(f"{'arguments':52}{size(plan.argument):>12}\n{'needed in all':52}{size(plan.needed):>12}")
print(f"{'the estimate':52}{size(estimate(small).total):>12}")

# %% [markdown]
# ## 4. The fourth rung: a device
#
# A plan is a promise. So we run the small model's step in a process of its own and look at the most memory it ever
# held: on a GPU the device counts that itself; on a CPU it is the process's peak, less that of a process which loaded
# the same program and ran nothing.
#
# **Predict:** full fine-tuning and LoRA of the same step. How many per cent less will LoRA take?

# %% tags=["timing"]
machine = device.look("auto")
used = {}
for way in ("full", "lora"):
    one = device.run(asdict(ways(small)[way]), machine["platform"])
    used[way] = one["used"]
    print(f"{TITLES[way]:18}{device.outcome({'failed': '', **one})}")
print(f"on {machine['device']} ({machine['platform']}), jax {machine['jax']}")
if all(used.values()):
    print(f"LoRA used {1 - used['lora'] / used['full']:.0%} less")
for one in (estimate(setup) for setup in ways(small).values()):
    assert one["saved activations"] > 0.5 * one.total and one.static < 0.2 * one.total

# %% [markdown]
# <details><summary>Why so little, and why plan and use differ</summary>
#
# The model is small and the batch is not: by the estimate more than half of the step is saved activations, which LoRA
# does not touch. What it saves is in the static rows, and these are less than a fifth.
#
# On a CPU the count is rough. It includes whatever the process's own allocator and threads hold, which weighs the more
# the smaller the step is.
# </details>
#
# Longer measurements are committed as records, each with its device. `python -m lora_jax measure` makes one, and
# `docs/measuring.md` says how to contribute one from a GPU of yours.

# %%
data = Path(lj.__file__).parents[1] / "figures" / "data"
records = [json.loads(path.read_text()) for path in sorted(data.glob("memory_*.json"))]
for platform in ("cpu", "gpu"):
    measured = [one for one in records if one.get("made_by", {}).get("platform") == platform]
    print(f"{platform}:" + ("" if measured else " not measured yet"))
    for one in measured:
        print(f"  {one['made_by']['device']}, jax {one['made_by']['jax']}; {one['summary']['failed']} steps failed")
        print("\n".join(f"    {device.title(row)}: {device.outcome(row)}" for row in one["rows"]))

# %% [markdown]
# ## 5. QLoRA: the weights themselves
#
# LoRA leaves one large row, the frozen weights. QLoRA (Dettmers and others, 2023) stores the matrices of the layers in
# *NF4*: each weight becomes the nearest of 16 values, a code of four bits, after it is divided by the largest weight of
# its block of 64, the block's *constant*. *Double quantization* stores those constants in a byte each.

# %%
_, params = lj.load_model("stories-2.8m")
w = params["layers"]["self_attn"]["q_proj"][0]
packed = quantize.nf4(w)
error = jnp.linalg.norm(packed.dense() - w) / jnp.linalg.norm(w)
print(f"{w.nbytes:,} bytes in float32, {lj.num_bytes(packed):,} in NF4; the matrix moved by {error:.1%} of its norm")

# %% [markdown]
# ### Exercise 4.3: the bytes of an NF4 matrix (15 minutes, difficulty 3 of 3)
#
# Two codes share a byte. Blocks run down a column, and the last block of a column may be short. Each block has one
# constant, a float32. With double quantization the constant is one byte; 256 of these bytes, taken in order, share a
# float32 (their own constant); and one more float32, the mean that was taken off before, is shared by all.


# %% tags=["exercise"]
def nf4_bytes(rows, columns, double):
    """(bytes of the codes, bytes of the constants) of one NF4 matrix; `rows` is even.

    Blocks of 64 run down a column, the last one perhaps short. `double`: whether the constants are quantized too.
    """
    # solution
    blocks = -(-rows // 64) * columns
    constants = blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks
    return rows * columns // 2, constants
    # end of solution


# %% [markdown]
# The shapes that the check draws leave short blocks and a short group.

# %%
check("4.3", nf4_bytes)
# hint("4.3")
# solution("4.3")

# %% [markdown]
# **Predict:** how many bits is a weight then, with its share of the constants? And does Llama-3.1-8B shrink to a
# quarter of its 16 bits?

# %%
matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
for double in (False, True):
    shapes = jax.eval_shape(lambda w, double=double: quantize.nf4(w, double), matrix)
    print(f"double quantization {double!s:6} {8 * lj.num_bytes(shapes) / 4096**2:.3f} bits a weight")

# %% [markdown]
# And the whole model, by the shapes of its arrays:

# %%
llama = Setup(zoo.config("llama3.1-8b"), options={"rank": 16})
base = {way: lj.num_bytes(steps.build(setup).params) for way, setup in ways(llama).items()}
ends = 2 * 2 * llama.config.vocab_size * llama.config.hidden_size  # embedding and head, two bytes a number
print(f"Llama-3.1-8B: {size(base['lora nf4'])} of {size(base['lora'])}; embedding and head are {size(ends)} of both")
assert llama.config.vocab_size == 128_256 and base["lora nf4"] > base["lora"] / 3 and ends > base["lora nf4"] / 3

# %% [markdown]
# <details><summary>How many bits, and why more than a quarter</summary>
#
# 4.5 bits, or 4.127 with double quantization; but the model shrinks to more than a third. Only the layers' matrices
# are quantized. Embedding, head and norms stay in 16 bits, and with a vocabulary of 128,256 the first two are more
# than a third of what is left.
# </details>
#
# Now all three methods by component, for four models. Solid colours are exact; the hatched part is estimated.
#
# **Predict** before you look: in which of the four does LoRA help least?

# %% tags=["figure"]
less = {}
figure, panels = plt.subplots(2, 2, figsize=(11, 5.4), layout="constrained")
for axes, name in zip(panels.flat, ("stories-2.8m", "smollm2-135m", "llama3.1-8b", "100b"), strict=True):
    setups = ways(Setup(zoo.config(name), "full", rounding="nearest", batch=4, length=512))
    found = {way: estimate(one) for way, one in setups.items()}
    unit, word = (1e9, "GB") if found["full"].total >= 1e9 else (1e6, "MB")
    for y, (way, ledger) in enumerate(found.items()):
        end = bar(axes, y, way, ledger, unit)
        axes.text(end, y, f" {size(ledger.total)}", va="center")
    axes.set_yticks(range(len(setups)), [TITLES[way] for way in setups])
    axes.set(title=name, xlabel=f"{word} ({unit:.0e} bytes) at the peak of a step of 4 x 512 tokens".replace("+0", ""))
    axes.set_xlim(0, 1.3 * found["full"].total / unit)
    axes.invert_yaxis()
    less[name] = 1 - found["lora"].total / found["full"].total
    saved = [ledger["saved activations"] for ledger in found.values()]
    assert max(saved) < 1.02 * min(saved)
plt.show()
print("LoRA's peak is lower by", ", ".join(f"{name} {part:.0%}" for name, part in less.items()))
assert min(less, key=less.get) == "stories-2.8m" and less["100b"] > 0.5

# %% [markdown]
# <details><summary>Where it helps least</summary>
#
# In the smallest, `stories-2.8m`: its weights, and with them its gradients and moments, are few beside what the batch
# brings. In the largest LoRA takes away more than half of the whole.
# </details>
#
# ## 6. What LoRA does not save
#
# The grey in the picture is the batch's. It differs by less than 2 % between the three methods, and it grows with
# batch and length, while what LoRA saves does not. So there is a batch from which on it matters more. The picture has
# Llama-3.1-8B in bfloat16, sequences of 1,024 tokens, nothing rematerialized, and exact rows alone.

# %% tags=["figure"]
batches = range(1, 25)
held = {way: ledger.static for way, ledger in at_batch(1).items()}
saves = held["full"] - held["lora"]
figure, axes = plt.subplots(figsize=(8, 4.3), layout="constrained")
axes.plot(batches, [brought(batch) / 1e9 for batch in batches], color="black", label="saved activations")
axes.axhline(saves / 1e9, color=COLOURS["lora"], label="what LoRA saves: gradients and moments")
axes.axhline(held["lora"] / 1e9, color=COLOURS["lora"], ls=":", label="what LoRA holds whatever the batch")
axes.set(xlabel="sequences in a batch", ylabel="GB (1e9 bytes), exact", xlim=(0, 24), ylim=(0, None))
axes.set_xticks(range(0, 25, 2))
axes.grid(alpha=0.3)
axes.legend(loc="upper left")
plt.show()

# %% [markdown]
# ### Exercise 4.4: read the plot (5 minutes, difficulty 1 of 3)
#
# From which batch on do the saved activations take more memory than LoRA saves? Put your reading in `drowned`.

# %% tags=["exercise"]
drowned = 16  # solution

# %% [markdown]
# The check allows for what an eye can read.

# %%
check("4.4", drowned)
# hint("4.4")
# solution("4.4")

# %% [markdown]
# A colleague has not seen that picture, and compares the methods so: "What trains needs memory. LoRA trains a small
# part of the numbers, so it needs that small part of the memory."


# %%
def colleagues_times_less(P, A, kept):
    """How many times less memory LoRA needs: P bfloat16 weights, A adapter numbers, `kept` bytes of activations."""
    full = 2 * P + 2 * P + 4 * P + kept  # weights, gradients, both moments, saved activations
    lora = (2 + 2 + 4) * A + kept * A / P
    return full / lora


P, A = (lj.count(steps.build(ways(large)[way]).trainable) for way in ("full", "lora"))
print(f"the colleague: {colleagues_times_less(P, A, ledgers['full']['saved activations']):,.0f} times less")

# %% [markdown]
# ### Exercise 4.5: find the mistakes (10 minutes, difficulty 2 of 3)
#
# Full fine-tuning is counted rightly. In LoRA's line there are three mistakes: mend it.


# %% tags=["exercise"]
def times_less(P, A, kept):
    """How many times less memory LoRA needs than full fine-tuning: a float. Counts of steps are left aside.

    P bfloat16 weights; A numbers in float32 adapters; `kept` bytes of saved activations; AdamW.
    """
    # solution
    full = 2 * P + 2 * P + 4 * P + kept
    lora = 2 * P + (4 + 4 + 8) * A + kept
    return full / lora
    # end of solution


# %% [markdown]
# A mistake that is still there is named.

# %%
check("4.5", times_less)
# hint("4.5")
# solution("4.5")

# %% [markdown]
# The exact rows of the package's ledgers give the ratio too: for the large model, and for the small one, whose batch
# outweighs its weights.

# %%
for name, setup in {"100b": large, "stories-2.8m": small}.items():
    exact = [sum(row.bytes for row in estimate(ways(setup)[way]) if row.exact) for way in ("full", "lora")]
    print(f"{name:14}{size(exact[0]):>10} to {size(exact[1]):>10}: {exact[0] / exact[1]:.2f} times less")
assert estimate(small)["saved activations"] > estimate(small)["weights"]

# %% [markdown]
# What does help against activations is a smaller batch, shorter sequences, or rematerialized blocks, whatever the
# method. **Predict:** a block keeps nine arrays, of which rematerialization leaves the block's input alone. They are
# not equally wide. By what factor do saved activations shrink?

# %%
saved = {}
for remat in (False, True):
    saved[remat] = estimate(replace(llama, batch=4, length=1024, remat=remat))["saved activations"]
    print(f"rematerialized: {remat!s:6} saved activations {size(saved[remat]):>9}")
print(f"{saved[False] / saved[True]:.1f} times less")
assert saved[False] / saved[True] > 10 and llama.config.intermediate_size > 3 * llama.config.hidden_size

# %% [markdown]
# <details><summary>Why more than nine times</summary>
#
# The block's input is as wide as the stream. `gate` and `up` are as wide as the feed-forward, more than three times
# that, and they are not kept any more.
# </details>
#
# ## 7. The fullest moment, with adapters
#
# In notebook 02 a step's peak was its arguments and the fullest of three moments, and by far the most of it were
# gradients. Adapters have hardly any, and a head that does not train has no gradient to add up in the loss. In the
# layers that leaves the saved activations and the working set of one layer. In the large model's, with rematerialized
# blocks, full fine-tuning had six arrays as wide as the feed-forward.
#
# **Predict:** how many has LoRA on all matrices, fewer or more? And LoRA on q and v alone?


# %%
def in_layers(setup):
    """Arrays as wide as F, and bytes beside the arguments, in bfloat16, rematerialized, with blockwise attention."""
    c, trainable = setup.config, steps.build(setup).trainable
    N, D, F = setup.batch * setup.length, c.hidden_size, c.intermediate_size
    Q, K = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    adapted = activations.trains(trainable, "mlp")
    wide = 3 + adapted + 2 + (5 if adapted else 3 if setup.quantize else 0)
    numbers = wide * F + (4 + adapted) * D + 2 * Q + 2 * K
    held = activations.kept_by_layers(setup, trainable) + lj.num_bytes(trainable)
    return wide, held + 2 * (N * numbers + 2 * D * F)


adapted = ways(large)["lora"]
few = replace(adapted, options={"rank": 16, "targets": ["q_proj", "v_proj"]})
for name, one in {"LoRA": adapted, "LoRA on q and v": few, "QLoRA on q and v": replace(few, quantize="nf4")}.items():
    wide, held = in_layers(one)
    assert ("layers", held) == peak.temporary(one, steps.build(one).trainable)
    assert wide == {"LoRA": 11, "LoRA on q and v": 5, "QLoRA on q and v": 8}[name]
    print(f"{name:18}{wide} arrays as wide as F; {size(held)} beside the arguments")

# %% [markdown]
# <details><summary>Where they come from</summary>
#
# On all matrices it has eleven, more than the six; on q and v alone five. Three are the gradients of `gate`, of `up`
# and of their product. One is the product itself: an adapter on `down_proj` needs it for its own gradient, as the
# weight did. Two are `gate` and `up`, which are made again.
#
# And five more: where an adapter stands, $x W$ and $(x A) B$ are added up in float32. Before they are rounded, the three
# gradients take the room of six, and `gate` and `up` that of four. A product with a dequantized $W$ is float32 first
# too, which makes three more where no adapter stands. Of weights there are only the two matrices that are multiplied
# with just then.
# </details>
#
# Nothing is added up in the loss, but one chunk of logits is there with its gradient. And attention need not go by
# blocks: `attention="dense"` makes the scores of all pairs of tokens at once, in float32.
#
# **Predict:** LoRA on SmolLM2-135M, one sequence, blocks rematerialized. At which of these lengths is the loss the
# fullest? And what do all scores do to a sequence that is twice as long?

# %%
smollm2 = zoo.config("smollm2-135m")
for length in (64, 256, 1024, 2048, 4096):
    held = {}
    print(f"{length:>5} tokens", end="")
    for attention in ("blockwise", "dense"):
        one = Setup(smollm2, options={"rank": 16}, length=length, remat=True, attention=attention)
        moment, held[attention] = peak.temporary(one, steps.build(one).trainable)
        print(f"{attention:>10}: {moment:8}{size(held[attention]):>9}", end="\n" if attention == "dense" else "")
        assert (moment == "loss") == (length == 256)
assert held["dense"] > 4 * held["blockwise"]  # at the last length

# %% [markdown]
# <details><summary>At which, and why only there</summary>
#
# At 256. A chunk has 256 tokens at most. With fewer it is smaller; with more it is no larger, and the layers are. The
# scores are as many as pairs of tokens, so that twice the length is four times the scores; at 4,096 tokens they are
# most of what lies there.
# </details>
#
# All this is an estimate: XLA also pads, fuses and reorders. So it has a margin for what a plan needs beyond it, and a
# card has three verdicts: a step *fits* if the estimate and its margin do, it *does not fit* if the estimate alone does
# not, and in between it is *too close*: `plan` says so, and with `--compile` it asks the compiler.
#
# **Predict:** Llama-3.1-8B by LoRA on an L4, sequences of 1,024 tokens. One sequence fits. How about two, and three?

# %%
room = hardware.card("l4").usable
print(f"of {size(room)} an estimate may take {size(planner.certain(room))}: the margin is {peak.MARGIN:.0%}")
for batch in (1, 2, 3):
    total = estimate(replace(llama, batch=batch)).total
    print(f"{batch} x {llama.length} tokens: {size(total):>8} {planner.verdict(total, room)}")
    assert planner.verdict(total, room) == (planner.FITS, planner.TOO_CLOSE, planner.DOES_NOT_FIT)[batch - 1]
print(f"and below {size(peak.SMALL)} the compiler is asked in any case: one array more or less is a large share there")

# %% [markdown]
# <details><summary>What the verdicts say</summary>
#
# Two are too close to tell: the estimate is below what the card has, and with its margin it is not. Three do not fit.
# </details>
#
# Is the margin wide enough? Steps were drawn by chance before the estimate was written for good, and compiled after
# that, by two versions of JAX, for an H100 that was not there. What follows is read from that record, where every
# step stands.
#
# **Predict:** how often does a plan exceed the estimate, and how often the estimate and its margin?

# %%
record = json.loads((data / "estimate_error.json").read_text())
for made, found in record["summary"].items():
    print(made)
    for name, number in found.items():
        print(f"    {name:24}{number:>8.2%}" if isinstance(number, float) else f"    {name:24}{number:>8}")
    judged = found["of 1 GB and more"]
    assert judged / 5 < found["under-estimates"] < judged / 2 and found["beyond margin"] < judged / 50

# %% [markdown]
# <details><summary>How often</summary>
#
# Of the steps whose plan has 1 GB or more, which the other lines are about, between a fifth and a half need more than
# the estimate, and fewer than one in fifty more than the estimate and its margin.
# </details>
#
# The last line of each version counts the plans for which the margin was too narrow: *fits* is an estimate's word and
# no promise, and where a run that fails would be dear, the compiler is asked there too. Here is each step as a point,
# by the size of its plan. Under the level dotted line the plan is more than the estimate and its margin; left of the
# upright one a step is smaller than what the estimate speaks of.

# %% tags=["figure"]
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
for made, (marker, colour) in zip(record["summary"], (("o", "black"), ("x", "#CC79A7")), strict=True):
    plans = [(row["plans"].get(made), row["estimate"]) for row in record["rows"]]
    known = [(plan / 1e9, 100 * (ours / plan - 1)) for plan, ours in plans if isinstance(plan, int)]
    axes.plot(*zip(*known, strict=True), marker, color=colour, mfc="none", ms=4, label=made)
axes.axvline(peak.SMALL / 1e9, color="black", ls=":")
axes.axhline(100 * (1 / (1 + peak.MARGIN) - 1), color="black", ls=":")
axes.axhline(0, color="black", lw=0.8)
axes.set(xscale="log", xlabel="plan for an H100, GB (1e9 bytes)", ylabel="estimate above the plan, %")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# ## 8. Three traps
#
# **`stop_gradient` saves nothing.** It makes gradients zero, and zeros take as much room. What saves them is to take
# `jax.grad` over the adapters alone. Both, for the small model; **predict** the first number from the parameters.

# %%
config, params = lj.load_model("stories-2.8m")
adapters, constants = lj.lora.init(jax.random.key(0), params, rank=16)
batch = {"tokens": jnp.zeros((2, 16), jnp.int32)}


def stopped(both, batch):
    return lj.loss(config, lj.attach(jax.lax.stop_gradient(both[0]), both[1], constants), batch)


def apart(adapters, batch):
    return lj.loss(config, lj.attach(params, adapters, constants), batch)


for loss, trains in ((stopped, (params, adapters)), (apart, adapters)):
    print(f"{loss.__name__:10}{lj.num_bytes(jax.eval_shape(jax.grad(loss), trains, batch)):>14,} bytes of gradients")
print(f"{'weights':10}{lj.num_bytes(params):>14,} bytes\n{'adapters':10}{lj.num_bytes(adapters):>14,} bytes")
assert lj.num_bytes(params) + lj.num_bytes(adapters) == 12_322_560

# %% [markdown]
# <details><summary>The first number, and what comes after the gradients</summary>
#
# It is the bytes of the weights and of the adapters together, 12,322,560: a gradient for each, and of the weights all
# zeros. An optimizer that is given the larger tree also keeps two moments for each of its numbers, all of them zero
# forever.
# </details>
#
# **A dequantized weight is kept.** Write `x @ w.dense()`, and autodiff keeps the dense matrix for the backward pass. In
# a scan over layers these are stacked: a full-precision copy of the model that was quantized to save memory. The
# package's `x @ w` keeps the codes and makes the matrix again. Here are six layers of one matrix each.

# %%
stack = quantize.nf4(params["layers"]["self_attn"]["q_proj"])
factors = [adapters["layers"]["self_attn"]["q_proj"].a, adapters["layers"]["self_attn"]["q_proj"].b]
products = {"x @ w.dense()": lambda x, w: x @ w.dense(x.dtype), "x @ w": lambda x, w: x @ w}


def layers(factors, product):
    def body(x, layer):
        w, (a, b) = layer
        return jnp.tanh(product(x, w) + x @ a @ b), None

    return jax.lax.scan(body, jnp.ones((2, 192)), (stack, factors))[0].sum()


for name, product in products.items():
    kept = jax.eval_shape(lambda factors, product=product: jax.vjp(lambda f: layers(f, product), factors)[1], factors)
    dense = sum(leaf.size * 4 for leaf in jax.tree.leaves(kept) if leaf.shape == (6, 192, 192))
    print(f"{name:16}{dense:>12,} bytes of dense matrices kept; the codes are {stack.codes.nbytes:,}")

# %% [markdown]
# **LoRA saves no activation memory.** You saw it on the ladder: the same arrays but for two, counted and by
# autodiff, and a device that had nearly as much to hold.
#
# ## 9. An explorer
#
# Any model, by any method, against any card. First a picture that needs no kernel: the same model by the three methods,
# against an L4. The chosen method is in full colour, and the sentence says what follows.

# %% tags=["figure"]
view = explorer.View(model="llama3.1-8b", method="lora", card="l4")
print(explorer.verdict(view))
Image(explorer.picture(view), width=900)

# %% [markdown]
# And the same with controls, where a kernel runs: move a slider, and the picture is drawn again. Try to find, for
# Llama-3.1-8B on an L4, the longest sequence that LoRA can take, then the same with rematerialized blocks, then by
# QLoRA; and the largest model of which full fine-tuning fits on a T4 at all.

# %%
explorer.explorer(view)

# %% [markdown]
# ## 10. The tickets
#
# Now the answer to the question of notebook 02. The step is the same, the large model with rematerialized blocks, on as
# many H100s as it takes: what is static shared out over them, the rest whole on each. Unlike there, the estimated
# workspace and its margin are counted in. Prices are one third party's listing of one day.

# %%
tickets = [planner.method_cost(setup, "h100") for setup in ways(large).values()]
print(f"{'':18}{'peak':>12}{'H100s':>8}{'$ an hour':>12}{'left behind':>14}{'to go on':>12}")
for one in tickets:
    behind = f"{size(one.checkpoint.bytes):>14}{size(one.checkpoint.resumable):>12}"
    print(f"{TITLES[one.method]:18}{size(one.peak):>12}{one.cards:>8}{one.dollars_an_hour:>12.2f}{behind}")
print("prices:", hardware.PRICES["h100"].source.what, hardware.PRICES["h100"].source.date)

# %% [markdown]
# A run also saves on its way, and the cards wait. In notebook 02 ten saves by full fine-tuning kept them waiting at the
# slowest disk of the table; here are all three.

# %%
slowest = min(hardware.DISKS.values(), key=lambda hop: hop.speed)
for one in tickets:
    seconds = one.checkpoint.resumable / slowest.speed
    waiting = planner.run_dollars(one.dollars_an_hour, seconds, 10)
    print(f"{TITLES[one.method]:18}{duration(seconds):>8} a save; ten saves cost ${dollars(waiting)} of waiting")

# %% [markdown]
# A cheaper seat is not a faster one: a QLoRA step dequantizes every matrix on its way, and fewer cards compute fewer
# products at a time. What a run costs is dollars an hour times hours, and hours must be measured: time a few steps, and
# give `plan` the rate with `--seconds-per-step` for the price of the run.
#
# ```sh
# python -m lora_jax plan 100b --method lora --quantize nf4 --remat --length 2048 --for h100
# ```
#
# **What you saw.**
#
# - Four rungs: a count from shapes, autodiff confirms what is kept, the compiler confirms the arguments and plans the
#   rest, a device shows what was used. Each checks the one before, and the exact rows agree to the byte.
# - LoRA removes gradients and optimizer state; QLoRA removes most of the weights as well.
# - Neither removes saved activations. From some batch on these are more than LoRA saves, and then rematerialization, a
#   smaller batch or shorter sequences are what helps.
# - The peak of a step is an estimate with a margin, tried on steps that were drawn before it was written. A card inside
#   the margin is too close to tell without the compiler.
# - A stopped gradient is still allocated, and a dequantized weight is still kept, unless the program is written so that
#   they are not.
# - Full fine-tuning flies business class. LoRA travels in the sleeper's row, QLoRA too, and with small luggage.
#
# Notebook 03 saw the cheap seat arrive close by, in nats a token. Notebook 05 takes it with a real model, and lets you
# read the poems.
