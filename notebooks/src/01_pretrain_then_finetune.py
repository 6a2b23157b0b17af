# %% [markdown]
# # Pre-train, then fine-tune
#
# A language model is made twice. First it learns language from a heap of text: that is pre-training. Then it is
# taught one thing on a smaller heap: that is fine-tuning. Here you do both, with a model small enough to train while
# you wait, and find that the two are the same procedure: only the data and the numbers that you start from differ.
#
# You will be able to
# - follow a batch of tokens through a transformer, and say the shape of every array on the way;
# - count a model's parameters from its configuration;
# - write the loss that language models are trained on, and predict it before any training;
# - train a model from random weights, fine-tune another, and show what was learned and what was forgotten.
#
# It runs in under three minutes on two cores; the last cell says how long it took. The five exercises take about
# fifty minutes more. You can run everything first and solve them later: nothing below needs your answers. The first
# run fetches the poems, once.

# %% [markdown]
# Everything comes from the package: what you see here is what it trains with.

# %%
import re
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import lora_jax as lj
from lora_jax import attention, rope, transformer
from lora_jax.exercises import check, hint, solution
from lora_jax.plots import COLOURS
from lora_jax.text import datasets, stories
from lora_jax.text.packing import Batches
from lora_jax.tuning import pretraining
from lora_jax.tuning.jobs import schedule

lj.keep_compiled_programs()  # on disk: what took long to compile once is there the next time
began = time.perf_counter()

# %% [markdown]
# ## 1. A transformer is a dict of arrays and a few functions
#
# A `Config` is a shape. We begin with a tiny one, every number different, so that no axis can be taken for another.
# The letters beside it are those of all the shapes below; `B` is the batch and `T` the time, that is, the tokens in a
# row.

# %%
tiny = lj.Config(
    vocab_size=50,  # V
    hidden_size=24,  # D
    intermediate_size=40,  # F
    num_hidden_layers=3,  # L
    num_attention_heads=6,  # H
    num_key_value_heads=2,  # K
    head_dim=8,  # C
)

# %% [markdown]
# The parameters are arrays in nested dicts, under the names that Hugging Face gives them. There is no object that
# hides them. All layers stand in one array, stacked on a leading axis `L`.

# %%
params = lj.init(jax.random.key(0), tiny)
jax.tree.map(jnp.shape, params)

# %% [markdown]
# ### What `x @ w` means
#
# A row of `x` is one token, as a vector of numbers. `x @ w` sends it to another vector: every number of the result is
# a sum over the old ones, weighted by a column of `w`. Weights are (in, out), so the shapes read from left to right.

# %%
x = jax.random.normal(jax.random.key(1), (5, 24))  # five tokens, (N, D)
w = params["layers"]["self_attn"]["q_proj"][0]  # (D, H * C), of the first layer
print(x.shape, "@", w.shape, "->", (x @ w).shape)
np.testing.assert_allclose((x @ w)[2, 7], jnp.sum(x[2] * w[:, 7]), rtol=1e-4)

# %% [markdown]
# The transformer never asks what `w` is. It only multiplies: a plain array will do, and so will anything else that
# can stand to the right of `@`. Here it is a matrix with a bias. In notebook 03 it will be a frozen matrix with LoRA
# on it, and the transformer's code will not change by a letter.

# %%
b = jnp.linspace(-1, 1, 48)
biased = lj.Biased(w, b)
print(isinstance(biased, jax.Array), biased.shape, (x @ biased).shape)
np.testing.assert_allclose(x @ biased, x @ w + b, atol=1e-6)

# %% [markdown]
# ### From tokens to logits
#
# Tokens are whole numbers. Each picks its row of the embedding. Two rows of seven tokens become a stream of vectors
# of width `D`, and the stream keeps this shape all the way up.

# %%
tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, tiny.vocab_size)  # (B, T)
stream = params["embed_tokens"][tokens]  # (B, T, D)
print(tokens.shape, "->", stream.shape)

# %% [markdown]
# A layer first makes queries, keys and values of the stream. `H` query heads share `K` heads of keys and values,
# which is why `k_proj` and `v_proj` are narrower than `q_proj`.

# %%
layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])  # the first of L
h = transformer.rms_norm(stream, layer["input_layernorm"], tiny.rms_norm_eps)  # (B, T, D)
for name in ("q_proj", "k_proj", "v_proj"):
    print(name, (h @ layer["self_attn"][name]).reshape(2, 7, -1, tiny.head_dim).shape)

# %% [markdown]
# `block` is a whole layer: attention, then a feed-forward network, each added to the stream. Position enters as an
# angle by which queries and keys are turned. A model is a loop over its layers, with a norm and the head behind it.
# The package writes the loop as a `scan`, so that it compiles one layer and not `L` of them; the numbers are the
# same. (`segments` say which tokens belong together, here all of a row; section 2 comes back to them.)

# %%
angles = jnp.arange(7)[:, None] * rope.rope_frequencies(tiny.head_dim, tiny.rope_theta, None)  # (T, C / 2)
angles, segments = jnp.broadcast_to(angles, (2, *angles.shape)), jnp.ones((2, 7), jnp.int32)
flat = stream.reshape(14, -1)  # (B * T, D)
for i in range(tiny.num_hidden_layers):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
    flat, _ = transformer.block(tiny, attention.choose("auto"), layer, flat, angles, segments, None)
normed = transformer.rms_norm(flat, params["norm"], tiny.rms_norm_eps)  # (B * T, D)
logits = (normed @ transformer.head(params)).reshape(2, 7, -1)  # (B, T, V)
np.testing.assert_allclose(logits, lj.forward(tiny, params, tokens), atol=1e-5)
print(logits.shape)

# %% [markdown]
# For each position the model gives one number a token of the vocabulary: the larger, the likelier that token comes
# next.
#
# **Predict:** which of the seven input tokens can the logits at position 3 depend on?
#
# `jax.jacobian` answers: it says how much each output moves when an input moves. (`forward` also takes the stream
# itself, (B, T, D), in place of tokens.)

# %% tags=["figure"]
slope = jax.jacobian(lambda x: lj.forward(tiny, params, x)[0])(stream[:1])[:, :, 0]  # (T, V, T, D)
reach = jnp.sqrt(jnp.sum(slope**2, axis=(1, 3)))  # (T, T): how far the input at one place moves the output at another
figure, axes = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
image = axes.imshow(jnp.where(reach > 0, reach, jnp.nan), cmap="viridis", norm="log")
axes.set(xlabel="input position", ylabel="output position", title="Who sees whom", xticks=range(7))
figure.colorbar(image, label="how far the output moves")
plt.show()
assert not np.any(np.triu(reach, 1)) and np.all(np.tril(reach)[3, :4] > 0)
assert np.all(reach.argmax(axis=1) == np.arange(7))  # in each row the diagonal is the brightest

# %% [markdown]
# <details><summary>What it shows</summary>
#
# On those at positions 0 to 3: its own place and all to its left. The upper triangle is empty, exactly zero. So every
# position can be asked for its next token at once, without one of them seeing the answer. That makes one row of text
# as many questions as it has tokens. In each row the diagonal is brightest: an output depends most on the token at its
# own place, which the stream carries straight up.
# </details>

# %% [markdown]
# ### Exercise 1.1: count what a model holds
#
# *15 minutes, difficulty 2 of 3.* Every parameter must be stored, and trained, and more is kept beside each: that is
# notebook 02. So first count them, from the letters alone. The shapes printed above are what you need. Where the head
# is `tied`, the embedding, turned over, serves as the head; where it is not, there is one more matrix, `lm_head`, of
# (D, V).


# %% tags=["exercise"]
def count_parameters(V, D, F, L, H, K, C, tied):
    """How many numbers a model holds, an int; where the head is `tied`, the embedding serves as the head."""
    # solution
    attention = D * H * C + 2 * D * K * C + H * C * D
    layer = attention + 3 * D * F + 2 * D
    return V * D + L * layer + D + (0 if tied else D * V)
    # end of solution


# %% [markdown]
# The check makes up shapes of its own, no two numbers alike. Take the `#` off a line for a hint, or for the solution.

# %%
check("1.1", count_parameters)
# hint("1.1")
# solution("1.1")

# %% [markdown]
# The package counts by adding up the arrays' sizes. Here is the model that you are about to train, and where its
# parameters are. `jax.eval_shape` runs `init` on shapes alone: a model of any size can be counted without any memory
# for it.

# %% tags=["figure"]
config = pretraining.SMALL
shapes = jax.eval_shape(lambda: lj.init(jax.random.key(0), config))
inside = shapes["layers"]
parts = {"embed_tokens": shapes["embed_tokens"]}
for part, names in transformer.projection_shapes(config).items():
    parts |= {name: inside[part][name] for name in names}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
bars = axes.barh(list(parts), [lj.count(part) / 1e3 for part in parts.values()], color=COLOURS["full"])
axes.bar_label(bars, fmt="%.0f", padding=3)
axes.set(xlabel="thousands of parameters, all layers together", title=f"{lj.count(shapes):,} parameters")
axes.margins(x=0.12)
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## 2. The next token, and nothing else
#
# A model that writes stories is only ever asked one thing: which token comes next? The tokenizer cuts text into
# pieces of a vocabulary of its own. Each piece is a question whose answer is the piece that follows.

# %%
tokenizer = lj.load_tokenizer(pretraining.NAME)
ids = tokenizer.encode(stories.read()[1])
print(f"{config.vocab_size:,} tokens in the vocabulary, {len(ids)} in this story")
for now, following in pairwise(ids[:8]):
    print(f"after {tokenizer.decode([now])!r:12} comes {tokenizer.decode([following])!r}")

# %% [markdown]
# ### Exercise 1.2: what each position is asked
#
# *10 minutes, difficulty 2 of 3.* To waste nothing, stories are laid side by side in rows of one length. `segments`
# tells them apart: it is 1 for the first document in a row, 2 for the second, and so on, and 0 for padding behind the
# last. Write the targets, and a mask that is 1 where a target is to be learned. What must not be learned?


# %% tags=["exercise"]
def next_tokens(tokens, segments):
    """(targets, mask), each (B, T) as `tokens` and `segments` are; segment 0 is padding. The mask is 1 or 0."""
    # solution
    targets = jnp.roll(tokens, -1, axis=1)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
    return targets, jnp.pad(same.astype(jnp.float32), ((0, 0), (0, 1)))
    # end of solution


# %% [markdown]
# The check lays out rows with one document, with several, and with padding.

# %%
check("1.2", next_tokens)
# hint("1.2")
# solution("1.2")

# %% [markdown]
# The package's `target_mask` does this. Here are the stories in rows of 128 tokens; those held out are never trained
# on. Of a batch of four rows, a few positions are not asked anything: the last of each row, the last of each story,
# and padding where a row has some.

# %%
LENGTH, ROWS = 128, 4
told, told_held_out = datasets.tales(tokenizer, LENGTH)
story_batches = Batches(told, ROWS, seed=0)
batch = story_batches[0]
asked = transformer.target_mask(batch)  # (B, T)
ends = np.diff(batch["segments"], axis=1, append=-1) != 0  # the last of a row, of a story, of the padding
np.testing.assert_array_equal(asked == 0, ends | (batch["segments"] == 0) | (np.roll(batch["mask"], -1, 1) == 0))
print({name: array.shape for name, array in batch.items()})
print(f"{batch['tokens'].size} tokens, {int(asked.sum())} of them asked for the next")

# %% [markdown]
# ### Exercise 1.3: find the mistakes in a loss
#
# *15 minutes, difficulty 3 of 3.* The loss is the mean of $-\ln p$, where $p$ is the probability that the model gave
# to the token that really came next. Logits become probabilities by a softmax: $p_i = e^{z_i} / \sum_j e^{z_j}$. This
# version runs, and has three mistakes: one shows only when logits are large. Find them, and write it right.
#
# ```python
# def next_token_loss(logits, targets, mask):
#     p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
#     nats = -jnp.log(jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0])
#     return jnp.mean(nats * mask)
# ```


# %% tags=["exercise"]
def next_token_loss(logits, targets, mask):
    """The mean, in nats, over the tokens that `mask` (B, T) keeps, of -log p(target). `logits` are (B, T, V)."""
    # solution
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(nats * mask) / jnp.sum(mask)
    # end of solution


# %% [markdown]
# The check masks some rows more than others, and some of its logits are large, or far apart: for 200, 0 and 0 the
# loss of the second token is 200, and not infinite.

# %%
check("1.3", next_token_loss)
# hint("1.3")
# solution("1.3")

# %% [markdown]
# The package's `loss` takes the same mean, but never holds the logits of all tokens at once: notebook 02 shows what
# that saves. A function of another library agrees with it. The model has random weights here.

# %%
random = lj.init(jax.random.key(0), config, std=pretraining.STD)
where = {name: batch[name] for name in ("segments", "positions")}
logits = lj.forward(config, random, batch["tokens"], **where)  # (B, T, V)
targets = np.roll(batch["tokens"], -1, axis=1)
nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # (B, T)
np.testing.assert_allclose(lj.loss(config, random, batch), (nats * asked).sum() / asked.sum(), rtol=1e-5)
print(f"logits {logits.shape}, {logits.nbytes / 1e6:.1f} MB")

# %% [markdown]
# ### Exercise 1.4: predict the loss of a model that knows nothing
#
# *5 minutes, difficulty 1 of 3.* A number computed before the run is the cheapest test there is. What is the
# loss, in nats a token, of a model to which all V tokens are equally likely? An expression will do.

# %% tags=["exercise"]
random_loss = np.log(2048)  # solution

# %% [markdown]
# Put your number there, run both cells, and only then go on to what comes out.

# %%
check("1.4", random_loss)
# hint("1.4")
# solution("1.4")

# %% [markdown]
# Random weights make a model that comes near it. And now its own loss, on the batch above.

# %%
print(f"ln V is {np.log(config.vocab_size):.2f}; the random model's loss is {lj.loss(config, random, batch):.2f}")
print(f"ln V + half the variance of its logits is {np.log(config.vocab_size) + jnp.var(logits) / 2:.2f}")
assert 0 < lj.loss(config, random, batch) - np.log(config.vocab_size) < 0.6

# %% [markdown]
# <details><summary>Why it is a little more than ln V</summary>
#
# A model whose logits are all alike gives each token the probability 1 / V, and the loss is ln V. Random weights make
# logits that differ a little, at random: the model prefers some tokens for no reason, and pays for it. For logits
# that are spread like a bell of variance σ², the sum of the exponentials is larger by a factor of about exp(σ² / 2).
# A first loss far above that means that something is wrong with the start, and one far below it that the model sees
# its answers.
# </details>

# %% [markdown]
# ## 3. One step
#
# Training is a loop round one step: take the gradient of the loss with respect to everything that trains, and move
# against it. `jax.grad` gives a tree that is shaped like the parameters, an array for every array.
#
# ### Exercise 1.5: a step over any tree
#
# *5 minutes, difficulty 1 of 3.* Write the step of plain gradient descent: $w \leftarrow w - \text{rate} \cdot g$,
# for every array of a tree, whatever its shape. The check uses other trees than a transformer's.


# %% tags=["exercise"]
def gradient_step(params, gradients, rate):
    """`params` after one step of gradient descent; both trees have the same shape, and so has the result."""
    # solution
    return jax.tree.map(lambda w, g: w - rate * g, params, gradients)
    # end of solution


# %% [markdown]
# The check walks your tree and compares every array in it.

# %%
check("1.5", gradient_step)
# hint("1.5")
# solution("1.5")

# %% [markdown]
# The package's step is `make_step(loss, optimizer)`. It takes what trains, the optimizer's state, what is frozen, and
# a batch. Here it makes one step of plain gradient descent with the tiny model. The tokens are random, but even they
# can be learned by heart, a little.


# %%
def tiny_loss(params, frozen, batch):
    return lj.loss(tiny, params, batch)


RATE = 0.5
sgd = optax.sgd(RATE)
start = jax.tree.map(jnp.copy, params)  # the step takes over the arrays that it is given, so it gets copies
moved, _, before, norm = lj.make_step(tiny_loss, sgd)(start, sgd.init(start), None, {"tokens": tokens})
after = tiny_loss(moved, None, {"tokens": tokens})
assert after < before
print(f"loss {before:.3f} -> {after:.3f}")
change = optax.tree.norm(jax.tree.map(jnp.subtract, moved, params))
np.testing.assert_allclose(change, RATE * norm, rtol=1e-3)  # it moved by the rate times the gradient

# %% [markdown]
# ## 4. Pre-training: random weights, stories
#
# Now the real thing. The loss is the package's, of all parameters, and nothing is frozen. The optimizer is AdamW,
# which gives every parameter a step of its own size. The rate grows over the first ten steps (*warm-up*), since the first
# gradients tell little, and shrinks towards the end (*decay*). **There is one `step`, made here, once.**

# %%
STEPS = 120


def loss(params, frozen, batch):
    return lj.loss(config, params, batch)


optimizer = optax.adamw(schedule(3e-3, STEPS, warmup=10, decay=True))
step = lj.make_step(loss, optimizer)

# %% [markdown]
# A run needs two things: where to start, and what to read. This function takes just these two.


# %%
def train(start, batches):
    """The parameters after STEPS steps, and the loss of each step."""
    params = jax.tree.map(jnp.copy, start)
    opt_state, losses = optimizer.init(params), []
    for number in range(STEPS):
        params, opt_state, value, _ = step(params, opt_state, None, batches[number])
        losses.append(float(value))
    return params, losses


# %% [markdown]
# Pre-training is a call of it, with random weights and stories. This is one of the two cells that take a while.
#
# **Predict:** it starts near the number that you predicted. How far will it get? Compare it with the loss of a model
# that knows how often each token comes, and nothing of the order.

# %%
storyteller, story_losses = train(random, story_batches)
reached = np.mean(story_losses[-10:])
often = np.bincount(told.tokens[told.mask > 0]) / np.sum(told.mask > 0)  # the share of each token
counting = -np.sum(often * np.log(np.where(often > 0, often, 1)))
assert reached < counting < story_losses[0]
print(f"{story_losses[0]:.2f} -> {reached:.2f} nats a token, the mean of the last ten steps")
print(f"with the share of each token alone: {counting:.2f}")

# %% [markdown]
# <details><summary>How far it got</summary>
#
# It is below the loss that the shares of the tokens alone give, so it has learned something of what follows what. The
# picture of section 5 marks that loss with a dashed line: see how long the curve stays near it. And there is further
# to go: section 6 has the loss of the same model, trained for more steps.
# </details>
#
# What does it write, before and after? The first is noise. The second, after so few steps, has the sound of a story,
# and little sense.

# %% tags=["sampled"]
opening = "Once upon a time, there was a"
for name, model in {"random": random, "pre-trained here": storyteller}.items():
    print(f"{name}: {opening}{lj.generate(config, model, tokenizer, opening, new_tokens=40)}\n")

# %% [markdown]
# ## 5. Fine-tuning: a model that writes stories, poems
#
# So few steps are a beginning. Beside the package lies the same model, trained by the same code for more steps:
# `stories-2.8m`. From here on it is the one to fine-tune.

# %%
_, teller = lj.load_model(pretraining.NAME)
print(jax.tree.structure(teller) == jax.tree.structure(random), f"{lj.count(teller):,} parameters")

# %% [markdown]
# The poems come from Project Gutenberg: lines of verse by many hands. They have line ends, which no story has, and
# words that no story has.

# %%
verse, verse_held_out = datasets.verse(tokenizer, ROWS * STEPS, LENGTH)
poem_batches = Batches(verse, ROWS, seed=0)
line_end = tokenizer.encode("\n")[0]
assert not np.any(told.tokens == line_end) and np.any(verse.tokens == line_end)
told_words = set(re.findall("[a-z]+", " ".join(stories.read()).lower()))
words = set(re.findall("[a-z]+", tokenizer.decode(verse.tokens.ravel().tolist()).lower()))
print(f"{len(words - told_words):,} of the poems' {len(words):,} words stand in no story; one begins:\n")
print("\n".join(tokenizer.decode(poem_batches[0]["tokens"][0]).splitlines()[:4]))

# %% [markdown]
# Full fine-tuning is a call of `train`, the same function with the same `step` inside, with other weights and other
# text.

# %%
poet, poem_losses = train(teller, poem_batches)
print(f"{poem_losses[0]:.2f} -> {np.mean(poem_losses[-10:]):.2f} nats a token, the mean of the last ten steps")

# %% [markdown]
# ### The same procedure, to the letter
#
# `step` is compiled before it runs. `lower` gives the program's text, as it goes to the compiler: every
# multiplication of the model, its backward pass and the optimizer. The two runs do not run programs that are alike.
# **They run one program**; the weights and the tokens are its inputs. A comparison should be able to fail, so here is
# a program that does differ: rows half as long.


# %%
def program(start, batch):
    return step.lower(start, optimizer.init(start), None, batch).as_text()


first, second = program(random, story_batches[0]), program(teller, poem_batches[0])
half = program(teller, {name: array[:, : LENGTH // 2] for name, array in batch.items()})
print("pre-training and fine-tuning run the same program:", first == second)
print("and with rows half as long:", first == half)
assert first == second != half

# %% [markdown]
# Both runs in one picture. The thin lines are batches, the thick ones means of ten.

# %% tags=["figure"]
GREY = "#555555"
runs = {"pre-training: random, on stories": (story_losses, GREY)}
runs |= {"fine-tuning: stories-2.8m, on poems": (poem_losses, COLOURS["full"])}
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, (losses, colour) in runs.items():
    axes.plot(range(1, STEPS + 1), losses, color=colour, alpha=0.3, lw=0.8)
    axes.plot(range(10, STEPS + 1), np.convolve(losses, np.ones(10) / 10, "valid"), color=colour, lw=2, label=name)
assert poem_losses[0] > story_losses[0] > np.log(config.vocab_size)
axes.axhline(np.log(config.vocab_size), ls=":", color="black", lw=1, label="ln V: knows nothing")
axes.axhline(counting, ls="--", color=GREY, lw=1, label="the share of each token in stories, alone")
axes.set(xlabel="step", ylabel="loss (nats a token)", title="One step, two runs")
axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.66))
plt.show()

# %% [markdown]
# **Look:** you know why the random model starts a little above the dotted line. The trained one starts higher still.
# Why would it do worse than a model that knows nothing? Take its loss on verse apart: at line ends, and elsewhere.

# %%
lines = verse_held_out.rows(slice(0, 16))
logits = lj.forward(config, teller, lines["tokens"], segments=lines["segments"], positions=lines["positions"])
targets, learned = np.roll(lines["tokens"], -1, axis=1), transformer.target_mask(lines) > 0
nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # (B, T)
ends = learned & (targets == line_end)
print(f"{ends.sum() / learned.sum():.1%} of the tokens are line ends, and each costs {nats[ends].mean():.2f} nats")
print(f"all others cost {nats[learned & ~ends].mean():.2f} nats each")
assert abs(nats[learned & ~ends].mean() - np.log(config.vocab_size)) < 0.5 and nats[ends].mean() > np.log(10_000)
assert np.mean(poem_losses[10:20]) < np.log(config.vocab_size)

# %% [markdown]
# <details><summary>Why</summary>
#
# Away from line ends it does about as well as a model that knows nothing, ln V: what it knows of stories is worth
# little here. The rest is the line ends: it never saw one, and gives it less than one chance in ten thousand. To be
# sure and wrong costs more than to be unsure. It is soon put right: after ten steps the curve is below ln V.
# </details>

# %% [markdown]
# The same openings, before and after, the first samples drawn. So small a model learns how verse looks, its short
# lines and their capitals, long before it learns what a poem says.

# %% tags=["sampled"]
openings = ["Once upon a time, there was a", "The old king looked at the sea and"]
for name, model in {"before": teller, "after": poet}.items():
    for opening, more in zip(openings, lj.generate(config, model, tokenizer, openings, new_tokens=60), strict=True):
        print(f"{name}: {opening}{more}\n")

# %% [markdown]
# ## 6. What was learned, and what was forgotten
#
# So far each loss was one batch of the text being learned, new when it was met. Now take all models on the same
# held-out text, poems and stories both.
#
# **Predict:** the poet never saw a story while it was fine-tuned. What has happened to its loss on stories? The answer is
# behind the fold at the end of this section.

# %%
held_out = {"stories": told_held_out, "poems": verse_held_out}
held_out = {name: Batches.in_order(text, 16)[:3] for name, text in held_out.items()}
models = {"random": random, "pre-trained here": storyteller, "stories-2.8m": teller, "stories-2.8m, on poems": poet}
table = {m: {t: lj.evaluate(loss, p, None, held_out[t]) for t in held_out} for m, p in models.items()}
for name, row in table.items():
    print(f"{name:24}" + "".join(f"   {text} {value:.2f}" for text, value in row.items()))

# %% [markdown]
# A picture of the last two rows, with fine-tuning between them.

# %% tags=["figure"]
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for i, (name, colour) in enumerate((("stories-2.8m", GREY), ("stories-2.8m, on poems", COLOURS["full"]))):
    values = [table[name][text] for text in ("poems", "stories")]
    bars = axes.bar([place + 0.4 * i for place in range(2)], values, 0.38, color=colour, label=name)
    axes.bar_label(bars, fmt="%.2f", padding=2)
axes.set_xticks([0.2, 1.2], ["held-out poems: learned", "held-out stories: forgotten"])
axes.set(ylabel="loss (nats a token)", ylim=(0, 11))
axes.legend(frameon=False, ncols=2, loc="upper center")
plt.show()

# %% [markdown]
# Nats are hard to feel. The exponential of the loss is the *perplexity*. A model that hesitates between n equally
# likely tokens has perplexity n; one that is sure and wrong can have more than the vocabulary has tokens, as the first
# number shows.

# %% tags=["trained"]
old, new = table["stories-2.8m"], table["stories-2.8m, on poems"]
for text in ("poems", "stories"):
    print(f"{text}: perplexity {np.exp(old[text]):.1f} -> {np.exp(new[text]):.1f}")
assert new["poems"] < old["poems"] and new["stories"] > old["stories"]
assert np.exp(old["poems"]) > config.vocab_size

# %% [markdown]
# <details><summary>What it means</summary>
#
# The loss on stories has risen: much of what the model knew of them is forgotten. Fine-tuning may change every
# parameter, those that the stories need too, and nothing in the loss asked for the stories to be kept. The model as it
# was is not lost only because we kept a copy of *all* of it: two skills, two whole models. How much less of it one
# must keep, and move, is what the next notebooks are about.
# </details>

# %% [markdown]
# ## What you saw
#
# - A transformer is a dict of arrays and pure functions over it; it only ever writes `x @ w`.
# - The loss is the mean of $-\ln p$ of the next token, over the positions that have one. A model that knows nothing
#   begins near $\ln V$.
# - Pre-training and full fine-tuning are one procedure, and here one compiled program. The data and the start differ.
# - Fine-tuning on poems forgets stories, and its result is a second model as large as the first.
#
# Full fine-tuning flies business class: every parameter has a seat with room for its gradient and its optimizer
# state. Notebook 02 works out the fare. Notebook 03 makes the same journey in the sleeper's row: a row of economy seats
# to lie down in, booked for a small surcharge.

# %% tags=["timing"]
print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
