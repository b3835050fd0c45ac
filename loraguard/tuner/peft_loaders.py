"""PEFT's loaders, held to what loading a patch promises.

A patch fits whole and sets nothing but its adapter, or a ValueError in one line refuses it, and the network is as it
was. Most of that happens where PEFT asks our classes, `GatedLoraConfig.from_pretrained` and `GatedLoraModel`. There is
no hook for the rest, so :func:`install` wraps five functions:

- `PeftModel.from_pretrained` and `PeftModel.load_adapter`: whatever goes wrong after a layer was replaced, the network
  is put back; a config without its weights is refused, and so is a name that an adapter has already;
- `PeftConfig.from_pretrained` leaves our configs to `GatedLoraConfig`;
- `PeftConfig.from_json_file` and `_get_peft_type`, which read a config before its method is known, say in a ValueError
  what is wrong with it.

Patches of other methods pass through untouched, but for the last. This module imports nothing before a function is
called (see `registration`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

NAME = "GATED_LORA"
LARGEST = 2**24  # bytes of a config of any method


@dataclass
class Load:
    """A load by one of PEFT's two loaders, while it goes on.

    Attributes:
        model_id: What is loaded.
        hub: Where on the Hub: revision, subfolder, token and the like.
        renamed: PEFT's `key_mapping`, which renames tensors of the file.
        before: The network as it was; `GatedLoraModel` puts it there before it changes anything.
    """

    model_id: str
    hub: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    before: Any = None


current: ContextVar[Load | None] = ContextVar("current", default=None)


def install() -> None:
    """Wrap PEFT's functions, once."""
    from peft import PeftModel
    from peft.config import PeftConfigMixin

    for owner, name, wrapper in (
        (PeftConfigMixin, "from_json_file", _reading),
        (PeftConfigMixin, "_get_peft_type", _naming),
        (PeftConfigMixin, "from_pretrained", _configuring),
        (PeftModel, "from_pretrained", _making),
        (PeftModel, "load_adapter", _adding),
    ):
        given = inspect.getattr_static(owner, name)
        function = getattr(given, "__func__", given)
        if not hasattr(function, "_of_loraguard"):
            wrapped: Any = functools.wraps(function)(wrapper(function))
            wrapped._of_loraguard = True
            setattr(owner, name, classmethod(wrapped) if isinstance(given, classmethod) else wrapped)


def _reading(given: Any) -> Any:
    def from_json_file(cls: Any, path_json_file: str, **kwargs: Any) -> Any:
        from pathlib import Path

        from .messages import named, refusing, shown

        path = Path(path_json_file)
        with refusing(named(str(path.parent), path.name)):
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has more than {LARGEST:,} bytes, which no config needs.")
            try:
                found = given(cls, path_json_file, **kwargs)
            except TypeError:  # as PEFT looks for a field in a number
                raise ValueError("it holds no object of fields and values.") from None
            if not isinstance(found, dict):
                raise ValueError(f"it holds {shown(found)}; expected an object of fields and values.")
        return found

    return from_json_file


def _naming(given: Any) -> Any:
    def _get_peft_type(cls: Any, model_id: str, **hub: Any) -> Any:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        from .messages import in_a_line, named, shown

        file = named(str(model_id), "adapter_config.json")
        try:
            kind = given(cls, model_id, **hub)
        except KeyError:
            raise ValueError(in_a_line(f"{file} names no peft_type; a patch of loraguard has {NAME!r}.")) from None
        except ValueError as error:
            raise ValueError(in_a_line(str(error))) from error.__cause__
        if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(in_a_line(f"{file}: peft_type={shown(kind)} is no method that PEFT or loraguard has."))
        return kind

    return _get_peft_type


def _configuring(given: Any) -> Any:
    def from_pretrained(
        cls: Any, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        if cls is PeftConfig:
            hub = cls._split_kwargs(kwargs)[0] | ({} if subfolder is None else {"subfolder": subfolder})
            kind = cls._get_peft_type(pretrained_model_name_or_path, **hub)
            if kind == NAME:
                ours: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
                return ours.from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        return given(cls, pretrained_model_name_or_path, subfolder, **kwargs)

    return from_pretrained


def _making(given: Any) -> Any:
    signature = inspect.signature(given)

    def from_pretrained(cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        given_by = signature.bind(cls, model, model_id, *args, **kwargs).arguments
        renamed = given_by.get("key_mapping")
        if renamed is None:  # as PEFT does it
            renamed = getattr(model, "_checkpoint_conversion_mapping", None)
        with _loading(cls, model_id, given_by.get("kwargs", {}), renamed):
            return given(cls, model, model_id, *args, **kwargs)

    return from_pretrained


def _adding(given: Any) -> Any:
    signature = inspect.signature(given)

    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if current.get() is not None or not _is_ours(self):
            return given(self, model_id, adapter_name, *args, **kwargs)
        if adapter_name in self.peft_config:
            raise ValueError(taken(adapter_name))
        bound = signature.bind(self, model_id, adapter_name, *args, **kwargs)
        hub, renamed = bound.arguments.get("kwargs", {}), bound.arguments.get("key_mapping")
        with self.base_model.calls.changing(), _loading(type(self), model_id, hub, renamed) as load:
            from .before import Before

            load.before = Before(self)
            return given(self, model_id, adapter_name, *args, **kwargs)

    return load_adapter


def taken(adapter_name: str) -> str:
    """What is said of a name that an adapter has already."""
    from .messages import shown

    return (
        f"adapter_name={shown(adapter_name)} is taken: this model has an adapter of that name, and another patch's "
        "weights would come under its settings. Pass another adapter_name, or delete_adapter it first."
    )


def _is_ours(model: Any) -> bool:
    return any(kind == NAME for kind in (getattr(one, "peft_type", None) for one in model.peft_config.values()))


@contextmanager
def _loading(cls: Any, model_id: Any, kwargs: dict[str, Any], renamed: dict[str, str] | None) -> Iterator[Load]:
    from .messages import refusing

    hub = cls._split_kwargs(kwargs)[0]
    load = Load(str(model_id), hub, dict(renamed or {}))
    token = current.set(load)
    try:
        yield load
    except Exception:
        if load.before is None:  # nothing of ours was begun
            raise
        load.before.restore()
        with refusing(str(model_id), str(model_id)):
            raise
    except BaseException:
        if load.before is not None:
            load.before.restore()
        raise
    finally:
        current.reset(token)
