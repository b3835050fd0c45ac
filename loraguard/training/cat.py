"""CAT: an adapter of the autoencoder that is learnt from protected photos alone (ICML 2025, arXiv 2502.07225).

    minimise over A, B:  MSE(D(E(x_p)), x_p)  on protected photos x_p

It needs no clean photos and no attack in its training; what it learns is the one protection that it is shown. Our own
step (`loraguard.training.step`) crafts the perturbation anew against the patch that it trains. `recipe="cat"` of
:class:`~loraguard.training.PatchTrainingArguments` takes these steps, on photos that somebody has protected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.generators import layers_in
from loraguard.tuner import GatedLoraConfig, folded

from .step import Loss

AUTOENCODER = "encoder+decoder"


def check_autoencoder(model: nn.Module) -> None:
    """Refuse a network that CAT cannot train.

    Raises:
        ValueError: if it has no `encode` and `decode`.
    """
    if not (hasattr(model, "encode") and hasattr(model, "decode")):
        raise ValueError(
            f"{getattr(model, 'get_base_model', lambda: model)().__class__.__name__} has no encode and decode: CAT "
            "trains an autoencoder. Take taef2, latent_autoencoder or an editor made of one, or recipe='fast'."
        )


def cat_config(generator: nn.Module, r: int = 128, adapt: str = AUTOENCODER) -> GatedLoraConfig:
    """CAT's adapter: LoRA without a gate, alpha equal to the rank, on the linear and convolution layers of a part.

    Args:
        generator: a network whose parts are known (:func:`~loraguard.generators.layers_in`), without adapters.
        r: the rank; the paper's 128.
        adapt: "encoder", "decoder", or both.

    Raises:
        ValueError: if the generator has no autoencoder, or no such part.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> config = cat_config(TAEF2(**TAEF2.small), r=4, adapt="encoder")
        >>> config.gate_type, config.lora_alpha, config.use_rslora
        ('none', 4, False)
    """
    check_autoencoder(generator)
    return GatedLoraConfig(
        r=r, lora_alpha=r, use_rslora=False, gate_type="none", target_modules=layers_in(generator, adapt)
    )


def cat_loss(model: nn.Module, protected: Tensor, loss: Loss = F.mse_loss) -> Tensor:
    """`loss(D(E(x_p)), x_p)`, a scalar; the denoiser has no part in it.

    Args:
        model: a generator with `encode` and `decode`, patched.
        protected: photos with a perturbation, (N, 3, H, W) in [-1, 1].
        loss: MSE by default; the paper also has LPIPS.

    Raises:
        ValueError: for a generator without an autoencoder.

    Example:
        >>> import torch
        >>> from loraguard.generators import TAEF2
        >>> cat_loss(TAEF2(**TAEF2.small), torch.zeros(1, 3, 16, 16)).shape
        torch.Size([])
    """
    check_autoencoder(model)
    network: Any = model
    target = loss.prepare(protected, None) if hasattr(loss, "prepare") else protected
    return loss(network.decode(network.encode(protected)), target)


def cat_step(
    model: nn.Module, protected: Tensor, *, loss: Loss, backward: Callable[[Tensor], None] = Tensor.backward
) -> dict[str, Tensor]:
    """Accumulate the gradient of :func:`cat_loss` in the adapter's parameters.

    Args:
        model: a generator with a GATED_LORA adapter.
        protected: as in :func:`cat_loss`.
        loss: likewise.
        backward: called with the loss, in place of `Tensor.backward`.

    Returns:
        `loss_adversarial`, a detached scalar: of perturbed photos, as :func:`~loraguard.training.patch_step` calls it.
    """
    with folded(model, learning=True):
        found = cat_loss(model, protected, loss)
        backward(found)
    return {"loss_adversarial": found.detach()}
