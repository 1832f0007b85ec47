"""The words after -o, and the programs that mount(8) runs, as far as nothing is mounted."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mounts import cli

from mirrorfs.cli import mounthelpers
from mirrorfs.cli.mount import leave
from mirrorfs.definitions import PoolDirectory
from mirrorfs.errors import Refused
from mirrorfs.fs import daemon, mounting
from mirrorfs.fs.options import FLAGS, IGNORED, OPTIONS, REFUSED, Options, describe, parse_options, rows

GOOD = {
    'allow_other': Options(allow_other=True),
    'cache=auto': Options(cached=True),
    'debug': Options(debug=True),
    'direct_legs': Options(direct_legs=True),
    'force=vm1': Options(force=['vm1']),
    'lane_poll=0.001': Options(lane_poll=0.001),
    'leg_timeout=5': Options(leg_timeout=5),
    'ro': Options(flags=7),
    'noexec': Options(flags=14),
    'noatime': Options(flags=1030),
}


@pytest.mark.parametrize('word', GOOD)
def test_each_word_means_what_the_table_says(word: str) -> None:
    assert parse_options(word) == GOOD[word]


def test_the_table_is_tested_as_a_whole_and_says_something_of_each_word() -> None:
    assert {word.partition('=')[0] for word in GOOD} >= set(OPTIONS)
    tables = [set(OPTIONS), set(FLAGS), set(IGNORED), set(REFUSED)]
    assert len(set.union(*tables)) == sum(map(len, tables)), 'a word is in two tables'
    assert all(text for _, text in rows())
    shown = describe()
    assert all(name in shown for table in tables[:3] for name in table)


@given(st.lists(st.sampled_from(sorted(GOOD)) | st.sampled_from(sorted(IGNORED)), max_size=8))
def test_words_for_others_change_nothing(words: list[str]) -> None:
    ours = [word for word in words if word in GOOD]
    assert parse_options(','.join(words)) == parse_options(','.join(ours))


@given(st.lists(st.sampled_from(['ro', 'rw', 'exec', 'noexec', 'atime', 'noatime']), max_size=6))
def test_of_contraries_the_last_one_holds(words: list[str]) -> None:
    flags = parse_options(','.join(words)).flag_words
    for sets, clears in (('ro', 'rw'), ('noexec', 'exec'), ('noatime', 'atime')):
        last = next((word for word in reversed(words) if word in (sets, clears)), clears)
        assert (sets in flags) == (last == sets)


@pytest.mark.parametrize('word', ['x-systemd.after=a=b', 'X-mount.mkdir', 'comment=a=b', 'user=me', ''])
def test_words_with_values_for_others_are_left_alone(word: str) -> None:
    assert parse_options(f'{word},,ro') == parse_options('ro')


BAD = {
    'colour=red': "unknown mount option 'colour=red'; -o help lists",
    'leg_timout=3': 'did you mean leg_timeout?',
    'nofial': 'did you mean nofail?',
    'leg_timeout': 'a number of seconds from 0.5 to 3600',
    'leg_timeout=nan': 'a number of seconds',
    'leg_timeout=0.1': 'a number of seconds',
    'cache=on': 'wanted is none or auto',
    'cache': 'wanted is none or auto',
    'force': 'the name of a volume',
    'debug=1': 'takes no value',
    'ro=1': 'unknown mount option',
    'subtype=other': 'known as fuse.mirrorfs',
    **{word: REFUSED[word] for word in REFUSED},
}


@pytest.mark.parametrize('word', BAD)
def test_a_wrong_word_is_refused_with_what_would_be_right(word: str) -> None:
    with pytest.raises(Refused, match=r'.') as caught:
        parse_options(f'rw,{word}')
    assert repr(word) in str(caught.value) and BAD[word] in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        parse_options(text)
    except Refused:
        pass
    else:
        assert parse_options(text, sloppy=True) == parse_options(text)


def test_sloppy_passes_over_unknown_words_not_over_wrong_values() -> None:
    assert parse_options('colour=red,ro', sloppy=True) == parse_options('ro')
    for word in ('leg_timeout=soon', 'remount'):
        with pytest.raises(Refused):
            parse_options(word, sloppy=True)


# mount.mirrorfs, umount.mirrorfs


def fake(folder: Path, *words: str) -> int:
    return mounthelpers.mount([str(folder), '/nowhere', '-f', *words])


def test_a_fake_mount_checks_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / 'pool'
    PoolDirectory(str(pool)).make()
    assert fake(pool) == fake(pool, '-n', '-o', 'rw', '-t', 'fuse.mirrorfs') == 0
    assert capsys.readouterr() == ('', '')
    assert fake(pool, '-v') == 0
    assert capsys.readouterr().out == f'mirrorfs: {pool} would be mounted on /nowhere\n'
    assert fake(tmp_path) == daemon.EXIT_MOUNT
    assert f'{tmp_path} is no pool' in capsys.readouterr().err
    assert fake(pool, '-o', 'remount,ro') == daemon.EXIT_USAGE
    assert 'unmount it' in capsys.readouterr().err
    assert fake(pool, '-o', 'colour=red') == daemon.EXIT_USAGE
    assert fake(pool, '-s', '-o', 'colour=red') == 0
    assert sorted(file.name for file in pool.iterdir()) == ['mirrorfs.json', 'volumes']


@pytest.mark.parametrize('words', [[], ['only'], ['a', 'b', 'c'], ['a', 'b', '--colour'], ['a', 'b', '-o']])
def test_wrong_usage_is_mount_8s_code_1(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mounthelpers.mount(words) == daemon.EXIT_USAGE
    assert 'usage: mount.mirrorfs' in capsys.readouterr().err


def test_help_and_the_list_of_options_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (['-h'], ['-o', 'help'], ['a', 'b', '-o', 'rw,help']):
        assert mounthelpers.mount(words) == 0
    for program in (['mount', '-o', 'help'],):
        assert describe() in cli(*program).stdout
    assert daemon.main(['-o', 'help']) == 0
    assert capsys.readouterr().out.count(describe()) == 3


def test_unmounting_what_is_not_ours_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / 'nothing', Path('/')):
        assert mounthelpers.umount([str(path)]) == daemon.EXIT_MOUNT
        assert f'nothing of ours is mounted on {path}' in capsys.readouterr().err


def test_an_unmount_waits_until_the_daemon_lets_go_of_the_pool_unless_it_is_lazy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(mounting, 'unmount', lambda where, lazy: unmounted.append(where))
    pool = PoolDirectory(str(tmp_path / 'pool'))
    pool.make()
    pool.lock()
    try:
        leave(str(pool.path), '/lazily', lazy=True)
        waiter = threading.Thread(target=leave, args=(str(pool.path), '/here'), kwargs={'lazy': False})
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive(), 'it has not waited'
    finally:
        pool.unlock()
    waiter.join(10)
    assert not waiter.is_alive() and unmounted == ['/lazily', '/here']


def test_mirrorfs_is_a_mount_helper_only_where_no_verb_is_meant() -> None:
    verbs = {'mount', 'status'}
    assert mounthelpers.is_meant(['/srv/pool', '/mnt', '-o', 'rw'], verbs)
    assert mounthelpers.is_meant(['pool', '/mnt', '-o', 'rw'], verbs)
    for line in ('mount pool dir -o rw', 'mont pool dir -o rw', 'status pool -o json', '', 'pool /mnt'):
        assert not mounthelpers.is_meant(line.split(), verbs), line
