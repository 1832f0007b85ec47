"""What a checker says when a promise was broken."""

CHECKERS = {
    'intent-first': 'marks are durable on every leg that counts before data reach any leg (invariant 1)',
    'acknowledged-everywhere': 'every leg that counts has what was acknowledged (2)',
    'expulsion-first': 'survivors and pool know of a leg that lacks a write before it is acknowledged (3)',
    'clearing-last': 'a durably clean chunk is flushed and equal on all legs that count (4)',
    'log-covers': 'the log names every chunk in which legs differ, and all that an absent leg lacks (4)',
    'log-kept': 'a log outside the legs that is whole and current is not given up',
    'one-order': 'writes in flight to a leg never overlap (5)',
    'window': 'a recovering leg holds everything below its durable mark (6)',
    'never-stale': 'only legs that count are read for callers (7)',
    'stable-reads': 'two reads without a write between agree (8)',
    'equal': 'legs in sync hold the same once resync has ended (5, 8)',
    'strangers': 'legs of others, old copies and split brains are refused, and not written to (9)',
    'spares': "a shared spare is free, claimed, or one volume's leg; not written to while free, nor lost",
    'fsync-durable': 'what a returned flush covers is durable on every leg that counts (10)',
    'last-copy': 'the last leg in sync cannot leave (11)',
    'whole-copy': 'one copy of every metadata page is whole and durable at any time (12)',
    'start-twice': 'starting again without a write changes nothing (12)',
    'promise': 'a read returns what was promised: nothing lost, stale, torn off or invented',
    'point-in-time': 'the image of a leg split off is what the volume was when it left, and stays so',
    'scrub': 'a scrub finds no difference between legs that count but what has rotted, and then names it',
    'bounded': 'everything ends in bounded virtual time',
    'operator': 'a volume is refused where no current leg is at hand or lineages conflict, only then',
    'quorum': 'a write is acknowledged when at least as many legs as the quorum count, and have it',
    'clean-stop': 'a clean stop leaves everything flushed, clean and at rest',
    'defect': 'no error that nobody planned',
}
"""Name of every checker, with what it proves.  Numbers are those of the invariants."""


class Violation(BaseException):
    """A checker's complaint.  Not an Exception: code that survives any exception must not survive this."""

    def __init__(self, checker: str, message: str) -> None:
        assert checker in CHECKERS, checker
        super().__init__(f'{checker}: {message}')
        self.checker = checker
        self.message = message
