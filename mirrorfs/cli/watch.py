"""status --watch: what is shown stays true, on a terminal in place, elsewhere block by block."""

import datetime
import sys
import time
from collections.abc import Callable, Sequence

import click

from mirrorfs.cli import terminal
from mirrorfs.cli.patience import Patient
from mirrorfs.errors import BadMetadata, Refused

INTERVAL = 2.0
INTERVAL_MIN = 0.1
PATIENCE = 5.0
"""Seconds that a mount has to answer before it is told that it does not."""
_CSI = '\x1b['


class WatchCommand(click.Command):
    """A command with an option ``--watch [SECONDS]``, which leaves a word that is no number to the others."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = []
        for number, word in enumerate(args):
            following = args[number + 1] if number + 1 < len(args) else ''
            words.append(f'--watch={INTERVAL}' if word == '--watch' and not _is_number(following) else word)
        return super().parse_args(ctx, words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


WATCH = click.option(
    '--watch',
    type=click.FloatRange(min=INTERVAL_MIN),
    metavar='[SECONDS]',
    help=f'show it again and again, every {INTERVAL:g} seconds by default, until Ctrl-C',
)


def watch(look: Callable[[], Sequence[str]], interval: float) -> None:
    """Show the lines that `look` returns, every `interval` seconds, until Ctrl-C.

    What goes wrong is shown in their place, and does not end it; nor does a mount that hangs.
    """
    patient = Patient(lambda: _answer(look))
    live = terminal.is_live(sys.stdout)
    asked = time.monotonic()
    last: Sequence[str] = ()
    if live:
        sys.stdout.write(f'{_CSI}2J')
    try:
        while True:
            began = time.monotonic()
            lines = patient(min(PATIENCE, max(interval, 1.0)))
            if lines is None:
                late = f'no answer for {time.monotonic() - asked:.0f} s; what was seen before:'
                shown: Sequence[str] = [late, '', *last]
            else:
                shown = last = lines
                asked = time.monotonic()
            _show(shown, live=live)
            time.sleep(max(0.0, began + interval - time.monotonic()))
    except KeyboardInterrupt:
        if live:
            click.echo()


def _answer(look: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Return the lines, or what kept them from being there."""
    try:
        return look()
    except (Refused, BadMetadata, OSError, ValueError) as error:  # a mount that just goes leaves half a text
        return [f'mirrorfs: {error}']


def _show(lines: Sequence[str], *, live: bool) -> None:
    now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    if not live:
        click.echo('\n'.join([f'--- {now}', *lines, '']))
        return
    columns, height = terminal.size()
    shown = [now, '', *lines]
    if len(shown) > height - 1:
        left_out = len(shown) - (height - 2)
        shown = [*shown[: height - 2], f'… {left_out} lines more; name a volume to see it alone']
    drawn = ''.join(f'{terminal.cut(line, columns)}{_CSI}K\n' for line in shown)
    sys.stdout.write(f'{_CSI}H{drawn}{_CSI}J')
    sys.stdout.flush()
