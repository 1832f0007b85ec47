"""The control file ``map.json``: the states of a volume's chunks, by cells (see `mirrorfs.fs.cells`)."""

import numpy as np
import trio

from mirrorfs.fs import cells
from mirrorfs.fs.mdstat import leg_words
from mirrorfs.fs.place import Place
from mirrorfs.pool import Entry


async def chunk_map(place: Place) -> bytes:
    """Return the map of a volume as JSON; others run in between.  Raises Refused(EIO) if it did not start."""
    started, _ = place.volume.require()
    volume, scrub = started.volume, started.rebuilder.scrub.state
    record, states = volume.record, volume.log.states
    bad = {member.slot: member.bad for member in volume.members}
    progress = started.rebuilder.progress
    reached = {progress.slot: progress.reached} if progress and progress.slot is not None else {}
    rows = cells.rows_of(record, scrub.listed, bad, reached)
    head = {'volume': record.name, 'size': record.size, 'chunk_size': record.chunk_size}
    head['mismatches_not_listed'] = scrub.more
    legs = [_leg(place.volume, row) for row in rows[1:]]
    per_cell = cells.chunks_per_cell(len(states))
    counted = []
    for first, end in cells.slices(len(states), per_cell):
        counted.append(cells.count(rows, first, states[first:end], per_cell))
        await trio.sleep(0)
    text = []
    for piece in cells.as_json(head, legs, np.concatenate(counted, axis=1)):
        text.append(piece.encode())
        await trio.sleep(0)
    return b''.join(text)


def _leg(entry: Entry, row: cells.Row) -> dict[str, object]:
    record = entry.record
    assert record and row.slot is not None
    number = record.at_place(row.slot)
    assert number is not None
    return {'slot': row.slot, 'state': leg_words(entry, number)[0], 'path': record.slots[number].path}
