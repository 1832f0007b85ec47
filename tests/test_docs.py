"""The pages for people: their links lead somewhere, their commands are real, their numbers the code's.

Nothing is mounted and no command is run.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from clitools import VERBS
from mounts import PROJECT

from mirrorfs import limits
from mirrorfs.cli import cli
from mirrorfs.fs import control
from mirrorfs.units import parse_size

README = PROJECT / 'README.md'
PAGES = [
    README,
    PROJECT / 'CHANGELOG.md',
    *sorted(PROJECT.glob('docs/*.md')),
    *sorted(PROJECT.glob('examples/*/README.md')),
]
NEUTRAL = {
    '', 'backup', 'dev', 'disk1', 'disk2', 'disk3', 'etc', 'home/me', 'media', 'mnt', 'proc', 'run', 'sbin',
    'srv', 'sys', 'usr', 'var', 'a', 'b',
}  # fmt: skip
"""Where paths in the pages may begin."""

by_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def parts(page: Path) -> tuple[str, list[str]]:
    """Return the prose of a page, and the lines of its code blocks, fenced or indented."""
    prose, code, fenced = [], [], False
    for line in page.read_text().splitlines():
        if line.startswith('```'):
            fenced = not fenced
        elif fenced or line.startswith('    '):
            code.append(line)
        else:
            prose.append(line)
    assert not fenced, f'{page.name}: a block has no end'
    return '\n'.join(prose), code


# Links


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a page links to in this checkout: a path, and the heading in it or ''."""
    prose = re.sub(r'`[^`]*`', '', parts(page)[0])
    for target in re.findall(r'\]\(([^()\s]+)\)', prose):
        if not re.match(r'[a-z]+:', target):
            path, _, heading = target.partition('#')
            yield (page.parent / path).resolve() if path else page, heading


def anchors(page: Path) -> set[str]:
    """Return the names that the headings of a page have in links, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', parts(page)[0], re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in links(page):
        assert path.exists(), f'{page.name} links to {path}'
        assert not heading or heading in anchors(path), f'{page.name} links to {path.name}#{heading}'


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {path for path, _ in links(README)}
    pages = {*PROJECT.glob('docs/*.md'), *PROJECT.glob('docs/man/*')}
    assert pages and not {str(page) for page in pages - linked}


# Commands


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each mirrorfs command in the code blocks, without what follows it in the shell."""
    for line in parts(page)[1]:
        if found := re.match(r'\s*(?:[#$] )?mirrorfs (.*)', line):
            yield shlex.split(re.split(r'\s{2,}| (?:[|#]|&&|\d?>)', found[1])[0].replace('[POOL…]', ''))


@by_page
def test_commands_are_those_of_the_command_line(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'vm2.img').touch()  # an image to be copied in must be there
    for words in commands(page):
        with cli.make_context('mirrorfs', list(words)) as above:
            name, command, rest = cli.resolve_command(above, words)
            assert command and command.make_context(name, rest, parent=above)


@by_page
def test_verbs_in_the_prose_exist(page: Path) -> None:
    for verb in re.findall(r'`mirrorfs ([a-z-]+)', parts(page)[0]):
        assert verb in VERBS or verb.startswith('-'), verb


def test_every_verb_is_in_the_docs() -> None:
    text = ''.join(page.read_text() for page in PAGES)
    assert not [verb for verb in VERBS if not re.search(rf'mirrorfs {verb}\b', text)]


def test_every_control_file_is_in_its_page() -> None:
    named = set(re.findall(r'[a-z_.-]+', (PROJECT / 'docs/control-files.md').read_text()))
    for files in (control.POOL_FILES, control.VOLUME_FILES, control.BITMAP_FILES, control.LEG_FILES):
        assert not set(files) - named


# Numbers and paths


def test_the_numbers_in_the_page_on_limits_are_those_of_the_code() -> None:
    text = (PROJECT / 'docs/limits.md').read_text()
    rows = re.findall(r'^\|.*\| ([\d.]+(?: [KMGT]iB)?) \| `([A-Z_]+)` \|$', text, re.MULTILINE)
    assert len(rows) > 30
    for number, name in rows:
        said = parse_size(number) if 'B' in number else float(number)
        assert said == getattr(limits, name), name


@by_page
def test_paths_are_neutral(page: Path) -> None:
    for path in re.findall(r'(?:^|[\s`\'"=(])(/[\w.@/-]*)', page.read_text()):
        first, _, rest = path[1:].partition('/')
        assert first in NEUTRAL or f'{first}/{rest.partition("/")[0]}' in NEUTRAL, path
