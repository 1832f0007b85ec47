"""Making a new volume: all legs are checked before the first is written, the pool's record comes last."""

import errno
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trio

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.intent.log import IntentLog
from mirrorfs.intent.states import UNWRITTEN, UNZEROED
from mirrorfs.leg.base import Leg, Opener
from mirrorfs.leg.patience import fail_in_time, open_in_time
from mirrorfs.metadata import logfile, wibm
from mirrorfs.mirror.formatting import format_leg
from mirrorfs.mirror.logfile import format_log_file, open_for_log
from mirrorfs.model import DetectZeroes, Generation, LegState, Slot, VolumeRecord, default_chunk_size
from mirrorfs.volume.lifecycle import Settings

MISSING = 'missing'
"""The word for a leg that is to come later."""
_NAME = re.compile(r'[^\s/.\-\0-\x1f\x7f][^\s/\0-\x1f\x7f]*')


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.  `size` and `chunk_size` in bytes; chunk_size 0 chooses by size."""

    name: str
    size: int
    legs: Sequence[str]
    chunk_size: int = 0
    logged: bool = True
    force: bool = False
    log_path: str = ''
    """A file outside the legs for the log; empty: on the legs, if there is one."""
    detect_zeroes: DetectZeroes = DetectZeroes.OFF

    def check(self) -> None:
        """Raise Refused(EINVAL) for what can never be made."""
        check_name(self.name)
        chunk = self.chunk_size or default_chunk_size(self.size)
        _need(
            limits.CHUNK_MIN <= chunk <= limits.CHUNK_MAX and chunk.bit_count() == 1,
            f'chunk size {chunk} is not a power of two from 64K to 64M',
        )
        _need(self.size >= limits.VOLUME_MIN, f'a volume has at least {limits.VOLUME_MIN} bytes')
        _need(self.size % limits.SECTOR == 0, f'size {self.size} is not a multiple of {limits.SECTOR} bytes')
        most = limits.CHUNKS_MAX * chunk
        _need(self.size <= most, f'size {self.size} needs larger chunks: {chunk} allow for {most}')
        real = [path for path in self.legs if path != MISSING]
        _need(real, 'a volume needs at least one leg that is there')
        count = len(self.legs)
        _need(count <= limits.LEGS_MAX, f'{count} legs; a volume has {limits.LEGS_MAX} at most')
        _need(len(set(real)) == len(real), 'the same leg is named twice')


def check_name(name: str) -> None:
    """Raise Refused(EINVAL) unless `name` can be a volume's."""
    good = _NAME.fullmatch(name) and len(name.encode(errors='surrogateescape')) <= limits.NAME_MAX
    _need(
        good and name.isprintable(),
        f'{name[:40]!r} cannot be a volume name: no blanks or slashes, not led by "." or "-", '
        f'{limits.NAME_MAX} bytes at most',
    )


def _need(condition: object, complaint: str) -> None:
    if not condition:
        raise Refused(errno.EINVAL, complaint)


async def create(request: Request, opener: Opener, settings: Settings) -> VolumeRecord:
    """Format the legs of a new volume and return its record, which the caller saves.

    Raises Refused or OSError; then no leg was touched, or those that were created are gone again.
    """
    request.check()
    chunk = request.chunk_size or default_chunk_size(request.size)
    layout = wibm.new_layout(request.size, chunk)
    needed = layout.data_offset + request.size
    opened: list[tuple[Leg, bool]] = []
    outside: list[tuple[Leg, bool]] = []
    try:
        if request.log_path:
            size = logfile.new_layout(request.size, chunk).size
            with fail_in_time(request.log_path, settings.leg_timeout):
                outside.append(await open_for_log(opener, request.log_path, size, force=request.force))
        for path in request.legs:
            if path != MISSING:
                opened.append(await open_in_time(opener, path, settings.leg_timeout, create_size=needed))
                await check_new_leg(opener, *opened[-1], needed, force=request.force)
        legs, logs = [leg for leg, _ in opened], [leg for leg, _ in outside]
        record = await _format(request, chunk, layout, legs, logs, settings)
    except BaseException:
        with trio.CancelScope(shield=True):
            for leg, created in (*opened, *outside):
                if created:
                    await opener.discard_new(leg)
        raise
    finally:
        for leg, _ in (*opened, *outside):
            leg.close()
    return record


async def check_new_leg(opener: Opener, leg: Leg, created: bool, needed: int, *, force: bool) -> None:
    """Raise Refused if the leg is too small (ENOSPC) or bears a signature (EEXIST) without `force`."""
    if leg.size < needed:
        message = f'{leg.path} has {leg.size} bytes; {needed} are needed for data and metadata'
        raise Refused(errno.ENOSPC, message)
    if not created and not force:
        await opener.require_blank(leg)


async def _format(
    request: Request,
    chunk: int,
    layout: wibm.Layout,
    legs: list[Leg],
    logs: list[Leg],
    settings: Settings,
) -> VolumeRecord:
    """Format all legs, and the file of the log before them, if there is one; return the record."""
    now = settings.clock()
    slots = [Slot() for _ in range(limits.SLOTS)]
    names = [leg.path for leg in legs]
    for number, path in enumerate(request.legs):
        if path != MISSING:
            slots[number] = Slot(LegState.IN_SYNC, settings.new_uuid(), path=names.pop(0))
    record = VolumeRecord(
        uuid=settings.new_uuid(),
        name=request.name,
        size=request.size,
        chunk_size=chunk,
        raid_disks=len(request.legs),
        slots=tuple(slots),
        lineage=(Generation(settings.new_uuid(), now, 1),),
        logged=request.logged,
        detect_zeroes=request.detect_zeroes,
        created_us=now,
        updated_us=now,
    )
    zeroed = [await leg.erase(layout.data_offset, request.size) for leg in legs]
    state = UNWRITTEN if all(zeroed) else UNWRITTEN | UNZEROED
    for file in logs:
        record = record.but(log_id=settings.new_uuid(), log_path=file.path)
        log = IntentLog(record.uuid, np.full(record.chunks, state, np.uint8), 0)
        await format_log_file(file, record.log_id, record, log, 1)
    errors: list[OSError] = []

    async def one(leg: Leg, slot: int, identity: uuid.UUID) -> None:
        log = IntentLog(record.uuid, np.full(record.chunks, state, np.uint8), 0)
        try:
            await format_leg(leg, identity, slot, layout, log, record, 1)
        except OSError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for leg, number in zip(legs, record.where(LegState.IN_SYNC), strict=True):
            nursery.start_soon(one, leg, number, record.slots[number].leg)
    if errors:
        raise errors[0]
    return record
