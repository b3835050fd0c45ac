"""Defenses that are audited on a generator as it is, without an adapter."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from loraguard.audit import run_audit, write_report
from loraguard.data import DemoFaces
from loraguard.defenses import RandomNoise


def test_a_generator_as_it_is_is_audited_as_one_with_a_patch_that_is_off(
    model: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    """Defenses need no adapter. The network is as it was, modes included, and its figures are those beneath a patch."""
    bare = copy.deepcopy(model).unload().train()
    before, modes = bare.state_dict(), [module.training for module in bare.modules()]
    before = {name: value.clone() for name, value in before.items()}
    options = {"defenses": RandomNoise(0.1), "channels": ["jpeg:75"], "budgets": [0.05], "disable_tqdm": True}
    result = run_audit(bare, faces, **options, output_dir=tmp_path)
    assert {one.generator for one in result.situations} == {"untouched"}
    with pytest.raises(ValueError, match=r"which of the adapters \['defensive', 'standard'\] are patches"):
        run_audit(model, faces, **options)
    wrapped = run_audit(model, faces, **options, patches={})
    for one in wrapped.find(generator="untouched"):
        treated = one.treatment, one.channel
        (mine,) = [other for other in result.situations if (other.treatment, other.channel) == treated]
        # Rounding may move a few of an output's 768 values by a level, each times 2/768 of a difference of 0.1.
        torch.testing.assert_close(mine.values["mse"], one.values["mse"], rtol=0, atol=8 * 2 / 768 * 0.1 * 2 / 255)
    assert {name: value.tolist() for name, value in bare.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert [module.training for module in bare.modules()] == modes
    assert write_report(result, tmp_path).is_file()


def test_a_network_without_weights_is_audited(faces: DemoFaces) -> None:
    """One that PEFT could adapt nothing of."""

    class Darker(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 0.5

    result = run_audit(
        Darker(), [faces[i]["image"] for i in range(len(faces))], defenses=RandomNoise(0.1), disable_tqdm=True
    )
    assert result["untouched", "no-leak"].estimates["mse"].n == len(faces)
