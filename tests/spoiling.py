"""Ways to spoil a patch: each takes the bytes of its config and weights, and gives them back."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from loraguard.tuner import GatedLoraConfig

Files = tuple[bytes, bytes]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**64, 10**40, 10**400, 1.5, 1e-300, 1e300, float("inf"), float("nan"), "",
    "x", "\x1b[2J\x07", "\ud800", "a\nb", "\u202eevil", "x" * 5000, [], {}, [[]], ["x"], [None], {"x": None}, {"x": 1},
    [1, 2], "default", ["default"], ["lora_A"], ["A"], ["norm"], ["other"], ["base_layer"], "all-linear",
    "../etc/passwd", [0, 0], [10**9], {"words": []}, {"words": [9]}, {"": [1]}, {"norm": [1]}, "CAUSAL_LM", "SEQ_CLS",
    "FEATURE_EXTRACTION", "LORA", "GATED_LORA", "ADALORA", "none", "all", "lora_only", "scalar", "rank", "input",
    [["down", 1]], {"down": 10**400}, {"down": 10**9}, {"down": 1e30}, {".*": 2}, "down|up", ".*",
)  # fmt: skip
PATTERNS = (
    ".*" * 18 + "X", "(.?){40}X", "(?x) ( . + ) + x", "(a|a)*X", "(.*a){12}X", r"(\w+\s?)+X", "(?:(?:.?.?)*)*X",
    "((((.*))))*X", "(.{0,9}){9}X", ".*.*.*.*.*.*X", "(?=(.+)+X)", "(?i:(.+)+X)", r"(.)\1*X", "(.+?)+?X",
    "([^.]*[.]?)*X", "(" * 5000, "[" * 99, "a{99999999}" * 3, "(?#" + "x" * 900 + ")",
    "|".join("x" * 60 for _ in range(3000)), "(x+x+)+y", "(?P<n>.+)+X",
)  # fmt: skip
FIELDS = sorted({*GatedLoraConfig().to_dict(), "unknown", "runtime_config", "__class__", "header"})


def spoil_field(files: Files, draw: random.Random) -> Files:
    config = json.loads(files[0])
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        field = draw.choice(FIELDS)
        if draw.random() < 0.15:
            config.pop(field, None)
        else:
            config[field] = draw.choice(VALUES)
    return json.dumps(config).encode(), files[1]


def spoil_pattern(files: Files, draw: random.Random) -> Files:
    config = json.loads(files[0])
    field = draw.choice(
        ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern", "modules_to_save")
    )
    pattern = draw.choice(PATTERNS)
    if draw.random() < 0.1:
        names = [f"layer{i}" for i in range(draw.choice((251, 9000, 20_000)))]
        config[field] = dict.fromkeys(names, 2) if field in ("rank_pattern", "alpha_pattern") else names
    elif field in ("rank_pattern", "alpha_pattern"):
        config[field] = {pattern: 2}
    else:
        config[field] = [pattern] if field == "modules_to_save" or draw.random() < 0.3 else pattern
        config["layers_to_transform"] = [0] if field == "layers_pattern" else None
    return json.dumps(config).encode(), files[1]


def spoil_record(files: Files, draw: random.Random) -> Files:
    config = json.loads(files[0])
    record = config["provenance"] or {}
    key = draw.choice(("file_sha256", "generator", "settings", "kind", "data", "steps"))
    record[key] = draw.choice(
        (*VALUES, {"class": "\x1b[31m" * 99, "sha256": "0" * 64, "name": "demo"}, {"stamp": {"text": "A" * 10**5}})
    )
    config["provenance"] = draw.choice((record, record, draw.choice(VALUES)))
    return json.dumps(config).encode(), files[1]


def spoil_text(files: Files, draw: random.Random) -> Files:
    text = files[0]
    at = draw.randrange(len(text))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text.decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "cp037"))),
        lambda: text[:at],
        lambda: text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :],
        lambda: text[:at] + draw.choice((b"\xff", b"\x00", b'"', b"{", b",", b"\x1b[2J")) + text[at:],
        lambda: b"[" * (n := draw.choice((50, 3000, 10**5))) + b"]" * n,
        lambda: b'{"peft_type": "GATED_LORA", "provenance": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        lambda: draw.choice((b"", b"null", b"[]", b"3", b'"x"', b"{}", b"NaN", b" " * 2**21, text + text, text * 900)),
        lambda: text.replace(b"{", b'{"r": 1,', 1),
        lambda: text.replace(b'"r": 2', b'"r": ' + b"1" * draw.choice((99, 5000))),
    )
    return draw.choice(ways)(), files[1]


def spoil_tensors(files: Files, draw: random.Random) -> Files:
    """Whole tensors: names, types, shapes, values, more of them or fewer; in a file that is whole."""
    tensors = load(files[1])
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    layer = name.split(".lora_")[0]
    ways: tuple[Callable[[], dict[str, Tensor]], ...] = (
        dict,
        lambda: {key: one for key, one in tensors.items() if key != name},
        lambda: {
            **tensors,
            f"{layer}.{draw.choice(('base_layer.weight', 'base_layer.bias', 'weight'))}": torch.ones(4, 3, 3, 3),
        },
        lambda: {**tensors, "base_model.model.other.weight": torch.full((3,), 9.0)},
        lambda: {**tensors, "base_model.model.layernorm.weight": torch.full((4,), 9.0)},
        lambda: {**tensors, "base_model.model.norm.original_module.weight": torch.full((4,), 9.0)},
        lambda: {**tensors, draw.choice(("x", "", f"x.{name}", f"{name}.x", "\x1b[2J", "a" * 9000)): value.clone()},
        lambda: {
            **tensors,
            name: value.to(draw.choice((torch.int64, torch.float16, torch.float64, torch.bool, torch.int8))),
        },
        lambda: {**tensors, name: value.to(torch.float8_e4m3fn)},
        lambda: {
            **tensors,
            name: draw.choice((value[None], torch.cat([value, value]), value.new_zeros(0), value.flatten())),
        },
        lambda: {**tensors, name: value * draw.choice((float("nan"), float("inf"), 1e30, 1e38))},
        lambda: {**tensors, name: value.double() * 1e300},
        lambda: {**tensors, name: value + 1},
        lambda: dict(zip(tensors, draw.sample(list(tensors.values()), len(tensors)), strict=True)),
    )
    spoilt = save({key: one.clone().contiguous() for key, one in draw.choice(ways)().items()})
    config = json.loads(files[0])
    kept = draw.random()
    if kept < 0.4:  # a hash that is right says nothing for the rest
        config["provenance"] = {**(config["provenance"] or {}), "file_sha256": hashlib.sha256(spoilt).hexdigest()}
    elif kept < 0.7:
        config["provenance"] = None
    if draw.random() < 0.3:
        config["bias"] = draw.choice(("all", "lora_only"))
    return json.dumps(config).encode(), spoilt


def spoil_header(files: Files, draw: random.Random) -> Files:
    length = struct.unpack("<Q", files[1][:8])[0]
    header, data = json.loads(files[1][8 : 8 + length]), files[1][8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    one = header[name]
    field = draw.choice(("dtype", "shape", "data_offsets", "name", "twice", "odd"))
    if field == "dtype":
        one["dtype"] = draw.choice(("F64", "F16", "I32", "U8", "F8_E4M3", "X", None, 3))
    elif field == "shape":
        one["shape"] = draw.choice(([], [0], [-1], [2**62, 4], [1.5], None, [*one["shape"], 1], one["shape"][::-1]))
    elif field == "data_offsets":
        one["data_offsets"] = draw.choice(([0, 0], [0, 2**63], [5, 3], [0], None, header[draw.choice(list(header))]))
    elif field == "name":
        header[draw.choice(("base_model.model.other.weight", "\x1b", "", "x" * 10**4))] = header.pop(name)
    elif field == "odd":
        header["__metadata__"] = draw.choice((None, 3, {"x": 1}, {"x": "\x1b[2J" * 99}, "x"))
    text = json.dumps(header).encode()
    if field == "twice":
        text = text[:-1] + b"," + json.dumps({name: one}).encode()[1:]
    return files[0], struct.pack("<Q", len(text)) + text + data


def spoil_bytes(files: Files, draw: random.Random) -> Files:
    data = files[1]
    at = draw.randrange(len(data))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at],
        lambda: data + bytes(draw.randrange(1, 99)),
        lambda: data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
        lambda: struct.pack("<Q", draw.choice((0, 1, 2**23 + 1, 2**40, 2**63, 2**64 - 1, len(data)))) + data[8:],
        lambda: draw.randbytes(draw.randrange(1, 300)),
        lambda: b"",
    )
    return files[0], draw.choice(ways)()


WAYS = (spoil_field, spoil_field, spoil_field, spoil_pattern, spoil_record, spoil_text, spoil_tensors, spoil_tensors,
        spoil_header, spoil_bytes)  # fmt: skip
