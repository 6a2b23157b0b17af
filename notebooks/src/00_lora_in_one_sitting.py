# %% [markdown]
# # LoRA in one sitting
#
# You will build a small transformer, put LoRA on it as a pytree of its own, take a gradient over that tree alone, train it,
# and fold it back into the model so that nothing is left to pay for. Under a minute on two cores; no download.

# %% [markdown]
# A model is a `Config` and a dict of arrays. Layers are stacked on a leading axis, which is why `q_proj` has three dimensions.

# %%
import jax
import jax.numpy as jnp
import optax

import lora_jax as lj

lj.keep_compiled_programs()  # on disk: what took long to compile once is there the next time

config = lj.Config(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)
params = lj.init(jax.random.key(0), config)
jax.tree.map(jnp.shape, params["layers"]["self_attn"])

# %% [markdown]
# LoRA leaves each matrix $W$ as it is and adds $s\,A B$, with $A$ of shape (in, R) and $B$ of shape (R, out).
# `targets` is a regular expression here: every projection, and the head.
#
# **Predict:** at rank 4, what share of the parameters of `q_proj`, a 48 × 48 matrix, will train?

# %%
adapters, constants = lj.lora.init(jax.random.key(1), params, rank=4, alpha=8, targets=r".*(_proj|lm_head)")
one = lj.count(adapters["layers"]["self_attn"]["q_proj"]) / lj.count(params["layers"]["self_attn"]["q_proj"])
assert one == 4 * (48 + 48) / (48 * 48) == 1 / 6
print(f"q_proj: {one:.1%}   the whole model: {lj.count(adapters) / lj.count(params):.1%}")
print(f"the same rank on a matrix of 4,096 x 4,096, as Llama-3.1-8B has: {4 * (4096 + 4096) / 4096**2:.1%}")

# %% [markdown]
# <details><summary>Why</summary>
#
# $R(\text{in} + \text{out}) / (\text{in} \cdot \text{out}) = 4 \cdot 96 / 2304$: a sixth. The share falls as the
# matrix grows, and that is why LoRA pays in a real model.
# </details>
#
# `attach` puts the two trees together for free. $B$ starts at zero, so the start is the base, to the bit.

# %%
tokens = jax.random.randint(jax.random.key(2), (4, 16), 0, config.vocab_size)
base = lj.forward(config, params, tokens)
adapted = lj.forward(config, lj.attach(params, adapters, constants), tokens)
bool(jnp.all(base == adapted))

# %% [markdown]
# The loss takes the adapters as its first argument and everything frozen as its second. `jax.grad` differentiates the
# first argument, so its result is shaped like `adapters`: there is no gradient of a frozen weight to mask out.


# %%
def loss(adapters, frozen, batch):
    params, constants = frozen
    return lj.loss(config, lj.attach(params, adapters, constants), batch)


grads = jax.grad(loss)(adapters, (params, constants), {"tokens": tokens})
jax.tree.structure(grads) == jax.tree.structure(adapters)

# %% [markdown]
# Now a task: sequences that count up by one. `fit` is the loop that pre-training and full fine-tuning use as well; only what
# is passed as `trainable` differs.
#
# **Predict:** the loss starts near $\ln 64$, which is 4.16. Can so small a share of the parameters learn to count?

# %%
starts = jax.random.randint(jax.random.key(3), (200, 8, 1), 0, 64)
batches = [{"tokens": (start + jnp.arange(16)) % 64} for start in starts]
state = lj.fit(
    loss,
    trainable=adapters,
    frozen=(params, constants),
    batches=batches,
    optimizer=optax.adamw(1e-2),
    steps=200,
    progress=False,
)
assert abs(state.losses[0] - 4.16) < 0.1 and state.losses[-1] < 0.1
print(f"{state.losses[0]:.2f} -> {state.losses[-1]:.2f} nats a token")

# %% [markdown]
# <details><summary>It can</summary>
#
# The loss ends below 0.1, so the model is all but sure of each next number. A change of rank 4 in every matrix is
# enough for such a rule; notebook 03 asks how much rank a change needs.
# </details>
#
# The caller's arrays are alive and unchanged: the base was never touched, so dropping the adapter is passing another argument. `merge` folds it in.

# %%
merged = lj.merge(params, state.trainable, constants)
together = lj.forward(config, lj.attach(params, state.trainable, constants), tokens)
difference = jnp.abs(lj.forward(config, merged, tokens) - together).max()
print("merged, the logits differ by rounding alone:", bool(difference < 1e-4))
print("the base is as it was:", bool(jnp.all(lj.forward(config, params, tokens) == base)))

# %% [markdown]
# **What you saw.** Adapters are a tree beside the parameters; the gradient exists only for them; attaching is free, and merging
# leaves nothing behind. `make demo` does the same to a real model with 135 million parameters.
