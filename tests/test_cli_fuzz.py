"""Random command lines: none ends in a traceback, and one that is refused changes nothing.

Each line follows from its number alone, so that one that fails is run again by ``-k`` and the number printed.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from clitools import VERBS, picture, pretend_mounted, run_here
from mounts import new_folder

from mirrorfs.cli import cli
from mirrorfs.fs import daemon, mounting

LINES = int(os.environ.get('MIRRORFS_FUZZ_LINES', 1000))
"""Of each kind of pool."""
SECONDS_MAX = 5
LEFT_OUT = {'--follow', '--watch', '--debug'}
"""Options with which a verb goes on until it is interrupted, and that which asks for tracebacks."""

POOLS = ['pool'] * 12 + 'mnt ./pool/ poll new new fresh full file pool/volumes /nowhere/x . /'.split() + ['']
NAMES = ['disk'] * 8 + 'dusk two broken new . .. .hid a/b ä - \udcff'.split() + ['', 'x' * 129]
LEGS = '0 1 2 -1 99 a.leg ./b.leg new.leg missing failed spare 0123 1123'.split() + ['']
PATHS = 'new.leg a.leg file full fifo link /dev/null nowhere/leg missing internal none \udcff.leg'.split()
SIZES = ['64K', '1M'] * 6 + '1M 64K 512KiB 0 -1 1 10G 0.5 1e9 8E 1MB huge ٣'.split() + ['9' * 40, '1 M', '']
WORDS = 'idle frozen time_base tme_base sync_action 5 nan inf -0 write_mostly add'.split()
AT_REST = ['create', 'destroy', 'log', 'resolve', 'assemble', 'examine', 'status']
"""Verbs that do something where nothing is mounted."""
ODD = ['\0', 'a\0b', '\n', 'a\nb', '\x1b[31m', '💾', '\u202e', '', ' ', "'", '"', '$(x)', '%s{}', 'x' * 5000]
ODD += '-- - --- --= -ö --help -h --version --json -q -v --wait --force --yes --no'.split()


class Speaker:
    """Says command lines: mostly such as somebody may mean, some of them mistyped, some of them noise."""

    def __init__(self, number: int) -> None:
        self._dice = random.Random(number)

    def line(self) -> list[str]:
        dice = self._dice
        verb = dice.choice([*VERBS, *AT_REST * 3])
        words = [word for parameter in cli.commands[verb].params for word in self._spoken(parameter)]
        once = ['--oneshot'] if verb == 'monitor' else []
        words = [*self._some(['--json', '-q', '-v'], 0.1), verb, *once, *words]
        if dice.random() < 0.2:
            self._spoil(words)
        return words

    def _spoken(self, parameter: click.Parameter) -> list[str]:
        dice = self._dice
        if isinstance(parameter, click.Argument):
            count = (
                dice.choice((1, 1, 2))
                if parameter.nargs == -1
                else int(parameter.required or dice.random() < 0.4)
            )
            return [self._value(parameter) for _ in range(count)]
        wanted = parameter.required or parameter.name in ('yes', 'size')
        if dice.random() < (0.95 if wanted else 0.3):
            flag = isinstance(parameter, click.Option) and parameter.is_flag
            return [dice.choice(parameter.opts), *([] if flag else [self._value(parameter)])]
        return []

    def _value(self, parameter: click.Parameter) -> str:
        dice = self._dice
        known = {'pool': POOLS, 'name': NAMES, 'size': SIZES, 'chunk': SIZES, 'leg': LEGS, 'source': LEGS}
        known |= {
            'legs': PATHS,
            'path': PATHS,
            'mountpoint': POOLS,
            'place': PATHS,
            'image': PATHS,
            'keep': LEGS,
            'pools': POOLS,
            'program': ['/nowhere/tell-me', '/bin/true'],
            'svg': PATHS,
            'png': PATHS,
        }
        if isinstance(parameter.type, click.Choice) and dice.random() < 0.9:
            return str(dice.choice(list(parameter.type.choices)))
        return dice.choice(known.get(parameter.name or '', [*WORDS, *SIZES, *PATHS]))

    def _spoil(self, words: list[str]) -> None:
        dice = self._dice
        at = dice.randrange(len(words))
        match dice.randrange(4):
            case 0:
                words[at] = dice.choice(ODD)
            case 1:
                words.insert(at, dice.choice([*ODD, *WORDS]))
            case 2:
                del words[at]
            case _:
                words[at] = words[at][: len(words[at]) // 2] + words[at][len(words[at]) // 2 + 1 :]

    def _some(self, words: list[str], chance: float) -> list[str]:
        return [word for word in words if self._dice.random() < chance]


@pytest.fixture(scope='module')
def template() -> Iterator[Path]:
    """A folder with a pool of two volumes and one that is damaged, and things that legs are taken for."""
    folder = new_folder()
    at = os.getcwd()
    os.chdir(folder)
    try:
        for words in (
            'create pool disk --size 128K --leg a.leg --leg b.leg',
            'create pool two --size 64K --leg c.leg --log ./two.log',
        ):
            assert run_here(*words.split())[0] == 0
        (folder / 'pool/volumes/broken.json').write_text('{')
        (folder / 'file').write_bytes(b'precious' * 512)
        (folder / 'full').mkdir()
        (folder / 'full/thing').write_text('mine')
        (folder / 'mnt').mkdir()
        (folder / 'fresh').mkdir()
        os.mkfifo(folder / 'fifo')
        (folder / 'link').symlink_to('file')
        yield folder
    finally:
        os.chdir(at)
        shutil.rmtree(folder)


@pytest.fixture
def nothing_lasts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is mounted or unmounted, nobody is asked, and what takes too long is interrupted."""
    monkeypatch.setattr(daemon, 'run_in_foreground', lambda *_: 0)
    monkeypatch.setattr(daemon, 'run_in_background', lambda *_: 0)
    monkeypatch.setattr(mounting, 'unmount', lambda *_, **__: None)
    with open(os.devnull) as nobody:
        monkeypatch.setattr('sys.stdin', nobody)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def copy(template: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True, ignore=lambda *_: ['fifo'])
    os.mkfifo(folder / 'fifo')


def try_lines(template: Path, folder: Path, prepare: Callable[[], object], seed: int, *words: str) -> None:
    """Run LINES lines without some words, each in the same folder; check how it ends and what it leaves."""
    fresh = False
    ends: dict[int, int] = {}
    for number in range(seed, seed + LINES):
        if not fresh:
            os.chdir('/')
            copy(template, folder)
            os.chdir(folder)
            prepare()
            before = picture(folder)
        line = [word for word in Speaker(number).line() if word not in {*LEFT_OUT, *words}]
        signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
        code, out, err = run_here(*line)
        signal.setitimer(signal.ITIMER_REAL, 0)
        what = f'line {number}: {line!r} ended with {code}: {err}'
        assert 'unexpected error' not in out + err and 'Traceback' not in out + err, what
        assert code in (0, 1, 2, 4, 130), what
        assert code == 0 or out + err or '--test' in line, what
        after = picture(folder)
        fresh = after == before
        assert fresh or code == 0, f'{what}\nchanged: {set(before.items()) ^ set(after.items())}'
        ends[code] = ends.get(code, 0) + 1
    assert ends[0] > LINES // 50 and ends[1] > LINES // 4, f'these lines tell nothing: {ends}'


@pytest.mark.timeout(200)
@pytest.mark.parametrize('where', ['at rest', 'mounted'])
@pytest.mark.usefixtures('nothing_lasts')
def test_no_line_ends_badly_and_a_refused_one_changes_nothing(
    template: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = new_folder()
    monkeypatch.chdir(folder)
    work = folder / 'work'
    try:
        if where == 'mounted':
            try_lines(
                template, work, lambda: pretend_mounted(work, monkeypatch), 1_000_000, '--from'
            )  # no image comes there
        else:
            try_lines(template, work, lambda: None, 0)
    finally:
        os.chdir('/')
        shutil.rmtree(folder)
