# %% [markdown]
# # From stories to poems
#
# So far the models that we trained had under three million parameters. Now a real one: SmolLM2, which writes simple stories,
# learns to write verse on your machine. After this notebook you will be able to
#
# - sample from a language model, and say what temperature and top-k do;
# - tune a real model with LoRA, and measure what it learned *and what it forgot*;
# - save an adapter, load it again, and say what it costs beside its model;
# - swap, turn up, mix and merge adapters over one base that never changes.
#
# It needs notebook 03's idea, `x @ W + s * (x @ A) @ B`, and takes under eight minutes on two cores with no GPU; the
# last cell says what it took on yours. The model and the poems are downloaded once.

# %%
import hashlib
import itertools
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lora_jax as lj
from lora_jax.exercises import check, hint, solution
from lora_jax.plots import COLOURS
from lora_jax.text import datasets, packing
from lora_jax.tuning import jobs

began = time.perf_counter()
lj.keep_compiled_programs()  # on disk: what took long to compile once is there the next time

# %% [markdown]
# ## 1. The base
#
# `base` is a dict of arrays, as ever. It is downloaded in four bits a number, and worked with in float32.

# %%
config, base = lj.load_model("smollm2-135m")
tokenizer = lj.load_tokenizer("smollm2-135m")
print(f"{lj.count(base):,} parameters in {config.num_hidden_layers} blocks, {lj.num_bytes(base) / 1e6:.0f} MB")

# %% [markdown]
# The base will serve several adapters, so nothing may change it. A copy of its fingerprint now, to compare at the
# end.


# %%
def fingerprint(tree):
    """A hash of every byte of every array."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


untouched = fingerprint(base)

# %% [markdown]
# ## 2. What it writes
#
# Three openings, none of them from a poem. `generate` reads each prompt, then draws one token after the other.

# %%
PROMPTS = (
    "Once upon a time, there was a little girl who",
    "The old man looked out at the sea and",
    "In the morning the rain had stopped, and",
)


def write(params, new_tokens=50):
    """What the model writes after each prompt, with the same random numbers every time."""
    key = jax.random.key(1)
    return lj.generate(config, params, tokenizer, PROMPTS, new_tokens=new_tokens, temperature=0.7, key=key)


# %% [markdown]
# Keep what it writes: it is half of the comparison.

# %% tags=["sampled"]
before = write(base)
for prompt, continued in zip(PROMPTS, before, strict=True):
    print(f"{prompt}{continued}\n")

# %% [markdown]
# ### How a token is drawn
#
# The model gives a logit to each token of its vocabulary, and the softmax of the logits are the chances. Two settings
# change them: the logits are divided by the *temperature* first, and only the `k` likeliest tokens are kept.
#
# **Exercise 5.1** (10 minutes, difficulty 2 of 3). Write the chances of one draw. Stuck? Run `hint("5.1")` in a new
# cell, and at last `solution("5.1")`.


# %% tags=["exercise"]
def next_token_probabilities(logits, temperature, k):
    """The chance of each token to be drawn: logits (V,), temperature above 0, the k likeliest kept -> (V,)."""
    # solution
    kept = jnp.where(logits >= jnp.sort(logits)[-k], logits, -jnp.inf)
    return jax.nn.softmax(kept / temperature)
    # end of solution


# %% [markdown]
# The check calls your function with logits of its own, some of them large or far apart, and says what it finds.

# %%
check("5.1", next_token_probabilities)

# %% [markdown]
# Now the real logits after the second opening: the ten likeliest tokens out of the whole vocabulary.
#
# **Predict:** which of the temperatures 0.3, 0.7 and 1.5 makes the likeliest token all but certain?

# %%
ids = jnp.asarray([tokenizer.encode(PROMPTS[1])])  # (1, T)
logits, likeliest = jax.lax.top_k(lj.forward(config, base, ids)[0, -1], 10)  # (10,), (10,)
words = [repr(tokenizer.decode([int(i)])) for i in likeliest]

# %% [markdown]
# A group of bars for each token, a bar for each temperature.

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
chances = {temperature: jax.nn.softmax(logits / temperature) for temperature in (0.3, 0.7, 1.5)}
for i, (temperature, colour) in enumerate(zip(chances, ("#332288", "#56B4E9", "#E69F00"))):
    axes.bar(np.arange(10) + 0.27 * (i - 1), chances[temperature], 0.25, color=colour, label=f"{temperature}")
axes.set_xticks(range(10), words)
axes.set(ylabel="chance to be drawn", title=f"After “{PROMPTS[1]}”, with k = 10")
axes.legend(title="temperature", frameon=False)
plt.show()
assert chances[0.3][0] > 0.9 > chances[0.7][0] > chances[1.5][0]

# %% [markdown]
# <details><summary>Which, and why</summary>
#
# 0.3: the likeliest token is drawn more than nine times of ten there, and at the other two less often. Dividing by a
# small temperature stretches the differences between logits, and the softmax turns differences into ratios. A large
# temperature does the reverse. At temperature 0 `generate` takes the likeliest token always. The package's own rule is
# `choose` in `lora_jax/generation.py`.
# </details>
#
# ## 3. Verse to learn, and two things to measure
#
# Lines from old books of poems, cut into sequences. Some are held out. Stories are held out too, to show what is
# forgotten. The poet trains on no story; section 8 makes a second adapter that does, on other ones.

# %%
STEPS, BATCH, LENGTH, HELD_OUT = 24, 4, 128, 16
verse, verse_kept = datasets.verse(tokenizer, STEPS * BATCH, LENGTH, held_out=HELD_OUT)
tales, tales_kept = datasets.tales(tokenizer, LENGTH)
spread = np.linspace(0, len(tales_kept) - 1, HELD_OUT).astype(int)
tales_kept = packing.Packed(**tales_kept.rows(spread))
print(tokenizer.decode(verse.tokens[0][:60].tolist()))

# %% [markdown]
# `make_job` gives the three things that a training step takes: a loss, what trains, and what is frozen. What trains
# is a LoRA on every matrix of every block; what is frozen is the base, and the adapters' constants.

# %%
RANK = 16
job = jobs.make_job("lora", config, base, key=jax.random.key(0), options={"rank": RANK})
constants = job.frozen[1]
print(f"{lj.count(job.trainable):,} numbers train, {lj.count(job.trainable) / lj.count(base):.1%} of the model's")

# %% [markdown]
# One number for each kind of text: the mean loss on what was held out, in nats a token. At the start $B$ is zero, so
# this is the base's own loss.

# %%
kept = {"verse": packing.Batches.in_order(verse_kept, 8), "stories": packing.Batches.in_order(tales_kept, 8)}


def held_out_loss(adapters, constants):
    """The mean loss on held-out verse and on held-out stories."""
    return {name: lj.evaluate(job.loss, adapters, (base, constants), batches) for name, batches in kept.items()}


def table(losses):
    """A row for each model: its loss on held-out verse and on held-out stories."""
    print(f"{'':12}{'verse':>8}{'stories':>10}")
    for name, loss in losses.items():
        print(f"{name:12}{loss['verse']:8.2f}{loss['stories']:10.2f}")


losses = {"base": held_out_loss(job.trainable, constants)}
table(losses)

# %% [markdown]
# ## 4. The price, before you buy
#
# Full fine-tuning on poems would make a second model: a business-class seat. LoRA is the sleeper's row, the same
# cheap seats and a surcharge. How large is the surcharge?
#
# **Exercise 5.2** (5 minutes, difficulty 1). Work out the bytes of an adapter from the shapes of one block's
# matrices.


# %% tags=["exercise"]
def adapter_file_bytes(shapes, rank, layers, bytes_per_number):
    """Bytes of the factors A and B of every layer; shapes lists the (in, out) of one layer's matrices -> int."""
    # solution
    numbers = sum(rank * (n_in + n_out) for n_in, n_out in shapes)
    return layers * numbers * bytes_per_number
    # end of solution


# %% [markdown]
# `hint("5.2")` and `solution("5.2")` are there for you.

# %%
check("5.2", adapter_file_bytes)

# %% [markdown]
# The package counts the arrays themselves. Your function should give the same for these shapes, 16, 30 and 4.

# %%
block = base["layers"]["self_attn"] | base["layers"]["mlp"]
shapes = [w.shape[1:] for w in block.values()]
surcharge = lj.num_bytes(job.trainable)
print(shapes)
print(f"{surcharge:,} bytes, {surcharge / lj.num_bytes(base):.1%} of the model's {lj.num_bytes(base):,}")

# %% [markdown]
# ## 5. Tune
#
# The `fit` of notebook 03, inside `tune`, which adds AdamW with a warm-up and a decay, and scales a gradient down whose
# norm is above 1 (`clip_norm`). This is the long cell: a minute or a few.
#
# **Predict,** before you run it: will the loss on *stories* rise, fall, or stay?

# %%
state = jobs.tune(
    job, packing.Batches(verse, BATCH), rate=2e-3, steps=STEPS, warmup=3, decay=True, clip_norm=1.0, progress=False
)
poet = (state.trainable, constants)
losses["poet"] = held_out_loss(*poet)

# %% [markdown]
# Nats a token, before and after, on the same held-out sequences.


# %%
table(losses)
assert losses["poet"]["verse"] < losses["base"]["verse"] and losses["poet"]["stories"] > losses["base"]["stories"]

# %% [markdown]
# <details><summary>What happened to the stories</summary>
#
# The loss on verse fell, as it should, and that on stories rose: some of the old skill was paid for the new. Nothing
# in the loss asks the adapter to keep it. The base is still there, though, with all it knew: only the *adapted* model
# forgot.
# </details>
#
# The same openings and the same random numbers, the base on the left and the poet on the right.


# %%
def side_by_side(left, right, width=56):
    """Print two texts next to each other."""
    columns = [[row for line in t.splitlines() for row in textwrap.wrap(line, width) or [""]] for t in (left, right)]
    for a, b in itertools.zip_longest(*columns, fillvalue=""):
        print(f"{a:{width}} | {b}")
    print()


# %% [markdown]
# Look for where the lines end, and for what each line begins with.

# %% tags=["sampled"]
after = write(lj.attach(base, *poet))
for prompt, old, new in zip(PROMPTS, before, after, strict=True):
    side_by_side(prompt + old, prompt + new)

# %% [markdown]
# ## 6. Turn it down, turn it up
#
# The scaling $s$ is data, a number a matrix in `constants`. Multiply it, and the adapter speaks softer or louder; no
# training, and no new program to compile. Volume 0 is the base, 1 is the poet as trained.
#
# **Predict:** at half volume, is the poet half as good at verse, better than that, or worse?


# %%
def at_volume(adapter, volume):
    """The adapter with its scaling multiplied."""
    adapters, constants = adapter
    return adapters, jax.tree.map(lambda scaling: volume * scaling, constants)


volumes = [0.0, 0.5, 1.0, 1.5]
known = {0.0: losses["base"], 1.0: losses["poet"]}
measured = [known.get(volume) or held_out_loss(*at_volume(poet, volume)) for volume in volumes]
gained = [measured[0]["verse"] - loss["verse"] for loss in measured]
paid = [loss["stories"] - measured[0]["stories"] for loss in measured]
print(f"at half volume: {gained[1] / gained[2]:.0%} of what the poet gained, {paid[1] / paid[2]:.0%} of what it paid")
assert gained[1] > 0.6 * gained[2] > 0 and paid[1] < 0.5 * paid[2] and paid[2] < paid[3]

# %% [markdown]
# Two curves over the volume, each measured from where the base stands.

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, colour, mark in (("verse", COLOURS["lora"], "o-"), ("stories", "#CC79A7", "s--")):
    change = [loss[name] - measured[0][name] for loss in measured]
    axes.plot(volumes, change, mark, color=colour, label=name)
axes.axhline(0, color="grey", lw=0.8)
axes.set(xlabel="volume of the adapter", ylabel="change of the loss (nats a token)", title="Learned and forgotten")
axes.set_xticks(volumes)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# <details><summary>How to read it</summary>
#
# Below the grey line is better than the base, above it is worse. At half volume the poet is better than half as good:
# most of the gain on verse is there already, and less than half of what the stories lose. Louder than trained, the
# stories lose still more. A fully fine-tuned model has no such knob, unless one kept the old weights as well.
# </details>
#
# **Exercise 5.3** (10 minutes, difficulty 2). Somebody reads the two curves to choose a volume: as good as can be on
# verse, as long as the stories do not suffer more than is allowed. Write the choice.


# %% tags=["exercise"]
def choose_volume(volumes, verse, stories, allowed):
    """The volume best for verse where the loss on stories is at most `allowed` above the base's; lists -> a number."""
    # solution
    within = [i for i, loss in enumerate(stories) if loss - stories[0] <= allowed]
    return volumes[min(within, key=lambda i: verse[i])]
    # end of solution


# %% [markdown]
# `volumes[0]` is 0 in every case of the check, the base.

# %%
check("5.3", choose_volume)

# %% [markdown]
# ## 7. Save it, load it
#
# The adapter goes into a folder of its own, in the format of Hugging Face's PEFT, which can open it. The base is not
# in there.

# %%
folder = Path("runs/poet")
lj.save_adapter(folder, *poet, base=base, base_name="smollm2-135m")
for path in sorted(folder.iterdir()):
    print(f"{path.name:26} {path.stat().st_size:>12,} bytes")

# %% [markdown]
# The numbers are what the count said. The rest of the file is the list of the tensors' names and shapes at its
# head.

# %%
size = (folder / "adapter_model.safetensors").stat().st_size
print(f"numbers {surcharge:,} + names and shapes {size - surcharge:,} = {size:,} bytes")
print(f"The surcharge on disk: {size / lj.num_bytes(base):.1%} of the model in float32")

# %% [markdown]
# Loaded again, it must be the same poet: not nearly, but to the last bit of every logit.

# %%
loaded = lj.load_adapter(folder, base=base)
tokens = kept["verse"][0]["tokens"][:2]  # (2, 128)
forward = jax.jit(lj.forward, static_argnums=0)
attached_logits = forward(config, lj.attach(base, *poet), tokens)  # (2, 128, V)
print("same logits:", bool(jnp.array_equal(attached_logits, forward(config, lj.attach(base, *loaded), tokens))))

# %% [markdown]
# ## 8. One base, several adapters
#
# A second adapter, for the opposite: tuned on stories, for a few steps. It starts from the same base, which has not
# changed.

# %%
story_job = jobs.make_job("lora", config, base, key=jax.random.key(7), options={"rank": RANK})
story_state = jobs.tune(
    story_job, packing.Batches(tales, BATCH), rate=2e-3, steps=6, warmup=1, clip_norm=1.0, progress=False
)
storyteller = (story_state.trainable, story_job.frozen[1])
losses["storyteller"] = held_out_loss(*storyteller)
table(losses)

# %% [markdown]
# Swapping is passing another argument. One opening, three writers, one set of weights in memory.

# %% tags=["sampled"]
opening = PROMPTS[0]
writers = {"base": base, "poet": lj.attach(base, *poet), "storyteller": lj.attach(base, *storyteller)}
for name, params in writers.items():
    print(f"--- {name}\n{opening}{write(params)[0]}\n")

# %% [markdown]
# `attach` made no copy of any of the base's arrays, and after two trainings and all that writing they hold the same
# bytes.

# %%
attached = lj.attach(base, *poet)["layers"]["mlp"]["up_proj"]
assert attached.w is base["layers"]["mlp"]["up_proj"]
assert fingerprint(base) == untouched
print("the base is as it was, to the byte")

# %% [markdown]
# That is what makes the sleeper's row cheap when there are many tasks. Full fine-tuning keeps a model for each; LoRA
# keeps one, and an adapter for each.

# %%
tasks = np.arange(1, 31)
full, lora = tasks * lj.num_bytes(base) / 1e9, (lj.num_bytes(base) + tasks * surcharge) / 1e9
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(tasks, full, color=COLOURS["full"], label="full fine-tuning: a model a task")
axes.plot(tasks, lora, color=COLOURS["lora"], label="LoRA: one model, an adapter a task")
for y in (full[-1], lora[-1]):
    axes.annotate(f"{y:.1f} GB", (30, y), textcoords="offset points", xytext=(-4, 6), ha="right")
axes.set(xlabel="tasks", ylabel="GB (1e9 bytes), float32", title="To keep on disk")
axes.margins(y=0.12)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 9. Merge: the seat without the surcharge
#
# An attached adapter costs products at every token. Count them in the program that JAX makes of a model; blocks are
# scanned, so that a program holds the products of one block once.
#
# **Exercise 5.4** (5 minutes, difficulty 1). Predict: how many matrix products does a block of the poet have that a
# block of the base has not?

# %% tags=["exercise"]
extra_products = 14  # solution

# %% [markdown]
# Put your number there, run both cells, and go on to the count.

# %%
check("5.4", extra_products)

# %% [markdown]
# `make_jaxpr` writes the program down without running it. A matrix product is called `dot_general` there.


# %%
def products(params):
    """How many matrix products stand in the program of the forward pass."""
    return str(jax.make_jaxpr(lambda params: lj.forward(config, params, tokens))(params)).count("dot_general")


merged = lj.merge(base, *poet)
print("attached:", products(lj.attach(base, *poet)) - products(base), "more than the base")
print("merged:  ", products(merged) - products(base), "more than the base")
assert products(lj.attach(base, *poet)) == products(base) + 14 and products(merged) == products(base)

# %% [markdown]
# <details><summary>Why fourteen</summary>
#
# Seven matrices in a block carry an adapter, and each brings $x A$ and $(x A) B$. They are thin, and still each must
# be started and each reads its factors from memory. `merge` adds $s A B$ to $W$ once: then there are only the base's
# products.
# </details>
#
# The merged model says the same, but for the rounding of float32: $x(W + sAB)$ and $xW + s(xA)B$ are equal on paper
# only.

# %%
merged_logits = forward(config, merged, tokens)
scale, apart = jnp.abs(attached_logits).max(), jnp.abs(merged_logits - attached_logits).max()
assert apart < 1e-4 * scale
agree = jnp.mean(merged_logits.argmax(-1) == attached_logits.argmax(-1))
print(f"the likeliest next token is the same at {agree:.0%} of positions")

# %% [markdown]
# Time it: three prompts side by side, a token for each at every step. The models take turns, so that a busy moment of
# the machine does not fall on one of them alone, and the best round counts.
#
# **Predict:** which two of the three run the very same compiled program?

# %% tags=["timing"]
models = {"base": base, "attached": lj.attach(base, *poet), "merged": merged}
steps = 50
best = dict.fromkeys(models, float("inf"))
for _ in range(4):
    for name, params in models.items():
        start = time.perf_counter()
        write(params, new_tokens=steps)
        best[name] = min(best[name], time.perf_counter() - start)
for name, seconds in best.items():
    print(f"{name:10}{1e3 * seconds / steps:6.0f} ms a step")
programs = {name: forward.lower(config, params, tokens).as_text() for name, params in models.items()}
assert programs["base"] == programs["merged"] != programs["attached"]

# %% [markdown]
# <details><summary>Which two, and what to make of it</summary>
#
# The base and the merged model: their arrays have the same shapes, and so the program is the same to the letter. A
# difference between those two is noise, and shows how large noise is on your machine. If attached and base differ by
# no more than that, this machine cannot show the price of the thin products: the count above can, the clock cannot.
#
# Merging gives the knob away, and every merged model is a whole model to keep: merge to serve one task fast, attach to
# serve many.
# </details>
#
# ## 10. Two adapters are one
#
# Half a poet and half a storyteller: $(1-t)\,s_1 A_1 B_1 + t\,s_2 A_2 B_2$. It is tempting to average the two $A$ and
# the two $B$. That gives something else, since the product of two sums has cross terms.
#
# **Exercise 5.5** (12 minutes, difficulty 3). Find factors of the mix itself by putting together those that
# you have: of rank R1 + R2, and without multiplying any A by its B. The ranks of the two may differ.


# %% tags=["exercise"]
def mix_adapters(one, other, t):
    """`a, b` with a @ b = (1-t) s1 A1 B1 + t s2 A2 B2; dicts of a (in, R), b (R, out), scaling; ranks may differ."""
    # solution
    left, right = (1 - t) * one["scaling"] * one["a"], t * other["scaling"] * other["a"]
    return jnp.concatenate([left, right], axis=1), jnp.concatenate([one["b"], other["b"]], axis=0)
    # end of solution


# %% [markdown]
# `hint("5.5")` draws the picture in words.

# %%
check("5.5", mix_adapters)

# %% [markdown]
# The package needs no such function: adapters nest, so that attaching one over the other adds both. Here is each at
# half its volume, nested, and merged.

# %%
half = [at_volume(adapter, 0.5) for adapter in (poet, storyteller)]
both = lj.attach(lj.attach(base, *half[0]), *half[1])
mixed = lj.merge(lj.merge(base, *half[0]), *half[1])
nested_logits = forward(config, both, tokens)
assert jnp.abs(forward(config, mixed, tokens) - nested_logits).max() < 1e-4 * jnp.abs(nested_logits).max()
print("two adapters in one, and the base still as it was:", fingerprint(base) == untouched)

# %% [markdown]
# **Predict:** measured on both kinds of text, is the half-and-half mixture half as good as each of its two, at its own
# kind of text? Or no better than the base at either?


# %%
def plain_loss(params, frozen, batch):
    return lj.loss(config, params, batch)


losses["mixture"] = {name: lj.evaluate(plain_loss, mixed, None, batches) for name, batches in kept.items()}
table(losses)

# %% [markdown]
# How much of what the poet gained on verse, and the storyteller on stories, is left in the mixture?

# %%
gains = {name: {of: losses["base"][of] - loss[of] for of in loss} for name, loss in losses.items()}
for of, name in (("verse", "poet"), ("stories", "storyteller")):
    print(f"{of:8} {gains['mixture'][of] / gains[name][of]:.0%} of the {name}'s gain")
    assert gains["mixture"][of] > 0.25 * gains[name][of] > 0
both_kinds = {name: loss["verse"] + loss["stories"] for name, loss in losses.items()}
assert min(both_kinds, key=both_kinds.get) == "mixture" and gains["poet"]["stories"] < 0
assert all(sum(batch["tokens"].size for batch in batches) >= 2000 for batches in kept.values())

# %% [markdown]
# <details><summary>What the losses say</summary>
#
# The mixture is better than the base at verse and at stories, where the poet had paid for verse with stories. Taking
# both losses together it is the best of the four, and it cost no training: two files, added. It keeps a good part of
# what each of the two has learned, as the percentages say; on verse the curve over the volume told as much for half a
# poet.
# </details>
#
# And one sample, as an illustration. It is 50 tokens drawn by chance from one opening: whatever it looks like, a poem,
# a story or neither, it measures nothing. The losses above are means over 2,000 tokens and more of each kind.

# %% tags=["sampled"]
print(f"{opening}{write(mixed)[0]}")

# %% [markdown]
# **What you saw.** A few minutes of training taught a real model much of the form of verse, and cost it some of its
# stories: measure both. Half of that and half of a second adapter made a model that is better than the base at both
# kinds. What was learned is a small file beside a large model that nobody touched, so it can be sent,
# swapped, turned down, mixed and dropped. Merging takes the extra products away, and with them the choice.
#
# `make demo` trains longer on the same verse. The poet of this notebook lies in `runs/poet` beside it, and from the
# project's folder this lets it go on:
#
# ```sh
# python -m lora_jax generate "The rain" --adapter notebooks/runs/poet
# ```

# %% tags=["timing"]
print(f"This notebook took {(time.perf_counter() - began) / 60:.1f} minutes.")
