"""Arrays from one port to another, whatever their size, and the end of a connection."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest
from left_behind import nothing_left_behind

from millpond.runner.remote.channel import Port, port_pair
from millpond.runner.remote.messages import ConnectionEnded, receive_message, send_message
from millpond.runner.remote.shared_memory import SMALLEST_BYTES, SharedMemory, array_bytes


def ports(ranks: int = 1) -> tuple[Port, list[Port]]:
    own, others = port_pair(ranks)
    return own, [Port([each]) for each in others]


def test_arrays_of_every_kind_and_size_arrive() -> None:
    own, (other,) = ports()
    for size in (0, 1, 3, 10_000, SMALLEST_BYTES, 5):
        sent = [
            np.arange(size, dtype=np.int64),
            np.arange(size, dtype=np.int32),
            np.linspace(0, 1, size, dtype=np.float32),
            np.arange(size).astype(np.uint8),
            np.arange(size) % 2 == 0,
        ]
        own.send(7, sent, number=size)
        found = other.receive()
        assert (found.kind, found.number) == (7, size)
        for one, another in zip(found.arrays, sent, strict=True):
            assert one.dtype == another.dtype
            np.testing.assert_array_equal(one, another)
        other.send(8)
        assert own.receive() == (8, 0, [])
    own.close()
    other.close()


def test_every_rank_reads_the_same_memory() -> None:
    own, others = ports(3)
    own.send(1, [np.arange(4)])
    found = [other.receive().arrays[0] for other in others]
    found[0][0] = 9
    assert [array[0] for array in found] == [9, 9, 9]
    for port in (own, *others):
        port.close()


@pytest.mark.parametrize("ends_here", [True, False])
def test_the_end_of_a_connection_wakes_who_waits(ends_here: bool) -> None:
    own, (other,) = ports()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            own.receive()
        except ConnectionEnded as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    own.end() if ends_here else other.close()
    thread.join(30)
    assert len(errors) == 1
    with pytest.raises(ConnectionEnded):
        own.send(1, [np.arange(3)])
    own.close()
    other.close()


def test_ports_leave_nothing_behind() -> None:
    with nothing_left_behind():
        own, (other,) = ports()
        for size in (10, 10**6):
            own.send(1, [np.zeros(size, np.float32)])
            other.receive()
        own.close()
        other.close()
        del own, other


def test_memory_is_shared_by_its_descriptor_and_has_no_name() -> None:
    names = set(os.listdir("/dev/shm"))
    memory, descriptor = SharedMemory.create(100)
    assert set(os.listdir("/dev/shm")) == names
    assert memory.bytes == SMALLEST_BYTES
    memory.write([np.array([4, 5])])
    np.testing.assert_array_equal(SharedMemory(descriptor).read()[0], [4, 5])


def test_a_list_of_arrays_may_fill_the_memory_to_its_last_byte() -> None:
    memory, descriptor = SharedMemory.create(SMALLEST_BYTES)
    os.close(descriptor)
    rest = SMALLEST_BYTES - array_bytes([np.empty(0, np.uint8)])
    full = [np.full(rest, 3, np.uint8)]
    assert array_bytes(full) == memory.bytes
    memory.write(full)
    np.testing.assert_array_equal(memory.read()[0], full[0])


def test_messages_bring_descriptors_and_half_of_one_is_the_end() -> None:
    one, other = socket.socketpair()
    with open(os.devnull) as file:
        send_message(one, {"a": [1] * 100_000}, [file.fileno()])
    message, (descriptor,) = receive_message(other)
    assert message == {"a": [1] * 100_000}
    os.close(descriptor)
    one.sendall(b"\x07\x00")
    one.close()
    with pytest.raises(ConnectionEnded):
        receive_message(other)
    with pytest.raises(ConnectionEnded):
        send_message(other, "nobody is there")
    other.close()
