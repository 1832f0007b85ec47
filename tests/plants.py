"""Planted bugs: small changes of the source that a checker must find."""

import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Plant:
    """One bug: `old` becomes `new` in the source of `target` (module:qualified name).

    `checker` is expected to find it; those in `also` could rightly see it first.  `rebind` names where else
    the function is known by name.  `why` says what goes wrong.  `guard` is another safeguard that would hide
    the bug, as (target, old, new): it is taken away, too.
    """

    name: str
    target: str
    old: str
    new: str
    checker: str
    also: tuple[str, ...] = ()
    why: str = ''
    rebind: tuple[str, ...] = ()
    guard: tuple[str, str, str] | None = None

    def sow(self, patch: pytest.MonkeyPatch) -> None:
        """Put the bug in place of the function, until the patch is undone."""
        changed = _changed(self.name, self.target, self.old, self.new)
        for place in (self.target, *self.rebind):
            patch.setattr(*_place(place), changed)
        if self.guard:
            patch.setattr(*_place(self.guard[0]), _changed(self.name, *self.guard))


def _changed(bug: str, target: str, old: str, new: str) -> Any:
    """Return a function with a change in its source."""
    owner, name = _place(target)
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    assert source.count(old) == 1, f'{bug}: its text is not there once'
    module = importlib.import_module(target.partition(':')[0])
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), module.__file__ or '', 'exec'), vars(module), made)
    return made[name]


def _place(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(':')
    owner: Any = importlib.import_module(module)
    *outer, name = path.split('.')
    for part in outer:
        owner = getattr(owner, part)
    return owner, name
