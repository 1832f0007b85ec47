"""Planted bugs of read errors and bad-block lists, and the histories that show them."""

from plants import Plant
from plants_found import CLEAN, WRITTEN, Hunt, once, sequence, sessions, w

from mirrorfs.sim.history import Session

LISTED = (*WRITTEN, ('bad', 1, 'write', 0, 1), w(0), w(1))
"""Leaves block 0 on the list of leg 1."""

READS = [
    Plant(
        name='bad_blocks_not_durable_before_the_answer',
        target='mirrorfs.volume.narrowing:Narrower._settle',
        old='    if changed:\n',
        new='    if not changed:\n',
        checker='acknowledged-everywhere',
        also=('expulsion-first', 'promise', 'log-covers'),
        why='A block that a leg could not write is on its list in memory only when the write is answered.',
    ),
    Plant(
        name='listed_blocks_read_from_home',
        target='mirrorfs.volume.reading:Reader._read_part',
        old=' or member.bad.touches(offset, length)',
        new='',
        checker='never-stale',
        also=('promise', 'stable-reads'),
        why='The home leg of a chunk is asked for a block that it lacks.',
    ),
    Plant(
        name='lane_allowed_over_listed_blocks',
        target='mirrorfs.volume.gate:LaneGate.offer',
        old='    bad = self._bad_chunks(first, last)\n',
        new='    bad = self._bad_chunks(first, last)[:0]\n',
        checker='never-stale',
        also=('promise', 'acknowledged-everywhere', 'stable-reads'),
        why='The lane knows no lists: it reads what a leg lacks.',
    ),
    Plant(
        name='copied_from_a_source_that_lacks_it',
        target='mirrorfs.volume.copies:Copier._has',
        old='not self._volume.keeper.members[slot].bad.touches(offset, length)',
        new='True',
        checker='never-stale',
        also=('promise', 'equal', 'log-covers', 'acknowledged-everywhere', 'stable-reads'),
        why='A new leg gets old bytes from a leg on whose list they are.',
    ),
    Plant(
        name='mended_before_the_mark',
        target='mirrorfs.volume.reading:Reader._mend',
        old='    await volume.prepare(first, last)  # what is mended is written: intent first\n',
        new='    await volume.keeper.open_session()\n',
        checker='intent-first',
        also=('clearing-last',),
        why='A block of a clean chunk is written back to the leg that could not read it.',
    ),
    Plant(
        name='last_holder_listed',
        target='mirrorfs.volume.narrowing:Narrower._unheld',
        old='bool(np.logical_and.reduce(masks).any()) if masks else True',
        new='False',
        checker='acknowledged-everywhere',
        also=('promise', 'expulsion-first'),
        why='A block that is bad on one leg fails on the other: it is listed there, too, and answered.',
    ),
    Plant(
        name='list_forgotten_by_a_leg_that_returns',
        target='mirrorfs.mirror.member:Member.load_bad',
        old='    self.bad = self.bad_stored = BadBlocks.of(said)\n',
        new='',
        checker='promise',
        also=('equal', 'never-stale', 'log-covers', 'stable-reads', 'acknowledged-everywhere'),
        why='A start, or a re-add, reads the serial of the list and not what is on it.',
    ),
    Plant(
        name='covered_means_mended',
        target='mirrorfs.volume.narrowing:Narrower._around',
        old='await self._block_by_block(member, part, listed=True)',
        new='part.first_block < 0',
        checker='acknowledged-everywhere',
        also=('promise', 'equal', 'never-stale', 'log-covers', 'clearing-last', 'stable-reads'),
        why='A write that covers a listed block takes it off the list, and has not written it.',
    ),
]

REOPENED = sessions(
    Session((*WRITTEN, ('bad', 0, 'write', 0, 1), w(0))), Session((('read', 0, 2), ('check',)))
)

FOUND_READS: dict[str, Hunt] = {
    'bad_blocks_not_durable_before_the_answer': sequence(once(*LISTED, ('read', 0, 2)), schedules=3),
    'listed_blocks_read_from_home': sequence(
        once(*WRITTEN, ('bad', 0, 'write', 0, 1), w(0), ('read', 0, 2)), schedules=3
    ),
    'lane_allowed_over_listed_blocks': sequence(
        once(
            *WRITTEN,
            ('bad', 0, 'write', 0, 1),
            w(0),
            ('read', 0, 1),
            ('read', 1, 1),
            ('read', 0, 1),
            lane=True,
        ),
        schedules=3,
    ),
    'copied_from_a_source_that_lacks_it': sequence(
        once(*WRITTEN, ('bad', 0, 'write', 0, 1), w(0), ('add', 2), ('quiet',), ('read', 0, 1), ('check',)),
        schedules=3,
    ),
    'mended_before_the_mark': sequence(
        once(*CLEAN, ('bad', 0, 'read', 0, 1), ('read', 0, 1), ('sleep', 1.0), ('check',)), schedules=3
    ),
    'last_holder_listed': sequence(
        once(*LISTED, ('bad-too', 0, 'write', 0, 1), w(0)),
        schedules=3,
    ),
    'list_forgotten_by_a_leg_that_returns': sequence(REOPENED, schedules=3),
    'covered_means_mended': sequence(once(*LISTED, w(0), ('read', 0, 1), ('check',)), schedules=3),
}
