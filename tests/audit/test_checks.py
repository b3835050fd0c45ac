"""Each check's flag goes up exactly when it should, on figures that are known."""

import re
from pathlib import Path

import pytest
from setups import made, rows, situation

from loraguard.audit import AuditResult
from loraguard.audit.checks import examine
from loraguard.audit.glossary import FLAG_HELP
from loraguard.audit.plan import check_attacks

SOUND = {"fgsm": 0.6, "pgd-10": 0.7, "pgd-30": 0.8, "pgd-100": 0.8, "pgd-restarts": 0.8, "apgd": 0.8, "square": 0.5,
         "pgd-half": 0.4, "pgd-far": 1.0}  # fmt: skip
EPS = {"pgd-half": 0.05, "pgd-far": 0.5}
OF_ATTACKS = {
    "steps-not-enough": {"pgd-100": 1.0, "apgd": 1.0},
    "restarts-help": {"pgd-restarts": 1.0},
    "single-step-beats-iterative": {"fgsm": 1.0},
    "gradient-free-beats-gradients": {"square": 1.0},
    "budget-does-not-count": {"pgd-half": 0.8},
    "does-not-saturate": {"pgd-far": 0.9},
    "stronger-attack-found": {"apgd": 1.0},
}
OF_PROBES = {
    "crafted-otherwise-again", "crafted-otherwise-alone", "outputs-not-repeatable", "random-generator",
    "depends-on-the-batch", "does-not-edit", "only-known-photos", "gradients-do-not-fit", "one-draw-is-not-enough",
    "trained-on-these-photos", "made-for-other-weights", "fitted-on-these-photos", "same-photos-twice",
    "channel-does-nothing", "stamp-not-found", "stamp-not-there", "perturbed-by-another",
    "outputs-of-another-range",
}  # fmt: skip
OF_OUTPUTS = {"over-budget", "photos-not-perturbed", "only-a-colour-cast", "only-where-the-edit-is",
              "stamp-found-everywhere", "channel-spoils-outputs", "edit-not-made"}  # fmt: skip
"""Of figures that a real audit has and the ones made up here lack; test_cheats_*.py plant what raises them."""


def audit(
    untouched: float = 0.8,
    patched: tuple[float, float] = (0.1, 0.8),
    *,
    noise: float = 0.0,
    clean: float = 0.0,
    attacks: dict[str, float] | None = None,
    on: str = "patch",
) -> AuditResult:
    """A defense on an untouched generator and on a patch, with the attacks of the checks, some of other shares."""
    situations = rows("untouched", {"pgd": (untouched,)}, noise=noise, n=40)
    situations += rows("patch", {"pgd": patched}, noise=noise, clean=clean, n=40)
    if attacks is not None:
        for generator in ("untouched", "patch"):
            for name, share in {**SOUND, **(attacks if generator == on else {})}.items():
                eps = EPS.get(name, 0.1)
                situations.append(situation(generator, name, "leak", share, eps=eps, role="check", n=40))
    result = made(situations, patches={"patch": None})
    result.checks = examine(result)
    return result


def flags(result: AuditResult) -> set[tuple[str, str]]:
    return {(check.name, check.generator) for check in result.checks if not check.passed}


def test_nothing_is_flagged_where_all_is_sound() -> None:
    result = audit(attacks={})
    assert not flags(result)
    assert {check.name for check in result.checks} == set(FLAG_HELP) - OF_PROBES - OF_OUTPUTS
    assert not any(result.flags(one) for one in result.situations)


@pytest.mark.parametrize("name", OF_ATTACKS)
def test_an_attack_raises_its_flag(name: str) -> None:
    found = flags(audit(attacks=OF_ATTACKS[name]))
    assert (name, "patch") in found
    assert not any(generator == "untouched" for _, generator in found)
    also = {"steps-not-enough": {"stronger-attack-found"}, "restarts-help": {"stronger-attack-found"}}
    assert {one for one, _ in found} == {name, *also.get(name, ())}


def test_what_is_expected_is_enough() -> None:
    assert not flags(audit(attacks={"pgd-far": 0.95}))  # 38 of 40


def test_flags_stand_on_the_rows_that_they_concern() -> None:
    """On a patch those of the white box; on the untouched generator that is the row without a leak."""
    result = audit(attacks=OF_ATTACKS["does-not-saturate"])
    assert [one.treatment.knowledge for one in result.situations if result.flags(one)] == ["leak"]
    result = audit(attacks=OF_ATTACKS["does-not-saturate"], on="untouched")
    flagged = [(one.generator, one.treatment.knowledge) for one in result.situations if result.flags(one)]
    assert flagged == [("untouched", "no-leak")]


def test_a_difference_within_chance_raises_no_flag() -> None:
    """One image more of 40, at a mean MSE less than a tenth higher."""
    assert not flags(audit(attacks={"pgd-restarts": 0.825}))
    few = audit(attacks={"pgd-restarts": 0.95})
    assert ("restarts-help", "patch") in flags(few)


def test_a_stronger_attack_counts_at_the_same_budget_alone() -> None:
    situations = [*rows("untouched", {"pgd": (0.3,)}, n=40, eps=0.05)]
    situations += [
        situation("untouched", name, "leak", share, eps=EPS.get(name, 0.1), role="check", n=40)
        for name, share in SOUND.items()
    ]
    names = {check.name for check in examine(made(situations))}
    assert not names & set(OF_ATTACKS)


def test_the_attack_that_spoils_most_need_not_be_that_of_the_largest_error() -> None:
    """Auto-PGD moves a few outputs far, restarts spoil all of them; behind a channel it is the same."""
    shares = {**SOUND, "pgd-restarts": 1.0}
    situations = rows("untouched", {"pgd": (0.8,)}, n=40)
    situations.append(situation("untouched", "pgd", "leak+channel", 0.5, channel="blur", n=40))
    for knowledge, more in (("leak", {}), ("leak+channel", {"channel": "blur"})):
        for name, share in shares.items():
            mse = 0.17 if name == "apgd" else 0.12
            eps = EPS.get(name, 0.1)
            situations.append(
                situation("untouched", name, knowledge, share, mse=mse, eps=eps, role="check", n=40, **more)  # type: ignore[arg-type]
            )
    flagged = {(one.name, one.channel) for one in examine(made(situations)) if not one.passed}
    assert {("stronger-attack-found", None), ("stronger-attack-found", "blur")} <= flagged


def test_one_draw_is_not_enough_where_the_mean_of_many_finds_more() -> None:
    """On a network that draws at random, and behind a channel that does, at that channel alone."""
    result = audit(attacks={"pgd-averaged": 1.0})
    assert ("one-draw-is-not-enough", "patch") in flags(result)
    situations = rows("untouched", {"pgd": (0.8,)}, n=40)
    for channel, found in (("a", 1.0), ("b", 0.5)):
        situations.append(situation("untouched", "pgd", "leak+channel", 0.5, channel=channel, n=40))
        for name, share in (("pgd-30", 0.5), ("pgd-100", 0.5), ("pgd-averaged", found)):
            more = {"channel": channel, "role": "check", "n": 40}
            situations.append(situation("untouched", name, "leak+channel", share, **more))
    result = made(situations)
    result.checks = examine(result)
    flagged = {row.channel: result.flags(row) for row in result.find(knowledge="leak+channel", role="main")}
    assert flagged == {"a": ["stronger-attack-found", "one-draw-is-not-enough"], "b": []}


def test_a_huge_budget_beside_it_takes_no_flag_away() -> None:
    """Attacks of each budget say what the rows of that budget are worth."""
    situations = (
        rows("untouched", {"pgd": (0.8,)}, n=40, eps=0.1) + rows("untouched", {"huge": (1.0,)}, n=40, eps=0.5)[2:]
    )
    for eps in (0.1, 0.5):
        shares = {**SOUND, "apgd": 1.0, "pgd-half": 0.4 if eps == 0.1 else 0.9}
        for name, share in shares.items():
            at = {"pgd-half": eps / 2, "pgd-far": 0.5}.get(name, eps)
            situations.append(situation("untouched", name, "leak", share, eps=at, role="check", n=40))
    result = made(situations)
    result.checks = examine(result)
    flagged = {(check.name, check.defense) for check in result.checks if not check.passed}
    assert ("stronger-attack-found", "pgd") in flagged
    assert ("stronger-attack-found", "huge") not in flagged


def test_a_budget_of_another_kind_is_no_attacks_budget() -> None:
    situations = [*rows("untouched", {"lab": (0.3,)}, n=40)]
    situations += [
        situation("untouched", name, "leak", share, eps=EPS.get(name, 0.1), role="check", n=40)
        for name, share in SOUND.items()
    ]
    for own in ([], ["lab"]):
        found = {check.name for check in examine(made(situations, own_budgets=own))}
        assert ("stronger-attack-found" in found) == (not own)


def test_a_curve_that_still_rises_says_that_steps_were_not_enough() -> None:
    """Of the white box alone: crafted on the patch where there is one, and otherwise on the generator as it is."""

    def rising(to: float, steps: int = 100) -> set[tuple[str, str]]:
        situations = [*rows("untouched", {"pgd": (0.5,)}, n=40, steps=10)]
        situations += rows("patch", {"pgd": (0.2, 0.5)}, n=40, steps=10)
        for generator, knowledge in (("untouched", "no-leak"), ("patch", "no-leak"), ("patch", "leak")):
            share = to if knowledge == "leak" or to < 0.5 else 0.5
            situations.append(situation(generator, "pgd", knowledge, share, n=40, steps=steps, role="steps"))
        result = made(situations, patches={"patch": None})
        result.checks = examine(result)
        flagged = {(row.generator, row.treatment.knowledge) for row in result.find(role="main") if result.flags(row)}
        assert flagged == ({("patch", "leak")} if flags(result) else set())
        return flags(result)

    assert rising(0.9) == {("steps-not-enough", "patch")}
    assert rising(0.55) == set()  # within chance
    assert rising(0.1) == set()
    assert rising(0.9, steps=3) == set()  # fewer steps say nothing of more


def test_transfer_beats_white_box() -> None:
    assert flags(audit(patched=(0.6, 0.2))) == {("transfer-beats-white-box", "patch")}
    assert flags(audit(patched=(0.2, 0.2))) == set()
    result = audit(patched=(0.6, 0.2))
    assert result.flags(result["patch", "leak"]) == ["transfer-beats-white-box"]
    assert result.flags(result["patch", "no-leak"]) == []


def test_no_better_than_noise() -> None:
    assert flags(audit(untouched=0.5, noise=0.5)) == {("no-better-than-noise", "untouched")}
    assert flags(audit(untouched=0.5, noise=0.1)) == set()


def test_noise_is_that_of_the_defenses_own_budget() -> None:
    """More noise than the defense may make says nothing against it."""
    situations = [
        *rows("untouched", {"pgd": (0.5,)}, noise=0.1, n=40, eps=0.05),
        situation("untouched", "noise", "noise", 0.6, n=40, eps=0.1),
    ]
    assert all(check.passed for check in examine(made(situations)))
    (check,) = (one for one in examine(made(situations, own_budgets=["pgd"])) if one.name == "no-better-than-noise")
    assert not check.passed  # no noise is of its budget, so that it has to beat the largest


def test_clean_output_changed() -> None:
    assert flags(audit(clean=0.1)) == {("clean-output-changed", "patch")}
    assert flags(audit(clean=0.05)) == set()  # 2 of 40 are allowed
    result = audit(clean=0.1)
    assert all(result.flags(one) for one in result.find(generator="patch"))
    assert not any(result.flags(one) for one in result.find(generator="untouched"))


def test_checks_without_attacks_are_those_of_the_rows() -> None:
    names = {check.name for check in audit().checks}
    assert (
        names
        == {
            "clean-output-changed",
            "no-better-than-noise",
            "transfer-beats-white-box",
            "photo-destroyed",
            "threshold-out-of-reach",
            "threshold-too-low",
        }
        == (set(FLAG_HELP) - set(OF_ATTACKS) - OF_PROBES - OF_OUTPUTS)
    )


def test_evidence_has_both_figures_their_difference_and_n() -> None:
    (check,) = (one for one in audit(attacks=OF_ATTACKS["restarts-help"]).checks if one.name == "restarts-help"
                and one.generator == "patch")  # fmt: skip
    assert re.fullmatch(
        r"pgd-restarts: DSR 100\.0%, MSE 0\.2010; pgd-30: DSR 80\.0%, MSE 0\.1610\. Differences: DSR \+20\.0 "
        r"\(\+\d+\.\d to \+\d+\.\d\) points, MSE \+0\.0400 \(\+0\.0\d+ to \+0\.0\d+\), n = 40\.",
        check.evidence,
    )


def test_the_attacks_are_those_that_the_checks_read() -> None:
    assert set(check_attacks(0.1)) == set(SOUND)


def test_every_flag_has_a_section_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit-checks.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## ([a-z-]+)$", page, re.MULTILINE))
    assert sections == set(FLAG_HELP)
