"""As `equivalents.py`, for the right answers in `styles.py`: {id and name: {reason: [line: old -> new]}}."""

# ruff: noqa: E501
EQUIVALENT_STYLES = {
    "1.1 by_shapes": {
        "a product does not depend on the order of its sizes": [
            "2: (D, F)  ->  (F, D)",
            "2: (D, H * C)  ->  (H * C, D)",
            "2: (D, K * C)  ->  (K * C, D)",
            "2: (F, D)  ->  (D, F)",
            "2: (H * C, D)  ->  (D, H * C)",
            "3: (V, D)  ->  (D, V)",
            "5: (D, V)  ->  (V, D)",
        ],
    },
    "1.2 by_assignment": {
        "of two axes or places the last and the second are one": [
            "2: 1  ->  -1",
            "3: 1  ->  -1",
        ],
        "rolled over the rows' ends only the last column differs, which the mask leaves out": [
            "2: np.roll(tokens, -1, 1)  ->  np.roll(tokens, -1)",
            "3: (np.roll(segments, -1, 1) == segments).astype(np.int32)  ->  np.roll(segments, -1, 1) == segments",
            "3: np.roll(segments, -1, 1)  ->  np.roll(segments, -1)",
        ],
        "segments are never below 0": [
            "5: segments == 0  ->  segments <= 0",
        ],
        "segments are compared with each other and with 0 alone: their sign is no matter": [
            "first segments = changed(segments, 'minus')",
        ],
    },
    "1.2 by_concatenation": {
        "what stands behind the last is compared with nothing that counts; or where two are equal either may be asked": [
            "2: jnp.zeros_like(tokens[:, :1])  ->  tokens[:, :1]",
            "2: tokens  ->  segments",
            "5: segments  ->  following",
        ],
        "of two axes or places the last and the second are one": [
            "3: 1  ->  -1",
            "4: 1  ->  -1",
        ],
        "a mask of 0 and 1 is asked for, and no dtype; every id of an exercise is exact in float64": [
            "5: 0.0  ->  -0.0",
            "5: 0.0  ->  0",
            "5: jnp.where((following == segments) & (segments > 0), 1.0, 0.0)  ->  (following == segments) & (segments > 0)",
            "5: jnp.where((following == segments) & (segments > 0), 1.0, 0.0)  ->  jnp.where(1.0, (following == segments) & (segments > 0), 0.0)",
        ],
        "segments are never below 0": [
            "5: segments > 0  ->  segments != 0",
        ],
    },
    "1.2 by_loops": {
        "only the shape is read; or what is left where nothing follows, which the mask leaves out": [
            "2: np.zeros  ->  np.ones",
            "2: tokens  ->  segments",
            "3: tokens  ->  mask",
            "3: tokens  ->  segments",
            "3: tokens  ->  targets",
            "4: tokens  ->  mask",
            "4: tokens  ->  segments",
            "4: tokens  ->  targets",
        ],
        "a mask of 0 and 1 is asked for, and no dtype; every id of an exercise is exact in float64": [
            "2: np.zeros(tokens.shape, bool)  ->  np.zeros(tokens.shape)",
            "2: np.zeros(tokens.shape, int)  ->  np.zeros(tokens.shape)",
        ],
        "of two axes or places the last and the second are one": [
            "4: 1  ->  -1",
        ],
        "segments are never below 0": [
            "6: segments[b, t] > 0  ->  segments[b, t] != 0",
        ],
    },
    "1.3 by_logsumexp": {
        "the last axis is the default": [
            "2: jnp.take_along_axis(logits, targets[..., None], axis=-1)  ->  jnp.take_along_axis(logits, targets[..., None])",
        ],
        "the mask's sign falls out: it is above and below the line": [
            "first mask = changed(mask, 'minus')",
        ],
    },
    "1.3 by_one_hot": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: logits.astype(np.float64)  ->  logits",
        ],
        "a constant of a position falls out of a softmax; or only the size is read": [
            "3: z  ->  logits",
            "5: logits  ->  log_p",
            "5: logits  ->  z",
        ],
        "the mask's sign falls out: it is above and below the line": [
            "first mask = changed(mask, 'minus')",
        ],
    },
    "1.3 token_by_token": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: (0.0, 0)  ->  (0, 0.0)",
            "2: 0.0  ->  -0.0",
            "2: 0.0  ->  0",
            "6: float(one)  ->  one",
            "6: float(top)  ->  top",
            "6: float(z[target])  ->  z[target]",
        ],
        "the flattened logits have one row a token; -1 columns": [
            "3: 1  ->  2",
        ],
        "the mask's sign falls out: it is above and below the line": [
            "first mask = changed(mask, 'minus')",
        ],
    },
    "1.5 by_leaves": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: jnp.float32(rate)  ->  rate",
        ],
    },
    "1.5 by_recursion": {
        "a sum, a product, or the larger of two does not depend on order; parameters and gradients have one shape": [
            "2: params  ->  gradients",
            "3: params  ->  gradients",
            "4: params  ->  gradients",
            "6: np.add(params, np.multiply(-rate, gradients, dtype=np.float64))  ->  np.add(np.multiply(-rate, gradients, dtype=np.float64), params)",
            "6: np.multiply(-rate, gradients, dtype=np.float64)  ->  np.multiply(gradients, -rate, dtype=np.float64)",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "6: np.multiply(-rate, gradients, dtype=np.float64)  ->  np.multiply(-rate, gradients)",
        ],
    },
    "1.5 by_scaling_first": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: jnp.asarray(g)  ->  g",
        ],
    },
    "2.1 as_a_jax_number": {
        "a sum, a product, or the larger of two does not depend on order; parameters and gradients have one shape": [
            "3: ('attention', 'key_value')  ->  ('key_value', 'attention')",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "4: jnp.int32(D)  ->  D",
        ],
    },
    "2.1 list_of_arrays": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "14: np.int64(total)  ->  total",
        ],
        "a sum, a product, or the larger of two does not depend on order; parameters and gradients have one shape": [
            "4: ('num_attention_heads', 'num_key_value_heads')  ->  ('num_key_value_heads', 'num_attention_heads')",
            "6: ('gate', 'up', 'down')  ->  ('down', 'up', 'gate')",
        ],
    },
    "2.2 by_itemsize": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "4: np.array([2 * P, 2 * P, state], np.int64)  ->  [2 * P, 2 * P, state]",
            "4: np.array([2 * P, 2 * P, state], np.int64)  ->  np.array([2 * P, 2 * P, state])",
        ],
    },
    "2.2 row_by_row": {
        "a sum, a product, or the larger of two does not depend on order; parameters and gradients have one shape": [
            "3: ('mu', 'nu')  ->  ('nu', 'mu')",
        ],
    },
    "2.3 as_a_product": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: np.array([6, 5, 2, 2] if remat else [4, 4, 0, 0])  ->  [6, 5, 2, 2] if remat else [4, 4, 0, 0]",
            "3: counts @ np.array([F, D, Q, K])  ->  np.array([F, D, Q, K]) @ counts",
            "3: jnp.asarray(counts @ np.array([F, D, Q, K]) * N * size)  ->  counts @ np.array([F, D, Q, K]) * N * size",
            "3: np.array([F, D, Q, K])  ->  [F, D, Q, K]",
        ],
    },
    "2.4 by_the_slowest": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: np.array(speeds, float)  ->  np.array(speeds)",
        ],
    },
    "2.4 piece_by_piece": {
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "2: 0.0  ->  -0.0",
            "2: 0.0  ->  0",
            "4: 0.0  ->  -0.0",
            "4: 0.0  ->  0",
        ],
        "no hop is free before the first piece is there, at 0 or later": [
            "2: 0.0  ->  -1.0",
            "4: 0.0  ->  -1.0",
        ],
        "a sum, a product, or the larger of two does not depend on order; parameters and gradients have one shape": [
            "6: max(there, free[hop])  ->  max(free[hop], there)",
        ],
    },
    "2.5 by_divmod": {
        "a rest is never below 0; one of exactly a byte is not asked, since no float32 could tell it": [
            "3: 0  ->  1",
            "3: rest > 0  ->  rest != 0",
        ],
        "the same numbers in another type, which is not asked: a plain number, a bool, a NumPy or a JAX array": [
            "3: jnp.int32(cards + (rest > 0))  ->  cards + (rest > 0)",
        ],
    },
    "2.5 card_by_card": {
        "a row of cards that begins one byte later ends at the same card, but for a rest of exactly a byte": [
            "2: 0  ->  1",
        ],
    },
}
