"""What can be said of volumes whose pool is not mounted: by their definitions, and a look at their legs."""

import contextlib
import errno
import functools
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio

from mirrorfs.cli.common import no_volume
from mirrorfs.cli.patience import Patient
from mirrorfs.definitions import PoolDirectory, status_of_records
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.fs import cells
from mirrorfs.fs.mdstat import volume_status
from mirrorfs.intent.log import IntentLog
from mirrorfs.leg.opening import read_log_header, read_super
from mirrorfs.metadata import badlist, wibm
from mirrorfs.mirror import comparing
from mirrorfs.mirror.badblocks import BadBlocks
from mirrorfs.model import LegState, VolumeRecord
from mirrorfs.pool import Entry
from mirrorfs.volume import doubt

PATIENCE = 1.0
"""Seconds that a leg's path has to answer."""


def at_rest(records: Mapping[str, VolumeRecord]) -> list[dict[str, Any]]:
    """Return the facts of volumes, in the form of status.json, with all that their definitions say."""
    facts = []
    for said, record in zip(status_of_records(dict(records)), records.values(), strict=True):
        known = volume_status(Entry(record, record.name))
        del known['state']
        for leg in known['legs']:
            leg['occupied'] = _occupied(leg['path'])
        facts.append(said | known)
    return facts


def _occupied(path: str) -> int | None:
    """Return the bytes that a file takes on its filesystem; None for a device, or where it is not seen."""
    if not path:
        return None
    try:
        info = Patient(functools.partial(os.stat, path))(PATIENCE)
    except OSError:
        return None
    # st_blocks is in units of 512 bytes whatever the filesystem's are.
    return info.st_blocks * 512 if info and stat.S_ISREG(info.st_mode) else None


# The map


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a leg at hand says of its volume's chunks."""

    image: wibm.LogImage
    bad: BadBlocks


def chunk_map(directory: PoolDirectory, name: str) -> dict[str, Any]:
    """Return the map of a volume as ``map.json`` has it, by the logs on its legs.

    Raises Refused: ENOENT for no such volume, EIO where no leg in sync can be read.
    """
    records, damaged = directory.load()
    if name not in records:
        if name in damaged:
            raise Refused(errno.EIO, damaged[name])
        raise no_volume(name, records, directory.path)
    record = records[name]
    seen: dict[int, _Seen] = {}
    for number, slot in enumerate(record.slots):
        with contextlib.suppress(BadMetadata, OSError):
            if slot.path:
                seen[number] = _look(slot.path, record)
    log = _log(record, seen)
    scrub = comparing.Scrub()
    with contextlib.suppress(BadMetadata):
        if said := trio.run(directory.load_scrub, name):
            scrub = comparing.decode(said, record.uuid)
    rows = cells.rows_of(record, scrub.listed, {number: leg.bad for number, leg in seen.items()})
    head = {'volume': name, 'size': record.size, 'chunk_size': record.chunk_size}
    per_cell = cells.chunks_per_cell(record.chunks)
    parts = [
        cells.count(rows, first, log.states[first:end], per_cell)
        for first, end in cells.slices(record.chunks, per_cell)
    ]
    by_place = {record.place(number): slot for number, slot in enumerate(record.slots)}
    places = [row.slot for row in rows if row.slot is not None]
    legs = [{'slot': p, 'state': by_place[p].state.word, 'path': by_place[p].path} for p in places]
    pieces = cells.as_json({**head, 'mismatches_not_listed': scrub.more}, legs, np.concatenate(parts, axis=1))
    told: dict[str, Any] = json.loads(''.join(pieces))
    return told


def _look(path: str, record: VolumeRecord) -> _Seen:
    """Read a leg's log and bad-block list.  Raises BadMetadata for what is no leg of the volume, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sup, _ = read_super(fd)
        if sup.record.uuid != record.uuid:
            raise BadMetadata(f'{path} is a leg of {sup.record.name}')
        offsets = [sup.layout.bad_blocks_offset(copy) for copy in (0, 1)]
        pages = [os.pread(fd, badlist.PAGE, offset) for offset in offsets if offset is not None]
        bad = badlist.newest(record.uuid, sup.leg, *pages)[0] if pages else None
        length = wibm.pages_for(record.chunks) * wibm.PAGE
        image = wibm.decode_log(
            record.uuid,
            record.chunks,
            lambda copy: os.pread(fd, length, sup.layout.page_offset(0, copy)),
        )
        return _Seen(image, BadBlocks.of(bad) if bad else BadBlocks())
    finally:
        os.close(fd)


def _log(record: VolumeRecord, seen: Mapping[int, _Seen]) -> IntentLog:
    """Return what the legs in sync say together, and the log outside them.  Raises Refused(EIO)."""
    images = {number: leg.image for number, leg in seen.items()}
    trusted = {number: images[number] for number in record.where(LegState.IN_SYNC) if number in images}
    if not trusted:
        raise Refused(errno.EIO, f'{record.name}: no leg that is in sync can be read, so there is no map')
    if not record.log_is_outside:
        return doubt.merge(record, trusted, images)[0]
    log, _ = doubt.merge(record, {n: doubt.map_alone(image) for n, image in trusted.items()}, images)
    try:
        doubt.add_outside(log, _outside(record))
    except (BadMetadata, OSError) as error:
        raise Refused(errno.EIO, f'{record.name}: its log in {record.log_path}: {error}') from None
    return log


def _outside(record: VolumeRecord) -> wibm.LogImage:
    """Read the log in a file outside the legs.  Raises BadMetadata, OSError."""
    fd = os.open(record.log_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        header = read_log_header(fd)
        if header.log != record.log_id:
            raise BadMetadata(f'it is the log of {header.name}')
        length = wibm.pages_for(record.chunks) * wibm.PAGE
        return wibm.decode_log(
            header.log,
            record.chunks,
            lambda copy: os.pread(fd, length, header.layout.page_offset(0, copy)),
        )
    finally:
        os.close(fd)
