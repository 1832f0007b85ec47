"""Man pages and completion, which are made from the same verbs, tables and help texts as the command line."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from clitools import VERBS, pretend_mounted, run_here
from mounts import PROJECT, run

from mirrorfs.cli import cli, complete, man
from mirrorfs.fs import control, help, mounting

PAGES = man.pages()


def test_the_man_pages_in_the_checkout_are_up_to_date() -> None:
    for name, text in PAGES.items():
        there = (PROJECT / 'docs/man' / name).read_text()
        assert there == text, f'docs/man/{name} is old; run: python -m mirrorfs.cli.man docs/man'


@pytest.mark.parametrize('name', PAGES)
def test_groff_has_nothing_to_say_about_a_man_page(name: str, tmp_path: Path) -> None:
    if not shutil.which('groff'):
        pytest.skip('groff is not installed')
    (tmp_path / name).write_text(PAGES[name])
    done = run('groff', '-ww', '-man', '-Kutf8', '-Tutf8', tmp_path / name)
    assert done.returncode == 0 and not done.stderr, done.stderr
    shown = re.sub(r'\x1b\[\d*m|.\x08', '', done.stdout)
    assert 'SEE ALSO' in shown and len(shown.splitlines()) > 30


def plain(roff: str) -> str:
    return roff.replace('\\-', '-').replace('\\(aq', "'").replace('\\&', '')


def test_the_man_page_has_every_verb_and_option() -> None:
    page = plain(PAGES['mirrorfs.8'])
    for verb in VERBS:
        part = page.split(f'.SS {verb} ')[1].split('\n.SS ')[0]
        for parameter in cli.commands[verb].params:
            if (
                parameter.param_type_name == 'option'
                and parameter.expose_value
                and parameter.name != 'as_json'
            ):
                assert all(f'{word}' in part for word in parameter.opts), (verb, parameter.opts)


TABLES = {
    'pool': (control.POOL_FILES, help.POOL),
    'volume': (control.VOLUME_FILES, help.VOLUME),
    'bitmap': (control.BITMAP_FILES, help.BITMAP),
    'leg': (control.LEG_FILES, help.LEG),
}


@pytest.mark.parametrize('table', TABLES)
def test_every_control_file_says_what_it_is_for(table: str) -> None:
    files, texts = TABLES[table]
    assert set(texts) == set(files), 'mirrorfs/fs/help.py has not the same files as mirrorfs/fs/control.py'
    for name, file in files.items():
        assert bool(file.read or file.gather) == bool(texts[name].says), f'{name}: what a read gives'
        assert bool(file.act) == bool(texts[name].takes) == bool(texts[name].does), f'{name}: what it takes'
        assert f'.B {name}\n' in plain(PAGES['mirrorfs.5'])


# Completion


def completions(*words: str) -> set[str]:
    """Return what the last of the words may become."""
    shell = ShellComplete(cli, {}, 'mirrorfs', '_MIRRORFS_COMPLETE')
    return {str(item.value) for item in shell.get_completions(list(words[:-1]), words[-1])}


def test_verbs_options_pools_volumes_legs_and_keys_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_mounted(tmp_path, monkeypatch)
    pool, mountpoint = str(tmp_path / 'pool'), str(tmp_path / 'mnt')
    assert completions('re') == {'re-add', 'remove', 'repair', 'replace', 'resolve'}
    assert {'--json', '--wait'} <= completions('re-add', '--')
    assert completions('status', '/') == {pool, mountpoint}
    assert completions('status', pool, '') == {'disk'} == completions('fail', mountpoint, 'd')
    assert completions('fail', pool, 'disk', '') == {'0', '1'}
    assert completions('fail', pool, 'disk', '/legs/1') == {'/legs/1'}
    assert completions('set', pool, 'disk', 'sync_a') == {'sync_action'}
    assert completions('mark', pool, 'disk', '0', 'fail') == {'failfast'}
    assert completions('completion', '') == set(complete.SHELLS)


def test_a_pool_at_rest_is_completed_too(tmp_path: Path) -> None:
    words = ['create', tmp_path / 'pool', 'vm1', '--size', '64K', '--leg', tmp_path / 'a']
    assert run_here(*map(str, words))[0] == 0
    pool = str(tmp_path / 'pool')
    assert completions('log', pool, 'v') == {'vm1'}
    assert completions('resolve', pool, 'vm1', '--keep', '') == {'0'}
    assert completions('resolve', pool, 'vm1', '--keep', '/') == {str(tmp_path / 'a')}


def test_a_mount_that_hangs_does_not_hang_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control_files = pretend_mounted(tmp_path, monkeypatch)
    (control_files / 'status.json').unlink()
    os.mkfifo(control_files / 'status.json')  # nobody ever writes to it
    monkeypatch.setattr(complete, '_PATIENCE', 0.05)
    try:
        assert completions('status', str(tmp_path / 'pool'), '') == set()
    finally:
        os.close(os.open(control_files / 'status.json', os.O_RDWR | os.O_NONBLOCK))  # who waits may go


def test_a_pool_that_is_none_has_no_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completions('status', '/nowhere', '') == set()

    def fail() -> list[mounting.Mount]:
        raise OSError

    monkeypatch.setattr(mounting, 'mounts', fail)
    assert completions('status', '/nowhere', '') == set()


ASK_BASH = """
eval "$(mirrorfs completion bash)"
complete -p mirrorfs
for line in "mirrorfs sta" "mirrorfs status $1 v"; do
    COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _mirrorfs_completion mirrorfs
    echo "${COMPREPLY[@]}"
done
"""


def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    program = tmp_path / 'bin/mirrorfs'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from mirrorfs.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    words = ['create', tmp_path / 'pool', 'vm1', '--size', '64K', '--leg', tmp_path / 'a']
    assert run_here(*map(str, words))[0] == 0
    path = f'{program.parent}:{os.environ["PATH"]}'
    done = run('bash', '--norc', '-c', ASK_BASH, 'bash', tmp_path / 'pool', env={**os.environ, 'PATH': path})
    assert done.stdout.splitlines() == [
        'complete -o nosort -F _mirrorfs_completion mirrorfs',
        'status',
        'vm1',
    ], done.stderr


@pytest.mark.parametrize('shell', complete.SHELLS)
def test_the_script_of_a_shell_is_one(shell: str, tmp_path: Path) -> None:
    code, script, _ = run_here('completion', shell)
    assert code == 0 and '_MIRRORFS_COMPLETE' in script
    if not shutil.which(shell):
        pytest.skip(f'{shell} is not installed')
    (tmp_path / 'script').write_text(script)
    done = run(shell, '-n', tmp_path / 'script')
    assert done.returncode == 0 and not done.stderr


def test_a_shell_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SHELL', '/bin/tcsh')
    code, _, said = run_here('completion')
    assert code == 1 and 'bash, zsh, fish' in said
    monkeypatch.setenv('SHELL', '/usr/bin/fish')
    assert 'fish_complete' in run_here('completion')[1]
