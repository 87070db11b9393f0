"""The map from each Hugging Face parameter to the rows of a vLLM tensor that hold it. Sharing and checking use it.

A map is complete when every parameter of the trained model has exactly one place of its own shape and dtype, every
tensor of the served model is some parameter's place, and the bytes on both sides agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrl.sampling.weights.slots import Slot

CHECKSUM_CHUNK = 1 << 22  # elements widened to 64 bits at once


@dataclass(frozen=True)
class Place:
    """Rows [start, end) of a served parameter."""

    slot: str
    parameter: nn.Parameter
    start: int
    end: int

    def view(self) -> Tensor:
        """The rows themselves, no copy."""
        return self.parameter.data[self.start : self.end]


def places(slots: list[Slot]) -> dict[str, Place]:
    """Place of each Hugging Face name."""
    return {name: Place(s.name, s.parameter, *rows) for s in slots for name, rows in s.rows.items()}


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers: equality of bits, NaN and −0 included."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer)


def bit_checksum(tensors: list[Tensor]) -> tuple[int, int]:
    """(Σ b, Σ b²) modulo 2⁶⁴ over the bit patterns b of all values: any split and order of them gives the same."""
    first = second = 0
    for tensor in tensors:
        for chunk in bits(tensor).flatten().split(CHECKSUM_CHUNK):
            wide = chunk.to(torch.int64)
            first += int(wide.sum())
            second += int((wide * wide).sum())
    return first % 2**64, second % 2**64


def is_same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one: address, shape, strides, dtype and storage are the same."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )


def gaps(parameters: dict[str, Tensor], slots: list[Slot]) -> list[str]:
    """What keeps the map from being complete, one text each. Empty: it covers both sides, byte for byte."""
    known = places(slots)
    found = [f"{s.name}: fused or padded in a way that row ranges do not describe" for s in slots if not s.rows]
    found += [f"{n}: served, but not a parameter of the trained model" for n in known if n not in parameters]
    for name, parameter in parameters.items():
        if name not in known:
            found.append(f"{name}: has no place in the served model")
            continue
        place = known[name].view()
        if (place.shape, place.dtype, place.device) != (parameter.shape, parameter.dtype, parameter.device):
            found.append(
                f"{name}: {tuple(parameter.shape)} {parameter.dtype} on {parameter.device} here, "
                f"{tuple(place.shape)} {place.dtype} on {place.device} there"
            )
        elif place.is_inference():
            found.append(f"{name}: vLLM made it under inference mode, it cannot be trained")
        elif not bits(place).equal(bits(parameter)):
            found.append(f"{name}: other values in the served model")
    return found
