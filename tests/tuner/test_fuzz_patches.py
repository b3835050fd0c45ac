"""Thousands of corrupted patches in every loader; a longer run is `python tests/fuzz_patches.py --cases N --seed S`."""

from pathlib import Path

import pytest
from fuzz_patches import BAD, Fuzzer

CASES, PARTS = 3200, 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_corrupted_patches(part: int, tmp_path: Path) -> None:
    fuzzer = Fuzzer(0, tmp_path)
    for number in range(part, CASES, PARTS):
        fuzzer.case(number)
    assert {name: fuzzer.counts[name] for name in BAD} == dict.fromkeys(BAD, 0), "\n".join(fuzzer.found[:20])
    assert fuzzer.counts["taken"] > CASES / PARTS / 100
    assert fuzzer.counts["refused"] > CASES / PARTS / 2
