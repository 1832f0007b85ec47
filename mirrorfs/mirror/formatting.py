"""Reading and writing what makes a leg ours."""

import uuid

from mirrorfs import limits
from mirrorfs.errors import BadMetadata
from mirrorfs.intent.log import IntentLog
from mirrorfs.leg.base import Leg
from mirrorfs.metadata import wibm
from mirrorfs.mirror.member import Member
from mirrorfs.model import VolumeRecord


async def read_super(leg: Leg) -> tuple[wibm.LegSuper, int]:
    """Return the newest superblock on a leg's medium and which copy it is.  Raises BadMetadata, OSError."""
    if leg.size < wibm.LOG_OFFSET:
        raise BadMetadata('too short to hold a wibm superblock')
    pages = [bytes(await leg.read_medium(offset, limits.PAGE)) for offset in wibm.SUPER_OFFSETS]
    return wibm.newest_super(pages[0], pages[1])


async def format_leg(
    leg: Leg,
    identity: uuid.UUID,
    slot: int,
    layout: wibm.Layout,
    log: IntentLog,
    record: VolumeRecord,
    serial: int,
    known: Member | None = None,
    idle_page: bytes = bytes(limits.PAGE),
) -> Member:
    """Write all metadata of a leg that joins, superblock last; return it as a member.  Raises OSError.

    `idle_page` is what its first page is to hold: the mark of a shared spare stays until the volume has it.

    The leg's old log, if any, must not win over the volume's: both copies of every page are written.  A leg
    that comes back, `known` with its bad-block list, keeps that: what it lacks it still lacks.
    """
    member = known or Member(slot, leg, identity, layout, log.pages)
    await leg.write(0, idle_page)
    if layout.bad_blocks_offset(0) is not None:
        await member.store_bad(record.uuid)
    await member.store_log_anew(log.whole())
    await leg.flush()
    await member.store_super_anew(record, serial)
    return member
