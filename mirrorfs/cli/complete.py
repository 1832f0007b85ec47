"""Completion for shells: the script that a shell reads, and what pools, volumes and legs there are to name.

A completion never hangs, whatever the mounts do, and never says what went wrong: there is no place for it.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

from mirrorfs.definitions import PoolDirectory, status_of_records
from mirrorfs.fs import mounting

_PATIENCE = 1.0
"""Seconds that a shell may wait for an answer."""
SHELLS = ('bash', 'zsh', 'fish')
Items = list[CompletionItem[str]]
T = TypeVar('T')


def pools(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Return the mounted pools, by directory and mount point, and any directory."""
    if incomplete and not incomplete.startswith('/'):
        return [CompletionItem(incomplete, type='dir')]
    none: list[mounting.Mount] = []
    known = _in_time(mounting.mounts, none)
    items = [CompletionItem(mount.pool, help=f'mounted on {mount.mountpoint}') for mount in known]
    items += [CompletionItem(mount.mountpoint, help=f'mount of {mount.pool}') for mount in known]
    return [item for item in items if item.value.startswith(incomplete)] or [
        CompletionItem(incomplete, type='dir')
    ]


def volumes(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Return the volumes of the pool that was named before."""
    names = (volume['name'] for volume in _volumes(context))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def legs(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Return the legs of the volume that was named before: slots, and paths once one is begun."""
    _, name = _named(context)
    found = [volume for volume in _volumes(context) if volume['name'] == name]
    items = []
    for leg in _legs(found[0]) if found else []:
        said = f'{leg["state"]} {leg["path"]}'
        items += [CompletionItem(str(leg['slot']), help=said)]
        if incomplete:
            items += [CompletionItem(leg['path'], help=leg['state']), CompletionItem(leg['uuid'], help=said)]
    return [item for item in items if item.value.startswith(incomplete)]


def words(*known: str) -> Callable[[click.Context, click.Parameter, str], Items]:
    """Return a completion from a few words."""
    return lambda context, parameter, incomplete: [
        CompletionItem(word) for word in known if word.startswith(incomplete)
    ]


def _named(context: click.Context) -> tuple[str, str]:
    """Return the pool and the volume that were named; empty where none was yet.

    Behind an option that lacks its value click has not looked at arguments, and leaves them as they are.
    """
    pool, name, *_ = [*context.args, '', '']
    return context.params.get('pool') or pool, context.params.get('name') or name


def _volumes(context: click.Context) -> list[dict[str, Any]]:
    pool, _ = _named(context)
    return _in_time(lambda: _read_volumes(pool), []) if pool else []


def _read_volumes(pool: str) -> list[dict[str, Any]]:
    """Return what is known of a pool's volumes, mounted or not."""
    real = mounting.real_path(pool)
    directory = real
    for mount in mounting.mounts():
        if real in (mount.pool, mount.mountpoint):
            directory = mount.pool
            try:
                text = (Path(mount.mountpoint) / '.mirrorfs/status.json').read_text()
            except OSError:  # its daemon is dead
                break
            known: list[dict[str, Any]] = json.loads(text)['volumes']
            return known
    return status_of_records(PoolDirectory(directory).load()[0])


def _legs(volume: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Return a volume's legs, as status.json has them or as the definition has."""
    if 'legs' in volume:
        known: list[dict[str, Any]] = volume['legs']
        return known
    return [slot | {'slot': number, 'uuid': slot['leg']} for number, slot in volume['slots'].items()]


def _in_time(ask: Callable[[], T], otherwise: T) -> T:
    """Return what `ask` returns, or the other value if it fails or takes too long."""
    answers: list[T] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:
            return  # see the head of this module

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return answers[0] if answers else otherwise


@click.command()
@click.argument('shell', type=click.Choice(SHELLS), metavar='[bash|zsh|fish]', required=False)
def completion(shell: str | None) -> None:
    """Print what a SHELL reads to complete verbs, options, pools, volumes and legs; by default yours.

    \b
    eval "$(mirrorfs completion bash)"            in ~/.bashrc; zsh: likewise in ~/.zshrc
    mirrorfs completion fish > ~/.config/fish/completions/mirrorfs.fish
    mirrorfs completion bash > /etc/bash_completion.d/mirrorfs
    """
    shell = shell or os.path.basename(os.environ.get('SHELL', ''))
    maker = get_completion_class(shell) if shell in SHELLS else None
    if maker is None:
        raise click.UsageError(f'say which shell: {", ".join(SHELLS)}')
    root = click.get_current_context().find_root()
    click.echo(maker(root.command, {}, 'mirrorfs', '_MIRRORFS_COMPLETE').source())
