"""What an audit says, on figures that are known."""

import pytest
import torch
from setups import made, rows, situation

from loraguard.audit import AuditResult, table, verdict
from loraguard.audit.checks import Check, examine
from loraguard.audit.claim import claim
from loraguard.audit.tables import tables
from loraguard.audit.words import budget_words, story, tried
from loraguard.defenses import AntiForgery, Disrupting

STAMPED = {"text": "AI", "image": None}


def audit(
    untouched: dict[str, tuple[float, ...]],
    standard: dict[str, tuple[float, ...]] | None = None,
    noise: float | None = 0.0,
    clean: float = 0.0,
    n: int = 100,
) -> AuditResult:
    situations = rows("untouched", untouched, noise=noise, n=n)
    situations += rows("standard", standard, clean=clean, n=n) if standard else []
    result = made(situations, patches={"standard": None} if standard else {})
    if clean > 0.05:
        result.checks = [Check("clean-output-changed", False, "standard", None, ("clean", "no-leak", "leak"), "")]
    return result


@pytest.mark.parametrize(
    ("standard", "reads"),
    [
        ((0.9, 0.9), "The protection holds against what was tried"),
        ((0.95, 0.95), "The protection holds against what was tried"),
        ((0.6, 0.6), "An adversary who adapts undoes some of it"),
        ((0.3, 0.4), "An adversary who adapts undoes much of it"),
        ((0.0, 0.2), "An adversary who adapts undoes nearly all of it"),
        ((0.0, 0.9), "An adversary who adapts undoes nearly all of it, unless the defender has the adapted generator"),
    ],
)
def test_the_headline_follows_the_figures(standard: tuple[float, float], reads: str) -> None:
    result = audit({"pgd": (0.95,)}, {"pgd": standard})
    assert claim(result)[0] == reads
    assert verdict(result)[0].startswith(
        f"{reads}: pgd spoils 95.0% of the untouched generator's edits; with the patch "
    )
    assert f"{standard[0]:.1%}" in verdict(result)[0]
    assert ("if the defender has that generator as well" in verdict(result)[0]) == (standard[1] > standard[0])


def test_a_defense_that_is_none() -> None:
    assert verdict(audit({"pgd": (0.3,)}))[0] == (
        "No protection to speak of, even where nobody adapts: pgd spoils 30.0% of the untouched generator's edits, "
        "random noise 0.0%."
    )
    assert verdict(audit({"pgd": (0.9,)}, noise=0.9))[0].startswith("No protection to speak of")
    best = "the best of 2 defenses, pgd spoils 30.0% of the untouched generator's edits."
    assert best in verdict(audit({"pgd": (0.3,), "cw": (0.2,)}, noise=None))[0]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_few_photos_are_no_proof(share: float) -> None:
    """Of 4 photos, where the exact binomial interval of none goes to 1 - 0.025^(1/4), 60.2%; of 100 it is clear."""
    says = {0.0: "from 0.0% to 60.2%", 1.0: "from 39.8% to 100.0%"}[share]
    few, many = (verdict(audit({"pgd": (share,)}, noise=None, n=n))[0] for n in (4, 100))
    assert few.startswith("Too few photos to conclude anything (4; at least 10): ")
    assert few.endswith(f" On so few photos that may be anything {says}.")
    assert "few photos" not in many


def test_photos_on_either_side_of_half_say_so() -> None:
    first = verdict(audit({"pgd": (0.6,)}, n=20))[0]
    assert first.startswith("Not clear whether it protects, even where nobody adapts: pgd spoils 60.0% ")
    assert first.endswith(" On so few photos that may be anything from 36.1% to 80.9%.")  # SciPy's binomtest(12, 20)


def test_few_photos_do_not_tell_what_is_undone() -> None:
    """Of 12 photos 10 and 8 are spoilt: the share lost may be none or most."""
    first = verdict(audit({"pgd": (10 / 12,)}, {"pgd": (8 / 12, 8 / 12)}, n=12))[0]
    assert first.startswith("It works where nobody adapts, and too few photos tell what an adversary who adapts undoes")


def test_the_best_of_many_alike_is_not_said_to_work() -> None:
    """By chance one of sixteen that spoil 45% of 20 photos spoils 65%; picked from so many that is no evidence."""
    alike = {f"d{i}": (0.65 if i == 7 else 0.45,) for i in range(16)}
    assert verdict(audit(alike, n=20))[0].startswith("Not clear whether it protects")
    assert verdict(audit({"d7": (0.85,)}, n=20))[0].startswith("It works where nobody adapts")


def test_the_best_of_many_adversaries_alike_is_not_said_to_undo_anything() -> None:
    """By chance one of sixteen that are as the untouched generator spares 8 of 40 photos; that is no evidence."""
    alike = {"pgd": (0.95, 0.95)}

    def reads(*names: str) -> str:
        situations = rows("untouched", alike, n=40)
        for name in names:
            situations += rows(name, {"pgd": (0.8, 0.8)} if name == "lucky" else alike, n=40)
        return claim(made(situations))[0]

    assert reads("lucky").startswith("An adversary who adapts undoes some of it")
    assert not reads("lucky", *(f"g{i}" for i in range(15))).startswith("An adversary")


def test_a_channel_that_takes_the_protection_is_in_the_headline() -> None:
    """Whoever saves a photo as JPEG is nobody who adapts."""
    found = rows("untouched", {"pgd": (0.95,)}, n=40)
    found += [situation("untouched", "pgd", "no-leak", share, n=40, channel=one)
              for one, share in (("jpeg:75", 0.1), ("png", 0.95))]  # fmt: skip
    for adapted, start in (({}, "It works where nobody adapts"), ({"pgd": (0.95,)}, "The protection holds against")):
        reads, figures = claim(made(found + (rows("mine", adapted, n=40) if adapted else [])))
        assert reads.startswith(start)
        assert reads.endswith(", but only where photos stay as they are")
        assert figures.startswith("pgd spoils 95.0% of the untouched generator's edits, and 10.0% behind jpeg:75;")
    assert "stay as they are" not in claim(made([*found[:3], found[4]]))[0]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_flags_are_in_the_headline_where_nobody_adapts(share: float) -> None:
    result = audit({"pgd": (share,)}, n=20)
    names = ("fitted-on-these-photos", "no-better-than-noise")
    result.checks = [Check(name, False, "untouched", "pgd", ("no-leak",), "") for name in names]
    said = "Under the flag fitted-on" if share == 0.2 else "Under the flags fitted-on-these-photos and no-better"
    assert said in verdict(result)[0]


@pytest.mark.parametrize(("psnr", "flagged"), [(45.0, True), (30.0, False)])
def test_a_success_that_nobody_sees_is_none(psnr: float, flagged: bool) -> None:
    """Every output is over so low a threshold; where it keeps 45 dB it looks as it should."""
    result = audit({"pgd": (0.95,)}, n=40)
    result["untouched", "no-leak"].values["psnr"][:] = psnr
    result.settings["success"] = "mse:0.0001"
    result.checks = examine(result)
    reads = "The threshold of success counts what nobody sees: pgd spoils 95.0%"
    assert verdict(result)[0].startswith(reads) == flagged
    assert any(one.name == "threshold-too-low" and not one.passed for one in result.checks) == flagged


def test_destroyed_photos_are_no_protection() -> None:
    result = audit({"pgd": (0.95,)}, {"pgd": (0.95, 0.95)})
    result.checks = [Check("photo-destroyed", False, "untouched", "pgd", ("no-leak",), "")]
    assert verdict(result)[0].startswith("No protection that leaves the photos what they are: pgd spoils 95.0%")


@pytest.mark.parametrize(
    "flag", ["does-not-edit", "only-known-photos", "outputs-not-repeatable", "depends-on-the-batch"]
)
def test_a_network_that_does_not_edit_undoes_nothing(flag: str) -> None:
    result = audit({"pgd": (0.95,)}, {"pgd": (0.0, 0.0)})
    result.checks = [Check(flag, False, "standard", None, ("clean", "no-leak", "leak"), "")]
    assert verdict(result)[0].startswith("It works where nobody adapts: ")


def test_nobody_who_adapts() -> None:
    for result in (audit({"pgd": (0.9,)}), audit({"pgd": (0.9,)}, {"pgd": (0.0, 0.0)}, clean=0.5)):
        assert claim(result)[0] == "It works where nobody adapts"
        assert "no patch that edits as it should was audited" in verdict(result)[0]


def test_many_defenses_and_what_a_patch_is_compared_with() -> None:
    names = [f"d{i}" for i in range(12)]
    situations = rows("untouched", {name: (0.5 + 0.04 * i,) for i, name in enumerate(names)})
    for generator, share in (("standard", 0.3), ("ungated", 0.1), ("fine-tune", 0.0), ("other", 0.5)):
        situations += rows(generator, {name: (share + 0.01 * (i == 3) * 5, share) for i, name in enumerate(names)})
    result = made(situations, patches={"standard": None, "ungated": None})
    first, untouched, standard, ungated, tuned, other = verdict(result)
    assert "with the fine-tuned generator the best defense, d3, spoils 5.0%" in first
    assert "12 defenses spoil 50.0% (d0) to 95.0% (d11) of the edits" in untouched
    assert standard.startswith("With the patch 'standard' 12 defenses spoil 30.0% (d0) to 35.0% (d3) when")
    assert "and 30.0% each when the defender has it and attacks it" in standard
    assert ungated.startswith("With the ungated patch ")
    assert tuned.startswith("With the fine-tuned generator ")
    assert other.startswith("With the network 'other' ")
    assert "fine-tune, all of its weights trained as the patch is" in tried(result)["Generators"]


def test_stamps_are_said_where_somebody_looked() -> None:
    shares = {"pgd": (0.9, 0.9), "cw": (0.8, 0.8)}
    looked = [*rows("untouched", shares, stamp_rate=0.0), *rows("warns", shares, stamp_rate=0.95)]
    assert verdict(made(looked, patches={"warns": STAMPED}))[-1] == (
        "The patch 'warns' stamps 'AI' on 95.0% of clean outputs, at least 95.0% of defended ones, at least 95.0% when "
        "the defender has it and attacks it."
    )
    blind = made([*rows("untouched", shares), *rows("warns", shares)], patches={"warns": STAMPED})
    assert verdict(blind)[-1] == "The patch 'warns' stamps its outputs; no detector was there to look for that."
    assert story(made(looked, patches={"warns": STAMPED}))[-1][1] == "With the patch 'warns': 95.0% carry the warning"


def test_flags_stand_beside_what_they_concern() -> None:
    result = audit({"pgd": (0.95,)}, {"pgd": (0.0, 0.1)})
    names = ("restarts-help", "steps-not-enough", "does-not-saturate", "stronger-attack-found")
    result.checks = [Check(name, False, "standard", None, ("leak",), "") for name in names[:2]]
    first, untouched, standard = verdict(result)
    assert first.endswith(
        "Under the flags restarts-help and steps-not-enough: these figures may not be what they seem."
    )
    assert standard.endswith("Under the flags restarts-help and steps-not-enough.")
    assert "flag" not in untouched
    result.checks = [Check(name, False, "standard", None, ("leak",), "") for name in names]
    assert verdict(result)[-1].endswith("Under the flags restarts-help, steps-not-enough and 2 more.")
    result.checks = [Check(name, True, "standard", None, ("leak",), "") for name in names]
    assert not any("flag" in sentence for sentence in verdict(result))


def test_channels_have_a_sentence_of_their_own() -> None:
    situations = rows("untouched", {"pgd": (0.95,)})
    situations += [
        situation("untouched", "pgd", "no-leak", share, channel=name) for name, share in (("a", 0.5), ("b", 0.2))
    ]
    situations += [situation("untouched", "pgd", "leak+channel", 0.7, channel="b")]
    assert verdict(made(situations))[-1] == (
        "Behind b, of 2 channels the one that costs defenses most, the best defense (pgd) spoils 20.0% of the "
        "untouched generator's edits, and 70.0% (pgd) if the defender crafts through it."
    )


def test_who_knows_a_channel_may_do_more_against_a_patch_than_who_does_not() -> None:
    situations = [*rows("untouched", {"pgd": (0.95,)}), *rows("standard", {"pgd": (0.0, 0.1)})]
    situations += [situation("untouched", "pgd", "no-leak", 0.5, channel=name) for name in "ab"]
    situations += [situation("standard", "pgd", "leak+channel", x, channel=n) for n, x in (("a", 0.5), ("b", 0.2))]
    assert verdict(made(situations, patches={"standard": None}))[-1] == (
        "With the patch 'standard', of all who have it and know the channel, pgd behind a spoils most: 50.0%."
    )


def test_noise_of_several_budgets_is_told_apart() -> None:
    situations = [*rows("untouched", {"pgd": (0.9,)}), situation("untouched", "noise", "noise", 0.1, eps=0.2)]
    result = made(situations)
    labels = [row[1] for row in table(result)[1]]
    assert labels == ["as it is", "random noise, eps 0.1", "pgd, no leak", "random noise, eps 0.2"]
    assert "(random noise of the largest budget: 10.0%)" in verdict(result)[1]


def test_what_was_tried() -> None:
    situations = rows("untouched", {"pgd": (0.95,)}, seeds=3)
    situations += [situation("untouched", "pgd", "no-leak", 0.5, eps=eps, role="budget") for eps in (0.05, 0.2)]
    situations += [situation("untouched", name, "leak", 0.5, n=4, role="check") for name in ("fgsm", "square")]
    result = made(situations)
    result.checks = [Check(name, name == "a", "untouched", None, (), "") for name in "abc"]
    found = tried(result)
    assert found["Photos"] == "20, on each of them one of 2 edits: Blond, Smiling."
    assert found["Spoilt"] == "An edit counts as spoilt with MSE over 0.05; the share of such edits is the DSR."
    assert found["Budget"] == (
        "Colour values change by up to 12.8 of 255 levels; photos keep 35.0 dB PSNR to the originals."
    )
    assert found["More budgets"] == "0.05 and 0.2."
    assert "More steps" not in found
    assert found["Chance"].startswith("Everything random was drawn 3 times (seeds 0, 1 and 2)")
    assert found["Checks"] == ("2 further attacks on 4 photos tried to prove the figures wrong. 2 of 3 checks failed.")
    assert tried(audit({"pgd": (0.9,)}))["Checks"] == "No further attacks tried to prove the figures wrong."


def test_how_far_a_budget_of_its_own_kind_goes_is_measured() -> None:
    """A budget of 0.1 in Lab is not 12.8 levels of a colour value."""
    shares: dict[str, tuple[float, ...]] = {"pgd": (0.95,), "lab": (0.9,)}
    result = made(rows("untouched", shares), own_budgets=["lab"])
    for one in result.find(defense="lab"):
        one.values["photo_linf"] = torch.tensor([[0.1, 0.5]])
    assert tried(result)["Budget"].startswith(
        "Colour values change by up to 12.8 of 255 levels; in photos of lab, which has a budget of another kind, by up "
        "to 63.8, as measured; photos keep"
    )


def test_a_budget_of_its_own_kind_is_not_called_l_infinity_on_images() -> None:
    assert budget_words({"pgd": Disrupting(0.05), "again": Disrupting(0.05), "lab": AntiForgery(), "given": [0]}) == (
        f"L-infinity 0.05 on [-1, 1], that is 6.38/255; lab: {AntiForgery().eps:g}, {AntiForgery.budget}"
    )


def test_attacks_that_drive_up_something_else_are_said() -> None:
    """Checks maximise the MSE, whatever counts as success."""
    attack = situation("untouched", "pgd-30", "leak", 0.5, role="check")
    for success, said in (("mse:0.05", False), ("noise:0.95", False), ("lpips:0.3", True)):
        result = made([*rows("untouched", {"d": (0.9,)}), attack], success=success)
        assert ("They drive up the MSE, and not the LPIPS that counts here" in tried(result)["Checks"]) == said


def test_another_threshold_of_success_stands_in_the_headline() -> None:
    """Nobody can know what "spoils 95% of the edits" means where the usual threshold is not meant."""
    result = made(rows("untouched", {"pgd": (0.95,)}), success="mse:0.002")
    assert "pgd spoils 95.0% of the untouched generator's edits (MSE over 0.002)" in verdict(result)[0]
    assert "(MSE" not in verdict(made(rows("untouched", {"pgd": (0.95,)}), success="mse:0.05"))[0]
    assert tried(result)["Spoilt"].startswith("An edit counts as spoilt with MSE over 0.002;")


def test_every_table_names_the_flags_of_its_defenses() -> None:
    result = made(rows("untouched", {"pgd": (0.95,), "loud": (1.0,)}, seeds=2))
    assert "flags" not in tables(result)[0].text
    result.checks = [Check("photo-destroyed", False, "untouched", "loud", ("no-leak",), "")]
    assert tables(result)[0].text.endswith(" Under flags on the untouched generator: loud (photo-destroyed).")
