"""The defenses that are fitted, small, and each of them fitted once."""

from functools import cache

import torch
from linear import EPS

from loraguard.data import DemoFaces
from loraguard.defenses.cmua import CMUA
from loraguard.defenses.fitted import FittedDefense
from loraguard.defenses.idguard import IDGuard
from loraguard.defenses.tafim import TAFIM
from loraguard.defenses.tsdf import TSDF
from loraguard.generators import DemoEditor

NETWORK = {"steps": 2, "batch_size": 2, "width": 4, "learning_rate": 1e-2}
SMALL: dict[str, FittedDefense] = {
    "cmua": CMUA(EPS, steps=2, photos=6, batch_size=3),
    "tsdf": TSDF(EPS, steps=2, photos=6, batch_size=3, layers=("main.9",)),
    "tafim": TAFIM(EPS, depth=2, **NETWORK),
    "id-guard": IDGuard(EPS, blocks=1, layers=("main.9",), **NETWORK),
}


@cache
def fitted(name: str, seed: int = 0) -> FittedDefense:
    """Each small defense, fitted once to an untrained editor of 16 pixels."""
    torch.manual_seed(0)
    generator = DemoEditor(conv_dim=4, num_blocks=1)
    torch.manual_seed(seed)
    return SMALL[name].fit(generator, DemoFaces(12, size=16), disable_tqdm=True)
