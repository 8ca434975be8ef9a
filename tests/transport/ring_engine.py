"""An engine process without a model, for tests of the transport between two real processes.

`python ring_engine.py ARENA DOORBELL_FD CONTROL_FD`: every Submit is (ring, generation, seed, length) as four
little-endian uint32, an empty frame is a Wake. It publishes `token(seed, i)`, obeys full rings and cancels, sleeps in
select() when it can do nothing, and exits when the control channel ends.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from dataclasses import dataclass

import numpy as np

from rbee.transport import Arena, Producer
from rbee.transport.control import ControlChannel

SUBMIT = struct.Struct("<4I")
LENGTH, ABORT = 2, 3


def token(seed: int, index: int) -> int:
    """The token that both processes expect."""
    return (seed * 2654435761 ^ index * 40503) & 0x7FFFFFFF


@dataclass
class Sequence:
    """A request that runs."""

    seed: int
    length: int
    done: int = 0


class RingEngine:
    """Steps as long as some ring has space."""

    def __init__(self, producer: Producer, control: ControlChannel) -> None:
        self.producer = producer
        self.control = control
        self.running: dict[int, Sequence] = {}

    def run(self) -> None:
        """Step, or sleep until there is a reason to look again; EOFError at the end."""
        while True:
            self.receive()
            if not self.step():
                self.producer.arm_wait()
                if not self.step():
                    select.select([self.control], [], [])

    def receive(self) -> None:
        """Take submissions."""
        for payload in self.control.receive():
            if payload:
                ring, generation, seed, length = SUBMIT.unpack(payload)
                self.producer.open(ring, generation)
                self.running[ring] = Sequence(seed, length)

    def step(self) -> bool:
        """One token for each sequence whose ring has space; False if there was nothing to publish."""
        finishes = dict.fromkeys(self.producer.take_cancelled(), ABORT)
        rings, tokens = [], []
        for ring, sequence in self.running.items():
            if ring not in finishes and self.producer.free_space(ring):
                rings.append(ring)
                tokens.append(token(sequence.seed, sequence.done))
                sequence.done += 1
                if sequence.done == sequence.length:
                    finishes[ring] = LENGTH
        for ring in finishes:
            del self.running[ring]
        if not rings and not finishes:
            return False
        self.producer.commit(
            np.array(rings, np.uint32),
            np.array(tokens, np.uint32),
            np.zeros(len(rings), np.float32),
            np.array(list(finishes.keys()), np.uint32),
            np.array(list(finishes.values()), np.uint32),
        )
        return True


def main() -> None:
    """Run until the server is gone."""
    arena = Arena.attach(sys.argv[1])
    engine = RingEngine(Producer(arena, int(sys.argv[2])), ControlChannel(socket.socket(fileno=int(sys.argv[3]))))
    engine.control.send(b"attached")
    try:
        engine.run()
    except EOFError:
        engine.control.close()


if __name__ == "__main__":
    main()
