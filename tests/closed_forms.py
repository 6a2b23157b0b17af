"""The bytes of a step as a learner derives them, with no array and no trace: what the package's own count is held to.

Letters: D width, F feed-forward width, Q = query heads * head size, KV = key/value heads * head size, V vocabulary,
L layers, R rank; I in, O out of one matrix.
"""

import math

BYTES = {"float32": 4, "bfloat16": 2}
COUNT = 4  # an optimizer's count of steps, int32
PARTS = {"all-linear": ("self_attn", "mlp"), "attention": ("self_attn",), "mlp": ("mlp",)}


def matrices(c):
    """The (in, out) of each matrix of a block, by its name in one layer ("self_attn.q_proj")."""
    D, F, Q, KV = (
        c.hidden_size,
        c.intermediate_size,
        *(n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads)),
    )
    return {
        "self_attn.q_proj": (D, Q),
        "self_attn.k_proj": (D, KV),
        "self_attn.v_proj": (D, KV),
        "self_attn.o_proj": (Q, D),
        "mlp.gate_proj": (D, F),
        "mlp.up_proj": (D, F),
        "mlp.down_proj": (F, D),
    }


def targeted(c, targets):
    """The matrices of a block that a shorthand, or a list of their names, picks."""
    if isinstance(targets, str):
        return [shape for name, shape in matrices(c).items() if name.split(".")[0] in PARTS[targets]]
    return [shape for name, shape in matrices(c).items() if any(name.endswith(target) for target in targets)]


def arrays(c):
    """The shape of every array of the weights, stacked over layers."""
    D, V, L = c.hidden_size, c.vocab_size, c.num_hidden_layers
    found = [(V, D), (D,), (L, D), (L, D), *((L, i, o) for i, o in matrices(c).values())]
    found += [(L, o) for name, (_, o) in matrices(c).items() if name.split(".")[1] in c.biases]
    return found if c.tie_word_embeddings else [*found, (D, V)]


def parameters(c):
    return sum(map(math.prod, arrays(c)))


def lora_parameters(c, rank, targets="all-linear"):
    """A (I, R) and B (R, O) for every target in every layer: R * (I + O) each."""
    return c.num_hidden_layers * sum(rank * (i + o) for i, o in targeted(c, targets))


def nf4(rows, columns, double):
    """`(codes, constants)` of one matrix.

    Two codes to a byte, rows rounded up to a pair. A block of 64 down a column shares a float32: 4 + 32 / 64 = 4.5 bits
    a weight. With double quantization the constant is a byte, 256 constants share a float32, and all of them one more
    (their mean): 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits and 4 bytes.
    """
    codes, blocks = math.ceil(rows / 2) * columns, math.ceil(rows / 64) * columns
    return codes, (blocks + 4 * math.ceil(blocks / 256) + 4 if double else 4 * blocks)


def base(setup):
    """`(weights, quantization constants)`: the layers' matrices may be quantized, all else stays."""
    c, L = setup.config, setup.config.num_hidden_layers
    plain, each = parameters(c) * BYTES[setup.dtype], list(matrices(c).values())
    if setup.quantize is None:
        return plain, 0
    outside = plain - L * sum(i * o for i, o in each) * BYTES[setup.dtype]
    kinds = {"nf4": lambda i, o: nf4(i, o, setup.double_quantization), "int8": lambda i, o: (i * o, 4 * o)}
    codes, constants = zip(*(kinds[setup.quantize](i, o) for i, o in each), strict=True)
    return outside + L * sum(codes), L * sum(constants)


def trained(setup):
    """The (shape, dtype) of every array that trains: the weights, or each target's A and B."""
    c, L = setup.config, setup.config.num_hidden_layers
    if setup.method == "full":
        return [(shape, setup.dtype) for shape in arrays(c)]
    R, targets = setup.options["rank"], targeted(c, setup.options.get("targets", "all-linear"))
    frozen = setup.options.get("freeze_a", False)
    return [(shape, "float32") for i, o in targets for shape in ([(L, R, o)] if frozen else [(L, i, R), (L, R, o)])]


def constants(setup):
    """What adapters hold and do not train: a scaling for each target and layer, and A where it is frozen."""
    if setup.method == "full":
        return 0
    targets = targeted(setup.config, setup.options.get("targets", "all-linear"))
    frozen = sum(i * setup.options["rank"] for i, _ in targets) if setup.options.get("freeze_a") else 0
    return 4 * setup.config.num_hidden_layers * (len(targets) + frozen)


def optimizer(setup):
    """optax's rules, for what it works on: what trains or, of weights in bfloat16 that are rounded, float32 of them.

    AdamW: mu in `moments` or the dtype of what it works on, nu in the latter, a count. Momentum: a trace in `moments`
    or the dtype of what it works on. SGD: nothing. Adafactor: see `adafactor`. A master copy is state too; stochastic
    rounding has a key, two numbers of 4 bytes.
    """
    halves = setup.method == "full" and setup.dtype == "bfloat16"
    way = (setup.rounding or "master") if halves else None
    found = [(shape, "float32" if way in ("master", "stochastic") else dtype) for shape, dtype in trained(setup)]
    own = sum(math.prod(shape) * BYTES[dtype] for shape, dtype in found)
    first = sum(math.prod(shape) * BYTES[setup.moments or dtype] for shape, dtype in found)
    factored = COUNT + sum(adafactor(shape) * BYTES[dtype] for shape, dtype in found)
    state = {"adamw": first + own + COUNT, "momentum": first, "sgd": 0, "adafactor": factored}
    return state[setup.optimizer] + {"master": own, "stochastic": 8}.get(way, 0)


def adafactor(shape):
    """The numbers of Adafactor's state for one array (arXiv 1804.04235), as optax keeps it.

    The second moment of an array whose two largest dimensions have 128 or more is a row and a column: the shape without
    its largest dimension, and without its second largest (a stack of layers is one array: L may be one of the two).
    Any other array's is whole. A number stands in for what is absent: one for the whole moment where it is factored,
    two for row and column where it is not.
    """
    size, *rest = sorted(shape, reverse=True)
    numbers = math.prod(shape)
    return numbers // size + numbers // rest[0] + 1 if rest and rest[0] >= 128 else numbers + 2


def static_rows(setup):
    """Every row that no batch changes."""
    weights, quantized = base(setup)
    trains = sum(math.prod(shape) * BYTES[dtype] for shape, dtype in trained(setup))
    summed = sum(4 * math.prod(shape) for shape, _ in trained(setup))  # the parts' gradients, in float32
    return {
        "weights": weights,
        "quantization constants": quantized,
        "adapters": 0 if setup.method == "full" else trains,
        "adapter constants": constants(setup),
        "optimizer state": optimizer(setup),
        "gradients": summed if setup.accumulate > 1 else trains,
    }
