"""What status advises: a case for each row of the table, and commands that the real command line takes."""

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

import click
import pytest

from mirrorfs.cli import cli
from mirrorfs.cli.advice import RULES, Level, advise, level
from mirrorfs.cli.glance import Look, pool_lines, volume_lines

Facts = dict[str, Any]
POOL, MOUNTPOINT = '/srv/my pool', '/srv/images'
GIB = 1 << 30


def leg(slot: int, state: str = 'in_sync', **changes: Any) -> Facts:
    """Return a leg's facts, as status.json has them."""
    return {
        'slot': slot,
        'state': state,
        'flags': [],
        'replaces': None,
        'path': f'/srv/disk{slot}/vm1.leg',
        'uuid': f'{slot}' * 8,
        'recovery_start': None,
        'tracked_since': 0,
        'given_up': False,
        'why': '',
        'occupied': GIB,
        'occupied_max': 10 * GIB,
        'free': 100 * GIB,
        'errors': 0,
        'read_errors': 0,
        'write_errors': 0,
        'bad_blocks': 0,
        'writes_behind': 0,
        **changes,
    }


def volume(*others: Facts, legs: int = 2, **changes: Any) -> Facts:
    """Return the facts of a volume with so many legs in sync, and others."""
    return {
        'name': 'vm1',
        'state': 'clean',
        'refusal': '',
        'split': [],
        'uuid': '0' * 8,
        'size': 10 * GIB,
        'chunk_size': 1 << 20,
        'raid_disks': max(legs, 2),
        'degraded': 0,
        'quorum': 1,
        'quorum_policy': 'error',
        'quorum_lost': False,
        'broken': '',
        'bitmap': 'internal',
        'bitmap_location': 'internal',
        'log_trouble': '',
        'chunks': {'total': 10240, 'dirty': 0, 'modified': 0, 'needs_resync': 0, 'unwritten': 9000},
        'sync_action': 'idle',
        'sync': None,
        'mismatches': [],
        'mismatches_not_listed': 0,
        'legs': [*(leg(number) for number in range(legs)), *others],
        **changes,
    }


def refused(**changes: Any) -> Facts:
    """Return the facts of a volume that did not start."""
    facts = volume(refusal='no up-to-date leg is at hand', state='inactive', **changes)
    running = 'broken chunks sync sync_action mismatches mismatches_not_listed quorum_lost'.split()
    return {key: fact for key, fact in facts.items() if key not in running}


def degraded(*others: Facts, **changes: Any) -> Facts:
    return volume(*others, **{'legs': 1, 'degraded': 1, **changes})


DOUBTFUL = {'total': 10240, 'dirty': 0, 'modified': 0, 'needs_resync': 7, 'unwritten': 0}
PLACES = [{'offset': 0, 'length': 65536, 'legs': []}]
RECOVERING = leg(2, 'spare', recovery_start=0)


@dataclass(frozen=True)
class Case:
    """Facts, and what is said of them first: words of the status, and the beginnings of commands."""

    facts: Facts
    says: str
    commands: list[str] = field(default_factory=list)


VOLUME = "'/srv/my pool' vm1"
CASES = {
    'damaged': Case(
        {'name': 'vm1', 'state': 'inactive', 'refusal': 'vm1.json: damaged'},
        'definition cannot be read',
        ['umount', "assemble '/srv/my pool' LEG", 'mount'],
    ),
    'split brain': Case(
        refused(split=['slot 0 went on alone', 'slot 1 went on alone']),
        'changed apart',
        [f'resolve {VOLUME}', f'resolve {VOLUME} --keep LEG'],
    ),
    'refused': Case(
        refused(), 'could not be started', ['umount', 'mount', f"mount '{POOL}' {MOUNTPOINT} --force vm1"]
    ),
    'broken': Case(volume(broken='flush failed', state='broken'), 'mounted anew', ['umount', 'mount']),
    'no quorum, error': Case(
        degraded(quorum=2, quorum_lost=True), 'writes fail', [f'set {VOLUME} quorum 1']
    ),
    'no quorum, readonly': Case(
        degraded(quorum=2, quorum_lost=True, quorum_policy='readonly'), 'read-only', ['set']
    ),
    'no quorum, wait': Case(
        degraded(quorum=2, quorum_lost=True, quorum_policy='wait'), 'writes wait', ['set']
    ),
    'blocked': Case(volume(leg(2, flags=['blocked'])), 'leg 2 is blocked', [f'mark {VOLUME} 2 no-blocked']),
    'faulty': Case(
        degraded(leg(1, 'faulty', why='Input/output error')),
        'leg 1 failed: Input/output error',
        [f're-add {VOLUME} 1', f'add {VOLUME} PATH'],
    ),
    'given up': Case(
        degraded(leg(1, 'faulty', given_up=True)),
        'left behind',
        [f'remove {VOLUME} 1', f'add {VOLUME} /srv/disk1/vm1.leg --force', f'add {VOLUME} PATH'],
    ),
    'missing': Case(
        degraded(leg(1, 'missing')), 'leg 1 is not there', [f're-add {VOLUME} 1', f'add {VOLUME} PATH']
    ),
    'missing, given up': Case(degraded(leg(1, 'missing', given_up=True)), 'not there', ['re-add', 'add']),
    'removed': Case(degraded(leg(1, 'removed')), 'leg 1 was removed', ['re-add', 'add']),
    'removed, given up': Case(
        degraded(leg(1, 'removed', given_up=True)),
        'removed',
        [f'add {VOLUME} /srv/disk1/vm1.leg --force', f'add {VOLUME} PATH'],
    ),
    'too few': Case(degraded(), '1 of 2 legs are missing', ['add', f'set {VOLUME} raid_disks COUNT']),
    'recovering': Case(degraded(RECOVERING), 'leg 2 is being brought up to date', [f'wait {VOLUME}']),
    'replacing': Case(volume({**RECOVERING, 'replaces': 1}), 'to replace another', [f'wait {VOLUME}']),
    'full': Case(
        volume(leg(2, free=1 << 20)), 'leg 2 has 1 MiB left', [f'replace {VOLUME} 2 PATH']
    ),
    'frozen': Case(
        volume(chunks=DOUBTFUL, sync_action='frozen'), '7 chunks', [f'set {VOLUME} sync_action idle']
    ),
    'differ': Case(volume(mismatches=PLACES), 'too few to vote', [f'repair {VOLUME} --source LEG']),
    'differ, voted': Case(
        volume(mismatches=PLACES, legs=3), '1 places', [f'repair {VOLUME}', f'repair {VOLUME} --source LEG']
    ),
    'log lost': Case(
        volume(log_trouble='was removed', bitmap='none'), 'was removed', [f'log {VOLUME} internal']
    ),
    'bad blocks': Case(volume(leg(2, bad_blocks=3)), 'lacks 3 blocks', [f'replace {VOLUME} 2 PATH']),
    'errors': Case(volume(leg(2, read_errors=5)), '5 read and 0 write', [f'replace {VOLUME} 2 PATH']),
    'replacement wanted': Case(
        volume(leg(2, flags=['want_replacement'])), 'to be replaced', [f'replace {VOLUME} 2 PATH']
    ),
    "in another's place": Case(
        volume(leg(2, 'faulty')),
        'another has its place',
        [f'remove {VOLUME} 2', f'add {VOLUME} PATH --spare'],
    ),
    'split off': Case(degraded(leg(1, 'split')), 'point in time', [f'merge {VOLUME}']),
    'resync': Case(volume(chunks=DOUBTFUL, sync_action='resync'), '7 chunks', [f'wait {VOLUME}']),
    'behind': Case(volume(leg(2, flags=['behind'])), 'catches up by itself'),
}


def parse(command: str) -> None:
    """Have the real command line parse a command; nothing is done.  Raises UsageError."""
    program, verb, *words = shlex.split(command)
    assert program == 'mirrorfs'
    found = cli.get_command(click.Context(cli), verb)
    assert found, f'no verb {verb}'
    found.make_context(verb, words)


def test_every_row_of_the_table_has_a_case() -> None:
    assert list(CASES) and set(CASES) == {rule.name for rule in RULES}


@pytest.mark.parametrize('rule', CASES)
def test_a_case_is_told_with_the_commands_to_type(rule: str) -> None:
    case = CASES[rule]
    first = next(one for one in advise(case.facts, POOL, MOUNTPOINT) if one.rule == rule)
    assert case.says in first.status
    assert len(first.steps) == len(case.commands)
    for step, command in zip(first.steps, case.commands, strict=True):
        assert step.command.startswith(f'mirrorfs {command}')
        assert step.why


@pytest.mark.parametrize('mountpoint', [MOUNTPOINT, None])
@pytest.mark.parametrize('rule', CASES)
def test_every_command_that_is_advised_is_one_that_the_command_line_takes(
    rule: str, mountpoint: str | None
) -> None:
    for one in advise(CASES[rule].facts, POOL, mountpoint):
        for step in one.steps:
            parse(step.command)
            assert shlex.quote(POOL) in step.command


def test_a_parser_that_takes_everything_would_not_do() -> None:
    with pytest.raises(click.UsageError):
        parse('mirrorfs repair /srv/pool vm1 --sauce 1')


@pytest.mark.parametrize('rule', CASES)
def test_only_what_is_the_matter_is_told(rule: str) -> None:
    """Of the cases here each has one, but that a lost quorum and frozen work go with a leg that is missed."""
    told = {one.rule for one in advise(CASES[rule].facts, POOL, MOUNTPOINT)}
    assert told - {'too few'} == {rule} - {'too few'}


def test_nothing_is_said_of_a_volume_that_is_well() -> None:
    for facts in (volume(), volume(leg(2, 'spare')), volume(leg(2, occupied=None, free=None))):
        assert advise(facts, POOL, MOUNTPOINT) == [] and level(facts) is Level.FINE


def test_a_leg_that_a_spare_has_followed_is_to_be_removed_not_taken_back() -> None:
    facts = degraded(leg(1, 'faulty'), RECOVERING)
    told = advise(facts, POOL, MOUNTPOINT)
    assert [one.rule for one in told] == ['recovering', "in another's place"]
    assert not any('re-add' in step.command for one in told for step in one.steps)
    assert level(facts) is Level.DEGRADED


def test_a_leg_that_had_the_majority_while_there_was_one_is_named() -> None:
    place = {'legs': [{'slots': [1, 2], 'digest': 'a'}, {'slots': [0], 'digest': 'b'}]}
    other = {'legs': [{'slots': [0, 1], 'digest': 'a'}, {'slots': [2], 'digest': 'b'}]}
    for places, right in (([place], 1), ([place, other], 1), ([place, PLACES[0]], 'LEG')):
        (one,) = advise(volume(mismatches=places), POOL, MOUNTPOINT)
        assert one.steps[0].command.endswith(f' --source {right}')


def test_the_most_urgent_comes_first() -> None:
    ranks = [rule.level for rule in RULES]
    assert ranks == sorted(ranks, reverse=True)


def test_a_pool_that_is_not_mounted_is_to_be_mounted_before_legs_are_changed() -> None:
    (one,) = advise(CASES['faulty'].facts, POOL, None)
    assert one.steps[0].command == "mirrorfs mount '/srv/my pool' DIR"
    (damaged,) = advise(CASES['damaged'].facts, POOL, None)
    assert damaged.steps[0].command.startswith('mirrorfs assemble')


# How it is shown


def test_the_page_has_the_state_the_advice_and_a_table_of_legs() -> None:
    lines = volume_lines(CASES['faulty'].facts, POOL, MOUNTPOINT, Look())
    assert lines[:2] == ['volume: vm1', ' state: clean, degraded (1 of 2 legs missing)']
    text = '\n'.join(lines)
    assert 'status: leg 1 failed: Input/output error\naction: take it back' in text
    assert re.search(r'^ +0  in_sync +0 +0 +0  1 GiB of 10 GiB  /srv/disk0/vm1.leg$', text, re.MULTILINE)
    assert 'errors: none known' in text and '\x1b' not in text


@pytest.mark.parametrize('rule', CASES)
def test_colours_and_nothing_else_are_added_on_a_terminal(rule: str) -> None:
    facts = CASES[rule].facts
    plain = volume_lines(facts, POOL, MOUNTPOINT, Look())
    coloured = volume_lines(facts, POOL, MOUNTPOINT, Look(coloured=True))
    assert plain != coloured
    assert [re.sub(r'\x1b\[\d*m', '', line) for line in coloured] == plain


def test_paths_cannot_write_to_the_terminal() -> None:
    nasty = degraded(leg(1, 'faulty', path='/srv/\x1b[2J\nleg', why='a\rb', given_up=True))
    lines = volume_lines(nasty, '/srv/\x07pool', MOUNTPOINT, Look())
    lines += pool_lines('/\x07', None, [nasty], Look())
    assert all(line.isprintable() for line in lines)


def test_the_pool_says_at_once_which_volumes_need_whom() -> None:
    many = [{**volume(), 'name': 'a'}, {**degraded(), 'name': 'b'}, {**refused(), 'name': 'c'}]
    assert pool_lines(POOL, None, many, Look())[1] == '3 volumes; cannot be used: c; degraded: b'
    assert pool_lines(POOL, MOUNTPOINT, [volume()], Look()) == [
        f'pool {POOL}, mounted on {MOUNTPOINT}',
        '1 volume; all is well',
    ]
