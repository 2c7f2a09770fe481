"""A process that works on a spool until it is killed: it says what it is going to do, and what it has done.

python -m faults.spool_child FOLDER SEED TABLE FIRST FSYNC
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from pathlib import Path
from typing import cast

from pgtick.writer.spool import Fsync, Record, Spool

__all__ = ["numbered", "work"]


def numbered(table: str, number: int, chance: random.Random) -> Record:
    """Return a batch that is known by its number."""
    body = number.to_bytes(8, "big") + bytes(chance.randrange(300))
    return Record(uuid.UUID(int=number), table, number, 1 + number % 7, body, b"fingerprint")


def say(what: str, table: str, number: int) -> None:
    os.write(1, f"{what} {table} {number}\n".encode())


def work(folder: Path, seed: int, table: str, number: int, fsync: Fsync) -> None:
    """Append and settle at random, in small segments, with new starts in between; never end."""
    chance = random.Random(seed)
    while True:
        spool = Spool(folder, segment_bytes=chance.choice([1, 600, 3000]), fsync=fsync)
        spool.open()
        say("open", table, 0)
        last_of: dict[str, int] = {}
        for _ in range(chance.randrange(1, 200)):
            if chance.random() < 0.6:
                say("append", table, number)
                spool.append(numbered(table, number, chance))
                say("appended", table, number)
                number += 1
                continue
            for name in spool.tables():
                record = spool.peek(name)
                assert record is not None
                assert record.body[:8] == record.created_us.to_bytes(8, "big")
                assert record.created_us > last_of.get(name, -1), f"{name}: {record.created_us} after {last_of}"
                last_of[name] = record.created_us
                say("settle", name, record.created_us)
                spool.acknowledge(name, record.batch_id)
                say("settled", name, record.created_us)
        spool.close()
        say("closed", table, 0)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), cast(Fsync, sys.argv[5]))
