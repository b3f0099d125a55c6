"""Weights that are sharded over processes are refused by name; edits made before that stay."""

from __future__ import annotations

import copy

import pytest
import torch.distributed as dist
from helpers import REQUEST, UNWATCHED, same_bits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import rome_fast
from rome_fast.errors import UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def mesh():
    """One process; what is asked of a weight is the same with many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def by_fsdp(model, mesh):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_tensor_parallel(model, mesh):
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh, {"down_proj": RowwiseParallel()})
    return model


@pytest.mark.parametrize(("shard", "dim"), [(by_fsdp, 0), (by_tensor_parallel, 1)])
def test_refused_by_name_and_an_edit_before_it_stays(mesh, llama, settings, shard, dim):
    model, tok = llama
    sharded = shard(copy.deepcopy(model), mesh)
    with rome_fast.Session(model, tok, health=UNWATCHED, **settings, form="weight") as session:
        session.edit(REQUEST)
        log = session.log
    for attempt in (
        lambda: rome_fast.edit(sharded, tok, REQUEST, **settings),
        lambda: rome_fast.Session(sharded, tok, **settings, form="weight"),
        lambda: rome_fast.RomeHparams.for_model(sharded),
        lambda: log.apply(sharded),
    ):
        with pytest.raises(UnsupportedModelError) as refusal:
            attempt()
        said = str(refusal.value)
        assert said.startswith("model.layers.1.mlp.down_proj.weight is sharded (DTensor, ")
        assert (
            f"Shard(dim={dim})), and an edit needs it whole: edit the model before it is sharded"
            in said
        )
    edited = shard(copy.deepcopy(model), mesh)
    whole = {
        name: p.full_tensor() if hasattr(p, "full_tensor") else p
        for name, p in edited.state_dict().items()
    }
    assert same_bits(model, whole)
