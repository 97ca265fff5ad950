"""What comes in as a blob, until it is a tensor or a part of a plan."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
from pathlib import Path

import pytest
import zmq

from edge_agent import effects as e
from edge_agent.agent_blobs import BlobDesk
from edge_agent.agent_chores import Chores
from edge_agent.blob_transfers import BlobFetched
from edge_agent.store_shelf import StoreShelf
from edge_agent.tensor_format import pack
from tests.edge_agent.device import result_id
from tests.waiting import PATIENCE

CONTENT = pack("int64", (2,)) + bytes(16)
DIGEST = hashlib.sha256(CONTENT).digest()


def test_a_blob_that_comes_twice_is_in_two_files(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """The first is dropped when its tensor is kept, which may be when the second has come, for another tensor."""
    events: queue.SimpleQueue[e.AgentEvent] = queue.SimpleQueue()
    shelf = StoreShelf(tmp_path)
    desk = BlobDesk(context, "d", tmp_path, "tcp://127.0.0.1:9", events.put)
    chores = Chores(shelf, events.put)
    whole = tmp_path / "incoming" / DIGEST.hex()
    paths = []
    for _ in range(2):
        whole.write_bytes(CONTENT)
        desk._happened(BlobFetched(digest=DIGEST, path=whole))
        arrived = events.get(timeout=PATIENCE)
        assert isinstance(arrived, e.BlobArrived)
        paths.append(arrived.path)
    for counter, path in enumerate(paths, start=1):
        chores.adopt(e.AdoptTensor(id=result_id(counter), source=path))
        chores.drop_files(e.DropFiles(paths=[path]))
        adopted = events.get(timeout=PATIENCE)
        assert isinstance(adopted, e.TensorAdopted), adopted
        assert Path(str(adopted.held.source)).read_bytes() == CONTENT
    chores.close()
    assert list((tmp_path / "incoming").iterdir()) == []
    shelf.close()


def test_a_blob_that_the_disk_takes_and_loses_can_be_fetched_again(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """It is told as a fetch that has failed, and the transfers of others go on."""
    events: queue.SimpleQueue[e.AgentEvent] = queue.SimpleQueue()
    desk = BlobDesk(context, "d", tmp_path, "tcp://127.0.0.1:9", events.put)
    desk._happened(BlobFetched(digest=DIGEST, path=tmp_path / "incoming" / DIGEST.hex()))
    assert events.get(timeout=PATIENCE) == e.BlobFailed(
        digest=DIGEST, reason="it could not be kept: No such file or directory"
    )


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_gone_is_told_from_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """The one can be fetched again."""
    events: queue.SimpleQueue[e.AgentEvent] = queue.SimpleQueue()
    shelf = StoreShelf(tmp_path)
    path = tmp_path / "incoming" / "x"
    if not gone:
        path.write_bytes(CONTENT)

        def full(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

        monkeypatch.setattr(shelf._disk, "link", full)
    chores = Chores(shelf, events.put)
    chores.adopt(e.AdoptTensor(id=result_id(1), source=str(path)))
    unfit = events.get(timeout=PATIENCE)
    chores.close()
    shelf.close()
    assert isinstance(unfit, e.TensorUnfit)
    assert (unfit.failure.code, unfit.gone) == ("StoreFull", gone)
