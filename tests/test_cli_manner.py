"""How the command line answers: in JSON, quietly, with hints, progress, exit codes, but no traceback."""

import errno
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from clitools import VERBS, examples, pretend_mounted, run_here
from hypothesis import given
from hypothesis import strategies as some
from mounts import CLI, MIB, MountedPool, new_folder, sh
from mounts import cli as cli_process

from mirrorfs.cli import cli, complete, examine, health, progress
from mirrorfs.errors import BadMetadata, Refused
from mirrorfs.fs import mounting
from mirrorfs.mirror import naming

pytestmark = pytest.mark.timeout(120)
needs_mount = pytest.mark.mount


@pytest.fixture(scope='module')
def at_rest() -> Iterator[Path]:
    """A folder with a pool of one volume that is not mounted."""
    folder = new_folder()
    words = [
        'create',
        folder / 'pool',
        'disk',
        '--size',
        '128K',
        '--leg',
        folder / 'a',
        '--leg',
        folder / 'b',
    ]
    assert run_here(*map(str, words))[0] == 0
    yield folder
    shutil.rmtree(folder)


# What goes wrong

FAULTS: dict[str, tuple[BaseException, int, str]] = {
    'a full disk': (OSError(errno.ENOSPC, 'No space left on device'), 2, 'No space left on device'),
    'a file': (FileNotFoundError(errno.ENOENT, 'No such file', '/odd\nname'), 2, '/odd\\nname: No such file'),
    'memory': (MemoryError(), 2, 'out of memory'),
    'ctrl-c': (KeyboardInterrupt(), 130, 'interrupted'),
    'a defect': (KeyError('slot'), 2, "unexpected error: KeyError 'slot'; this is a defect of mirrorfs"),
    'recursion': (RecursionError('too deep'), 2, 'unexpected error: RecursionError too deep'),
    'metadata': (BadMetadata('both copies are damaged'), 2, 'both copies are damaged'),
    'a refusal': (Refused(errno.EBUSY, 'it is in use; wait'), 1, 'it is in use; wait'),
    'many': (
        ExceptionGroup('two', [OSError(errno.EIO, 'Input/output error'), KeyError()]),
        2,
        'Input/output',
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """Have every verb meet a fault."""

    def fail(*_: object) -> Any:
        raise fault

    monkeypatch.setattr(mounting, 'mounts', fail)
    monkeypatch.setattr(examine, 'read_facts', fail)
    monkeypatch.setattr(complete, 'get_completion_class', fail)


@pytest.mark.parametrize('name', FAULTS)
@pytest.mark.parametrize('verb', VERBS)
def test_a_fault_is_said_in_one_line(verb: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, wanted, says = FAULTS[name]
    plant(monkeypatch, fault)
    line = examples(cli.commands[verb])[0]
    code, out, err = run_here(*line)
    assert (code, out) == (wanted, '')
    # Of Ctrl-C the terminal has shown a ^C, and click ends that line.
    assert err.lstrip('\n').startswith(f'mirrorfs: {says}') and err.strip().count('\n') == 0, err
    code, out, err = run_here(*line, '--json')
    said = json.loads(out)
    assert not err.strip() and said['ok'] is False and said['code'] == code == wanted
    assert said['error'] and 'Traceback' not in out


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, KeyError('slot'))
    for line in (['list', 'pool', '--debug'], ['--debug', 'list', 'pool']):
        with pytest.raises(KeyError):
            run_here(*line)


@pytest.mark.parametrize(
    ('redirection', 'code', 'says'),
    [
        ('>/dev/full', 2, 'No space left'),
        ('>&-', 0, ''),
        ('2>&-', 0, ''),
        ('| :', 0, ''),
        ('<&- >&- 2>&-', 0, ''),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_at_most(
    at_rest: Path, redirection: str, code: int, says: str
) -> None:
    done = sh(f'unset PYTHONUNBUFFERED; "$@" {redirection}', *CLI, 'status', at_rest / 'pool')
    assert done.returncode == code
    assert says in done.stderr and done.stderr.count('\n') <= 1 and 'Traceback' not in done.stderr


def test_no_leg_gets_the_number_of_a_standard_stream(at_rest: Path) -> None:
    """A file that was opened as number 2 would be written messages to."""
    shown = (
        'import os; from mirrorfs.cli import ending; ending.open_standard_streams(); os.fstat(0), os.fstat(2)'
    )
    shown += '; os._exit(os.open("/dev/null", os.O_RDONLY))'
    assert sh('"$@" <&- >&- 2>&-', sys.executable, '-c', shown).returncode > 2


# Help


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_examples_that_the_parser_takes(verb: str, tmp_path: Path) -> None:
    lines = examples(cli.commands[verb])
    assert lines, f'the help of {verb} has no example'
    (tmp_path / 'vm2.img').touch()
    for line in lines:
        line = [str(tmp_path / word) if word == 'vm2.img' else word for word in line]
        with cli.make_context('mirrorfs', list(line)) as above:
            name, command, rest = cli.resolve_command(above, line)
            assert command and command.make_context(name, rest, parent=above)


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_the_shared_options(verb: str) -> None:
    words = {word for parameter in cli.commands[verb].params for word in parameter.opts}
    assert {'--json', '-q', '--quiet', '-v', '--verbose', '--debug'} <= words


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('crate POOL x', "Did you mean 'create'?"),
        ('status POOL --jsn', 'Did you mean'),
        ('status POOL dusk', 'did you mean disk?'),
        ('destroy POOL dusk --yes', 'did you mean disk?'),
        ('log POOL dusk', 'did you mean disk?'),
        ('status POOLS', 'did you mean POOL'),  # others may be mounted whose names are alike, too
        ('set POOL disk tme_base 5', 'did you mean time_base?'),
        ('status POOL something', 'there are: disk'),
        ('fail POOL disk 0', 'mount it first: mirrorfs mount POOL DIR'),
        ('set POOL disk time_base 5', 'mount it first: mirrorfs mount POOL DIR'),
        ('grow POOL disk 1G', 'mount it first: mirrorfs mount POOL DIR'),
        ('destroy POOL disk', 'nothing was done'),
    ],
)
def test_a_refusal_says_what_may_have_been_meant(
    at_rest: Path, line: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = str(at_rest / 'pool')
    monkeypatch.setattr('sys.stdin', io.StringIO())
    code, out, err = run_here(*shlex.split(line.replace('POOL', pool)))
    assert code == 1 and not out and says.replace('POOL', pool) in err, err
    code, out, err = run_here('--json', *shlex.split(line.replace('POOL', pool)))
    said = json.loads(out)
    assert says.replace('POOL', pool) in f'{said["error"]}; {said["hint"]}'


@pytest.mark.parametrize('there', [False, True])
def test_a_refused_create_leaves_no_pool_behind(tmp_path: Path, there: bool) -> None:
    pool = tmp_path / 'pool'
    if there:
        pool.mkdir()
    words = ['create', str(pool), 'disk', '--size', '64K', '--leg']
    assert run_here(*words, str(tmp_path))[0] == 1, 'a folder is no leg'
    assert list(tmp_path.rglob('*')) == ([pool] if there else [])
    assert run_here(*words, str(tmp_path / 'a'))[0] == 0 == run_here('list', str(pool))[0]


# Legs by the start of a UUID

ROWS = some.lists(some.uuids(), min_size=1, max_size=8, unique=True)
NEAR = some.lists(some.integers(0, 15), min_size=1, max_size=8, unique=True).map(
    lambda ends: [UUID(int=(0xABCD << 112) | end) for end in ends]
)


@given(uuids=ROWS | NEAR, length=some.integers(1, 36), data=some.data())
def test_the_start_of_a_uuid_names_the_only_leg_that_has_it(
    uuids: list[UUID], length: int, data: Any
) -> None:
    legs = {n: naming.Names(n, f'/legs/{n}', str(uuid)) for n, uuid in enumerate(uuids)}
    chosen = data.draw(some.sampled_from(sorted(legs)))
    word = str(uuids[chosen])[:length]
    alike = [n for n, uuid in enumerate(uuids) if str(uuid).startswith(word)]
    if word.isdigit() and int(word) in legs and str(int(word)) == word:
        assert naming.find(legs, word, 'vm') == int(word), 'a slot comes first'
    elif length >= 4 and len(alike) == 1:
        assert naming.find(legs, word, 'vm') == naming.find(legs, word.upper(), 'vm') == chosen
    else:
        with pytest.raises(Refused) as refusal:
            naming.find(legs, word, 'vm')
        if length >= 4:
            assert refusal.value.errno == errno.EINVAL
            assert all(str(uuids[n]) in str(refusal.value) for n in alike), 'a candidate is not named'
        else:
            assert refusal.value.errno == errno.ENOENT


# Exit codes

VOLUMES = {
    'well': {'degraded': 0, 'broken': '', 'refusal': ''},
    'degraded': {'degraded': 1},
    'broken': {'degraded': 0, 'broken': 'no leg is left'},
    'refused': {'refusal': 'its legs are stale'},
    'damaged': {'state': 'inactive', 'refusal': 'damaged definition'},
}


@pytest.mark.parametrize(
    ('names', 'mounted', 'code'),
    [
        ('', True, 0), ('well', True, 0), ('well degraded', True, 1), ('degraded broken well', True, 2),
        ('refused', True, 2), ('damaged', True, 2), ('well', False, 4), ('', False, 4),
    ],
)  # fmt: skip
def test_the_code_of_status_is_that_of_the_worst_volume(names: str, mounted: bool, code: int) -> None:
    assert health.code([VOLUMES[name] for name in names.split()], mounted=mounted) == code


def test_what_cannot_be_told_has_a_code_of_its_own(at_rest: Path) -> None:
    for pool, name in ((at_rest / 'pool', 'disk'), (at_rest / 'pool', 'none'), (at_rest / 'nowhere', 'disk')):
        assert run_here('status', str(pool), name, '--test')[0] == 4
    assert run_here('status', str(at_rest / 'pool'))[0] == 0


# Saying more, and less


def test_verbose_says_what_is_written_where_and_quiet_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = pretend_mounted(tmp_path, monkeypatch)
    pool = str(tmp_path / 'pool')
    _, out, err = run_here('fail', pool, 'disk', '/legs/1', '-v')
    assert err == f"mirrorfs: echo '1' > {control}/volumes/disk/fail\n" and not out
    assert (control / 'volumes/disk/fail').read_text().startswith('1\n'), 'written is the slot'
    _, out, _ = run_here('--json', 'fail', pool, 'disk', '0123')
    assert json.loads(out) == {
        'ok': True, 'verb': 'fail', 'pool': pool, 'mountpoint': str(tmp_path / 'mnt'),
        'volume': 'disk', 'leg': '0123', 'slot': 0,
    }  # fmt: skip
    assert 'merge' in run_here('split', pool, 'disk', '1')[1]
    assert run_here('split', pool, 'disk', '1', '-q') == (0, '', '')


def test_two_legs_that_differ_are_told_apart_by_a_command_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_mounted(tmp_path, monkeypatch)
    pool = str(tmp_path / 'pool')
    code, _, err = run_here('repair', pool, 'disk')
    ways = err.strip().partition('choose: ')[2].split(' or ')
    assert code == 1 and len(ways) == 2
    for way in ways:
        assert run_here(*shlex.split(way)[1:])[0] == 0


@pytest.mark.parametrize('live', [False, True])
def test_a_wait_without_an_end_in_sight_shows_how_long_it_takes(
    live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return live

    for name in ('_QUIET', '_PLAIN_EVERY'):
        monkeypatch.setattr(progress, name, 0.01)
    stream = Stream()
    with progress.Pulse('waiting', stream) as pulse:
        while 'waiting, for 0s' not in stream.getvalue():
            assert pulse._thread.is_alive()
    said = stream.getvalue()
    assert said.endswith('\r\x1b[K') if live else re.fullmatch(r'(waiting, for 0s\n)+', said)


# All verbs, on a real mount


def answer(*words: str | Path, code: int = 0) -> Any:
    done = cli_process(*words, '--json')
    assert done.returncode == code, done
    return json.loads(done.stdout)


@needs_mount
def test_every_verb_answers_with_one_document() -> None:
    with MountedPool() as pool:
        at, legs = pool.directory, pool.legs
        made = answer('create', at, 'disk', '--size', '4M', '--leg', legs / 'a', '--leg', legs / 'b')
        assert made['ok'] and made['mountpoint'] is None and made['size'] == 4 * MIB
        assert answer('mount', at, pool.mountpoint)['mountpoint'] == str(pool.mountpoint)
        try:
            (pool.mountpoint / 'disk').write_bytes(b'x' * MIB)
            assert answer('status', at, '--test')[0]['degraded'] == 0
            done = cli_process('fail', pool.mountpoint, 'disk', 'b', cwd=legs)
            assert done.returncode == 0, 'a path may be relative, of whoever types it'
            assert answer('status', at, '--test', code=1)[0]['degraded'] == 1
            refusal = answer('fail', at, 'disk', '0', code=1)
            assert refusal['errno'] == 'EBUSY' and 'last in-sync leg' in refusal['error'] and refusal['hint']
            assert answer('re-add', at, 'disk', '1', '--wait')['slot'] == 1
            assert answer('status', at, '--test')[0]['degraded'] == 0, 'it came back before all was copied'
            assert answer('check', at, 'disk', '--wait')['last_sync']['disk']['action'] == 'check'
            assert answer('repair', at, 'disk', code=1)['hint']
            assert answer('repair', at, 'disk', '--source', legs / 'b', '--wait')['slot'] == 1
            assert answer('add', at, 'disk', legs / 'c', '--write-mostly', '--wait')['path'] == str(
                legs / 'c'
            )
            assert answer('split', at, 'disk', '2')['slot'] == 2
            assert answer('merge', at, 'disk', '--wait')['ok']
            assert answer('set', at, 'disk', 'time_base', '1')['value'] == '1'
            assert answer('mark', at, 'disk', '2', 'no-write_mostly')['words'] == ['no-write_mostly']
            assert answer('grow', at, 'disk', '6M')['size'] == 6 * MIB
            assert answer('log', at, 'disk', pool.base / 'log')['log'] == 'external'
            assert answer('spare', at) == [] and answer('list', at) == ['disk']
            assert len(answer('examine', legs / 'a', legs / 'b')) == 2
            assert answer('resolve', at, 'disk')['sides'] == []
            assert answer('wait', at)['last_sync']['disk']
            lines = cli_process('events', at, '--json').stdout.splitlines()
            assert {'Fail', 'Refused', 'SpareActive'} <= {json.loads(line)['event'] for line in lines}
        finally:
            assert answer('umount', at)['ok']
        assert answer('destroy', at, 'disk', '--yes')['volume'] == 'disk'
