"""The facade of torch.distributed: its operations in a single process, and over a store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.distributed import DistNetworkError, HashStore

from dglpipe.errors import PeerLostError
from dglpipe.pipeline.launcher_env import world_of_launcher
from dglpipe.pipeline.process_group import ProcessGroup, translate_peer_loss
from dglpipe.pipeline.topology import Layout


def make_group(size=1, rank=0, store=None):
    """The group of one rank of a chain of `size` processes that share `store`."""
    topology = Layout(size, size, 1, 1).at(rank)
    if store is None:
        return ProcessGroup.alone(topology)
    return ProcessGroup.store_only(topology, store)


def in_threads(size, function):
    """`function(group)` of every rank of a chain, in a thread each; results by rank."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    groups = [make_group(size, rank, store) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, groups, timeout=30))


class TestAlone:
    def test_it_has_no_links_and_no_replicas(self):
        group = make_group()
        assert (group.previous, group.following) == (None, None)
        assert (group.replicas, group.pipeline) == (None, None)

    def test_a_replica_alone_is_the_module_itself(self):
        module = nn.Linear(2, 2)
        assert make_group().replicate(module) is module

    def test_the_mean_over_one_replica_is_the_tensor(self):
        tensors = [torch.tensor([1.0, 3.0]), torch.tensor([4])]
        make_group().average(tensors)
        assert [tensor.tolist() for tensor in tensors] == [[1.0, 3.0], [4]]

    def test_an_exchange_of_one_process_gives_its_own_value(self):
        assert make_group().exchange("key", "word") == ["word"]

    def test_barriers_and_departure_return_at_once(self):
        group = make_group()
        group.barrier()
        group.barrier()
        group.wait_for_departure("end")
        group.close()


class TestStore:
    def test_an_exchange_gives_every_rank_all_values_by_rank(self):
        words = in_threads(3, lambda group: group.exchange("key", f"of {group.topology.rank}"))
        assert words == [["of 0", "of 1", "of 2"]] * 3

    def test_exchanges_under_different_keys_do_not_mix(self):
        def twice(group):
            rank = group.topology.rank
            return group.exchange("a", f"a{rank}"), group.exchange("b", f"b{rank}")

        assert in_threads(2, twice) == [(["a0", "a1"], ["b0", "b1"])] * 2

    def test_a_barrier_waits_for_all_processes(self):
        come = []

        def pass_three(group):
            seen = []
            for _ in range(3):
                come.append(group.topology.rank)
                group.barrier()
                seen.append(len(come))
            return seen

        for seen in in_threads(3, pass_three):
            assert all(count >= 3 * number for number, count in enumerate(seen, 1)), seen

    def test_rank_0_departs_last(self):
        """Rank 0 may hold the store."""
        others_left = threading.Event()

        def depart(group):
            if group.topology.rank == 1:
                group.wait_for_departure("end")
                others_left.set()
                return True
            if group.topology.rank == 2:
                assert others_left.wait(20), "rank 1 waits for somebody"
            group.wait_for_departure("end")
            return others_left.is_set()

        assert in_threads(3, depart) == [True] * 3

    def test_a_silent_rank_is_a_lost_peer(self):
        store = HashStore()
        store.set_timeout(timedelta(seconds=0.01))
        with pytest.raises(PeerLostError, match="no answer from another process"):
            make_group(2, 0, store).exchange("key", "word")


class TestLoss:
    @pytest.mark.parametrize(
        "error",
        [
            DistNetworkError("timed out\nmore"),
            RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed"),
        ],
        ids=["torch", "gloo"],
    )
    def test_errors_of_the_transport_are_a_lost_process(self, error):
        with (
            pytest.raises(PeerLostError, match="lost another process: ") as caught,
            translate_peer_loss(),
        ):
            raise error
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error

    def test_errors_of_the_computation_stay(self):
        with pytest.raises(RuntimeError, match="shapes") as caught, translate_peer_loss():
            raise RuntimeError("shapes cannot be multiplied")
        assert not isinstance(caught.value, PeerLostError)

    def test_no_error_is_no_loss(self):
        with translate_peer_loss():
            pass


RANK_3_OF_8 = {
    **{"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


class TestLauncher:
    def test_torchrun_is_known_by_its_run_id(self, monkeypatch):
        for key, value in {**RANK_3_OF_8, "TORCHELASTIC_RUN_ID": "x"}.items():
            monkeypatch.setenv(key, value)
        assert world_of_launcher() == (3, 8, 4)

    def test_other_variables_are_no_launcher(self, monkeypatch):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        for key, value in RANK_3_OF_8.items():
            monkeypatch.setenv(key, value)
        assert world_of_launcher() is None
