"""As `equivalents.py`, for the right answers in `styles_adapters.py`: {id and name: {reason: [line: old -> new]}}."""

# ruff: noqa: E501
EQUIVALENT_ADAPTERS = {
    "3.1 by_counting": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(singular_values)  ->  singular_values",
        ],
        "no share lies so near a rank that rounding to float32 decides": [
            "first share = cast(share, 'float32')",
        ],
        "the squares of the values are what counts": [
            "first singular_values = changed(singular_values, 'minus')",
        ],
    },
    "3.1 by_search": {
        "no share lies so near a rank that rounding to float32 decides": [
            "first share = cast(share, 'float32')",
        ],
        "the squares of the values are what counts": [
            "first singular_values = changed(singular_values, 'minus')",
        ],
    },
    "3.1 one_by_one": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: np.asarray(singular_values, np.float64)  ->  np.asarray(singular_values)",
            "2: np.asarray(singular_values, np.float64)  ->  singular_values",
            "3: 0.0  ->  -0.0",
            "3: 0.0  ->  0",
        ],
        "no share lies so near a rank that rounding to float32 decides": [
            "first share = cast(share, 'float32')",
        ],
        "the squares of the values are what counts": [
            "first singular_values = changed(singular_values, 'minus')",
        ],
    },
    "3.2 in_float64": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: np.asarray(x, np.float64)  ->  np.asarray(x)",
            "2: np.asarray(x, np.float64)  ->  x",
            "2: x = np.asarray(x, np.float64)  ->  pass",
        ],
        "of two axes or places the last and the second are one": [
            "3: -1  ->  1",
            "3: 1  ->  -1",
        ],
    },
    "3.2 through_the_change": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(x)  ->  x",
        ],
    },
    "3.3 by_folding": {
        "each matrix has a key of its own in any order; the mirror of a uniform draw is one": [
            "3: sorted  ->  list",
            "3: sorted  ->  reversed",
            "3: sorted(shapes)  ->  shapes",
            "6: 2 * unit - 1  ->  1 - 2 * unit",
        ],
        "of two axes or places the last and the second are one": [
            "6: 1  ->  -1",
        ],
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "7: changed(the result, 'minus')",
        ],
    },
    "3.3 by_numpy": {
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "3: changed(the result, 'minus')",
        ],
    },
    "3.3 key_after_key": {
        "a key that has been split is still another for each matrix": [
            "7: own  ->  key",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "8: np.zeros((rank, n_out), np.float32)  ->  np.zeros((rank, n_out))",
        ],
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "9: changed(the result, 'minus')",
        ],
    },
    "3.4 by_autodiff": {
        "of two axes or places the last and the second are one": [
            "2: 1  ->  -1",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(dy)  ->  dy",
        ],
    },
    "3.5 by_vmap": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: w.astype(jnp.float32)  ->  w",
        ],
    },
    "3.5 layer_by_layer": {
        "w, a and b have the same number of layers": [
            "2: w  ->  a",
            "2: w  ->  b",
        ],
    },
    "3.5 summed_in_float64": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: update.astype(np.float64)  ->  update",
            "3: w.astype(np.float64)  ->  w",
        ],
    },
    "4.1 by_bytes_of_shapes": {
        "a product does not depend on the order of its sizes": [
            "2: (layers, rank, shapes[t][1])  ->  (shapes[t][1], rank, layers)",
            "2: (layers, shapes[t][0], rank)  ->  (rank, shapes[t][0], layers)",
        ],
        "of two axes or places the last and the second are one": [
            "2: 1  ->  -1",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: int(sum((np.prod(shape) for shape in factors)))  ->  sum((np.prod(shape) for shape in factors))",
        ],
    },
    "4.1 matrix_by_matrix": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "6: np.int64(n * 4)  ->  n * 4",
        ],
    },
    "4.1 with_jax": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: sum(shapes[name])  ->  shapes[name]",
        ],
    },
    "4.2 by_a_product": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(N * (np.array([D, H * C, K * C, F]).sum() * 2 * size + H * 4))  ->  N * (np.array([D, H * C, K * C, F]).sum() * 2 * size + H * 4)",
        ],
    },
    "4.3 by_ranges": {
        "rows are even, so that a rest, or a step, of 1 does not occur; and none is below 0": [
            "2: 0  ->  1",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "4: blocks * 1  ->  blocks",
            "4: blocks * 1  ->  blocks / 1",
            "4: np.int64(rows * columns / 2)  ->  rows * columns / 2",
            "4: rows * columns / 2  ->  rows * columns // 2",
        ],
    },
    "4.3 column_by_column": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "6: rows // 2  ->  rows / 2",
        ],
    },
    "4.3 with_what_is_left": {
        "rows are even, so that a rest, or a step, of 1 does not occur; and none is below 0": [
            "3: 0  ->  1",
            "3: rest > 0  ->  rest != 0",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: jnp.int32((blocks + (rest > 0)) * columns)  ->  (blocks + (rest > 0)) * columns",
            "4: jnp.asarray([columns * rows // 2, jnp.where(double, blocks + 4 * ((blocks + 255) // 256) + 4, 4 * blocks)])  ->  [columns * rows // 2, jnp.where(double, blocks + 4 * ((blocks + 255) // 256) + 4, 4 * blocks)]",
        ],
    },
    "5.1 by_log_softmax": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: float(z)  ->  z",
            "3: np.array([z / temperature if z >= kth else -np.inf for z in logits], np.float32)  ->  np.array([z / temperature if z >= kth else -np.inf for z in logits])",
        ],
    },
    "5.1 by_sorting": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "4: logits[best].astype(np.float64)  ->  logits[best]",
        ],
    },
    "5.1 by_top_k": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(logits)  ->  logits",
        ],
    },
    "5.2 in_jax": {
        "of two axes or places the last and the second are one": [
            "3: 1  ->  -1",
        ],
        "JAX takes an index beyond the end for the last": [
            "3: 1  ->  2",
        ],
    },
    "5.3 by_masking": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: jnp.array(volumes)  ->  volumes",
        ],
    },
    "5.3 one_pass": {
        "the base is never better than itself; and the lists are of one length": [
            "3: 1  ->  -1",
            "3: 1  ->  0",
            "3: volumes  ->  stories",
            "3: volumes  ->  verse",
        ],
        "no two volumes within the budget have the same loss on verse": [
            "4: verse[i] < verse[best]  ->  verse[i] <= verse[best]",
        ],
    },
    "5.5 into_zeros": {
        "of two axes or places the last and the second are one": [
            "2: 1  ->  -1",
            "3: 1  ->  -1",
            "4: 1  ->  -1",
        ],
        "every entry is written over; and the two adapters belong to one matrix": [
            "3: np.zeros  ->  np.ones",
            "3: one  ->  other",
            "4: np.zeros  ->  np.ones",
            "4: one  ->  other",
        ],
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "7: changed(the result, 'minus')",
        ],
    },
    "5.5 weights_below": {
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "4: changed(the result, 'minus')",
        ],
    },
    "5.5 weights_on_both": {
        "of two axes or places the last and the second are one": [
            "3: -1  ->  1",
            "3: 1  ->  -1",
        ],
        "the negative of a uniform draw is one, and zero is zero; of two negative factors the product is the same": [
            "4: changed(the result, 'minus')",
        ],
        "the first axis is the default": [
            "4: jnp.concatenate([first * one['b'], second * other['b']], 0)  ->  jnp.concatenate([first * one['b'], second * other['b']])",
        ],
    },
}
