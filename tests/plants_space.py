"""Bugs planted in what is known of never-written chunks, and the histories that show them."""

from plants import Plant
from plants_found import WRITTEN, B, Hunt, once, sequence, sessions, w

from mirrorfs.sim.history import Session

SPACE: list[Plant] = [
    Plant(
        name='holes_counted_before_their_flush',
        target='mirrorfs.volume.holes:Holes.flush',
        old='    await volume.flush()\n',
        new='',
        checker='promise',
        also=('stable-reads', 'equal', 'fsync-durable', 'never-stale'),
        why='With the power the hole of a discarded chunk is lost, though it counts; it reads as zeros '
        'until a part of it is written, and then the rest is what was there before.',
    ),
    Plant(
        name='hole_of_one_leg_taken_for_all',
        target='mirrorfs.volume.space:Space._give_back',
        old='return holes.count(True) == len(members)',
        new='return True',
        checker='promise',
        also=('stable-reads', 'equal', 'never-stale'),
        why='A leg cannot punch holes; the first write to a part of a chunk leaves what it had in the rest.',
    ),
    Plant(
        name='expected_write_that_came_forgotten',
        target='mirrorfs.intent.lookahead:Lookahead.meet',
        old='self._expected = np.setdiff1d(self._expected, touched, assume_unique=True)',
        new='pass',
        checker='promise',
        also=('stable-reads', 'never-stale', 'one-order'),
        why='A chunk that was made ready ahead is written after all; when it is cleared it counts as never '
        'written again.',
    ),
]
SPACE_FOUND: dict[str, Hunt] = {
    'holes_counted_before_their_flush': sequence(
        sessions(
            Session((*WRITTEN, ('discard', 0, B), ('sleep', 0.1), w(3 * B)), end='none'),
            Session((('read', 0, B), w(0), ('read', 0, B))),
            chunks=4,
        )
    ),
    'hole_of_one_leg_taken_for_all': sequence(
        once(*WRITTEN, ('discard', 0, B), ('sleep', 1.0), w(0), ('read', 0, B), used=True)
    ),
    'expected_write_that_came_forgotten': sequence(
        once(w(0, B), w(B, B), w(2 * B), ('sweep',), ('read', 2 * B, 1), chunks=4)
    ),
}
