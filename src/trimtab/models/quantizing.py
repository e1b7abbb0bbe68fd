"""Turning a loaded model's linear layers into weight-only int8 or int4, with torchao's quantisation.

``"int8"``: symmetric, one scale a row. ``"int4"``: asymmetric, a scale and a minimum for every 32 inputs, and the
output head in int8, because its error falls on the logits directly while its bytes are few. A layer whose inputs are
no multiple of 32 is int8 under ``"int4"`` too. Embeddings, norms and biases stay as they are; a head that is tied to
the embedding becomes a weight of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from trimtab.errors import ConfigError, ModelError, did_you_mean
from trimtab.models.quantized import RUN, QuantizedLinear, QuantizedWeight, pack

__all__ = ["GROUP", "NAMES", "Quantization", "check_quantization", "quantize", "quantize_weight"]

Quantization = Literal["int8", "int4"]
NAMES: tuple[Quantization, ...] = get_args(Quantization)
GROUP = RUN
"""Inputs that share a scale in int4."""
# Values quantised at a time: a row's numbers do not depend on other rows, and float32 copies stay a megabyte each.
_AT_A_TIME = 1 << 18
# What torchao says when it is imported: that its GPU kernels do not load here, and how torch sees its enums.
_TALKATIVE = ("torchao", "torch.utils._pytree")


def check_quantization(name: str | None) -> Quantization | None:
    """Return a quantisation's name if it can be used here; ``None`` stays ``None``.

    Raises:
        ConfigError: the name is unknown, or torchao is not installed.
    """
    if name is None:
        return None
    if name not in NAMES:
        raise ConfigError(f"There is no quantization {name!r}.{did_you_mean(name, NAMES)}")
    _torchao()
    return name


def quantize(model: nn.Module, name: Quantization) -> None:
    """Replace the weights of every linear layer of a model, in place, one after the other.

    On a CPU the layers become :class:`QuantizedLinear`. On a GPU they stay ``nn.Linear`` with torchao's own tensors
    as weights, whose kernels ``F.linear`` finds.

    Raises:
        ConfigError: the name is unknown, or torchao is not installed.
        ModelError: a weight holds NaN or infinity.
    """
    check_quantization(name)
    head = cast("Any", model).get_output_embeddings()
    if cast("Any", model).device.type != "cpu":
        _quantize_on_gpu(model, name, head)
        return
    paths = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    # The head last: untied from the embedding it needs memory of its own, which the other layers have freed by then.
    paths.sort(key=[path for path in paths if model.get_submodule(path) is head].__contains__)
    for path in paths:
        parent, _, child = path.rpartition(".")
        old = cast("nn.Linear", model.get_submodule(path))
        setattr(model.get_submodule(parent), child, _quantized(path, old, four=name == "int4" and old is not head))
    # What is left of the loaded file's mapping (embedding, norms) would keep the whole of it in memory.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _quantized(path: str, old: nn.Linear, *, four: bool) -> QuantizedLinear:
    try:
        weight = quantize_weight(old.weight.detach(), bits=4 if four and old.in_features % GROUP == 0 else 8)
    except ValueError as error:
        raise ModelError(f"The weight of {path!r} {error}, so the model cannot be quantised.") from error
    return QuantizedLinear(weight, old.bias, dtype=old.weight.dtype).train(old.training)


def quantize_weight(weight: Tensor, *, bits: int) -> QuantizedWeight:
    """Return W (D_out, D_in) in 8 bits with a scale a row, or in 4 bits with a scale and a minimum a group.

    Raises:
        ValueError: W holds NaN or infinity.
    """
    d_out, d_in = weight.shape
    quantizer, group = (_int8, d_in) if bits == 8 else (_int4, GROUP)
    # Made whole at once, so that freed pieces leave no holes between what stays.
    codes = torch.empty((d_out, d_in * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8)
    scales = torch.empty((d_out, d_in // group))
    minima = None if bits == 8 else torch.empty_like(scales)
    rows = max(1, _AT_A_TIME // d_in)
    for start in range(0, d_out, rows):
        piece = slice(start, start + rows)
        values = weight[piece].to(torch.float32)
        if not values.isfinite().all():
            raise ValueError("holds NaN or infinity")
        codes[piece], scales[piece], least = quantizer(values)
        if minima is not None and least is not None:
            minima[piece] = least
    return QuantizedWeight(bits, codes, scales, minima, group)


def _int8(values: Tensor) -> tuple[Tensor, Tensor, None]:
    """Return codes (N, D_in) int8 and scales (N, 1) as torchao's ``Int8WeightOnlyConfig`` chooses them."""
    ao = _torchao()
    block, low, high = (1, values.shape[1]), -128, 127
    scales, zeros = ao.choose_qparams_affine(
        values,
        ao.MappingType.SYMMETRIC,
        block,
        torch.int8,
        low,
        high,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int8,
    )
    return ao.quantize_affine(values, block, scales, zeros, torch.int8, low, high), scales.view(-1, 1), None


def _int4(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed codes (N, D_in / 2), and scales and minima (N, G) that bfloat16 can hold.

    The scheme is the one that torchao's ``Int4WeightOnlyConfig`` uses, "tinygemm": the zero point z is a real number,
    W = s·(q − 8) + z, so a group's least value is met exactly. A group's minimum here is z − 8·s. Both are rounded
    before the codes are chosen, so that 16 bits are enough to store them and no error is added by doing so.
    """
    ao = _torchao()
    block, low, high, middle = (1, GROUP), 0, 15, 8
    scales, zeros = ao._choose_qparams_affine_tinygemm(
        values, ao.MappingType.ASYMMETRIC, block, torch.int32, low, high, scale_dtype=torch.float32
    )
    minima = (zeros - middle * scales).bfloat16().float()
    scales = scales.bfloat16().float()
    codes = ao._quantize_affine_tinygemm(values, block, scales, minima + middle * scales, torch.int32, low, high)
    shape = (values.shape[0], -1)
    return pack(codes), scales.view(shape), minima.view(shape)


def _quantize_on_gpu(model: nn.Module, name: Quantization, head: nn.Module) -> None:
    """Let torchao replace the weights by its own tensors. Written for CUDA, which the tests do not have."""
    with _quietly():
        from torchao import quantization as ao

    _untie(head)
    config: Any = ao.Int4WeightOnlyConfig
    # The packing whose kernel torch itself has; the default one needs a further library.
    int4 = config(group_size=GROUP, int4_packing_format="tile_packed_to_4d")

    def takes_int4(module: nn.Module, _path: str = "") -> bool:
        fits = name == "int4" and module is not head
        return fits and type(module) is nn.Linear and module.in_features % GROUP == 0

    if name == "int4":
        ao.quantize_(model, int4, takes_int4)
    ao.quantize_(
        model,
        ao.Int8WeightOnlyConfig(),
        lambda module, path: type(module) is nn.Linear and not takes_int4(module, path),
    )


def _untie(head: Any) -> None:
    """Give the head a parameter of its own, so that replacing it leaves the embedding alone."""
    if head is not None:
        head.weight = nn.Parameter(head.weight.detach(), requires_grad=False)


@contextmanager
def _quietly() -> Generator[None]:
    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _torchao() -> Any:
    """Return torchao's module of quantisation primitives.

    Raises:
        ConfigError: torchao is not installed.
    """
    try:
        with _quietly():
            from torchao.quantization import quant_primitives
    except ImportError as error:
        raise ConfigError('int8 and int4 weights need torchao: pip install "trimtab[quant]".') from error
    return quant_primitives
