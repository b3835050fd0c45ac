"""What a patch's config records of the patch, however it was read."""

from __future__ import annotations

from typing import Any, Protocol

KINDS = ("standard", "defensive")


class Recording(Protocol):
    """A config, or what else has the `provenance` of one."""

    provenance: dict[str, Any] | None


def kind_of(config: Recording) -> str | None:
    """Either "standard" or "defensive", or None for a patch of which that is not recorded."""
    kind = (config.provenance or {}).get("kind")
    return kind if kind in KINDS else None


def settings_in(config: Any) -> dict[str, Any]:
    """What a config, of whatever adapter, records of the training's settings; nothing where that is no dict."""
    settings = (getattr(config, "provenance", None) or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def generator_of(config: Recording) -> dict[str, Any]:
    """What is recorded of the generator; whatever is not of the right type counts as not recorded.

    Example:
        >>> from loraguard import GatedLoraConfig
        >>> generator_of(GatedLoraConfig(provenance={"generator": {"class": "StarGAN", "sha256": 7}}))
        {'class': 'StarGAN'}
    """
    about = (config.provenance or {}).get("generator")
    kinds = {"class": str, "name": str, "settings": dict, "license": str, "sha256": str}
    return {k: v for k, v in about.items() if k in kinds and isinstance(v, kinds[k])} if isinstance(about, dict) else {}
