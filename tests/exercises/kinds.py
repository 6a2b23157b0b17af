"""The kinds of cases that each exercise holds: {id: {kind: whether some case of a seed is of it}}.

`test_students.py` asserts every one of them for several seeds; docs/exercise_checks.md lists them.
"""

import numpy as np

from lora_jax.exercises import colleague


def some(condition):
    """Of a function of one case's arguments, whether it holds for some case."""
    return lambda cases: any(condition(*case) for case in cases)


def beyond_float32(count):
    return some(lambda *case: float(np.float32(count(*case))) != count(*case))


def asked_twice(cases):
    return cases[0] is cases[-1] and len(cases) > 1


def cards(P, whole, gib):
    return 8 * P / (gib * 2**30 - whole)


def levels(logits, *_):
    return np.ptp(logits.max(-1)) > 500


KINDS = {
    "1.1": {
        "tied and untied": lambda cases: {case[-1] for case in cases} == {True, False},
        "one layer": some(lambda V, D, F, L, *_: L == 1),
        "heads wider, narrower, and as wide as the model": lambda cases: (
            {np.sign(H * C - D) for _, D, _, _, H, _, C, _ in cases} == {-1, 0, 1}
        ),
        "counts beyond float32": some(lambda V, D, F, L, *_: V * D > 2**24 and D % 2 == 1),
    },
    "1.2": {
        "one document, several, and padding": some(lambda tokens, segments: {0, 1, 2} <= set(segments.ravel())),
        "documents of one token": some(lambda tokens, segments: segments.max() > 3),
        "a row of padding alone": some(lambda tokens, segments: (segments == 0).all(1).any()),
        "a token that is 0": some(lambda tokens, segments: ((tokens == 0) & (segments != 0)).any()),
        "padding that is not 0": some(lambda tokens, segments: ((tokens != 0) & (segments == 0)).any()),
        "ids beyond float32": some(lambda tokens, segments: (np.float32(tokens).astype(int) != tokens).any()),
        "one row of one token": some(lambda tokens, segments: tokens.shape == (1, 1)),
    },
    "1.3": {
        "rows masked unequally": some(lambda z, t, m: len(set(m.sum(1))) > 1),
        "all logits near 1,000": some(lambda z, t, m: z.min() > 900),
        "positions on unlike levels": some(levels),
        "logits 200 and 1,000 apart": some(lambda z, t, m: np.ptp(z, axis=-1).max() == 1000),
        "one token": some(lambda z, t, m: m.size == 1),
        "nothing masked": some(lambda z, t, m: m.all() and m.size > 1),
    },
    "1.4": {"a prediction": lambda cases: cases == [()]},
    "1.5": {
        "dicts and lists in each other": some(lambda p, g, rate: isinstance(p, dict) and "runs" in p),
        "gradients in another order": some(
            lambda p, g, rate: isinstance(p, dict) and "runs" in p and list(p["runs"][0]) != list(g["runs"][0])
            if isinstance(p, dict) and isinstance(p.get("runs", [0])[0], dict) else False),
        "a bare array": some(lambda p, g, rate: isinstance(p, np.ndarray)),
        "large numbers with small gradients": some(lambda p, g, rate: isinstance(p, np.ndarray) and abs(p).max() > 999),
        "gradients of 0": some(lambda p, g, rate: "runs" in p and not np.any(g["runs"][0]) if isinstance(p, dict) and
                               not isinstance(p.get("runs", [{}])[0], dict) else False),
    },
    "2.1": {
        "tied and untied": lambda cases: {case[0]["tie_word_embeddings"] for case in cases} == {True, False},
        "one layer, whose heads share nothing": some(
            lambda c: c["num_hidden_layers"] == 1 and c["num_key_value_heads"] == c["num_attention_heads"]),
        "heads wider, narrower, and as wide as the model": lambda cases: (
            {np.sign(c["num_attention_heads"] * c["head_dim"] - c["hidden_size"]) for (c,) in cases} == {-1, 0, 1}),
        "counts beyond float32": some(lambda c: c["hidden_size"] % 2 == 1 and c["hidden_size"] > 2000),
    },
    "2.2": {
        "with and without a copy": lambda cases: {master for _, master in cases} == {True, False},
        "odd numbers": some(lambda P, master: P % 2 == 1),
        "bytes beyond float32": beyond_float32(lambda P, master: 4 * P + 4),
    },
    "2.3": {
        "rematerialized and not": lambda cases: {case[-1] for case in cases} == {True, False},
        "2 and 4 bytes a number": lambda cases: {case[-2] for case in cases} == {2, 4},
        "heads that share nothing": some(lambda N, D, F, Q, K, *_: Q == K),
        "heads wider and narrower than the model": lambda cases: (
            {np.sign(Q - D) for _, D, _, Q, *_ in cases} == {-1, 1}),
        "bytes beyond float32": beyond_float32(lambda N, D, F, Q, K, size, remat: N * size * 4 * (F + D)),
    },
    "2.4": {
        "slowest first, last, and between": lambda cases: {True} == {
            any(speeds.index(min(speeds)) == place(speeds) for _, speeds, _ in cases if len(speeds) > 2)
            or any(speeds.index(min(speeds)) == place(speeds) for _, speeds, _ in cases)
            for place in (lambda s: 0, lambda s: len(s) - 1, lambda s: 1)},
        "one hop": some(lambda size, speeds, pieces: len(speeds) == 1),
        "one piece": some(lambda size, speeds, pieces: pieces == 1),
        "equal hops": some(lambda size, speeds, pieces: len(set(speeds)) < len(speeds)),
        "pieces of a part of a byte": some(lambda size, speeds, pieces: size < 1000 and size % pieces > 0),
    },
    "2.5": {
        "each mistake leads elsewhere": some(lambda *case: len({n for n, _ in colleague._wrong_cards(*case)}) == 14),
        "exact division": some(lambda *case: cards(*case) == int(cards(*case))),
        "a little more than exact": some(lambda *case: 0 < cards(*case) % 1 < 0.01),
        "a part of one card": some(lambda *case: cards(*case) < 1),
        "bytes beyond float32": beyond_float32(lambda P, whole, gib: 8 * P),
    },
    "3.1": {
        "shares that a rank holds exactly": some(lambda v, s: s == 0.5),
        "equal values": some(lambda v, s: len(v) > 1 and np.ptp(v) == 0),
        "all of it, with zeros behind": some(lambda v, s: s == 1 and v[-1] == 0),
        "one value": some(lambda v, s: len(v) == 1),
        "a flat spectrum that 16 bits call equal": some(lambda v, s: len(set(v.astype(np.float16))) == 1 < len(set(v))),
        "values whose squares overflow in float16": some(lambda v, s: v.max() > 256),
    },
    "3.2": {
        "all sizes unlike": some(lambda x, w, a, b, alpha: len({*x.shape, *w.shape, a.shape[1]}) == 4),
        "alpha below the rank": some(lambda x, w, a, b, alpha: alpha < a.shape[1]),
        "alpha that the rank does not divide": some(lambda x, w, a, b, alpha: alpha % a.shape[1] != 0),
        "an update small beside the base": some(lambda x, w, a, b, alpha: abs(w).max() > 100),
        "one row, and rank 1": some(lambda x, w, a, b, alpha: len(x) == a.shape[1] == 1),
    },
    "3.3": {
        "a seed asked twice, and its neighbours": lambda cases: {0, 1, 2} <= {case[0] - cases[0][0] for case in cases},
        "three matrices of one shape": some(lambda seed, shapes, rank: list(shapes.values()).count((48, 40)) == 3),
        "in below the rank": some(lambda seed, shapes, rank: min(shapes.values())[0] < rank),
        "seed 0": some(lambda seed, shapes, rank: seed == 0),
        "a matrix of one number": some(lambda seed, shapes, rank: (1, 1) in shapes.values()),
    },
    "3.4": {
        "all sizes unlike": some(lambda x, a, b, s, dy: len({*x.shape, *b.shape}) == 4),
        "a scaling above 1 and one below": lambda cases: {case[3] > 1 for case in cases} == {True, False},
        "one row, and rank 1": some(lambda x, a, b, s, dy: len(x) == len(b) == 1),
    },
    "3.5": {
        "float32, bfloat16 and float16": lambda cases: len({case[0].dtype for case in cases}) == 3,
        "alpha that the rank does not divide": some(lambda w, a, b, alpha: alpha % a.shape[2] != 0),
        "one layer, and rank 1": some(lambda w, a, b, alpha: len(w) == a.shape[2] == 1),
    },
    "4.1": {
        "some targets, one, all": lambda cases: {1, 2, 3, 5} <= {len(case[2]) for case in cases},
        "targets in another order": some(lambda s, n, t, r: t != [name for name in s if name in t]),
        "two targets of one shape": some(lambda s, n, t, r: len({s[name] for name in t}) < len(t)),
        "rank 1, one layer": some(lambda s, n, t, r: n == r == 1),
        "bytes beyond float32": beyond_float32(lambda s, n, t, r: 4 * n * r * sum(sum(s[name]) for name in t)),
    },
    "4.2": {
        "2 and 4 bytes a number": lambda cases: {case[-1] for case in cases} == {2, 4},
        "heads wider and narrower than the model": lambda cases: (
            {-1, 1} <= {np.sign(H * C - D) for _, D, _, H, _, C, _ in cases}),
        "one token, one head": some(lambda N, D, F, H, K, C, size: N == H == K == 1),
        "bytes beyond float32": beyond_float32(
            lambda N, D, F, H, K, C, size: N * (size * 2 * (D + H * C + K * C + F) + 4 * H)),
    },
    "4.3": {
        "blocks and groups that are full": some(lambda r, c, d: d and r % 64 == c % 256 == 0),
        "a short block and a short group": some(lambda r, c, d: d and r % 64 > 0 and -(-r // 64) * c % 256 > 0),
        "less than a block": some(lambda r, c, d: r < 64 and c == 1),
        "both bytes beyond float32": beyond_float32(lambda r, c, d: r * c // 2),
    },
    "4.4": {"a prediction": lambda cases: cases == [()]},
    "4.5": {
        "each mistake leads elsewhere": some(lambda *case: len({n for n, _ in colleague._wrong_times(*case)}) == 11),
        "no activations, and one number": some(lambda P, A, kept: kept == 0 and A == 1),
    },
    "5.1": {
        "one token kept, and all": lambda cases: {1, 0} <= {k if k == 1 else len(z) - k for z, _, k in cases},
        "one token at all": some(lambda z, t, k: len(z) == 1),
        "two likeliest alike": some(lambda z, t, k: k > 1 and np.ptp(np.sort(z)[-2:]) == 0),
        "all logits far below 0, and far above": lambda cases: (
            any(z.max() < -1000 for z, *_ in cases) and any(z.min() > 1000 for z, *_ in cases)),
        "logits far apart, brought near by the temperature": some(lambda z, t, k: np.ptp(z) > 200 and t > 50),
        "a temperature near 0": some(lambda z, t, k: t < 0.01),
    },
    "5.2": {
        "matrices of one shape": some(lambda s, *_: len(set(s)) < len(s)),
        "an odd rank": some(lambda s, rank, layers, width: rank % 2 == 1),
        "1 of all": some(lambda s, rank, layers, width: len(s) == rank == layers == width),
        "bytes beyond float32": beyond_float32(lambda s, r, n, w: n * r * w * sum(map(sum, s))),
    },
    "5.3": {
        "a rise of exactly what is allowed": some(lambda v, p, s, most: most in [x - s[0] for x in s] and most > 0),
        "stories that get better": some(lambda v, p, s, most: min(s) < s[0] - most),
        "back below the bound": some(lambda v, p, s, most: (over := [x - s[0] > most for x in s]) != sorted(over)),
        "nothing allowed": some(lambda v, p, s, most: most == 0),
        "the base is best": some(lambda v, p, s, most: min(p) == p[0] and len(p) > 1),
        "volumes in no order": some(lambda v, p, s, most: v != sorted(v)),
        "losses that 16 bits call equal": some(lambda v, p, s, most: len({np.float16(x) for x in p}) < len(set(p))),
        "the base alone": some(lambda v, p, s, most: len(v) == 1),
    },
    "5.4": {"a prediction": lambda cases: cases == [()]},
    "5.5": {
        "equal ranks, and unequal": lambda cases: (
            {one["a"].shape[1] == other["a"].shape[1] for one, other, _ in cases} == {True, False}),
        "t at 0 and at 1": lambda cases: {0.0, 1.0} <= {t for *_, t in cases},
        "rank 1": some(lambda one, other, t: 1 in (one["a"].shape[1], other["a"].shape[1])),
    },
}  # fmt: skip
