"""Another kernel: a mode under which torch computes as correctly as before, and rounds otherwise.

Two machines add the terms of a convolution in different orders, fuse a product with a sum or do not, and approximate
`exp` by different polynomials. Results then differ in their last bits, and a test must not see it. Under `OtherKernel`
every result of such an operation is off by up to `ulps` times the machine epsilon of its dtype:

    off[i] = u[i] * ulps * eps * scale[i],    u[i] in [-1, 1]

- For elementwise functions and for norms (`RELATIVE`), `scale` is the result's own magnitude.
- For sums of products (`SUMS`), where terms cancel, it is that or the root mean square of the results, whichever is
  larger; for `sum` and `mean` the magnitude that the terms would have if their signs were drawn at random.

`u` is drawn with a seed made of the operation and of its arguments' shapes, strides and dtypes: the same call gives the
same bits, another batch size, memory format or path does not, which is what kernels promise and no more. Results of few
bits (0, 1, 0.5, small integers) stay as they are: every order of adding gives them. What IEEE 754
rounds in one way only (`+ - * / sqrt` of two numbers) stays too.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SUMS = re.compile(  # names of ATen's operations, without what `_name` takes off
    r"""(mkldnn_)?convolution\w* | (add|badd|addb)?(mm|mv|bmm) | v?dot | addr | linear | matmul
    | sum | nansum | mean | cumsum | prod | cumprod | trace | logsumexp | \w*(group|layer|batch)_norm\w*
    | upsample_(?!nearest\w*(?<!backward)$)\w+ | grid_sampler_\w+ | (adaptive_)?avg_pool\w+ | \w+_pad\w+_backward
    | max_pool\w+_backward | embedding_dense_backward | index_add | scatter_add | index_put | col2im
    | scaled_dot_product_\w+ | log_softmax\w* | softmax_backward\w* | (\w+_loss|binary_cross_entropy)\w*
    | fft_\w+ | linalg_\w+ | (pdist|cdist|euclidean_dist)\w* """,
    re.VERBOSE,
)
RELATIVE = re.compile(
    r"""exp | exp2 | expm1 | log | log2 | log10 | log1p | a?(sin|cos|tan)h? | atan2 | pow | rsqrt | reciprocal
    | erf | erfc | erfinv | lgamma | digamma | logit | softplus | mish | gelu | silu | elu | celu | log_sigmoid_forward
    | sigmoid | softmax | (tanh|sigmoid|logit|softplus|mish|gelu|silu|elu|log_sigmoid)_backward
    | addcmul | addcdiv | lerp | (var|std)(_mean)? | norm | linalg_vector_norm | normal | randn | log_normal""",
    re.VERBOSE,
)
BOUNDED = frozenset(["sin", "cos", "tanh", "sigmoid", "erf", "softmax"])  # no kernel returns more than 1
# The integer dtype of the same size, and how many of the last bits are 0 in a result that any order of adding gives.
LAST_BITS = {
    torch.float64: (torch.int64, 26),
    torch.float32: (torch.int32, 12),
    torch.float16: (torch.int16, 6),
    torch.bfloat16: (torch.int16, 4),
}
DRAWS = 2**22


class OtherKernel(TorchDispatchMode):
    """Results on the CPU are off by up to `ulps` eps while it is entered; each `number` is a kernel of its own.

    Example:
        >>> x = torch.linspace(0.1, 1, 7)
        >>> with OtherKernel(ulps=4):
        ...     one, same, other = x.exp(), x.exp(), x[:5].exp()
        >>> torch.equal(one, same), torch.equal(one[:5], other), torch.allclose(one, x.exp(), rtol=5e-7, atol=0)
        (True, False, True)
    """

    def __init__(self, ulps: float = 4.0, number: int = 0) -> None:
        super().__init__()
        self.ulps = ulps
        self.draws = torch.rand(DRAWS, generator=torch.Generator().manual_seed(number)) * 2 - 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _name(func)
        fused = kind in ("add", "sub") and kwargs.get("alpha", 1) != 1  # by an instruction that rounds once, or twice
        relative = RELATIVE.fullmatch(kind) is not None
        if not (fused or relative or SUMS.fullmatch(kind)):
            return func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        signature = (kind, [(tuple(x.shape), x.stride(), x.dtype) for x in inputs])
        scale = _scale_of_terms(kind, args)  # before the call, which may write over its argument
        outputs = func(*args, **kwargs)
        first = zlib.crc32(repr(signature).encode()) % (DRAWS // 2)
        for leaf in tree_leaves(outputs):
            if type(leaf) in (Tensor, torch.nn.Parameter) and leaf.device.type == "cpu" and leaf.numel():
                self._disturb(leaf, kind, first, None if relative else scale)
        return outputs

    def _disturb(self, result: Tensor, kind: str, first: int, scale: Callable[[Tensor], Tensor] | None) -> None:
        if result.is_complex():
            result = torch.view_as_real(result)
        if result.dtype not in LAST_BITS:
            return
        size = result.abs()
        if scale is not None:
            size = torch.maximum(size, scale(result).to(result.dtype))
        draws = self.draws if result.numel() <= DRAWS // 2 else self.draws.repeat(2 + 2 * result.numel() // DRAWS)
        u = draws[first : first + result.numel()].view(result.shape)
        off = size.mul_(u).mul_(self.ulps * torch.finfo(result.dtype).eps)
        integers, bits = LAST_BITS[result.dtype]
        few = (result.view(integers) & (2**bits - 1)) == 0
        result.add_(off.masked_fill_(few | ~off.isfinite(), 0))
        if kind in BOUNDED:
            result.clamp_(-1, 1)


def _name(func: Any) -> str:
    """`exp` for `exp_`, `_foreach_exp` and `exp.out`; `softmax` for `_softmax`."""
    return str(func.overloadpacket.__name__).removeprefix("_foreach_").strip("_")


def _scale_of_terms(kind: str, args: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """From results to the magnitude of what rounding they come with, terms of random signs presumed."""
    terms = args[0] if args and isinstance(args[0], Tensor) else None
    if kind not in ("sum", "mean") or terms is None or not terms.is_floating_point():
        return lambda values: torch.linalg.vector_norm(values) / math.sqrt(values.numel())
    dims = args[1] if len(args) > 1 and args[1] else None
    norms = torch.linalg.vector_norm(terms, dim=dims)

    def scale(values: Tensor) -> Tensor:
        return norms.view(values.shape) * (1 if kind == "sum" else values.numel() / terms.numel())

    return scale
