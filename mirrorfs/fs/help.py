"""What the control files say and take: one text a file, for man pages and whoever looks for one.

The tables have the names of those in `mirrorfs.fs.control`, which says how each is done; a test compares
them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Help:
    """`says`: what a read gives; `takes`: the words of a write, then what they do.  Empty: cannot be done."""

    says: str = ''
    takes: str = ''
    does: str = ''


_LEG = 'LEG is a slot number, an absolute path, or the start of a UUID.'

POOL: dict[str, Help] = {
    'mdstat': Help('all volumes, in the format of /proc/mdstat'),
    'status.json': Help('all that is known, for programs; the pid and version of the daemon, too'),
    'metrics': Help('counters, gauges and histograms of all volumes and legs, as Prometheus reads them'),
    'events': Help(
        'a line an event: time, name (those of md), volume, leg, text; poll(2) wakes on a new one'
    ),
    'create': Help(
        takes='NAME SIZE LEG [LEG…] [chunk=SIZE] [log=none|internal|PATH] [detect_zeroes=off|on|unmap] '
        '[force]',
        does='makes a volume; LEG may be "missing"; force overwrites what bears a foreign signature',
    ),
    'destroy': Help(
        takes='NAME [force]',
        does='forgets a volume; its legs keep their content; force: also where it does not run, or a leg is '
        'split off',
    ),
    'spares': Help(
        'the spares that volumes share, a line each: path, UUID, size in bytes, and spare, claimed, missing '
        'or faulty',
        'add PATH [SIZE] [force] | remove PATH|UUID',
        'with SIZE a file is made',
    ),
}

VOLUME: dict[str, Help] = {
    'add': Help(
        takes='PATH [force] [spare] [write_mostly] [failfast]',
        does='takes a leg in, or, with spare, has it wait for a leg to be gone',
    ),
    'remove': Help(takes='LEG | failed | detached', does='takes out legs that failed, or a spare. ' + _LEG),
    'fail': Help(takes='LEG', does='a leg gets no more writes and is not read; EBUSY for the last in sync'),
    're-add': Help(takes='LEG | missing', does='takes a leg back; copies what changed meanwhile where known'),
    'replace': Help(
        takes='LEG NEWPATH [force] | LEG spare', does='a new leg takes the place of LEG once it has all'
    ),
    'spare_delay': Help('seconds', 'SECONDS', 'how long a leg is gone before a spare takes its place'),
    're_add_policy': Help(
        'partial, full or none',
        'partial | full | none',
        'whether a leg that is there again is taken back by itself: where only what changed has to be '
        'copied, always, never',
    ),
    'split': Help(takes='LEG', does='a leg becomes the point in time that NAME@split shows'),
    'merge': Help(takes='LEG | NAME@split', does='takes it back; copies what the volume was written since'),
    'resolve': Help(
        'the sides of a split brain, a line each, or none', 'keep LEG', 'the volume goes on from that leg'
    ),
    'array_state': Help('clean, active, write-pending, readonly, broken or inactive'),
    'degraded': Help('how many legs are missing'),
    'raid_disks': Help('how many legs are wanted', 'NUMBER', 'spares fill what is missing'),
    'size': Help('bytes', 'SIZE', 'grows the volume; truncate(2) on the image does the same'),
    'uuid': Help('of the volume'),
    'events': Help('how often membership changed'),
    'quorum': Help('the least number of legs in sync for writes', 'NUMBER', 'changes it; 1 by default'),
    'quorum_policy': Help(
        'error, readonly or wait',
        'error | readonly | wait',
        'what becomes of writes below the quorum: EIO, EROFS, or they wait',
    ),
    'detect_zeroes': Help(
        'off, on or unmap',
        'off | on | unmap',
        'what becomes of writes of zeros: written, zeroed on the legs in one call, or discarded',
    ),
    'sync_action': Help(
        'idle, frozen, resync, recover, check or repair',
        'idle | frozen | resync | recover | check | repair [LEG [force]]',
        'frozen holds what is under way until idle; repair LEG makes the others equal to that leg, with '
        'force also where most of them agree against it',
    ),
    'sync_completed': Help('sectors done / sectors in all, or none'),
    'sync_speed': Help('KiB/s, or none'),
    'max_read_errors': Help(
        'a number', 'NUMBER', 'a leg with more read errors an hour is failed, though they are mended'
    ),
    'sync_speed_min': Help(
        'KiB/s, then (local) or (system)', 'NUMBER | system', 'below this recovery and scrubs do not make way'
    ),
    'sync_speed_max': Help(
        'KiB/s, then (local) or (system)', 'NUMBER | system', 'recovery and scrubs go no faster'
    ),
    'sync_mode': Help(
        'yield or fixed',
        'yield | fixed',
        'yield: recovery and scrubs rest so long that callers hardly notice; fixed: only the ceiling holds',
    ),
    'sync_min': Help('sectors', 'SECTORS', 'where the next scrub begins'),
    'sync_max': Help('sectors, or max', 'SECTORS | max', 'where a scrub pauses'),
    'last_sync_action': Help('the pass under way, or the last one'),
    'mismatch_cnt': Help('sectors that the last scrub found to differ'),
    'mismatches': Help(
        'where legs differ, a line each: offset and length in bytes, then slots with a digest of what they '
        'hold'
    ),
    'map.json': Help('how many chunks are in which state, in cells of the volume and of legs that differ'),
}

BITMAP: dict[str, Help] = {
    'metadata': Help('internal, external or none'),
    'location': Help(
        'internal, none or a path',
        'internal | none [force] | PATH [force]',
        'moves the intent log; force overwrites a file that is not empty, or has none also where legs that '
        'are away would then need everything',
    ),
    'chunksize': Help('bytes'),
    'time_base': Help('seconds', 'SECONDS', 'how long a chunk is quiet before it is clean'),
    'backlog': Help('a number', 'NUMBER', 'how many writes a write-mostly leg may be behind; 0: none'),
    'max_backlog_used': Help(
        'how many writes a leg has been behind at most', 'anything', 'counts from 0 again'
    ),
    'can_clear': Help('true or false', 'true | false', 'whether chunks become clean'),
    'states': Help('a line each: a word, and how many chunks are so'),
}

LEG: dict[str, Help] = {
    'state': Help(
        'words of md with commas between: faulty, in_sync, write_mostly, blocked, spare, want_replacement, …',
        'faulty | remove | re-add | [-]writemostly | [-]failfast | [-]blocked | [-]want_replacement',
        'blocked holds up writes',
    ),
    'path': Help('where the leg is', 'PATH', 'renames it, or says that it lies there now'),
    'uuid': Help('of the leg'),
    'errors': Help('blocks that could not be read and were mended', 'NUMBER', 'sets the count'),
    'recovery_start': Help('sectors that recovery has copied, or none'),
    'bad_blocks': Help('a line each, sector and length: what the leg lacks', 'SECTOR LENGTH', 'adds a range'),
    'unacknowledged_bad_blocks': Help(
        'what is to be listed and is not yet so on the leg', 'SECTOR LENGTH', 'as bad_blocks'
    ),
}
