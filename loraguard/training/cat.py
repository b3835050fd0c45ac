"""CAT: an adapter of the autoencoder that is learnt from protected photos alone (ICML 2025, arXiv 2502.07225).

    minimise over A, B:  MSE(D(E(x_p)), x_p)  on protected photos x_p

It needs no clean photos and no attack in its training; what it learns is the one protection that it is shown. Our own
step (`loraguard.training.step`) crafts the perturbation anew against the patch that it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from loraguard.data import collate
from loraguard.generators import layers_in
from loraguard.tuner import GatedLoraConfig

AUTOENCODER = "encoder+decoder"


def cat_config(generator: nn.Module, r: int = 128, adapt: str = AUTOENCODER) -> GatedLoraConfig:
    """CAT's adapter: LoRA without a gate, alpha equal to the rank, on the linear and convolution layers of a part.

    Args:
        generator: a network whose parts are known (:func:`~loraguard.generators.layers_in`), without adapters.
        r: the rank; the paper's 128.
        adapt: "encoder", "decoder", or both.

    Raises:
        ValueError: if the generator has no such part.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> config = cat_config(TAEF2(**TAEF2.small), r=4, adapt="encoder")
        >>> config.gate_type, config.lora_alpha, config.use_rslora
        ('none', 4, False)
    """
    return GatedLoraConfig(
        r=r, lora_alpha=r, use_rslora=False, gate_type="none", target_modules=layers_in(generator, adapt)
    )


def cat_loss(model: nn.Module, protected: Tensor, distance: Callable[[Tensor, Tensor], Tensor] = F.mse_loss) -> Tensor:
    """`distance(D(E(x_p)), x_p)`, a scalar; the denoiser has no part in it.

    Args:
        model: a generator with `encode` and `decode`, patched.
        protected: photos with a perturbation, (N, 3, H, W) in [-1, 1].
        distance: MSE by default; the paper also has LPIPS.

    Raises:
        ValueError: for a generator without an autoencoder.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> cat_loss(TAEF2(**TAEF2.small), torch.zeros(1, 3, 16, 16)).shape
        torch.Size([])
    """
    network: Any = model
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise ValueError(f"{type(model).__name__} has no encode and decode; CAT trains an autoencoder.")
    return distance(network.decode(network.encode(protected)), protected)


def train_cat(
    model: nn.Module,
    protected: Dataset[Any],
    *,
    steps: int,
    batch_size: int = 4,
    learning_rate: float = 1e-3,
    distance: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    seed: int = 0,
    disable_tqdm: bool = False,
) -> list[float]:
    """Train an adapter by CAT's loss, with Adam.

    Args:
        model: a generator wrapped by PEFT, with an adapter as :func:`cat_config` makes it.
        protected: photos that somebody protected, as :class:`~loraguard.PatchTrainer` takes photos.
        steps: of Adam; the paper's 10,000.
        batch_size: photos in a step.
        learning_rate: of Adam.
        distance: as in :func:`cat_loss`.
        seed: of the order of photos.
        disable_tqdm: no progress bar.

    Returns:
        The loss of each step.

    Raises:
        ValueError: for a generator without an autoencoder, or one in which nothing is to be learnt.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard.generators import TAEF2
        >>> network = TAEF2(**TAEF2.small)
        >>> model = get_peft_model(network, cat_config(network, r=2))
        >>> len(train_cat(model, torch.zeros(4, 3, 16, 16), steps=2, disable_tqdm=True))
        2
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError(
            "Nothing in this model is to be learnt; wrap it by get_peft_model(generator, cat_config(...))."
        )
    device = learning[0].device
    optimizer = torch.optim.Adam(learning, learning_rate)
    stream = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(protected, num_samples=steps * batch_size, generator=stream)  # type: ignore[arg-type]
    losses = []
    for batch in tqdm(
        DataLoader(protected, batch_size, sampler=sampler, collate_fn=collate), "CAT", disable=disable_tqdm
    ):
        loss = cat_loss(model, batch["image"].to(device), distance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
