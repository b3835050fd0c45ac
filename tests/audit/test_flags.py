"""Every flag that the code can put up is explained: on the page of a report, and in the docs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import loraguard.audit
from loraguard.audit.glossary import FLAG_HELP

ROOT = Path(__file__).parents[2]


def named(source: Path) -> set[str]:
    """The names that a module gives to checks: first arguments of `Check` and of what makes checks of attacks."""
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    makers = [one for one in calls if isinstance(one.func, ast.Name) and one.func.id in ("Check", "compared")]
    first = [one.args[0] for one in makers if one.args]
    return {one.value for one in first if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def test_every_flag_of_the_code_is_explained() -> None:
    names = set().union(*map(named, Path(loraguard.audit.__file__).parent.glob("*.py")))
    assert names == set(FLAG_HELP)


def test_flags_are_named_where_their_subject_is_explained() -> None:
    named_in = {
        "channels.md": {"channel-does-nothing"},
        "data.md": {"same-photos-twice", "fitted-on-these-photos", "trained-on-these-photos"},
        "audit.md": {"perturbed-by-another", "photos-not-perturbed"},
    }
    for page, flags in named_in.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        links = set(re.findall(r"\(audit-checks\.md#([a-z-]+)\)", text))
        assert flags <= links & set(FLAG_HELP), page
