"""Bugs planted in how spares are shared, and the histories that show them."""

from plants import Plant
from plants_found import WRITTEN, Hunt, once, sequence, w

from mirrorfs.limits import SPARE_DELAY
from mirrorfs.sim.history import Run, Session

OUTWAIT = ('sleep', SPARE_DELAY + 5)
TAKEN = (('shared', 2), ('fail', 1), OUTWAIT, ('quiet',))
"""A shared spare takes the place of a leg."""
CUT_SHORT = tuple(Session((*WRITTEN, *TAKEN), end='kill', crash_at=at) for at in range(40, 110, 3))

SHARING: list[Plant] = [
    Plant(
        name='claim_kept_in_memory',
        target='mirrorfs.sharing:SharedSpares.claim',
        old='await self._list_as(spare, claim)',
        new='spare.listed = spare.listed.claimed(claim)',
        checker='spares',
        why='A spare is written to while the list calls it free: a crash leaves a leg that another may take.',
    ),
    Plant(
        name='spare_forgotten_when_it_is_claimed',
        target='mirrorfs.sharing:SharedSpares.claim',
        old='await self._list_as(spare, claim)',
        new='await self._save(self._list.without(spare.listed.uuid))',
        checker='spares',
        why='A crash before the volume has it: it is neither listed nor a leg.',
    ),
    Plant(
        name='mark_gone_before_the_volume_has_the_spare',
        target='mirrorfs.mirror.formatting:format_leg',
        old='await leg.write(0, idle_page)',
        new='await leg.write(0, bytes(limits.PAGE))',
        rebind=('mirrorfs.volume.joining:format_leg',),
        checker='spares',
        why='A crash before the volume has it: the list names it, and nobody knows it again.',
    ),
    Plant(
        name='listed_as_free_once_it_has_joined',
        target='mirrorfs.sharing:SharedSpares.joined',
        old='await self._save(self._list.without(claimed.spare))',
        new='await self._list_as(spare, None)',
        checker='spares',
        why='A leg of one volume is offered to the others.',
    ),
    Plant(
        name='whatever_lies_at_its_path_is_the_spare',
        target='mirrorfs.sharing:SharedSpares._hold',
        old='await self._recognise(spare.listed, leg)',
        new='pass',
        guard=(
            'mirrorfs.sharing:SharedSpares._still',
            'await self._recognise(spare.listed, leg)',
            'pass',
        ),
        checker='strangers',
        why="Somebody else's disk lies there, and becomes a leg.",
    ),
    Plant(
        name='claim_undone_that_was_done',
        target='mirrorfs.mirror.sparelist:fate',
        old='Fate.JOINED',
        new='Fate.UNDONE',
        rebind=('mirrorfs.sharing:fate',),
        checker='spares',
        also=('whole-copy', 'operator', 'promise', 'never-stale'),
        why='The volume has the leg, the list still has the spare: its superblocks are wiped.',
    ),
    Plant(
        name='superblock_of_a_claim_left',
        target='mirrorfs.sharing:SharedSpares._hold',
        old='await _wipe(leg)',
        new='pass',
        checker='spares',
        why='The claim is undone, and the spare looks like a leg ever after.',
    ),
]
SHARING_FOUND: dict[str, Hunt] = {
    'claim_kept_in_memory': sequence(once(*WRITTEN, *TAKEN)),
    'spare_forgotten_when_it_is_claimed': sequence(once(*WRITTEN, *TAKEN), cut=1.0),
    'mark_gone_before_the_volume_has_the_spare': sequence(once(*WRITTEN, *TAKEN), cut=1.0),
    'listed_as_free_once_it_has_joined': sequence(once(*WRITTEN, *TAKEN, w(0))),
    'whatever_lies_at_its_path_is_the_spare': sequence(
        Run(0, (Session((*WRITTEN, ('shared', 2))), Session((('fail', 1), OUTWAIT), (('stranger', 2),))))
    ),
    'claim_undone_that_was_done': sequence(
        *(Run(0, (session, Session((w(0), OUTWAIT, ('quiet',))))) for session in CUT_SHORT)
    ),
    'superblock_of_a_claim_left': sequence(
        *(Run(0, (session, Session((w(0), OUTWAIT, ('quiet',))), Session())) for session in CUT_SHORT)
    ),
}
"""Where each of `SHARING` shows."""
