"""What GPUs can do at most, from their makers' data sheets: dense bfloat16 FLOP/s and bytes/s of memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """name: a part of what `torch.cuda.get_device_name` says."""

    name: str
    flops_per_s: float
    bytes_per_s: float


CARDS = (  # the first whose name is part of the device's
    Card("B200", 2250e12, 8.0e12),
    Card("H200", 989e12, 4.8e12),
    Card("H100 PCIe", 756e12, 2.0e12),
    Card("H100 NVL", 835e12, 3.9e12),
    Card("H100", 989e12, 3.35e12),
    Card("A100-PCIE-40GB", 312e12, 1.555e12),
    Card("A100-SXM4-40GB", 312e12, 1.555e12),
    Card("A100", 312e12, 2.0e12),
    Card("L40S", 362e12, 0.864e12),
    Card("RTX 4090", 165e12, 1.008e12),
    Card("RTX 3090", 71e12, 0.936e12),
    Card("A10", 125e12, 0.6e12),
    Card("L4", 121e12, 0.3e12),
)


def card_of(device_name: str) -> Card | None:
    """The card of a device's name; None for one that is not in the table."""
    return next((card for card in CARDS if card.name.lower() in device_name.lower()), None)


def named_card(name: str) -> Card:
    """ValueError for a name that the table does not have."""
    if card := card_of(name):
        return card
    raise ValueError(f"unknown card '{name}': known are {', '.join(card.name for card in CARDS)}")
