"""Man pages, from the help texts: ``python -m mirrorfs.cli.man DIR`` writes them.

What verbs, options, control files and mount options are is said once: in the verbs' help, `mirrorfs.fs.help`
and the table of mount options.  This module only sets it in type, in the macros of man(7).
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

import mirrorfs
from mirrorfs.cli import cli
from mirrorfs.cli.common import EXIT_CODES
from mirrorfs.cli.health import TEST_CODES
from mirrorfs.cli.manner import shared_options
from mirrorfs.fs import help as texts
from mirrorfs.fs.help import Help
from mirrorfs.fs.options import IGNORED, rows

_SEE = {'mirrorfs.8': 'mount.mirrorfs(8), mirrorfs(5)', 'mount.mirrorfs.8': 'mirrorfs(8), mount(8), fstab(5)'}
_SEE['mirrorfs.5'] = 'mirrorfs(8), mount.mirrorfs(8), mdadm(8), md(4)'
_MOUNT_CODES = ((0, 'done'), (1, 'wrong usage'), (2, 'system error'), (32, 'mounting failed'))
_FILES = (
    ('POOL/mirrorfs.json', 'says that this is a pool'),
    ('POOL/volumes/NAME.json', 'the definition of a volume: who its legs are, and which of them are stale'),
    ('POOL/volumes/NAME.scrub', 'how far its last scrub is, and what that found'),
    ('POOL/spares.json', 'the spares that volumes share'),
    ('POOL/lock', 'held by the daemon that serves the pool'),
)


def pages() -> dict[str, str]:
    """Return all man pages by the names of their files."""
    return {
        'mirrorfs.8': _page('mirrorfs.8', 'mirrored volume images', _commands()),
        'mount.mirrorfs.8': _page('mount.mirrorfs.8', 'mount a pool of mirrored volume images', _mounting()),
        'mirrorfs.5': _page('mirrorfs.5', 'control files and formats of mirrorfs', _formats()),
    }


def _page(file: str, what: str, body: Iterable[str]) -> str:
    name, _, section = file.rpartition('.')
    lines = [
        '.\\" made from the help texts by python -m mirrorfs.cli.man; not to be edited',
        f'.TH {name.upper()} {section} "" "mirrorfs {mirrorfs.__version__}"',
        '.SH NAME',
        f'{_text(name)} \\- {_text(what)}',
        *body,
        *_section('SEE ALSO', [_text(_SEE[file])]),
    ]
    return '\n'.join([*lines, ''])


# mirrorfs(8)


def _commands() -> Iterator[str]:
    yield from _section('SYNOPSIS', _synopsis('mirrorfs', '[OPTION]… VERB [ARGUMENT]…'))
    yield from _section('DESCRIPTION', _prose(cli.help or ''))
    yield from _section('OPTIONS', ['These stand before or behind the verb.', *_options(shared_options())])
    yield '.SH VERBS'
    for name, command in sorted(cli.commands.items()):
        yield from _verb(name, command)
    yield from _section('EXIT STATUS', [*_tagged(_codes(EXIT_CODES)), *_status_codes()])
    yield from _section('ENVIRONMENT', _tagged([('NO_COLOR', 'if set, nothing is coloured')]))
    yield from _section('JSON', _prose(_JSON))


_JSON = """
With --json one document is on stdout, also where the command was refused (events, which are many, are an
object a line). Verbs that show something print that. For others it is an object: "ok" is true, "verb" is
the verb, "pool" is its directory and "mountpoint" is where it is mounted or null; what else was given has
its name in the help, small: "volume", "leg", "path"; "slot" is the slot of the leg that was meant.

Of a failure "ok" is false, "error" says what is wrong, "hint" what to do or null, "errno" is a name as
EBUSY or null, "code" is the exit code. Warnings are on stderr.
"""


def _status_codes() -> list[str]:
    return ['.PP', _text('With status --test, as for mdadm --detail --test:'), *_tagged(_codes(TEST_CODES))]


def _codes(codes: Iterable[tuple[int, str]]) -> list[tuple[str, str]]:
    return [(str(code), meaning) for code, meaning in codes]


def _verb(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    yield f'.SS {_text(" ".join([name, *command.collect_usage_pieces(context)]))}'
    yield from _prose(command.help or '')
    own = [p for p in command.params if isinstance(p, click.Option) and p.expose_value]
    yield from _options([option for option in own if option.name != 'as_json'])


def _options(options: Iterable[click.Option]) -> list[str]:
    rows = []
    for option in options:
        metavar = '' if option.is_flag else f' {option.make_metavar(click.Context(cli))}'
        default = f' (default: {option.default})' if option.show_default else ''
        rows.append((', '.join(option.opts) + metavar, (option.help or '') + default))
    return _tagged(rows)


# mount.mirrorfs(8)


def _mounting() -> Iterator[str]:
    forms = _synopsis('mount', '-t mirrorfs POOL MOUNTPOINT [-o WORD,…]')
    forms += ['.br', *_synopsis('mirrorfs mount', 'POOL MOUNTPOINT [-f] [-o WORD,…]')]
    yield from _section('SYNOPSIS', forms)
    yield from _section('DESCRIPTION', _prose(_MOUNT))
    others = f'Left alone, as they are for others: x-…, {", ".join(sorted(IGNORED))}.'
    yield from _section('OPTIONS', [*_tagged(rows()), *_prose(others)])
    yield from _section('EXIT STATUS', _tagged(_codes(_MOUNT_CODES)))


_MOUNT = """
Mounts the pool in the directory POOL on MOUNTPOINT, and returns when the mount answers. Every file in the
mount is the image of a volume; .mirrorfs there holds the control files, see mirrorfs(5). The daemon that
serves it ends when the mount is unmounted, and by SIGTERM, cleanly. An ordinary user can mount a pool of
their own; fusermount3 does it.

\b
mount -t mirrorfs /srv/pool /srv/images -o allow_other
mirrorfs mount /srv/pool /srv/images
"""


# mirrorfs(5)


def _formats() -> Iterator[str]:
    yield from _section('DESCRIPTION', _prose(_CONTROL))
    folders = ('.mirrorfs', '.mirrorfs/volumes/NAME', '.mirrorfs/volumes/NAME/bitmap')
    tables = (texts.POOL, texts.VOLUME, texts.BITMAP, texts.LEG)
    for folder, table in zip((*folders, '.mirrorfs/volumes/NAME/legs/SLOT'), tables, strict=True):
        yield f'.SS {_text(folder)}'
        for name, file in sorted(table.items()):
            yield from _control_file(name, file)
    yield from _section('FILES', _tagged(_FILES))
    yield from _section('FORMATS', _prose(_FORMATS))


def _control_file(name: str, file: Help) -> list[str]:
    said = [f'Read: {file.says}.'] if file.says else []
    lines = ['.TP', f'.B {_text(name)}', *map(_text, said)]
    if file.takes:
        lines += [*(['.br'] if said else []), f'Write: {_bold(file.takes)}', '.br', _text(f'{file.does}.')]
    return lines


_CONTROL = """
Below a mount, .mirrorfs holds the control files. What mirrorfs(8) does to a mounted pool it does by them,
and so can a script, with cat and echo. One write is one command, of one line; quotes are as in a shell. A
refused one fails in the write(2) with an errno that says why, changes nothing, and leaves a line in events.
Names, words and printed forms are those of md where md has them. Whoever gets into the mount may read them;
only root and the user who mounted may write them.

\b
echo 1 > /srv/images/.mirrorfs/volumes/vm1/fail
cat /srv/images/.mirrorfs/mdstat
"""
_FORMATS = """
A leg has two superblocks, the list of its bad blocks and two copies of the intent log in front of the data,
all with checksums; docs/format.md of the sources has every offset. mirrorfs examine shows what a leg says.
"""


# Setting it in type


def _section(title: str, body: Iterable[str]) -> list[str]:
    return [f'.SH {title}', *body]


def _synopsis(command: str, rest: str) -> list[str]:
    return [f'.B {_text(command)}', _text(rest)]


def _tagged(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [line for tag, text in rows for line in ('.TP', f'.B {_text(tag)}', _text(text or tag))]


def _prose(text: str) -> Iterator[str]:
    """Set paragraphs; one that begins with a backspace, click's mark, stays as it is."""
    for paragraph in re.split(r'\n\s*\n', inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        yield '.PP'
        if lines[0].strip() == '\b':
            yield from ('.RS 4', '.nf', *map(_text, lines[1:]), '.fi', '.RE')
        else:
            yield _text(' '.join(lines))


def _bold(text: str) -> str:
    return f'\\fB{_text(text)}\\fR'


def _text(text: str) -> str:
    """Return a text with all that roff would take for something else written as it wants it."""
    for letter, escaped in (('\\', '\\e'), ('-', '\\-'), ('…', '\\&...'), ("'", '\\(aq'), ('`', '\\(ga')):
        text = text.replace(letter, escaped)
    text = text.replace('^', '\\(ha').replace('~', '\\(ti')
    return f'\\&{text}' if text.startswith('.') else text


def main() -> None:
    """Write all pages into the directory that is named."""
    if len(sys.argv) != 2:
        sys.exit('usage: python -m mirrorfs.cli.man DIR')
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == '__main__':
    main()
