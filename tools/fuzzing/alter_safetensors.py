"""safetensors files altered where they keep their lengths, shapes, dtypes and places, the rest as it was."""

from __future__ import annotations

import json
import struct
from random import Random

from fuzzing import alter_json
from fuzzing.alter_binary import BOUNDARY


def safetensors(data: bytes, rng: Random) -> bytes:
    """A safetensors file: its header's JSON altered, what was written of it removed, or the header's length changed."""
    if len(data) < 8 or (size := int.from_bytes(data[:8], "little")) > len(data) - 8:
        return data + b"\0"
    header, rest = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(8):
        case 0:
            size = rng.choice((0, 1, size - 1, size + 1, size // 2, len(data), len(data) - 8, *BOUNDARY))
            return struct.pack("<Q", size % 2**64) + data[8:]
        case 1:
            header = _without_seal(header)
        case 2:
            header = alter_json.document(_without_seal(header), rng)
        case 3:
            rest = rest[: rng.randrange(len(rest) + 1)] if rng.random() < 0.5 else rest + rng.randbytes(16)
        case 4:
            rest = _numbers(rest, rng)
        case 5:
            rest, header = _numbers(rest, rng), _without_seal(header)
        case _:
            header = _entry(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def _without_seal(header: bytes) -> bytes:
    """The header as another program writes it: without our checksum."""
    try:
        found = json.loads(header)
        found.get("__metadata__", {}).pop("lora_jax_sha256", None)
        return json.dumps(found).encode()
    except (ValueError, AttributeError, RecursionError):
        return header


def _entry(header: bytes, rng: Random) -> bytes:
    """One tensor's dtype, shape, offsets or name, or a value of the metadata, altered."""
    try:
        found = json.loads(header)
        name = rng.choice(sorted(found))
        entry = found[name]
        if name == "__metadata__":
            key = rng.choice(sorted(entry))
            entry[key] = alter_json.document(entry[key].encode(), rng).decode("utf-8", "replace")
        else:
            match rng.randrange(5):
                case 0:
                    entry["dtype"] = rng.choice(
                        (
                            "F8_E4M3",
                            "F8_E5M2",
                            "F8_E8M0",
                            "F4",
                            "I8",
                            "I32",
                            "I64",
                            "U8",
                            "BOOL",
                            "F64",
                            "F32",
                            "F16",
                            "BF16",
                            "C64",
                            "X",
                            "I16",
                            "U64",
                        )
                    )
                case 1:
                    entry["shape"] = rng.choice(
                        (
                            entry["shape"][::-1],
                            [],
                            [0],
                            [1, *entry["shape"]],
                            [2**32, 2**32],
                            [2**63, 2],
                            [-1],
                            [rng.choice(BOUNDARY) for _ in entry["shape"]],
                        )
                    )
                case 2:
                    entry["data_offsets"][rng.randrange(2)] = rng.choice(BOUNDARY)
                case 3:
                    other = found[rng.choice(sorted(set(found) - {"__metadata__"}))]
                    entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
                case _:
                    found[rng.choice((name + "x", "", name * 200, "\u202e" + name, name.upper()))] = found.pop(name)
        return json.dumps(found).encode("utf-8", "surrogatepass")
    except (ValueError, KeyError, AttributeError, IndexError, TypeError, RecursionError):
        return alter_json.document(header, rng)


def _numbers(rest: bytes, rng: Random) -> bytes:
    """Bytes of tensors, one number of them not finite, or a bit of one flipped."""
    at = 4 * rng.randrange(max(1, len(rest) // 4))
    kinds = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", bytes(4))
    flipped = bytes((rest[at : at + 1] or b"\0")[0] ^ (1 << rng.randrange(8)) for _ in range(1)) + rest[at + 1 : at + 4]
    return rest[:at] + rng.choice((*kinds, flipped, flipped)) + rest[at + 4 :]
