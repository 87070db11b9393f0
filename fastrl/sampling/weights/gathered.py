"""gather: parameters that FSDP2 shards over processes go straight into each process's vLLM tensors.

Publishing casts a shard to the served dtype and gathers it with the other processes' into the rows of vLLM's tensor
where it belongs: there is no staging copy and no second full set of weights. The proof compares bit checksums of every
shard, computed where it lives, with those of the rows that arrived. All processes publish and prove together.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from fastrl.policy.sharding import release
from fastrl.sampling.protocol import StaleWeightsError
from fastrl.sampling.vllm_engine import Engine
from fastrl.sampling.weights.map import Place, bit_checksum, places
from fastrl.sampling.weights.shared import check_version, first_of


class GatheredWeights:
    """Served weights filled from `model`'s shards (dim 0, one mesh). ValueError when a parameter has no such place.

    root: the module that FSDP2 took as its root.
    """

    is_exact = True

    def __init__(self, engine: Engine, model: nn.Module, root: nn.Module):
        self.engine, self.root, self.model, self.version = engine, root, model, 0
        parameters = dict(model.named_parameters())
        known = places(engine.slots())
        if found := _gaps(parameters, known):
            raise ValueError(f"sampler.weights = 'gather' is not possible: {first_of(found)}")
        self.group = next(iter(parameters.values())).device_mesh.get_group()
        self.rank, self.world_size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.publish(0)

    def _pairs(self) -> list[tuple[DTensor, Place]]:
        release(self.root)
        known = places(self.engine.slots())
        return [(parameter, known[name]) for name, parameter in self.model.named_parameters()]

    @torch.no_grad()
    def publish(self, version: int) -> int:
        """Gather every shard into place; the bytes that this process received from the others."""
        received = 0
        for parameter, place in self._pairs():
            rows, shard = self._rows(place), _served_part(parameter, place)
            received += sum(r.nbytes for i, r in enumerate(rows) if i != self.rank)
            if len({len(r) for r in rows}) == 1 and len(rows) == self.world_size:
                dist.all_gather_into_tensor(place.view(), shard.contiguous(), group=self.group)
                continue
            rows[self.rank].copy_(shard)
            for rank, part in enumerate(rows):  # uneven shards: in turn, each into its own rows
                if len(part):
                    dist.broadcast(part, group=self.group, group_src=rank)
        self.version = version
        return received

    def prove_fresh(self, version: int) -> None:
        """See `SharedWeights.prove_fresh`; every process must call it."""
        check_version(self.version, version)
        pairs = self._pairs()
        mine = [bit_checksum([_served_part(p, place)]) for p, place in pairs]
        expected_RP2 = self._from_all(mine)
        for index, (name, _) in enumerate(self.model.named_parameters()):
            for rank, part in enumerate(self._rows(pairs[index][1])):
                if _signed(bit_checksum([part])) != tuple(expected_RP2[rank, index].tolist()):
                    raise StaleWeightsError(
                        f"{name}: the rows that vLLM serves for process {rank} are not that process's shard of version "
                        f"{version}: a gather was skipped or wrote elsewhere"
                    )

    def _rows(self, place: Place) -> list[Tensor]:
        """Rows of the place that hold each process's shard, as FSDP2 cuts them; the last may be short or empty."""
        view = place.view()
        size = -(-len(view) // self.world_size)
        return [view[min(i * size, len(view)) : min((i + 1) * size, len(view))] for i in range(self.world_size)]

    def _from_all(self, checksums: list[tuple[int, int]]) -> Tensor:
        """(processes, parameters, 2) int64: everyone's checksums."""
        local = torch.tensor([_signed(c) for c in checksums])
        gathered = torch.empty(self.world_size * len(local), 2, dtype=torch.int64)
        device = self.engine.slots()[0].parameter.device
        local, gathered = local.to(device), gathered.to(device)
        dist.all_gather_into_tensor(gathered, local, group=self.group)
        return gathered.view(self.world_size, -1, 2).cpu()


def _served_part(parameter: DTensor, place: Place) -> Tensor:
    """This process's shard in the dtype and on the device that it is served in."""
    return parameter.to_local().to(place.parameter.device, place.parameter.dtype)


def _signed(checksum: tuple[int, int]) -> tuple[int, ...]:
    """The same 64 bits as signed integers, which a tensor can hold."""
    return tuple(c - 2**64 if c >= 2**63 else c for c in checksum)


def _gaps(parameters: dict[str, Tensor], known: dict[str, Place]) -> list[str]:
    found = [f"{name}: served, but not a parameter of the trained model" for name in known if name not in parameters]
    for name, parameter in parameters.items():
        if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
            found.append(f"{name}: not sharded along its first dimension over one mesh")
        elif name not in known or known[name].view().shape != parameter.shape:
            found.append(f"{name}: has no place of shape {tuple(parameter.shape)} in the served model")
    return found
