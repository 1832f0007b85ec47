"""Planted bugs of writes of zeros (`detect_zeroes`), and the histories that show them."""

from plants import Plant
from plants_found import CLEAN, ENOSPC, HOT, WRITTEN, B, Hunt, both, fails, once, paced, sequence, sessions

from mirrorfs.model import DetectZeroes
from mirrorfs.sim.history import Run, Session

ON, UNMAP = int(DetectZeroes.ON), int(DetectZeroes.UNMAP)

ZEROES = [
    Plant(
        name='clean_taken_for_never_written',
        target='mirrorfs.volume.space:Space.zero',
        old='~volume.log.states[first : last + 1] & UNWRITTEN',
        new='volume.log.states[first : last + 1] & DIRTY',
        checker='acknowledged-everywhere',
        also=('promise',),
        why='Zeros for a chunk that holds data and is clean are answered, and nothing is done.',
    ),
    Plant(
        name='zeroed_before_the_mark',
        target='mirrorfs.volume.space:Space.zero',
        old='await volume.prepare(low, high)',
        new='await volume.keeper.open_session()',
        checker='intent-first',
        also=('clearing-last', 'equal'),
        why='A part of a clean chunk is punched on the legs, one after another, and no log says so.',
    ),
    Plant(
        name='never_written_in_memory_only',
        target='mirrorfs.volume.space:Space.zero',
        old='if len(written) <= last - first:',
        new='if last < first:',
        checker='acknowledged-everywhere',
        also=('promise',),
        why='A discard fails since no leg can record it.  It is tried again, or zeros are written: the chunk '
        'reads as zeros already, so nothing is done.  After a power cut the old data are back.',
    ),
    Plant(
        name='zeroes_not_synced',
        target='mirrorfs.volume.volume:Volume.write',
        old='    if durable:\n',
        new='    if durable and not self.record.detect_zeroes:\n',
        checker='fsync-durable',
        also=('promise',),
        why='Zeros that are to be durable are punched and not flushed.',
    ),
    Plant(
        name='part_of_a_chunk_taken_for_the_whole',
        target='mirrorfs.volume.space:Space._whole',
        old='>= start',
        new='>= start >> volume.shift << volume.shift',
        checker='acknowledged-everywhere',
        also=('promise',),
        why='Zeros from the middle of a chunk to its end make all of it never written.',
    ),
    Plant(
        name='lane_keeps_its_other_permission',
        target='mirrorfs.hot:HotTable.withdraw_writes',
        old='~WRITES',
        new='~WRITE',
        checker='expulsion-first',
        also=('log-covers', 'acknowledged-everywhere', 'intent-first', 'never-stale', 'promise'),
        why='A leg leaves a volume that looks for zeros: the lane writes on without it.',
    ),
    Plant(
        name='lane_writes_what_is_being_cleared',
        target='mirrorfs.volume.clearing:Clearer.sweep',
        old='~hot.WRITES',
        new='~hot.WRITE',
        checker='intent-first',
        also=('clearing-last', 'log-covers', 'equal', 'promise', 'stable-reads'),
        guard=(
            'mirrorfs.volume.clearing:Clearer._still_quiet',
            'np.uint8(hot.WRITES)',
            'np.uint8(hot.WRITE)',
        ),
        why='The lane of a volume that looks for zeros writes to a chunk whose mark is being taken away.',
    ),
]


def each(*operations: tuple, **options: object) -> tuple[Run, ...]:  # type: ignore[type-arg]
    """The history in a volume of either kind."""
    return tuple(once(*operations, zeroes=zeroes, **options) for zeroes in (ON, UNMAP))


def unrecorded(again: str, calls: range) -> tuple[Run, ...]:
    """A discard cannot be recorded, since there is no room; it is done again, synced; a power cut."""

    def run(nth: int) -> Run:
        full = tuple(fails(disk, 'write', nth, code=ENOSPC) for disk in ('d0', 'd1'))
        told = Session((*CLEAN, ('discard', 0, B), (again, 0, B), ('flush',)), end='none', faults=full)
        return sessions(told, Session((('check',),)), zeroes=UNMAP)

    return tuple(run(nth) for nth in calls)


FOUND_ZEROES: dict[str, Hunt] = {
    'clean_taken_for_never_written': sequence(*each(*CLEAN, ('zeroes', 0, B), ('read', 0, B))),
    'zeroed_before_the_mark': sequence(*each(*CLEAN, ('zeroes', 0, 2))),
    'never_written_in_memory_only': sequence(
        *unrecorded('discard', range(1, 16)), *unrecorded('zeroes', range(1, 16))
    ),
    'zeroes_not_synced': sequence(*each(*WRITTEN, ('zeroes-sync', 0, 2))),
    'part_of_a_chunk_taken_for_the_whole': sequence(*each(*WRITTEN, ('zeroes', 2, B - 2), ('read', 0, B))),
    'lane_keeps_its_other_permission': Hunt(
        paced(
            once(
                *HOT,
                both(('then', ('read', 0, 1), ('fail', 1)), ('burst', 0, 1, 9), ('burst', B, 1, 9)),
                lane=True,
                zeroes=UNMAP,
            )
        ),
        schedules=20,
    ),
    'lane_writes_what_is_being_cleared': sequence(
        once(*HOT, both(('sweep',), ('burst', 0, 1, 9), ('burst', B, 1, 9)), lane=True, zeroes=ON),
        schedules=60,
    ),
}
