"""Changes in one place that leave an answer as right as it was: {solution: {reason: [line: old -> new]}}.

`test_mutants.py` compares this list with what it finds: nothing else is accepted, and nothing stands here in vain.
"""

# ruff: noqa: E501  (what is changed stands on one line)
EQUIVALENT = {
    "1.2": {
        "of two axes or places the last and the second are one": [
            "3: 1  ->  -1",
        ],
        "rolled over the rows' ends only the last column differs, which the mask leaves out": [
            "3: jnp.roll(tokens, -1, axis=1)  ->  jnp.roll(tokens, -1)",
        ],
        "segments are never below 0": [
            "4: segments[:, 1:] != 0  ->  segments[:, 1:] > 0",
        ],
        "segments rise, but for padding behind the last, which the other condition leaves out": [
            "4: segments[:, 1:] == segments[:, :-1]  ->  segments[:, 1:] <= segments[:, :-1]",
        ],
        "a mask of 0 and 1 is asked for, and no dtype; every id of an exercise is exact in float64": [
            "5: jnp.float32  ->  jnp.bfloat16",
            "5: jnp.float32  ->  jnp.float16",
            "5: same.astype(jnp.float32)  ->  same",
        ],
        "segments are compared with each other and with 0 alone: their sign is no matter": [
            "first segments = changed(segments, 'minus')",
        ],
    },
    "1.3": {
        "the last axis is the default": [
            "3: jax.nn.log_softmax(logits, axis=-1)  ->  jax.nn.log_softmax(logits)",
            "4: jnp.take_along_axis(log_p, targets[..., None], axis=-1)  ->  jnp.take_along_axis(log_p, targets[..., None])",
        ],
        "of an axis of one entry: -1 is that entry too, and JAX takes an index beyond the end for the last": [
            "4: 0  ->  -1",
            "4: 0  ->  1",
        ],
        "the mask's sign falls out: it is above and below the line": [
            "first mask = changed(mask, 'minus')",
        ],
    },
    "1.4": {
        "7.6, the one decimal that is asked of a prediction, is ln 2047, ln 2048 and ln 2049": [
            "1: 2048  ->  2047",
            "1: 2048  ->  2049",
            "1: np.log  ->  np.log1p",
        ],
    },
    "2.2": {
        "2 times 2 is 2 and 2": [
            "6: 2 * 2  ->  2 + 2",
        ],
    },
    "2.5": {
        "2 times 2 is 2 and 2": [
            "7: 2 + 2  ->  2 * 2",
        ],
    },
    "3.1": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "4: int(jnp.argmax(sums >= share * sums[-1]))  ->  jnp.argmax(sums >= share * sums[-1])",
        ],
        "no share lies so near a rank that rounding to float32 decides": [
            "first share = cast(share, 'float32')",
        ],
        "the squares of the values are what counts": [
            "first singular_values = changed(singular_values, 'minus')",
        ],
    },
    "3.2": {
        "of two axes or places the last and the second are one": [
            "3: 1  ->  -1",
        ],
    },
    "3.3": {
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "9: changed(the result, 'minus')",
        ],
    },
    "4.1": {
        "of two axes or places the last and the second are one": [
            "6: 1  ->  -1",
        ],
    },
    "4.3": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "8: rows * columns // 2  ->  rows * columns / 2",
        ],
    },
    "4.4": {
        "a reading off a picture: one sequence more or less cannot be seen": [
            "1: 16  ->  15",
            "1: 16  ->  17",
        ],
    },
    "5.5": {
        "of two axes or places the last and the second are one": [
            "4: 1  ->  -1",
        ],
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "4: changed(the result, 'minus')",
        ],
        "the first axis is the default": [
            "4: jnp.concatenate([one['b'], other['b']], axis=0)  ->  jnp.concatenate([one['b'], other['b']])",
        ],
    },
}
