"""What the intent logs of legs mean at a start: pure functions from what was read to what is to be done."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mirrorfs.intent.log import MAP, IntentLog
from mirrorfs.intent.states import ALL, DIRTY, MODIFIED, NEEDS_RESYNC, UNWRITTEN
from mirrorfs.metadata import logfile, wibm
from mirrorfs.mirror import membership
from mirrorfs.model import VolumeRecord


def merge(
    record: VolumeRecord, trusted: Mapping[int, wibm.LogImage], all_: Mapping[int, wibm.LogImage]
) -> tuple[IntentLog, bool]:
    """Take each page from the trusted leg that has it newest; return the log, and whether legs disagree.

    A batch that reached only some legs began nothing yet that the others lack: marks come before data and
    clears after flushes, so the newest is right.  A page whole on no leg: written, and to be made equal.
    """
    slots = sorted(trusted)
    serials = np.stack([trusted[slot].serials for slot in slots])
    newest = serials.max(axis=0)
    states = np.full(len(newest) * wibm.PAGE_CHUNKS, DIRTY | NEEDS_RESYNC, np.uint8)
    pages = states.reshape(len(newest), wibm.PAGE_CHUNKS)
    for slot in slots:
        best = (trusted[slot].serials == newest) & (newest > 0)
        pages[best] = _pages_of(trusted[slot])[best]
    behind = newest == 0
    for image in all_.values():
        old = image.serials != newest
        # An older page that says the same needs no writing: a leg joined, and the others had that page.
        old[old] = (image.serials[old] == 0) | np.any(_pages_of(image)[old] != pages[old], axis=1)
        behind |= old
    log = IntentLog(
        record.uuid, states[: record.chunks].copy(), max(int(i.serials.max()) for i in all_.values())
    )
    log.touch_pages(behind)
    return log, bool(behind.any())


def disbelief(header: logfile.LogHeader, record: VolumeRecord, serial: int) -> str:
    """Return why a file is not the present log of a volume; nothing if it is.

    `serial`: that of the newest superblock which says `record`.  Whatever legs were told, their log was told
    before; so one that knows less is an old copy.
    """
    if header.volume != record.uuid:
        return f'it is the log of volume {header.name} ({header.volume})'
    if header.log != record.log_id:
        return f'it is log {header.log}, wanted is {record.log_id}'
    if header.events < record.events or header.serial < serial:
        return f'it is an old copy (events {header.events}, the volume has {record.events})'
    if header.layout.chunks_max < record.chunks:
        return f'it has room for {header.layout.chunks_max} chunks, the volume has {record.chunks}'
    return ''


def map_alone(image: wibm.LogImage) -> wibm.LogImage:
    """Return what counts of a leg's log where the log is outside the legs."""
    return replace(image, states=image.states & np.uint8(MAP))


def add_outside(log: IntentLog, image: wibm.LogImage) -> None:
    """Take what is not on the legs from the log outside."""
    log.add(image.states & np.uint8(ALL & ~MAP))
    log.serial = max(log.serial, int(image.serials.max()))


def _pages_of(image: wibm.LogImage) -> npt.NDArray[np.uint8]:
    """Return an image's states by page (uint8 [pages, PAGE_CHUNKS]), padded with zeros."""
    padded = np.zeros(len(image.serials) * wibm.PAGE_CHUNKS, np.uint8)
    padded[: len(image.states)] = image.states
    return padded.reshape(len(image.serials), wibm.PAGE_CHUNKS)


def prepare(
    record: VolumeRecord, log: IntentLog, *, several: bool, active: bool, tracked: bool = False
) -> bool:
    """Turn what the log says of the past into what is to be done.

    `tracked`: some leg's superblock still promises, to one that is away, that MODIFIED is kept for it.  Pages
    become durable before superblocks, so the flags may go only after the promise has.

    Return whether legs may differ, those that are absent included: then that a session began without those
    must be durable before the first read, or they come back as equals and bytes change that were read.
    """
    unknown = active and not record.logged  # then any chunk may have been under way
    dirty = log.where(0 if unknown else DIRTY, UNWRITTEN)
    dirty = np.union1d(dirty, log.where(NEEDS_RESYNC, UNWRITTEN))
    if membership.needs_tracking(record):
        log.update_chunks(dirty, set_=MODIFIED)
    elif not tracked:
        log.update_chunks(log.where(MODIFIED), clear=MODIFIED)
    if several:
        log.update_chunks(dirty, set_=NEEDS_RESYNC)
    else:
        log.update_chunks(log.where(NEEDS_RESYNC), clear=NEEDS_RESYNC)
    log.update_chunks(log.where(NEEDS_RESYNC | UNWRITTEN), clear=NEEDS_RESYNC)
    return bool(len(dirty) or log.count(NEEDS_RESYNC))


def written(image: wibm.LogImage) -> int:
    """Return how many chunks a leg's log says were written, or discarded, while another was away, or late."""
    states = image.states
    late = ((states & np.uint8(DIRTY)) != 0) & ((states & np.uint8(UNWRITTEN)) == 0)
    return int(np.count_nonzero(late | ((states & np.uint8(MODIFIED)) != 0)))
