"""Bugs planted in scrubs, and the histories in which they show."""

from collections.abc import Iterator

from plants import Plant
from plants_found import B, Hunt, both, once, sequence, w

from mirrorfs.sim.history import Run, Session
from mirrorfs.sim.resting import Operation

WRITTEN: tuple[Operation, ...] = (w(0, B), w(B, B), ('flush',), ('sweep',))
ROTTEN: tuple[Operation, ...] = (*WRITTEN, ('rot', 0, 1))
"""The first leg, which a resync would copy from, is the wrong one."""
FATES = ('none', 'all', 'kill', 'tear:1')


def cut_short(repair: Operation, legs: int, steps: range) -> Iterator[Run]:
    """A repair is cut short at each of these steps; the next start takes it up, or it is begun anew."""
    first = Session((*ROTTEN, repair, ('quiet',)))
    again = Session((('quiet',), repair, ('quiet',), ('mended',), ('check',)))
    for step in steps:
        for fate in FATES:
            crashed = Session(first.operations, end=fate, crash_at=step)
            yield Run(0, (crashed, again), legs=legs)


FOUND = once(*ROTTEN, ('scrub',), ('quiet',), ('found',), legs=3)
MENDED = once(*ROTTEN, ('repair',), ('quiet',), ('mended',), ('found',), ('check',), legs=3)
CHOSEN = once(*ROTTEN, ('repair', 1), ('quiet',), ('mended',), ('found',), ('check',))
UNDECIDED = once(*ROTTEN, ('repair',), ('quiet',), ('scrub',), ('quiet',), ('found',))
"""Two legs, and nobody says which is right."""
BUSY = once(
    *WRITTEN,
    w(0),
    w(B),
    both(('scrub',), ('burst', 0, 1, 9), ('burst', B, 1, 9), ('then', w(2), w(B + 2), w(3))),
    ('quiet',),
    lane=True,
)
DIRTY = sequence(
    Run(0, (Session((*WRITTEN, w(0, B)), end='d0'), Session((('scrub',), ('quiet',))))),
    Run(0, (Session((*WRITTEN, w(0, B)), end='d1'), Session((('scrub',), ('quiet',))))),
    schedules=4,
)
"""Legs differ after a crash as they may; a scrub begins before the resync is over."""
NEW = once(*WRITTEN, ('rot', 0, 2 * B), ('mended',), ('scrub',), ('quiet',), ('found',), chunks=3)
"""What was never written may be anything."""


HUNTS: dict[str, Hunt] = {
    'cache_compared': sequence(FOUND, MENDED),
    'window_open_to_writers': Hunt(lambda: iter([BUSY]), schedules=30),
    'doubt_taken_for_decay': DIRTY,
    'minority_wins': sequence(MENDED),
    'chosen_leg_overwritten': sequence(CHOSEN),
    'guess_between_two': sequence(UNDECIDED),
    'rewritten_before_the_mark': sequence(MENDED, CHOSEN),
    'right_leg_forgotten_in_a_crash': Hunt(lambda: cut_short(('repair',), 3, range(80, 104))),
    'choice_forgotten_in_a_crash': Hunt(lambda: cut_short(('repair', 1), 2, range(58, 80))),
    'never_written_compared': sequence(NEW),
}

SCRUB = [
    Plant(
        name='cache_compared',
        target='mirrorfs.mirror.member:Member.read_medium',
        old='self.leg.read_medium(',
        new='self.leg.read(',
        checker='scrub',
        why='What is compared is the page cache, which does not rot.',
    ),
    Plant(
        name='window_open_to_writers',
        target='mirrorfs.volume.scrub:Scrubber._window',
        old='async with volume.exclusive(first, last):',
        new='async with volume.locks.hold(first, last):',
        checker='scrub',
        why='The lane writes to the legs while they are compared: they differ for a moment.',
    ),
    Plant(
        name='doubt_taken_for_decay',
        target='mirrorfs.volume.scrub:Scrubber._window',
        old='        await volume.make_equal(first, last)\n',
        new='',
        guard=(
            'mirrorfs.volume.rebuild:Rebuilder.doubtful',
            'return len(volume.keeper.counting) > 1 and volume.log.count(NEEDS_RESYNC) > 0',
            'return False',
        ),
        checker='scrub',
        why='After a crash legs may differ where the log says so; a scrub reports it as decay.',
    ),
    Plant(
        name='minority_wins',
        target='mirrorfs.mirror.comparing:Mismatch.others',
        old='if slot not in slots for s in slots',
        new='if slot in slots for s in slots',
        checker='promise',
        also=('equal', 'scrub'),
        why='A repair overwrites those that agree.',
    ),
    Plant(
        name='chosen_leg_overwritten',
        target='mirrorfs.volume.scrub:Scrubber._mend',
        old='right = place.majority if source is None else source',
        new='right = place.groups[0][0][0]',
        checker='promise',
        also=('equal', 'scrub'),
        why='The admin says which leg is right, and the first one is copied.',
    ),
    Plant(
        name='guess_between_two',
        target='mirrorfs.volume.scrub:Scrubber.begin',
        old='len(in_sync) < 3',
        new='len(in_sync) < 2',
        guard=(
            'mirrorfs.volume.scrub:Scrubber._mend',
            'right = place.majority if source is None else source',
            'right = place.groups[0][0][0]',
        ),
        checker='scrub',
        also=('promise',),
        why='Two legs differ, and a repair takes the first for right.',
    ),
    Plant(
        name='rewritten_before_the_mark',
        target='mirrorfs.volume.volume:Volume.rewrite',
        old='    await self.prepare(first, last)\n',
        new='',
        checker='intent-first',
        why='A repair writes to a leg whose log says that the chunk is clean.',
    ),
    Plant(
        name='right_leg_forgotten_in_a_crash',
        target='mirrorfs.mirror.comparing:Scrub.trusted',
        old='return {**voted, **{offset // UNIT: slot for offset, _, slot in self.mending}}',
        new='return {}',
        checker='promise',
        why='A crash while a wrong leg is rewritten: the resync copies the wrong one to all.',
    ),
    Plant(
        name='choice_forgotten_in_a_crash',
        target='mirrorfs.mirror.comparing:Scrub.trusted',
        old='{offset // UNIT: slot for offset, _, slot in self.mending}',
        new='{}',
        checker='promise',
        why='A crash while the leg that was chosen is copied: the resync copies the other one.',
    ),
    Plant(
        name='never_written_compared',
        target='mirrorfs.volume.scrub:Scrubber._written',
        old='(states & np.uint8(UNWRITTEN)) == 0',
        new='states == states',
        checker='scrub',
        why='What was never written may be anything on the medium; legs differ there and nobody minds.',
    ),
]
