"""Command lines run in this process, and pools that are taken for mounted though nothing is."""

import contextlib
import io
import json
import re
import shlex
import zlib
from pathlib import Path

import click
import pytest

import mirrorfs.cli
from mirrorfs.cli import cli
from mirrorfs.fs import mounting


def run_here(*words: str) -> tuple[int, str, str]:
    """Run a command line in this process; return the exit code and what it said on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = mirrorfs.cli.run(words)
    return code, out.getvalue(), err.getvalue()


def examples(command: click.Command) -> list[list[str]]:
    """Return the command lines that a verb's help shows, without what they are piped to, and comments."""
    lines = [line.strip() for line in (command.help or '').splitlines()]
    shown = [
        re.split(r'\s{2,}| [|>&]+ ', line)[0] for line in lines if re.match(r'mirrorfs \S+ ', f'{line} ')
    ]
    return [shlex.split(line)[1:] for line in shown if line.split()[1] == command.name]


VERBS = sorted(cli.commands)


def pretend_mounted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the pool `folder`/pool taken for mounted on `folder`/mnt; its control files are plain files.

    It says the volume `disk` of two legs, and refuses nothing.
    """
    control = folder / 'mnt/.mirrorfs'
    legs = [
        {
            'slot': n,
            'state': 'in_sync',
            'path': f'/legs/{n}',
            'uuid': f'{n}1234567-89ab',
            'recovery_start': None,
        }
        for n in range(2)
    ]
    volume = {
        'name': 'disk',
        'state': 'clean',
        'size': 1 << 20,
        'chunk_size': 65536,
        'legs': legs,
        'degraded': 0,
    }
    volume |= {'chunks': {'total': 16, 'unwritten': 16, 'dirty': 0, 'modified': 0, 'needs_resync': 0}}
    files = ['add', 'remove', 'fail', 're-add', 'replace', 'split', 'merge', 'size', 'sync_action', 'resolve']
    for name in [*files, 'bitmap/location', 'legs/0/state', 'legs/0/path', 'legs/1/state', 'legs/1/path']:
        (control / 'volumes/disk' / name).parent.mkdir(parents=True, exist_ok=True)
        (control / 'volumes/disk' / name).write_text('none\n')
    for name in ('create', 'destroy', 'spares', 'events'):
        (control / name).write_text('')
    (control / 'status.json').write_text(json.dumps({'volumes': [volume], 'spares': []}))
    mount = mounting.Mount(str(folder / 'pool'), str(folder / 'mnt'), '0:99')
    monkeypatch.setattr(mounting, 'mounts', lambda: [mount])
    monkeypatch.setattr(mounting, 'is_dead', lambda mount: False)
    return control


def picture(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what is in a folder: mode, size and checksum of each file; of a lock, just that it is there."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_size, zlib.crc32(path.read_bytes()))
        if path.is_file() and path.name != 'lock'
        else (0, 0, 0)
        for path in folder.rglob('*')
    }
