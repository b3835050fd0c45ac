"""How near each comparison of the suite comes to its tolerance, on this machine's kernels or on other ones.

    python tests/margins.py tests/channels/test_channels.py                   # this machine's kernels
    python tests/margins.py --other-kernel 4 tests/channels/test_channels.py  # every result rounds otherwise, by 4 eps
    python tests/margins.py --other-seed 1 tests/channels/test_channels.py    # torch draws other numbers everywhere

Arguments that are not its own are pytest's. It is a pytest plugin too: `PYTHONPATH=tests pytest -p margins`.

For each line that calls `torch.allclose`, `torch.testing.assert_close`, `np.allclose`, `np.testing.assert_allclose` or
compares with `pytest.approx`, and for each `assert x < 1e-5`, it keeps the largest observed error, divided by the
tolerance, and the test that had it, and prints all lines sorted by that. 1.0 is a failure; the aim is 0.1 or less under
`--other-kernel 4`, as another machine's kernels may be further off than that. For what must differ (`not
torch.allclose(...)`) the table has the smallest ratio, which must stay far above 1.

A test that fails under `--other-kernel` compares two computations whose last bits no kernel promises to be the same, or
asks for more digits than the dtype holds (`other_kernel.py` says what is disturbed, and what is left alone). One that
fails under `--other-seed` rests on luck: on a draw, or on a training that amplifies rounding. What `torch.compile` and
`torch.export` make cannot run under a mode: tests of it fail with words that say so, and are to be read by hand; so is
what runs in other processes, where nothing is disturbed.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_kernel import OtherKernel
from torch import Tensor
from torch.testing._comparison import default_tolerances
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[1]
NOTHING_NEARER = 1e3  # what must differ by more than this many tolerances is not shown
BELOW = re.compile(r"^\(?(?:tensor\()?(-?[\d.]+(?:e[-+]?\d+)?)[^<>=]*? <=? (-?[\d.]+(?:e[-+]?\d+)?)$", re.MULTILINE)


class Margins:
    """Nearest calls: per line of the suite, the ratio of error and tolerance, and the test."""

    def __init__(self) -> None:
        self.near: dict[str, tuple[float, str]] = {}  # must be equal: the largest ratio
        self.apart: dict[str, tuple[float, str]] = {}  # must differ: the smallest
        self.test = ""

    def note(self, ratio: float, site: str | None = None) -> None:
        site = site or _site()
        if ratio <= 1:
            self.near[site] = max(self.near.get(site, (-1.0, "")), (ratio, self.test))
        else:
            self.apart[site] = min(self.apart.get(site, (float("inf"), "")), (ratio, self.test))

    def merge(self, near: dict[str, tuple[float, str]], apart: dict[str, tuple[float, str]]) -> None:
        for site, (ratio, test) in near.items():
            self.near[site] = max(self.near.get(site, (-1.0, "")), (ratio, test))
        for site, (ratio, test) in apart.items():
            self.apart[site] = min(self.apart.get(site, (float("inf"), "")), (ratio, test))

    def lines(self) -> Iterator[str]:
        yield f"{len(self.near)} lines compare within a tolerance; the largest error / tolerance of each:"
        for site, (ratio, test) in sorted(self.near.items(), key=lambda item: -item[1][0]):
            yield f"{ratio:10.2e}  {site:45}  {test}"
        close = {site: found for site, found in self.apart.items() if found[0] < NOTHING_NEARER}
        if close:
            yield "What exceeded its tolerance (a failure, or a `not allclose`), the smallest of each:"
        for site, (ratio, test) in sorted(close.items(), key=lambda item: item[1][0]):
            yield f"{ratio:10.2e}  {site:45}  {test}"


MARGINS = Margins()


def _site() -> str:
    """The line of this repository that compares: the first frame outside libraries and outside this file."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<doctest"):
            return f"{name.removeprefix('<doctest ').removesuffix('>')} (doctest)"
        path = Path(name)
        if path.is_relative_to(ROOT) and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.to(torch.complex128 if value.is_complex() else torch.float64).numpy()
    found = np.asarray(value)
    return found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)


def ratio_of(actual: Any, expected: Any, rtol: float, atol: float) -> float:
    """The largest |actual - expected| / (atol + rtol |expected|); 0 where both are equal, even without a tolerance."""
    actual, expected = _array(actual), _array(expected)
    with np.errstate(all="ignore"):
        error = np.abs(actual - expected)
        ratio = error / (atol + rtol * np.abs(expected))
    equal = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    ratio = np.where(equal, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    return float(ratio.max()) if ratio.size else 0.0


def _torch_allclose(own: Callable[..., bool]) -> Callable[..., bool]:
    def allclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
        MARGINS.note(ratio_of(input, other, rtol, atol))
        return own(input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)

    return allclose


def _np_allclose(own: Callable[..., bool]) -> Callable[..., bool]:
    def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
        MARGINS.note(ratio_of(a, b, rtol, atol))
        return own(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)

    return allclose


def _np_assert_allclose(own: Callable[..., None]) -> Callable[..., None]:
    def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, **options: Any) -> None:
        MARGINS.note(ratio_of(actual, desired, rtol, atol))
        own(actual, desired, rtol=rtol, atol=atol, **options)

    return assert_allclose


def _assert_close(own: Callable[..., None]) -> Callable[..., None]:
    def assert_close(actual: Any, expected: Any, *, rtol: Any = None, atol: Any = None, **options: Any) -> None:
        for one, other in zip(tree_leaves(actual), tree_leaves(expected), strict=False):
            if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
                tolerances = (rtol, atol) if rtol is not None else default_tolerances(one, other)
                MARGINS.note(ratio_of(one, other, *tolerances))
        own(actual, expected, rtol=rtol, atol=atol, **options)

    return assert_close


def _approx_eq(own: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def __eq__(self: Any, actual: Any) -> bool:  # noqa: N807
        with contextlib.suppress(TypeError, ValueError):  # what is no number has no margin
            MARGINS.note(ratio_of(actual, self.expected, 0.0, self.tolerance))
        return own(self, actual)

    return __eq__


def _install() -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "allclose", _torch_allclose(torch.allclose))
    patch.setattr(np, "allclose", _np_allclose(np.allclose))
    patch.setattr(np.testing, "assert_allclose", _np_assert_allclose(np.testing.assert_allclose))
    patch.setattr(torch.testing, "assert_close", _assert_close(torch.testing.assert_close))
    scalar = type(pytest.approx(1.0))  # sequences, mappings and arrays compare their elements through it
    patch.setattr(scalar, "__eq__", _approx_eq(scalar.__eq__))
    return patch


def _other_seed(patch: pytest.MonkeyPatch, offset: int) -> None:
    own = torch.manual_seed
    for module in (torch, torch.random):
        patch.setattr(module, "manual_seed", lambda seed: own(int(seed) + offset))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("margins")
    group.addoption("--other-kernel", type=float, metavar="EPS", help="round otherwise, by so many eps")
    group.addoption("--kernel-number", type=int, default=0, metavar="N", help="which one of many such kernels")
    group.addoption("--other-seed", type=int, metavar="N", help="add N to each seed that torch is given")


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    yield
    patch = _install()
    session.config.add_cleanup(patch.undo)
    if session.config.getoption("--other-seed"):
        _other_seed(patch, session.config.getoption("--other-seed"))
    if session.config.getoption("--other-kernel"):
        mode = OtherKernel(session.config.getoption("--other-kernel"), session.config.getoption("--kernel-number"))
        mode.__enter__()
        session.config.add_cleanup(lambda: mode.__exit__(None, None, None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    MARGINS.test = item.nodeid
    return (yield)


def pytest_assertion_pass(item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
    found = BELOW.match(expl)
    if found and 0 < float(found[2]) < 0.1:
        path = Path(str(item.path)).relative_to(ROOT)
        MARGINS.note(abs(float(found[1])) / float(found[2]), f"{path}:{lineno} (<)")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["margins"] = (MARGINS.near, MARGINS.apart)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    MARGINS.merge(*getattr(node, "workeroutput", {}).get("margins", ({}, {})))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("margins")
    for line in MARGINS.lines():
        terminalreporter.write_line(line)


def main() -> int:
    if "--help" in sys.argv:
        print(__doc__)
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))  # for pytest-xdist
    with tempfile.TemporaryDirectory() as cache:  # for tests compiled with the hook by which `assert x < 1e-5` is seen
        sys.pycache_prefix = cache
        return pytest.main(["-p", "margins", "-o", "enable_assertion_pass_hook=true", "-n", "0", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
