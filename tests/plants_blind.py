"""Planted bugs, written from the contract, the documents and the code alone: their author knows no checker.

Each is one small mistake that a reader could overlook.  `why` tells the history in which it does harm, and
which other safeguard is in its way where there is one.
"""

from plants import Plant

BLIND: list[Plant] = [
    # Writing
    Plant(
        name='unzeroed_kept_after_the_first_write',
        target='mirrorfs.volume.volume:Volume.prepare',
        old='clear=UNWRITTEN | UNZEROED)',
        new='clear=UNWRITTEN)',
        checker='promise',
        also=('intent-first', 'never-stale', 'stable-reads', 'one-order'),
        why='A chunk that was discarded, or lies on a used device, is written a second time by the slow path '
        '(after it was cleared, say): it is zeroed once more and what the first write put there is gone.',
    ),
    Plant(
        name='only_the_durable_flags_asked',
        target='mirrorfs.intent.log:IntentLog.is_durable',
        old='for array in (self.states, self.durable):',
        new='for array in (self.durable,):',
        checker='intent-first',
        also=('log-covers', 'clearing-last', 'stable-reads', 'equal', 'promise'),
        why='The clearer has taken DIRTY away in memory and waits for a round that is under way to end: a '
        'write to the chunk finds DIRTY still durable, begins without marking it, and the next round clears '
        'it.  The window lasts from the clearing until the round begins that stores it.',
    ),
    Plant(
        name='zeros_not_flushed_before_they_count',
        target='mirrorfs.volume.volume:Volume._zero_garbage',
        old='    if len(garbage):\n        await self.flush()\n',
        new='',
        checker='promise',
        also=('fsync-durable', 'intent-first', 'stable-reads'),
        why='UNWRITTEN goes durably while the zeros are in the cache; after a power cut the rest of the '
        'chunk is what the medium had: garbage, or data from before a discard.',
    ),
    Plant(
        name='look_ahead_forgets_never_written',
        target='mirrorfs.volume.volume:Volume._mark_ahead',
        old='self.log.update(first, last, set_=DIRTY)',
        new='self.log.update(first, last, set_=DIRTY, clear=UNWRITTEN)',
        checker='promise',
        also=('stable-reads', 'equal', 'never-stale', 'intent-first', 'log-covers'),
        why='Two sequential writes: the chunks ahead count as written.  Where their medium is not zero (a '
        'used device, a discard whose hole was lost) they read as garbage, other garbage on each leg, and a '
        'later slow write zeroes what the lane wrote there.',
    ),
    Plant(
        name='spare_forgotten_after_a_failed_write',
        target='mirrorfs.volume.volume:Volume._failed_half_way',
        old='if len(self.keeper.members) > 1:',
        new='if len(self.keeper.in_sync) > 1:',
        checker='equal',
        also=('log-covers', 'stable-reads', 'never-stale', 'promise', 'acknowledged-everywhere'),
        why='One leg in sync and one spare.  A write below what recovery has copied fails on the leg in sync '
        'and succeeds on the spare; the caller gets the error, nothing makes them equal, and the spare '
        'becomes in sync with other bytes.',
    ),
    Plant(
        name='any_success_excuses_an_expulsion',
        target='mirrorfs.mirror.fanout:judge',
        old='if not any(member.slot in in_sync for member in good):',
        new='if not good:',
        checker='last-copy',
        also=('promise', 'operator', 'never-stale', 'defect'),
        rebind=('mirrorfs.mirror.keeper:judge', 'mirrorfs.volume.volume:judge'),
        why='One leg in sync and one spare: a write, a flush or a log page fails on the leg in sync alone. '
        'The spare took it, so the only good leg is expelled.',
    ),
    # Reading
    Plant(
        name='reader_does_not_look_again',
        target='mirrorfs.volume.reading:Reader.read',
        old='            if self._needs_resync(first, last):\n                continue\n',
        new='',
        checker='stable-reads',
        also=('promise',),
        why='A reader waits behind a writer that fails half way (all in-sync legs fail, one of them after '
        'the bytes): it reads its home leg before the chunk is made equal.  Below 16 MiB home and source are '
        'one leg, unless a full filesystem made another one the source: else that leg must be lost next.',
    ),
    Plant(
        name='spare_copied_from',
        target='mirrorfs.volume.copies:Copier._sources',
        old='sorted(self._volume.keeper.in_sync,',
        new='sorted(self._volume.keeper.members,',
        checker='never-stale',
        also=('equal', 'promise', 'log-covers', 'stable-reads', 'window'),
        why='After a restart during the recovery of slot 0 the spare is the first member.  Its own recovery '
        'finds no target and copies nothing; a resync between two others copies from it.',
    ),
    # Flushing
    Plant(
        name='fsync_answered_before_the_expulsion',
        target='mirrorfs.volume.volume:Volume.flush',
        old='    await self.keeper.settle()\n',
        new='',
        checker='fsync-durable',
        also=('expulsion-first', 'promise'),
        why='A leg fails an fsync and the power goes before the round that records it: it starts in sync, '
        'and where it has the lowest slot the resync copies from it over what was acknowledged as durable.',
    ),
    # Discarding
    Plant(
        name='punched_before_the_state_is_durable',
        target='mirrorfs.volume.space:Space._forget',
        old='    await volume.keeper.commit()\n',
        new='',
        checker='intent-first',
        also=('log-covers', 'stable-reads', 'equal', 'promise'),
        why='A clean chunk is discarded, the power goes when one leg has the hole on the medium and another '
        'has not: the log says written and clean.',
    ),
    Plant(
        name='discarded_taken_for_zeroed',
        target='mirrorfs.volume.space:Space._forget',
        old='set_=UNWRITTEN | UNZEROED | missed',
        new='set_=UNWRITTEN | missed',
        checker='promise',
        also=('equal', 'stable-reads', 'log-covers', 'never-stale'),
        why='A hole that a power cut takes back, that a leg could not punch, or that an absent leg never '
        'got: the next write to a part of the chunk leaves the old bytes around it.',
    ),
    # Clearing
    Plant(
        name='not_asked_again_after_the_flush',
        target='mirrorfs.volume.clearing:Clearer.sweep',
        old='    quiet = self._still_quiet(quiet)\n',
        new='',
        checker='clearing-last',
        also=('intent-first', 'log-covers', 'stable-reads', 'equal'),
        why='A slow write to one of the chunks begins while the legs are flushed: it needs no marks, since '
        'the chunk is dirty, and is cleared before it was flushed.',
    ),
    Plant(
        name='equal_taken_for_clean',
        target='mirrorfs.volume.volume:Volume._equalise',
        old='clear=NEEDS_RESYNC)',
        new='clear=NEEDS_RESYNC | DIRTY)',
        checker='clearing-last',
        also=('log-covers', 'equal', 'stable-reads'),
        why='A resync copies a chunk; any round stores it as clean before the targets were flushed, and the '
        'next power cut takes the copy away.',
    ),
    # Keeper
    Plant(
        name='present_record_taken_for_the_stored_one',
        target='mirrorfs.mirror.keeper:Keeper._store',
        old='self._recorded = record\n',
        new='self._recorded = self.record\n',
        checker='expulsion-first',
        also=('never-stale', 'promise', 'operator', 'log-covers', 'start-twice', 'clean-stop'),
        why='A data write fails on a leg while a round is being stored: the expulsion, which is not in that '
        'round, counts as recorded at its end, and the write is acknowledged.',
    ),
    Plant(
        name='recorded_before_the_pool_has_it',
        target='mirrorfs.mirror.keeper:Keeper._store',
        old='        if _definition(record) != self._pooled:\n',
        new='        self._recorded = record\n        if _definition(record) != self._pooled:\n',
        checker='expulsion-first',
        also=('promise', 'operator'),
        why='While the definition is being saved, or when that fails, other writers find nothing unrecorded '
        'and are answered; with the survivors gone the stale leg then starts alone.',
    ),
    Plant(
        name='pool_before_superblocks',
        target='mirrorfs.mirror.keeper:Keeper._store',
        old='        failures = await self._store_on_legs(members, record, batch, serial)\n',
        new='        if _definition(record) != self._pooled:\n'
        '            await self._pool.save(record)\n'
        '            self._pooled = _definition(record)\n'
        '        failures = await self._store_on_legs(members, record, batch, serial)\n',
        checker='operator',
        also=('expulsion-first', 'promise'),
        why='The power goes between the two: the pool is ahead of every leg, and the volume is refused with '
        'all good legs at hand.',
    ),
    Plant(
        name='error_of_the_pool_swallowed',
        target='mirrorfs.mirror.keeper:Keeper._store',
        old='            await self._pool.save(record)\n',
        new='            try:\n'
        '                await self._pool.save(record)\n'
        '            except OSError:\n'
        '                pass\n',
        checker='expulsion-first',
        also=('promise', 'operator'),
        why='The pool cannot be written when a leg is expelled: the write is acknowledged all the same, and '
        'the expelled leg alone starts the volume later.  Needs a fault of the pool directory.',
    ),
    Plant(
        name='late_comers_served_by_the_round_under_way',
        target='mirrorfs.mirror.keeper:Keeper.run',
        old='            current, self._next = self._next, _Round()\n'
        '            try:\n'
        '                await self._store()\n'
        '            except OSError as error:\n'
        '                current.error = error\n',
        new='            current = self._next\n'
        '            try:\n'
        '                await self._store()\n'
        '            except OSError as error:\n'
        '                current.error = error\n'
        '            self._next = _Round()\n',
        checker='intent-first',
        also=('log-covers', 'promise', 'stable-reads', 'expulsion-first', 'operator', 'clean-stop'),
        why='Who commits while a round is being stored is told done with that round, which began before.  '
        'Writers and settle look again; a discard does not (it punches what is not durably unwritten), nor '
        'does a growing volume, nor a join.',
    ),
    Plant(
        name='wake_up_lost_during_a_round',
        target='mirrorfs.mirror.keeper:Keeper.run',
        old='            self._wake = trio.Event()\n'
        '            current, self._next = self._next, _Round()\n'
        '            try:\n'
        '                await self._store()\n',
        new='            current, self._next = self._next, _Round()\n'
        '            try:\n'
        '                await self._store()\n'
        '                self._wake = trio.Event()\n',
        checker='bounded',
        also=('clean-stop',),
        why='A writer commits while a round is being stored: nobody begins its round until somebody else '
        'commits.  A sweep with something to clear gets it going again; a stop that waits for the writer '
        'does not.',
    ),
    Plant(
        name='session_forgets_what_the_absent_leg_missed',
        target='mirrorfs.mirror.keeper:Keeper._begin_session',
        old='        self.mark_missed()\n',
        new='',
        checker='log-covers',
        also=('equal', 'stable-reads', 'never-stale', 'promise'),
        why='Power cut with dirty chunks; the next start lacks a leg, the chunks are cleared as clean; the '
        'leg comes back, is caught up partially, and keeps what it had of the writes that were under way.',
    ),
    # Membership
    Plant(
        name='faulty_legs_not_tracked',
        target='mirrorfs.mirror.membership:absentees_tracked',
        old='slot.state.is_stale and',
        new='slot.state is LegState.MISSING and',
        checker='log-covers',
        also=('equal', 'never-stale', 'stable-reads', 'promise'),
        why='A leg that failed, or was removed, is re-added partially after chunks were written that were '
        'clean when it left: they were never flagged MODIFIED.',
    ),
    Plant(
        name='mark_kept_for_a_full_recovery',
        target='mirrorfs.mirror.membership:rejoin',
        old='slot.but(full=True, mark=0)',
        new='slot.but(full=True)',
        checker='equal',
        also=('never-stale', 'promise', 'log-covers', 'window', 'stable-reads'),
        why='A leg is lost during its full recovery, after the mark moved, and cannot be caught up (no log, '
        'or it does not know the mark that the survivors have): it is erased, yet copied from the mark on.',
    ),
    Plant(
        name='common_past_taken_for_ancestry',
        target='mirrorfs.mirror.membership:kinship',
        old='if mine[-1].uuid in {step.uuid for step in other}:',
        new='if {step.uuid for step in mine} & {step.uuid for step in other}:',
        checker='strangers',
        also=('operator', 'promise', 'never-stale'),
        rebind=(
            'mirrorfs.mirror.assembly:kinship',
            'mirrorfs.mirror.splitbrain:kinship',
            'mirrorfs.volume.joining:kinship',
        ),
        why='Leg 0 is used alone, then leg 1 alone with force: they grew apart.  The one left behind is '
        're-added without a word, and after a power cut during the forced start nothing is refused.  Needs '
        'histories with force.',
    ),
    # Starting and stopping
    Plant(
        name='restart_forgets_what_a_spare_needs',
        target='mirrorfs.volume.doubt:prepare',
        old='membership.needs_tracking(record)',
        new='membership.absentees_tracked(record)',
        checker='log-covers',
        also=('equal', 'never-stale', 'stable-reads', 'promise'),
        why='A restart in the middle of a partial recovery, no leg away: MODIFIED is forgotten and the spare '
        'becomes in sync with what it had.  In a full one, chunks below the mark that were dirty are lost.',
    ),
    Plant(
        name='read_before_the_absence_is_recorded',
        target='mirrorfs.volume.lifecycle:start',
        old='doubtful or differ or decided or (active and bool(legs.absent))',
        new='doubtful or decided',
        rebind=('mirrorfs.pool:start',),
        checker='stable-reads',
        also=('promise', 'never-stale'),
        why='Power cut with a write under way; a start with leg 1 alone, a read, no write, stop; a start '
        'with both: the resync copies from leg 0, and the chunk reads otherwise than before.',
    ),
    Plant(
        name='stop_calls_doubtful_chunks_clean',
        target='mirrorfs.volume.lifecycle:Started.stop',
        old='volume.log.where(DIRTY, NEEDS_RESYNC), clear=DIRTY)',
        new='volume.log.where(DIRTY), clear=DIRTY | NEEDS_RESYNC)',
        checker='log-covers',
        also=('clean-stop', 'equal', 'stable-reads', 'clearing-last'),
        why='A clean stop before the resync of a power cut came to its end: what it had not reached yet '
        'differs, and the log says clean.',
    ),
    Plant(
        name='pages_that_disagree_left_so',
        target='mirrorfs.volume.doubt:merge',
        old='    log.touch_pages(behind)\n',
        new='',
        checker='start-twice',
        also=('clean-stop', 'stable-reads', 'log-covers', 'intent-first', 'promise', 'whole-copy'),
        why='The power goes when a discard is durable in the log of one leg only: the next start answers '
        'zeros and does not write the page to the other leg; a start with that one alone reads the old '
        'bytes.  Pages with dirty chunks are written again anyway, which hides it for writes.',
    ),
    Plant(
        name='stop_without_a_flush',
        target='mirrorfs.volume.lifecycle:Started.stop',
        old='            await volume.flush()\n',
        new='',
        checker='clean-stop',
        also=('clearing-last', 'log-covers', 'promise', 'equal', 'stable-reads'),
        why='The last writes are in the caches when the log says clean; the power goes soon after the stop.',
    ),
    # Resync and recovery
    Plant(
        name='in_sync_before_the_last_flush',
        target='mirrorfs.volume.rebuild:Rebuilder._recover',
        old=' and await self._flush_target(slot)',
        new='',
        checker='window',
        also=('equal', 'never-stale', 'log-covers', 'stable-reads', 'promise', 'clearing-last'),
        why='The power goes soon after a recovery: the leg counts, and what was copied last is not on it.',
    ),
    Plant(
        name='mark_of_the_last_window_of_all',
        target='mirrorfs.volume.rebuild:Rebuilder._pass',
        old='functools.partial(mark, pieces[ends[steps.settled] - 1][1] + 1)',
        new='functools.partial(mark, pieces[-1][1] + 1)',
        checker='window',
        also=('equal', 'never-stale', 'log-covers', 'promise', 'stable-reads'),
        why='The first mark of a recovery says that all is copied, and forgets MODIFIED for all; a restart '
        'or an expulsion then leaves out the rest.  Needs a recovery that takes a MARK_INTERVAL.',
    ),
    Plant(
        name='recovery_window_open_to_the_lane',
        target='mirrorfs.volume.rebuild:Rebuilder._recover',
        old='async with volume.exclusive(first, last):',
        new='async with volume.locks.hold(first, last):',
        checker='window',
        also=('equal', 'never-stale', 'one-order', 'stable-reads', 'promise'),
        why='The chunk is hot: the lane writes between the read from the source and the write to the spare, '
        'which then has the old bytes and becomes in sync with them.',
    ),
    Plant(
        name='modified_forgotten_though_another_leg_is_away',
        target='mirrorfs.volume.volume:Volume.forget_modified',
        old='not membership.needs_tracking(self.record)',
        new='not any(self.record.where(membership.LegState.SPARE))',
        checker='log-covers',
        also=('equal', 'never-stale', 'stable-reads', 'promise'),
        why='Three legs, two away: when the first is in sync again, what the second lacks is forgotten, and '
        'it is caught up partially with nothing.',
    ),
    Plant(
        name='modified_forgotten_in_the_round_that_completes',
        target='mirrorfs.volume.rebuild:Rebuilder._complete',
        old='    await keeper.settle()\n',
        new='',
        checker='log-covers',
        also=('equal', 'never-stale', 'stable-reads', 'promise'),
        why='A new leg brings the volume to full strength while a failed one is still tracked; the power '
        'goes between pages and superblocks: the failed leg is promised a partial catch-up of nothing.',
    ),
    Plant(
        name='hole_at_the_end_not_copied',
        target='mirrorfs.mirror.copying:copy_range',
        old='for start, size in [*extents, (end, 0)]:',
        new='for start, size in extents:',
        checker='equal',
        also=('promise', 'never-stale', 'stable-reads', 'log-covers', 'window'),
        rebind=('mirrorfs.volume.copies:copy_range',),
        why='A leg that was away while the end of a chunk was discarded or zeroed is caught up: behind the '
        "source's last extent it keeps its old bytes.",
    ),
    # Re-adding, adding, failing, growing
    Plant(
        name='one_zombie_overlooked',
        target='mirrorfs.volume.joining:Joiner.await_quarantine',
        old='    if member and member.leg.calls:\n',
        new='    if member and member.leg.calls > 1:\n',
        checker='one-order',
        also=('equal', 'never-stale', 'promise', 'stable-reads', 'defect', 'window'),
        guard=(
            'mirrorfs.sim.world:World.open',
            'if disk.holder:',
            'if disk.holder and not disk.holder.closed:',
        ),
        why='A leg is expelled for one write that hangs, and re-added while it still does: the write lands '
        'after recovery and newer writes.  An opener that refuses a leg with calls under way hides it.',
    ),
    Plant(
        name='garbage_of_a_joining_leg_not_noted',
        target='mirrorfs.volume.joining:Joiner._join',
        old='            volume.log.update_chunks(volume.log.where(UNWRITTEN), set_=UNZEROED)\n',
        new='',
        checker='equal',
        also=('promise', 'stable-reads', 'never-stale', 'log-covers'),
        why='A used leg that cannot be erased is added to a volume with never-written chunks; the first '
        'write to a part of one leaves its garbage in the rest, on that leg alone.',
    ),
    Plant(
        name='spare_lets_the_last_leg_be_failed',
        target='mirrorfs.volume.admin:Admin._refuse_last',
        old='self._volume.keeper.in_sync == [slot]',
        new='list(self._volume.keeper.members) == [slot]',
        checker='last-copy',
        also=('promise', 'operator', 'defect'),
        why='The admin fails the only leg in sync while a spare is being recovered: that is allowed now.',
    ),
    Plant(
        name='longer_leg_not_erased',
        target='mirrorfs.volume.space:make_room',
        old='await leg.extend(end) and await erased(',
        new='await leg.extend(end) or await erased(',
        checker='promise',
        also=('equal', 'stable-reads', 'log-covers', 'never-stale'),
        rebind=('mirrorfs.volume.joining:make_room',),
        why='A volume grows into legs that were longer all along, with other bytes in that part: it counts '
        'as zeroed, and the first write to a part of a new chunk shows them.',
    ),
    # The format
    Plant(
        name='full_stored_only_with_a_mark',
        target='mirrorfs.metadata.wibm:_slot_flags',
        old='SLOT_FULL * slot.full',
        new='SLOT_FULL * bool(slot.full and slot.mark)',
        checker='never-stale',
        also=('equal', 'promise', 'log-covers', 'stable-reads', 'window', 'start-twice'),
        why='A restart during a full recovery before its first mark: the spare needs just what is MODIFIED, '
        'so nothing, and is in sync with whatever it holds.',
    ),
    Plant(
        name='whole_secondary_page_wins',
        target='mirrorfs.metadata.wibm:decode_log',
        old=" & (headers['serial'] > image.serials)",
        new='',
        checker='log-covers',
        also=('stable-reads', 'equal', 'whole-copy', 'never-stale', 'promise', 'start-twice', 'intent-first'),
        why='Where the newest copy of a page is the primary one, a start takes the older marks: chunks that '
        'were dirty are clean, others never written, and the newest copy is the next to be overwritten.',
    ),
    Plant(
        name='first_copy_of_a_page_not_summed',
        target='mirrorfs.metadata.wibm:decode_log',
        old='for page in np.flatnonzero(better).tolist():',
        new='for page in np.flatnonzero(better & (image.current != NO_COPY)).tolist():',
        checker='whole-copy',
        also=('log-covers', 'stable-reads', 'equal', 'promise', 'never-stale'),
        why='A primary copy torn by a power cut is believed: new header, and behind it marks of the batch '
        'before the last.  Shows only where a page is torn between marks that matter, or damaged.',
    ),
    Plant(
        name='active_flag_not_stored',
        target='mirrorfs.metadata.wibm:encode_super',
        old='FLAG_ACTIVE * record.active | FLAG_LOGGED',
        new='FLAG_LOGGED',
        checker='stable-reads',
        also=('intent-first', 'log-covers', 'equal', 'never-stale', 'promise', 'start-twice', 'clean-stop'),
        why='A volume without a log looks cleanly stopped after a power cut and is not made equal.  Harmless '
        'to volumes with a log, but that legs are not read from the medium then.',
    ),
    Plant(
        name='start_forgets_which_superblock_is_newer',
        target='mirrorfs.mirror.member:Member.from_super',
        old='    member.super_copy = copy\n',
        new='',
        checker='whole-copy',
        also=('operator', 'expulsion-first', 'promise', 'start-twice'),
        why='After a start the next superblock goes to the primary place, whichever was newer.  A power cut '
        'tears it, on all legs alike, and what is left is older than the pool.',
    ),
    # Locks and the hot table
    Plant(
        name='waiting_holds_overtaken',
        target='mirrorfs.locks:ChunkLocks.hold',
        old='for other in self._holds[:-1]):',
        new='for other in self._holds[:-1] if other.granted.is_set()):',
        checker='one-order',
        also=('equal', 'stable-reads', 'window', 'never-stale', 'promise'),
        why='A holds chunk 0, B waits for 0 and 1, C gets 1 at once; then A lets go and B, which looks at '
        'earlier holds only, has 1 together with C.',
    ),
    Plant(
        name='last_chunk_not_withdrawn',
        target='mirrorfs.hot:HotTable.withdraw',
        old='self.view()[first : last + 1]',
        new='self.view()[first:last]',
        checker='one-order',
        also=('window', 'equal', 'never-stale', 'clean-stop', 'clearing-last', 'promise', 'stable-reads'),
        why='A slow write or a recovery over several chunks leaves the last one with the lane, which writes '
        'there at the same time.',
    ),
    Plant(
        name='no_grace_period_for_the_slow_path',
        target='mirrorfs.volume.volume:Volume.exclusive',
        old='            await self.hot.settle()\n',
        new='',
        checker='one-order',
        also=('window', 'equal', 'never-stale', 'clearing-last', 'promise', 'stable-reads', 'clean-stop'),
        why='The lane is between two legs of a hot write when a slow write, a discard or a recovery window '
        'takes the chunk: the legs get the two in different orders.',
    ),
    # The gate
    Plant(
        name='lane_reads_from_spares',
        target='mirrorfs.volume.gate:LaneGate.publish',
        old=' for slot in self.keeper.homes)',
        new=' for slot in members)',
        checker='never-stale',
        also=('stable-reads', 'promise'),
        why='The lane reads from the leg that is being recovered: in its stretches of 16 MiB, and everywhere '
        'below 16 MiB where it is the first member, as slot 0 is after a restart during its recovery.',
    ),
    Plant(
        name='doubtful_chunks_offered',
        target='mirrorfs.volume.gate:LaneGate.offer',
        old='    flags[(wanted_all & np.uint8(NEEDS_RESYNC)) != 0] = 0\n',
        new='',
        checker='stable-reads',
        also=('never-stale', 'promise', 'equal', 'log-covers'),
        why='After a power cut the lane reads chunks before the resync makes them equal.  Below 16 MiB home '
        'and source of the resync are one leg: there it shows when that leg is lost, or cannot be read, '
        'between the read and the resync.',
    ),
    Plant(
        name='hot_writes_go_on_without_the_expelled_leg',
        target='mirrorfs.volume.gate:LaneGate.legs_changing',
        old='    self._table.withdraw_writes()\n',
        new='',
        checker='expulsion-first',
        also=('log-covers', 'acknowledged-everywhere', 'intent-first', 'never-stale', 'promise'),
        why='A leg is expelled; before that is durable, and before MODIFIED is, the lane writes to the '
        'others and answers.',
    ),
    Plant(
        name='stuck_leg_stays_hot',
        target='mirrorfs.volume.gate:LaneGate.lane_stuck',
        old='    self._withdraw_all()\n',
        new='',
        checker='one-order',
        also=('equal', 'promise', 'stable-reads', 'never-stale', 'window', 'bounded'),
        why='A call of a superseded lane hangs on a leg; the fresh lane writes hot chunks there meanwhile. '
        'The old call lands over them.',
    ),
    Plant(
        name='write_overtakes_a_stuck_call',
        target='mirrorfs.mirror.member:Member._write_now',
        old='    await self._let_stuck_calls_return()\n',
        new='',
        checker='one-order',
        also=('equal', 'promise', 'stable-reads', 'never-stale'),
        why='The request of a stuck lane is done by the slow path at once and answered, a newer one follows; '
        'then the old call lands on its leg, which is a member still.',
    ),
    # The lane
    Plant(
        name='targets_looked_up_after_the_permission',
        target='mirrorfs.fs.lane:Lane._write',
        old='    step = size if',
        new='    targets = table.targets\n    step = size if',
        checker='expulsion-first',
        also=('acknowledged-everywhere', 'log-covers', 'promise'),
        why='A leg is expelled between the look at the permission and that at the legs: the write goes to '
        'the others and is answered before the expulsion is durable.  Shows only where trio may run '
        'between those two looks, with no system call in between.',
    ),
    Plant(
        name='superseded_lane_goes_on',
        target='mirrorfs.fs.lane:Lane._write_legs',
        old='        if self.superseded:\n            raise Superseded(call)\n',
        new='',
        checker='one-order',
        also=('promise', 'equal', 'stable-reads', 'never-stale'),
        why='The call on the first leg hangs until that leg is expelled and returns when newer data are '
        'acknowledged: the lane goes on to the second leg with the old ones.',
    ),
    Plant(
        name='leg_that_fails_is_left_out_by_the_lane',
        target='mirrorfs.fs.lane:Lane._write_legs',
        old='        except OSError:\n            return False\n',
        new='        except OSError:\n            continue\n',
        checker='acknowledged-everywhere',
        also=('expulsion-first', 'equal', 'stable-reads', 'never-stale', 'promise', 'last-copy'),
        why='One leg fails a hot write: the lane answers as if all were well, and the leg counts on.',
    ),
    Plant(
        name='view_of_the_buffer_given_away',
        target='mirrorfs.fs.lane:Lane._serve',
        old='opcode == FUSE_WRITE and size > small',
        new='size < 0',
        checker='promise',
        also=('acknowledged-everywhere', 'one-order', 'stable-reads', 'defect'),
        why='A write of more than 64 KiB is handed over, or left to the mate, with the buffer that the next '
        'requests are read into.',
    ),
    Plant(
        name='last_chunk_of_a_hot_write_not_asked',
        target='mirrorfs.hot:HotTable.allows',
        old='in self.flags[first : last + 1])',
        new='in self.flags[first:last])',
        checker='intent-first',
        also=('one-order', 'promise', 'log-covers', 'window', 'stable-reads', 'never-stale', 'clearing-last'),
        why='A hot write that reaches into a clean, held or never-written chunk is done by the lane.',
    ),
    Plant(
        name='dsync_write_served_by_the_lane',
        target='mirrorfs.fs.lane:Lane._write',
        old='flags & os.O_DSYNC or not (',
        new='not (',
        checker='fsync-durable',
        also=('promise',),
        why='A write to a file opened with O_DSYNC is answered when it is in the caches.',
    ),
    Plant(
        name='grace_period_ends_after_one_look',
        target='mirrorfs.fs.gateway:Gateway._settle',
        old='while call is not None and',
        new='if call is not None and',
        checker='one-order',
        also=('window', 'equal', 'never-stale', 'clearing-last', 'promise', 'stable-reads', 'clean-stop'),
        why='A call of the lane that takes longer than 0.2 ms is still under way when the slow path, a '
        'recovery window or the closing of a leg relies on its end.',
    ),
    Plant(
        name='failed_sync_answered',
        target='mirrorfs.fs.beside:Beside._end',
        old='if opened.failed or not',
        new='if not',
        checker='fsync-durable',
        also=('promise', 'equal'),
        why='A leg loses in a sync what it had in its cache; the lane says that all is durable.',
    ),
    Plant(
        name='sync_answered_by_the_first_leg',
        target='mirrorfs.fs.beside:Beside._serve',
        old='if not opened.left and',
        new='if',
        checker='fsync-durable',
        also=('promise',),
        why='The other leg is still syncing when the caller is told, and the power goes.',
    ),
    # The pool
    Plant(
        name='definition_not_synced',
        target='mirrorfs.definitions:PoolDirectory._replace',
        old='        file.sync()\n',
        new='',
        checker='operator',
        also=('expulsion-first', 'promise', 'whole-copy', 'defect'),
        why='The new name is durable before what it names: after a power cut the definition is empty or torn '
        'and the volume is not started.',
    ),
    Plant(
        name='rename_not_synced',
        target='mirrorfs.definitions:PoolDirectory._replace',
        old='    self._files.sync_directory(path.parent)\n',
        new='',
        checker='expulsion-first',
        also=('promise', 'operator'),
        why='The power goes after an expulsion was acknowledged: the pool has the record of before, and when '
        'the survivor stays away the stale leg starts the volume.',
    ),
    Plant(
        name='leg_of_just_the_right_size_refused',
        target='mirrorfs.pool:Pool.find_legs',
        old='if leg.size < sup.needed_size:',
        new='if leg.size <= sup.needed_size:',
        checker='operator',
        also=('bounded', 'defect', 'promise', 'last-copy'),
        why='Files are made just as long as needed; at the next start none of them is taken.',
    ),
]
