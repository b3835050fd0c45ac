"""One convolution per adapted layer instead of three, where no adapter learns."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import image_conv
from .computed import is_computed, own_tensors
from .config import GatedLoraConfig
from .fast_conv import can_run, keeping_no_input, laid_out, run
from .layer import GatedLoraLayer
from .learning_conv import run_learning, whole_weight_pays
from .quantized import is_quantized

_LOCK = threading.Lock()  # for entering and leaving `folded` from several threads
_SMALL = 2**16  # tensors up to this size are compared whole


@contextmanager
def folded(model: nn.Module, *, learning: bool = False) -> Iterator[nn.Module]:
    """Run the adapted layers of `model` with W + dW, computed once per layer and set of active adapters.

    Meant for inner loops that differentiate by the images (PGD) and for inference: gradients reach the inputs, and
    never A, B, the gate or the base layer, and dropout is off. The stored weights stay as they are. Contexts nest, and
    hold for the thread that opened them; disabled and merged adapters, `set_adapter` and scaling work as outside.
    Parameters should not change inside: each change costs a new W + dW, and one that goes through `parameter.data` is
    not noticed before the context ends. Adapters with an input-dependent gate have no dW: they are run as outside, only
    without gradients to their parameters, and save no time.

    On a CPU, wide convolutions of 3x3, or of 4x4 with a stride of 2, and tall kernels to or from images are run by
    faster algorithms than torch's; see `FoldingLayer.fast_inside_folded`. They round more (in float32 by 5e-6 of the
    root mean square for 3x3 and 256 channels), spread what is not finite further, and are differentiated once only.

    With `learning`, gradients reach A, B and the gate as well. The layers with a faster algorithm, and on a CPU
    convolutions whose rank is more than a third of their outputs, then run W + dW. The gradients of their adapters come
    from A x, computed again in the backward pass, or where that is faster from the gradient of W + dW. The other layers
    run as outside. Nothing is kept between calls.

    Outside, layers in eval mode fold on their own where they may; see `FoldingLayer`.

    Args:
        model: A PEFT model with GATED_LORA adapters, or a module that contains one.
        learning: Whether adapters learn.

    Yields:
        The same model.

    Raises:
        ValueError: If the model has no layer adapted by GATED_LORA.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from loraguard.tuner import GatedLoraConfig
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
        >>> model = get_peft_model(net, GatedLoraConfig(init_lora_weights="paper"))
        >>> images = torch.zeros(1, 3, 8, 8, requires_grad=True)
        >>> with folded(model):
        ...     gradient, = torch.autograd.grad(model(images).square().mean(), images)
        >>> gradient.shape
        torch.Size([1, 3, 8, 8])
    """
    layers = [module for module in model.modules() if isinstance(module, FoldingLayer)]
    if not layers:
        raise ValueError(f"Nothing to fold: {type(model).__name__} has no layer adapted by GATED_LORA.")
    thread = threading.get_ident()
    name = "_learning" if learning else "_folding"
    with _LOCK:
        for layer in layers:
            setattr(layer, name, (*getattr(layer, name), thread))
    try:
        if not learning:
            for layer in layers:
                layer.fold_ahead()
        yield model
    finally:
        with _LOCK:
            for layer in layers:
                threads = getattr(layer, name)
                at = threads.index(thread)
                setattr(layer, name, threads[:at] + threads[at + 1 :])
                if not layer._folding:
                    layer._folds = {}


class Fold:
    """W + dW, with what it was made from, to tell when it is out of date."""

    def __init__(self, weight: Tensor, sources: Sequence[Tensor]) -> None:
        self.weight = weight
        self._made_from = [(one, _version(one), _probe(one).clone()) for one in sources]

    def is_of(self, sources: Sequence[Tensor], look_at_values: bool) -> bool:
        """Whether it would come out the same today.

        Writing to `parameter.data`, as PEFT and others do, leaves no trace in torch's version counters. On a CPU the
        values themselves can therefore be looked at: all of them, but for tensors of more than 65,536 values, of which
        it is every n-th slice. On an accelerator, comparing would wait for the device.
        """
        return len(sources) == len(self._made_from) and all(
            now is then
            and _version(now) == version
            and now.device == values.device
            and now.dtype == values.dtype
            and (not look_at_values or values.device.type != "cpu" or torch.equal(_probe(now), values))
            for now, (then, version, values) in zip(sources, self._made_from, strict=True)
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _probe(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    return values if values.numel() <= _SMALL else values[:: max(1, len(values) // 4)]


class FoldingLayer(GatedLoraLayer):
    """What makes an adapted layer fast: it folds, when it may, keeps what it made, and makes it anew when it must.

    Inside `folded` it always does. Otherwise a layer in eval mode folds on its own, unless

    - a gradient may be asked of the base layer, the factors or the gate,
    - the weights or the computation are in half precision, where W + dW would be rounded more than W*x + dW*x,
    - hooks on the base layer expect it to be called,
    - its weight is computed anew at each forward or quantized, or
    - parameters are replaced by other tensors, as `torch.func` does.

    On a CPU the layer then keeps the last W + dW, checked against what it was made from at each call. On an accelerator
    and under `torch.compile` it makes W + dW at each call, which is cheap beside the convolution.

    Attributes:
        folds_in_eval_mode: Whether it does so outside `folded`; set it to False, on the class or a layer, to save the
            memory of a second W.
        fast_inside_folded: Whether convolutions inside `folded` may use the algorithms of `fast_conv` and `image_conv`;
            set it to False, on the class or a layer, to have torch's own.
        is_compiled: Whether the layer is part of compiled code, which cannot keep W + dW by itself: `folded` makes it
            beforehand.
    """

    folds_in_eval_mode = True
    fast_inside_folded = True
    is_compiled = False

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, config: GatedLoraConfig, r: int, lora_alpha: float
    ) -> None:
        super().__init__(base_layer, adapter_name, config=config, r=r, lora_alpha=lora_alpha)
        self._folds: dict[tuple[Any, ...], Fold] = {}
        self._folding: tuple[int, ...] = ()  # the threads inside `folded`, once for each context
        self._learning: tuple[int, ...] = ()  # those inside `folded(..., learning=True)`

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `GatedLoraLayer.forward`; faster where it can be."""
        if self.named_by_the_call(kwargs) is None and not (self.disable_adapters and self.merged):
            adapters = self.running_adapters()
            if self._inside_folded() or (adapters and self._may_fold(adapters)):
                return self._folded_forward(input, adapters, *args, **kwargs)
            if adapters and self._inside_folded(learning=True) and self.fast_inside_folded and not (args or kwargs):
                faster = self._learning_forward(input, adapters)
                if faster is not None:
                    return faster
        return super().forward(input, *args, **kwargs)

    def _inside_folded(self, *, learning: bool = False) -> bool:
        threads = self._learning if learning else self._folding
        # Compiled code serves all threads.
        return bool(threads) and (torch.compiler.is_compiling() or threading.get_ident() in threads)

    def _parameters_of(self, adapter: str) -> list[nn.Parameter]:
        modules: tuple[nn.Module, ...] = self.parts(adapter)
        if self.use_dora[adapter]:
            modules = (*modules, self.lora_magnitude_vector[adapter])
        return [p for module in modules for p in module._parameters.values() if p is not None]

    def _may_fold(self, adapters: list[str]) -> bool:
        base = self.base_layer
        if self.training or not self.folds_in_eval_mode or is_hooked(base) or is_computed(base) or is_quantized(base):
            return False
        weight = self.base_weight
        if weight.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(weight.device.type):
            return False
        involved = [p for adapter in adapters for p in self._parameters_of(adapter)]
        involved += [p for p in (weight, self.base_bias) if p is not None]
        # torch.jit.trace runs the network again without gradients, and compares what was done.
        if (torch.is_grad_enabled() or torch.jit.is_tracing()) and any(p.requires_grad for p in involved):
            return False
        return all(type(p) is nn.Parameter for p in involved) and any(map(self.is_mergeable, adapters))

    def _folded_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """With W + dW, and the branches of adapters that have no dW; no gradient but to `x`."""
        base = self.base_layer
        if is_quantized(base):
            result, branches = base(x, *args, **kwargs), adapters
        elif is_hooked(base):
            result, branches = without_gradients(base)(x, *args, **kwargs), adapters
        else:
            static = [adapter for adapter in adapters if self.is_mergeable(adapter)]
            branches = [adapter for adapter in adapters if adapter not in static]
            bias = self._folded_bias(static)
            # Outside, the same layer is to give the same to the last bit with and without a gradient.
            inside = self._inside_folded() and self.fast_inside_folded
            computed = is_computed(base)
            fast = inside and not (computed or args or kwargs) and can_run(base, x)
            weight = self._once_computed(static) if computed else self._folded_weight(static, fast=fast)
            if fast:
                result = run(base, x, weight, bias)
            elif inside and not computed and image_conv.pays(base, x):
                result = image_conv.by_rows(x, weight, bias, base.padding)
            else:
                with keeping_no_input(x):
                    result = self.run_base(x, weight, bias, *args, **kwargs)
        dtype = result.dtype
        for adapter in branches:
            A, B, gate = map(without_gradients, self.parts(adapter))
            if self.use_dora[adapter]:
                delta = self.get_delta_weight(adapter).detach()
                result = result + self.run_base(self._cast_input_dtype(x, delta.dtype), delta, None, *args, **kwargs)
                continue
            hidden = A(self._cast_input_dtype(x, A.weight.dtype), *args, **kwargs)
            result = result + gate(hidden, B, self.scaling[adapter])
        return result.to(dtype)

    def _learning_forward(self, x: Tensor, adapters: list[str]) -> Tensor | None:
        """With gradients for the adapters, where that is faster than as it is; otherwise None."""
        if is_computed(self.base_layer) or is_quantized(self.base_layer) or any(map(self.use_dora.get, adapters)):
            return None
        if self._learns_folded(x, adapters):
            bias, weight = self._folded_bias(adapters), self.base_weight.detach()
            fold, update = partial(self._fold, weight, adapters), partial(self._updates, adapters)
            deltas = partial(self._deltas, adapters)
            learnt = [p for adapter in adapters for p in self._parameters_of(adapter) if p.requires_grad]
            return run_learning(fold, self.base_layer, x, bias, update, deltas, learnt)
        if not any(image_conv.pays(one, x) for one in (self.base_layer, *map(self.lora_A.__getitem__, adapters))):
            return None
        y = base = _by_rows(self.base_layer, x)  # on a GPU
        for adapter in adapters:
            A, B, gate = self.parts(adapter)
            hidden = _by_rows(A, self.drop(adapter, self._cast_input_dtype(x, A.weight.dtype)))
            y = y + gate(hidden, B, self.scaling[adapter])
        return y.to(base.dtype)

    def _learns_folded(self, x: Tensor, adapters: list[str]) -> bool:
        """Whether W + dW pays: it has a faster algorithm, or adapters' ranks are high beside the number of outputs."""
        base = self.base_layer
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        if not (can_run(base, x) or whole_weight_pays(base, x, sum(self.r[adapter] for adapter in adapters))):
            return False
        learnt = [p for adapter in adapters for p in self._parameters_of(adapter) if p.requires_grad]
        return (
            bool(learnt)
            and getattr(base, "padding_mode", "") == "zeros"
            and not any(p is not None and p.requires_grad for p in (self.base_weight, self.base_bias))
            and all(p.dtype == self.base_weight.dtype for p in learnt)
            and not is_hooked(base)
            and all(self.is_mergeable(adapter) and self._is_plain(adapter) for adapter in adapters)
        )

    def _is_plain(self, adapter: str) -> bool:
        """Whether nothing else happens to an update on its way: no dropout, no hooks."""
        dropout = self.lora_dropout[adapter]
        dropped = not isinstance(dropout, nn.Identity) and dropout.training
        return not dropped and not any(map(is_hooked, (*self.parts(adapter), dropout)))

    def _updates(self, adapters: list[str], x: Tensor) -> Tensor:
        return sum((self.update(adapter, x) for adapter in adapters[1:]), start=self.update(adapters[0], x))

    def _deltas(self, adapters: list[str]) -> list[Tensor]:
        """What each adapter adds to the weight, and to the bias."""
        made = [self.get_delta_weight(adapter) for adapter in adapters]
        made += [bias for adapter in adapters if (bias := self.get_delta_bias(adapter)) is not None]
        return made

    def _folded_bias(self, adapters: list[str]) -> Tensor | None:
        with torch.no_grad():
            bias = None if self.base_bias is None else self.base_bias.detach()
            for adapter in adapters:
                delta = self.get_delta_bias(adapter)
                if delta is not None:
                    bias = (delta if bias is None else bias + delta).to(own_tensors(self.base_layer)[0].dtype)
            return bias

    def _folded_weight(self, adapters: list[str], *, fast: bool = False) -> Tensor:
        """W + dW; laid out for `run` where it is `fast`."""
        weight = self.base_weight.detach()
        if not adapters:
            return weight
        scales = [self.scaling[adapter] for adapter in adapters]
        # prepare_model_for_compiled_hotswap makes tensors of scales.
        key = (fast, *adapters, *(None if isinstance(scale, Tensor) else scale for scale in scales))
        # Only `folded` makes sure, as it begins, that what is kept is of today.
        if self.is_compiled and torch.compiler.is_compiling() and self._inside_folded() and key in self._folds:
            return self._folds[key].weight
        compiling = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if compiling or not (self._folding or weight.device.type == "cpu"):
            return self._fold(weight, adapters)
        sources = [self.base_weight, *(scale for scale in scales if isinstance(scale, Tensor))]
        sources += [p for adapter in adapters for p in self._parameters_of(adapter)]
        fold = self._folds.get(key)
        # `folded` promises that nothing writes to `.data` while it lasts.
        if fold is None or not fold.is_of(sources, look_at_values=not self._folding):
            # A fold made under inference_mode has to serve a later forward that records gradients, too.
            with torch.inference_mode(False):
                weight = self._fold(weight, adapters)
                fold = Fold(laid_out(self.base_layer, weight) if fast else weight, sources)
            # Another dict rather than a change of this one: other threads may be reading it.
            self._folds = {**self._folds, key: fold} if self._folding else {key: fold}
        return fold.weight

    def _once_computed(self, adapters: list[str]) -> Tensor:
        """W + dW where W is computed, as at each forward without an adapter: once, as reading it may iterate."""
        with torch.no_grad():
            return self._fold(self.base_weight, adapters)

    def fold_ahead(self) -> None:
        """Make the W + dW of active adapters for compiled code to find."""
        if self.is_compiled and not is_computed(self.base_layer) and not is_quantized(self.base_layer):
            self._folded_weight([adapter for adapter in self.running_adapters() if self.is_mergeable(adapter)])

    def _fold(self, weight: Tensor, adapters: list[str]) -> Tensor:
        with torch.no_grad():
            return sum((self.get_delta_weight(adapter) for adapter in adapters), start=weight).to(weight.dtype)

    # What is kept goes where it would be out of date or in the way.

    def forget(self) -> None:
        """Free what was kept."""
        self._folds = {}

    def train(self, mode: bool = True) -> "FoldingLayer":
        """As `nn.Module.train`; frees what was kept."""
        self._folds = {}
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._folds = {}
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was kept when the layer is copied or pickled."""
        return {**self.__dict__, "_folds": {}, "_folding": (), "_learning": ()}


def is_hooked(module: nn.Module) -> bool:
    """Whether a module expects to be called, and not only its weights to be used."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)  # accelerate's hooks
    )


def _by_rows(layer: Any, x: Tensor) -> Tensor:
    """A layer as it is, or row by row where that pays."""
    if image_conv.pays(layer, x) and not is_hooked(layer):
        return image_conv.by_rows(x, layer.weight, layer.bias, layer.padding)
    return layer(x)


def without_gradients(module: nn.Module) -> Any:
    """The same module, whose parameters get no gradients; it shares their memory.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> without_gradients(layer)(torch.ones(2)).requires_grad, layer.weight.requires_grad
        (False, True)
    """
    twin: Any = copy.copy(module)
    beside = {name: value.detach() for name, value in vars(module).items() if isinstance(value, Tensor)}  # by FSDP
    vars(twin).update(beside)
    twin._parameters = {name: None if p is None else p.detach() for name, p in module._parameters.items()}
    return twin
