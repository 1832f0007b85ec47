"""examine: what a leg says of itself.  Opens legs read-only, whatever state their volume is in."""

import json
import os
from typing import Any

import click

from mirrorfs.cli.common import EXIT_REFUSED
from mirrorfs.cli.progress import Pulse
from mirrorfs.errors import BadMetadata
from mirrorfs.fs.mdstat import bitmap_word
from mirrorfs.intent.states import DIRTY, WORDS
from mirrorfs.leg.opening import read_log_header, read_mark, read_super
from mirrorfs.metadata import badlist, logfile, spare, wibm
from mirrorfs.model import LegState
from mirrorfs.units import format_size, format_time


@click.command()
@click.argument('legs', nargs=-1, required=True, metavar='LEG…', type=click.Path())
@click.option('--json', 'as_json', is_flag=True, help='for programs')
def examine(legs: tuple[str, ...], as_json: bool) -> int:
    """Show what each LEG, log file or shared spare says of itself.

    \b
    mirrorfs examine /mnt/a/vm1.leg /dev/sdx
    """
    with Pulse('reading legs'):
        answers = [read_facts(path) for path in legs]
    if as_json:
        click.echo(json.dumps(answers, indent=1))
    else:
        click.echo('\n\n'.join('\n'.join(_page(answer)) for answer in answers))
    return EXIT_REFUSED if any('error' in answer for answer in answers) else 0


def read_facts(path: str) -> dict[str, Any]:
    """Return a leg's facts, or the reason why there are none.  Sizes in bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return {'path': path, 'error': error.strerror}
    try:
        try:
            sup, copy = read_super(fd)
        except BadMetadata as no_leg:
            return {'path': path} | (_spare_facts(fd) or _log_facts(fd, no_leg))
        return {'path': path} | _facts(fd, sup, copy)
    except BadMetadata as bad:
        return {'path': path, 'error': str(bad)}
    except OSError as error:
        return {'path': path, 'error': error.strerror}
    finally:
        os.close(fd)


def _facts(fd: int, sup: wibm.LegSuper, copy: int) -> dict[str, Any]:
    record = sup.record
    pages = wibm.pages_for(record.chunks)
    image = wibm.decode_log(
        record.uuid,
        record.chunks,
        lambda which: os.pread(fd, pages * wibm.PAGE, sup.layout.page_offset(0, which)),
    )
    return {
        'format': 'wibm',
        'version': wibm.VERSION,
        'superblock': ['primary', 'secondary'][copy],
        'serial': sup.serial,
        'volume': record.name,
        'volume_uuid': str(record.uuid),
        'leg_uuid': str(sup.leg),
        'slot': record.place(sup.slot),
        'state': record.slots[sup.slot].state.word,
        'size': record.size,
        'chunk_size': record.chunk_size,
        'raid_disks': record.raid_disks,
        'events': record.events,
        'active': record.active,
        'bitmap': bitmap_word(record),
        'log_uuid': str(record.log_id) if record.log_is_outside else None,
        'time_base': record.time_base_ms / 1000,
        'created': format_time(record.created_us),
        'updated': format_time(record.updated_us),
        'data_offset': sup.layout.data_offset,
        'leg_size': os.lseek(fd, 0, os.SEEK_END),
        'needed_size': sup.needed_size,
        'chunks': {'total': record.chunks, 'max': sup.layout.chunks_max} | _counts(image),
        'log': {'pages': pages, 'damaged_pages': image.damaged, 'serial': int(image.serials.max())},
        'bad_blocks': _bad_blocks(fd, sup),
        'lineage': [
            {'uuid': str(step.uuid), 'time': format_time(step.time_us), 'events': step.events}
            for step in record.lineage
        ],
        'slots': {
            str(record.place(number)): {
                'state': slot.state.word,
                'leg': str(slot.leg),
                'tracked_since': slot.tracked_since,
                'recovered_chunks': slot.mark if slot.full else None,
            }
            for number, slot in enumerate(record.slots)
            if slot.state is not LegState.VACANT
        },
    }


def _bad_blocks(fd: int, sup: wibm.LegSuper) -> list[list[int]] | None:
    """Return the (sector, length) of what the leg lacks; None where no copy of its list is whole."""
    offsets = [sup.layout.bad_blocks_offset(copy) for copy in (0, 1)]
    pages = [os.pread(fd, badlist.PAGE, offset) for offset in offsets if offset is not None]
    if not pages:
        return []
    try:
        said, _ = badlist.newest(sup.record.uuid, sup.leg, *pages)
    except BadMetadata:
        return None
    return [[int(sector), int(length)] for sector, length in zip(said.sectors, said.lengths, strict=True)]


def _bad_words(ranges: list[list[int]] | None) -> str:
    if ranges is None:
        return 'the list is damaged'
    return f'{sum(length for _, length in ranges)} sectors in {len(ranges)} entries' if ranges else 'none'


def _spare_facts(fd: int) -> dict[str, Any]:
    """Return the facts of a shared spare; nothing for what is none."""
    try:
        mark = read_mark(fd)
    except BadMetadata:
        return {}
    return {
        'format': 'wibm-spare',
        'version': spare.VERSION,
        'pool_uuid': str(mark.pool),
        'spare_uuid': str(mark.spare),
        'leg_size': os.lseek(fd, 0, os.SEEK_END),
    }


def _log_facts(fd: int, no_leg: BadMetadata) -> dict[str, Any]:
    """Return the facts of a log file.  Raises `no_leg` if it is none of ours."""
    try:
        header = read_log_header(fd)
    except BadMetadata:
        raise no_leg from None
    pages = wibm.pages_for(header.chunks)
    image = wibm.decode_log(
        header.log,
        header.chunks,
        lambda copy: os.pread(fd, pages * wibm.PAGE, header.layout.page_offset(0, copy)),
    )
    return {
        'format': 'wibm-log',
        'version': logfile.VERSION,
        'serial': header.serial,
        'volume': header.name,
        'volume_uuid': str(header.volume),
        'log_uuid': str(header.log),
        'size': header.size,
        'chunk_size': header.chunk_size,
        'events': header.events,
        'chunks': {'total': header.chunks, 'max': header.layout.chunks_max} | _counts(image),
        'log': {'pages': pages, 'damaged_pages': image.damaged, 'serial': int(image.serials.max())},
    }


def _counts(image: wibm.LogImage) -> dict[str, int]:
    """Return how many chunks have each flag."""
    return {word: int((image.states & flag != 0).sum()) for flag, word in WORDS.items()}


def _page(facts: dict[str, Any]) -> list[str]:
    """Return a leg's facts for people, in the manner of mdadm --examine."""
    if 'error' in facts:
        return [f'{facts["path"]}: {facts["error"]}']
    if facts['format'] == 'wibm-log':
        return _log_page(facts)
    if facts['format'] == 'wibm-spare':
        return _spare_page(facts)
    chunks, log = facts['chunks'], facts['log']
    dirty = chunks[WORDS[DIRTY]] * facts['chunk_size']
    rows = [
        ('Format', f'wibm {facts["version"]} ({facts["superblock"]} superblock, serial {facts["serial"]})'),
        ('Volume', f'{facts["volume"]} ({facts["volume_uuid"]})'),
        ('Size', f'{facts["size"]} ({format_size(facts["size"])})'),
        ('Leg', f'slot {facts["slot"]} of {facts["raid_disks"]}, {facts["leg_uuid"]}'),
        ('State', f'{facts["state"]}, {"in use or not cleanly stopped" if facts["active"] else "clean"}'),
        ('Events', facts['events']),
        ('Created', facts['created']),
        ('Updated', facts['updated']),
        ('Data Offset', f'{facts["data_offset"]} bytes'),
        ('Intent Log', f'{facts["bitmap"]}, {log["pages"]} pages, {log["damaged_pages"]} damaged'),
        ('Chunk Size', f'{facts["chunk_size"]} ({format_size(facts["chunk_size"])})'),
        ('Chunks', f'{chunks["total"]} (room for {chunks["max"]})'),
        ('Dirty', f'{chunks["dirty"]} chunks, {format_size(dirty)} at most to resync'),
        ('Modified', f'{chunks["modified"]} chunks'),
        ('Unwritten', f'{chunks["unwritten"]} chunks'),
        ('Bad Blocks', _bad_words(facts['bad_blocks'])),
        ('Generation', facts['lineage'][-1]['uuid']),
    ]
    for number, slot in facts['slots'].items():
        rows.append((f'Slot {number}', f'{slot["state"]:<9}{slot["leg"]}'))
    return _table(facts['path'], rows)


def _log_page(facts: dict[str, Any]) -> list[str]:
    """Return a log file's facts for people."""
    chunks, log = facts['chunks'], facts['log']
    dirty = chunks[WORDS[DIRTY]] * facts['chunk_size']
    rows = [
        ('Format', f'wibm log {facts["version"]} (serial {facts["serial"]})'),
        ('Volume', f'{facts["volume"]} ({facts["volume_uuid"]})'),
        ('Log', facts['log_uuid']),
        ('Events', facts['events']),
        ('Intent Log', f'{log["pages"]} pages, {log["damaged_pages"]} damaged'),
        ('Chunk Size', f'{facts["chunk_size"]} ({format_size(facts["chunk_size"])})'),
        ('Chunks', f'{chunks["total"]} (room for {chunks["max"]})'),
        ('Dirty', f'{chunks["dirty"]} chunks, {format_size(dirty)} at most to resync'),
        ('Modified', f'{chunks["modified"]} chunks'),
    ]
    return _table(facts['path'], rows)


def _spare_page(facts: dict[str, Any]) -> list[str]:
    """Return a shared spare's facts for people."""
    rows = [
        ('Format', f'mark of a shared spare, version {facts["version"]}'),
        ('Pool', facts['pool_uuid']),
        ('Spare', facts['spare_uuid']),
        ('Size', f'{facts["leg_size"]} ({format_size(facts["leg_size"])})'),
    ]
    return _table(facts['path'], rows)


def _table(path: str, rows: list[tuple[str, Any]]) -> list[str]:
    return [f'{path}:', *(f'{name:>14} : {value}' for name, value in rows)]
