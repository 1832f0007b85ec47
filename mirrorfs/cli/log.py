"""log: where a volume's intent log is, what it says, and moving it."""

import errno
import json
from typing import Any

import click

from mirrorfs.cli import complete
from mirrorfs.cli.common import POOL, VOLUME, Mounted, Target, find, log_place, no_volume
from mirrorfs.cli.examine import read_facts
from mirrorfs.errors import Refused
from mirrorfs.fs.mdstat import bitmap_word
from mirrorfs.intent.states import WORDS
from mirrorfs.model import VolumeRecord
from mirrorfs.units import format_size
from mirrorfs.volume.logplace import INTERNAL, NONE, place_of


@click.command()
@POOL
@VOLUME
@click.argument(
    'place', metavar='[internal|none|PATH]', required=False, shell_complete=complete.words(INTERNAL, NONE)
)
@click.option('--force', is_flag=True, help='overwrite a file that is not empty')
@click.option('--json', 'as_json', is_flag=True, help='for programs')
def log(pool: str, name: str, place: str | None, force: bool, as_json: bool) -> None:
    """Show where the intent log of NAME is and what it says; or move it, while the volume is in use.

    \b
    mirrorfs log /srv/pool vm1                     show it
    mirrorfs log /srv/pool vm1 /mnt/ssd/vm1.log    to a file on another device
    mirrorfs log /srv/pool vm1 internal            to the legs
    mirrorfs log /srv/pool vm1 none                away: an unclean stop makes all that was written equal
    """
    target = find(pool)
    if place is not None:
        words = [log_place(place), *(['force'] if force else [])]
        target.require_mounted().volume_command(name, 'bitmap/location', *words)
    elif force:
        raise Refused(errno.EINVAL, 'there is nothing to force: say where the log is to be')
    facts = _facts(target, name)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    elif place is None:
        for key, value in _rows(facts):
            click.echo(f'{key:>10}: {value}')


def _facts(target: Target, name: str) -> dict[str, Any]:
    """Return what there is to say of a log.  Sizes in bytes; chunks None where nothing can be read."""
    if target.mountpoint:
        volume = Mounted(target.mountpoint).volume(name)
        kind, place = volume.get('bitmap'), volume.get('bitmap_location')
        chunks = volume.get('chunks')
        return {'log': kind, 'location': place, 'chunk_size': volume.get('chunk_size'), 'chunks': chunks}
    records, damaged = target.directory.load()
    if name in damaged:
        raise Refused(errno.EIO, damaged[name])
    if name not in records:
        raise no_volume(name, {*records, *damaged}, target.directory.path)
    record = records[name]
    facts = {'log': bitmap_word(record), 'location': place_of(record), 'chunk_size': record.chunk_size}
    return facts | {'chunks': _at_rest(record)}


def _at_rest(record: VolumeRecord) -> dict[str, int] | None:
    """Return the counts that the newest log at hand has, of a volume that is not mounted."""
    paths = [record.log_path] if record.log_is_outside else [slot.path for slot in record.slots if slot.path]
    found = [facts for facts in map(read_facts, paths) if facts.get('volume_uuid') == str(record.uuid)]
    newest = max(found, key=lambda facts: int(facts['log']['serial']), default=None)
    return newest and {key: newest['chunks'][key] for key in ('total', *WORDS.values())}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [('log', facts['log'])]
    if facts['log'] == 'external':
        rows.append(('file', facts['location']))
    if facts['chunk_size']:
        rows.append(('chunks of', format_size(facts['chunk_size'])))
    if not facts['chunks']:
        return [*rows, ('states', 'not to be read')]
    dirty = facts['chunks']['dirty'] * facts['chunk_size']
    counts = (f'{facts["chunks"].get(key, 0)} {key.replace("_", " ")}' for key in ('total', *WORDS.values()))
    return [*rows, ('states', ', '.join(counts)), ('to resync', f'{format_size(dirty)} after a crash now')]
