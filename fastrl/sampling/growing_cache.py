"""A key-value cache with room to grow: a new token is written behind the others, which are not copied for it.

transformers' own cache concatenates at every token, which for long completions is most of what moves. For completions
of a dozen tokens the difference is small (bench/LOG.md).
"""

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 16  # tokens


class GrowingLayer(DynamicLayer):
    """Keys and values (B,H,L,D) that are the first part of tensors with room for up to `ROOM` tokens more."""

    rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends (B,H,n,D) to each; returns all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        length = old + key_states.shape[-2]
        if not self._has_room(length):
            self._make_room(old, length, key_states, value_states)
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, old:length] = new
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        return self.keys, self.values

    def _has_room(self, length: int) -> bool:
        """False if the keys are no view of the room but a copy, for example of chosen rows."""
        if self.rooms is None:
            return False
        room = self.rooms[0]
        return self.keys.data_ptr() == room.data_ptr() and length <= room.shape[2] and len(self.keys) == len(room)

    def _make_room(self, old: int, length: int, key_states: Tensor, value_states: Tensor) -> None:
        held, rooms = (self.keys, self.values), []
        for tensor, new in zip(held, (key_states, value_states), strict=True):
            room = new.new_empty(*new.shape[:2], length + ROOM, new.shape[3])
            if old:
                room[:, :, :old] = tensor
            rooms.append(room)
        self.rooms = tuple(rooms)


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model with this config; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
