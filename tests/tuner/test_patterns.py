"""Patterns in a stranger's config: a small part of regular expressions, each of which ends soon."""

import copy
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from fuzz_patches import Net, patience
from peft import PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from spoiling import PATTERNS

from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.naming import name_layers
from loraguard.tuner.patterns import check_pattern

FOR_EVER = [*PATTERNS, r"(a+)+$", r"(a|b)*c", r"((a*)b)*", r"(x(y+)){2,}", r"(?:\w+\.)*conv", "(.*)*x", "(a|a|a){9}X"]


@pytest.mark.parametrize("pattern", FOR_EVER, ids=lambda pattern: pattern[:30])
def test_patterns_that_may_take_for_ever(pattern: str) -> None:
    """They are refused, or end at once on a name that they do not match."""
    refused = ""
    with patience():
        try:
            check_pattern("target_modules", pattern)
        except ValueError as error:
            refused = str(error)
        else:
            assert re.fullmatch(pattern, "encoder.layers.11.attention.output.dense.projection_to_nowhere") is None
    assert len(refused) < 450
    assert pattern.startswith("a{9") or re.search("more than 10,000 ways|no reg|may have|at most|deep", refused)


HARMLESS = {
    r".*\.conv\d+": 65 * 64, r"down|up": 2, r"^main\.(0|1)\.conv[0-9]*": 2 * 65, r"a\(b\)+": 64, r"(ab)+": 64,
    r"[(*+]+": 64, r"[]a]?": 2, r"(?:q|k|v)_proj$": 3, r"layers\.\d{1,2}\.fc": 2, r".*attn.*": 65 * 65, "x{3}": 1,
    "x{,2}": 3,
}  # fmt: skip


@pytest.mark.parametrize("pattern", HARMLESS)
def test_harmless_patterns(pattern: str) -> None:
    assert check_pattern("target_modules", pattern) == HARMLESS[pattern]


@pytest.mark.parametrize(
    "pattern", ["(?i)a", "(?=a)", r"(.)\1", "a*+", "a++", "(?>a)", r"\bx", "(?P<n>a)", "a**", "(a", "a{2}{2}"]
)
def test_what_is_no_part_of_them(pattern: str) -> None:
    with pytest.raises(
        ValueError, match=r"target_modules=.*(which no pattern in a file may have|no regular expression)"
    ):
        check_pattern("target_modules", pattern)


def test_names_that_peft_and_we_write_as_patterns() -> None:
    for name in ("main.0", "up-1", "a b", "x$y", "ü.é", "a+b", "(c)", "[d]", "{e}", "f|g", "#h", "&~i"):
        assert check_pattern("rank_pattern", re.escape(name)) == 1
        assert check_pattern("rank_pattern", f"^{re.escape(name)}") == 1
    names = [f"encoder.layers.{i}.attention.query" for i in range(2000)]
    assert check_pattern("target_modules", "|".join(map(re.escape, names))) == 2000


def test_ways_are_counted_as_they_are_tried() -> None:
    """On a name of one letter that ends otherwise, `re` must try every way; here each is written out and tried."""
    parts = {"a": [1], "a?": [0, 1], "a{1,3}": [1, 2, 3], "(a|aa)": [1, 2], "(?:a?a)?": [0, 1, 2]}
    for one, two, three in product(parts, repeat=3):
        ways = sum(1 for _ in product(parts[one], parts[two], parts[three]))
        assert check_pattern("target_modules", one + two + three) == ways


def test_many_ranks_are_few_patterns() -> None:
    """As PEFT compiles each pattern anew for each layer."""
    names = [f"block.{i}.conv" for i in range(300)]
    ranks = {f"^{re.escape(name)}": 2 + i % 3 for i, name in enumerate(names)}
    config = GatedLoraConfig(target_modules=names, rank_pattern=ranks)
    name_layers(config, names, ["block"])
    assert len(config.rank_pattern) == 3
    assert GatedLoraConfig.check_kwargs(peft_type="GATED_LORA", rank_pattern=config.rank_pattern)
    with pytest.raises(ValueError, match=r"rank_pattern has 300 texts of .* at most 250"):
        GatedLoraConfig.check_kwargs(peft_type="GATED_LORA", rank_pattern=ranks)
    for i, name in enumerate(names):
        assert config.rank_pattern[get_pattern_key(list(config.rank_pattern), name)] == 2 + i % 3


def test_what_was_saved_loads_whatever_its_patterns_were(tmp_path: Path) -> None:
    """Patterns of one's own may be any; in the file are names in their place."""
    torch.manual_seed(0)
    net = Net().double()
    config = GatedLoraConfig(
        r=2, init_lora_weights="paper", target_modules="(?!norm|other|words).+", exclude_modules="(?=x)y",
        rank_pattern={"(?i:DOWN)": 3}, alpha_pattern={"(u)p": 7, "(?=d)down": 5},
    )  # fmt: skip
    model = get_peft_model(copy.deepcopy(net), config).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net.eval(), tmp_path)
    saved = loaded.peft_config["default"]
    assert (saved.target_modules, saved.exclude_modules) == ({"down", "up"}, None)
    assert (saved.rank_pattern, saved.alpha_pattern) == ({"^down": 3}, {"^down": 5, "^up": 7})
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=1e-12)
