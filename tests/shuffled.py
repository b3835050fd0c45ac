"""Runs tests in random order, files and the tests in them: `pytest -p shuffled --shuffled=SEED`.

Random numbers of the tests themselves stay as they are, which pytest-randomly would change.
"""

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffled", type=int, default=0, metavar="SEED", help="order of the tests")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = random.Random(config.getoption("--shuffled"))
    files: dict[str, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):  # alike in every process of xdist
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = list(files)
    order.shuffle(names)
    for name in names:
        order.shuffle(files[name])
    items[:] = [item for name in names for item in files[name]]
