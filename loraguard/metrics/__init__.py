"""How far outputs are from what they should be, per image, and how sure a mean over images is."""

from .estimate import Estimate, bootstrap_interval, estimate, unanimous_interval
from .frechet import Inception, frechet_distance
from .images import DSR_THRESHOLD, defense_succeeds, masked_squared_error, mean_squared_error, psnr, ssim
from .perceptual import LPIPS

__all__ = [
    "DSR_THRESHOLD",
    "LPIPS",
    "Estimate",
    "Inception",
    "bootstrap_interval",
    "defense_succeeds",
    "estimate",
    "frechet_distance",
    "masked_squared_error",
    "mean_squared_error",
    "psnr",
    "ssim",
    "unanimous_interval",
]
