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
    the function is known by name.  `why` says what goes wrong.
    """

    name: str
    target: str
    old: str
    new: str
    checker: str
    also: tuple[str, ...] = ()
    why: str = ''
    rebind: tuple[str, ...] = ()

    def sow(self, patch: pytest.MonkeyPatch) -> None:
        """Put the bug in place of the function, until the patch is undone."""
        owner, name = _place(self.target)
        source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
        assert source.count(self.old) == 1, f'{self.name}: its text is not there once'
        module = importlib.import_module(self.target.partition(':')[0])
        made: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), module.__file__ or '', 'exec'), vars(module), made)
        patch.setattr(owner, name, made[name])
        for place in self.rebind:
            other, known_as = _place(place)
            patch.setattr(other, known_as, made[name])


def _place(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(':')
    owner: Any = importlib.import_module(module)
    *outer, name = path.split('.')
    for part in outer:
        owner = getattr(owner, part)
    return owner, name
