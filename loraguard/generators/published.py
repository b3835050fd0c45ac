"""What generators with a name of their own share: official checkpoints, the Hub, and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from torch import Tensor, nn

from .checkpoint import read_checkpoint
from .fitting import network_from

T = TypeVar("T", bound="PublishedGenerator")


class PublishedGenerator(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="loraguard",
    pipeline_tag="image-to-image",
    tags=["loraguard", "image-to-image"],
):
    """Base of generators that load official checkpoints and can be saved to, and loaded from, a folder or the Hub.

    A subclass is an `nn.Module` whose settings are JSON values and whose `state_dict` has the official names. PEFT
    takes `name_or_path`, `config` and `model_tags` from it, so that a patch's card names the generator that it is for.

    Attributes:
        attributes: names of the labels that `conditions` reads, in order; empty where edits need none.
        checkpoint_keys: keys under which the official code saves this network's state dict.
        unseeing: layers that never see the photo, as a pattern for `GatedLoraConfig(exclude_modules=...)`, or None: a
            patch on them could do nothing about it.
        latent_layer: the layer whose output is the latent of the photo, the last of the encoder; None where there is no
            such layer.
        small: settings of a network of this layout with few weights, all of which its checkpoint tells; to try things
            out, as the tests do.
        size_multiple: what the sides of images have to be multiples of.
        model_tags: added to the cards of patches for this network.
        name_or_path: the repository on the Hub, or the folder, that the network came from or was pushed to; absent for
            a network from nowhere.
    """

    attributes: tuple[str, ...] = ()
    checkpoint_keys: ClassVar[tuple[str, ...]] = ()
    unseeing: ClassVar[str | None] = None
    latent_layer: str | None = None
    small: ClassVar[Mapping[str, Any]] = {}
    size_multiple: int = 4
    model_tags: ClassVar[list[str]] = ["loraguard", "image-to-image"]
    name_or_path: str

    @property
    def config(self) -> dict[str, Any]:
        """Settings as JSON values; for a network of the Hub with the `_name_or_path` that goes into a card."""
        source = getattr(self, "name_or_path", None)
        base_model = {"_name_or_path": source} if source and not Path(source).is_dir() else {}
        settings = cast(dict[str, Any], self._hub_mixin_config or {})
        everything = {"model_type": type(self).__name__.lower(), **settings, **base_model}
        return cast(dict[str, Any], json.loads(json.dumps(everything)))

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing: from an RGB photo to (3, H, W) in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} has no preprocessing of its own.")

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Settings that the shapes in a checkpoint determine; none by default."""
        return {}

    @classmethod
    def without_relics(cls, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A checkpoint less what the official code, too, drops from old files; all of it by default."""
        return state

    @classmethod
    def mistaken(cls, state: Mapping[str, Tensor]) -> str | None:
        """Which other network a state dict is of, in words, if its names tell; None by default."""
        return None

    @classmethod
    def from_checkpoint(cls: type[T], path: str | Path, *, key: str | None = None, **settings: Any) -> T:
        """The network from an official checkpoint, in evaluation mode.

        The state dict may be the whole file or lie in it anywhere, with prefixes before its names: `module.` of
        DataParallel, `_orig_mod.` of `torch.compile`, an attribute's name of Lightning. It is read where exactly one
        reading fits this network; where that is not the official one, a line of the log says which.

        Args:
            path: a file of `torch.save` (read with `weights_only=True`) or safetensors.
            key: where the state dict lies in the file, for a file that holds several which fit, such as "G_ema".
            settings: of the class; those that the file's shapes determine need not be given.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds more than tensors, or no state dict or several that fit this network.
        """
        content = read_checkpoint(path)
        return network_from(cls, content, str(path), settings, key)

    @classmethod
    def from_pretrained(cls: type[T], pretrained_model_name_or_path: str | Path, **settings: Any) -> T:
        """As `huggingface_hub.PyTorchModelHubMixin.from_pretrained`, with errors that name the repository.

        Raises:
            FileNotFoundError: if there is no such folder, repository or revision, or no connection and nothing cached.
            PermissionError: for a gated repository whose terms were not accepted.
            ConnectionError: if the Hub fails.
            ValueError: if it holds no weights in safetensors, or others than this network's.
        """
        source = str(pretrained_model_name_or_path)
        nowhere = f"There is no generator {source}: no such folder, and"
        place = f"{source} on {constants.ENDPOINT}"
        try:
            return super().from_pretrained(source, **settings)
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{SAFETENSORS_SINGLE_FILE} of {source} is neither in the local cache of the Hub nor can it be fetched "
                "now. Fetch it once where there is a connection, or give a folder. The Hub's client says: "
                f"{' '.join(str(error).split()):.200}"
            ) from error
        except HFValidationError:
            raise FileNotFoundError(f"{nowhere} no id OWNER/NAME of the Hub.") from None
        except GatedRepoError as error:
            raise PermissionError(f"{place} is gated: accept its terms there, then give a token (HF_TOKEN).") from error
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"{nowhere} no repository on {constants.ENDPOINT} that you may see. Check the name; a private one "
                "needs a token (`hf auth login` or HF_TOKEN)."
            ) from error
        except RevisionNotFoundError as error:
            wanted = settings.get("revision")
            raise FileNotFoundError(f"{place} has no such branch, tag or commit: {wanted!r:.100}.") from error
        except HfHubHTTPError as error:
            raise ConnectionError(f"{place} cannot be loaded: {' '.join(str(error).split()):.300}") from error

    @classmethod
    def _from_pretrained(
        cls: type[T],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **settings: Any,
    ) -> T:
        """As the mixin's, but strict, and never from a pickle."""
        if Path(model_id).is_dir():
            file = Path(model_id, SAFETENSORS_SINGLE_FILE)
        else:
            try:
                file = Path(
                    hf_hub_download(
                        model_id, SAFETENSORS_SINGLE_FILE, revision=revision, cache_dir=cache_dir,
                        force_download=force_download, local_files_only=local_files_only, token=token,
                    )
                )  # fmt: skip
            except RemoteEntryNotFoundError as error:
                raise ValueError(
                    f"{model_id} holds no {SAFETENSORS_SINGLE_FILE}; loraguard loads no pickle. Save the generator "
                    "with save_pretrained(folder) or push_to_hub."
                ) from error
        network = cls.from_checkpoint(file, **settings)
        network.name_or_path = model_id
        return network

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """As `huggingface_hub.PyTorchModelHubMixin.push_to_hub`; patches made afterwards name the repository."""
        url = super().push_to_hub(repo_id, **kwargs)
        self.name_or_path = repo_id
        return url
