"""How a command line is to be answered: ``--json``, ``-q``, ``-v``, ``--debug``, before or after the verb.

`Verbs`, the group that all verbs are in, gives these options to each verb that is added, so that none has to
know of them.  A verb with an answer of its own for programs has a parameter ``as_json``; for the others one
object says that it was done, and to what.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click

_FLAGS = {
    'json': (['--json'], 'answer in JSON, one document on stdout, also where it is refused'),
    'quiet': (['-q', '--quiet'], 'say nothing but what was asked for, and what went wrong'),
    'verbose': (['-v', '--verbose'], 'say what is written to which control file'),
    'debug': (['--debug'], 'show tracebacks'),
}
_OWN_JSON = 'as_json'


@dataclass(slots=True)
class Manner:
    """How one command line is to be answered, and what there is to say in the end."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    failure: int | None = None
    """Exit code of whatever fails, where a verb has one of its own."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was done, for the object that ``--json`` prints."""

    @property
    def is_silent(self) -> bool:
        """Whether there is nobody to read remarks and progress."""
        return self.quiet or self.json


def manner() -> Manner:
    """Return that of the command line under way; the usual one where there is none."""
    context = click.get_current_context(silent=True)
    return context.find_root().ensure_object(Manner) if context else Manner()


def say(text: str) -> None:
    """Tell a person what was done."""
    if not manner().is_silent:
        click.echo(text)


def explain(text: str) -> None:
    """Tell a person how it is done, who asked by ``-v``."""
    if manner().verbose:
        click.echo(f'mirrorfs: {text}', err=True)


def shared_options() -> list[click.Option]:
    """Return the options that all verbs have, and the group."""
    return [_flag(name, words, text) for name, (words, text) in _FLAGS.items()]


def _flag(name: str, words: list[str], text: str) -> click.Option:
    def note(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(context.find_root().ensure_object(Manner), name, True)

    return click.Option([*words, name], is_flag=True, expose_value=False, callback=note, help=text)


class Verbs(click.Group):
    """The group of all verbs."""

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Add a verb, and to it what all verbs have."""
        known = {word for parameter in command.params for word in parameter.opts}
        for option in shared_options():
            option.opts = [word for word in option.opts if word not in known]
            if option.opts:
                command.params.append(option)
        for parameter in command.params:
            if parameter.name == _OWN_JSON:
                parameter.callback = lambda context, _, value: _asks_for_json(context, value)
        if command.callback:
            command.callback = _answering(command.callback)
        super().add_command(command, name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what no shell can pass on, and no file can be named by."""
        if any('\0' in word for word in args):
            raise click.UsageError('a word has a NUL in it', ctx)
        return super().parse_args(ctx, args)


def _asks_for_json(context: click.Context, value: bool) -> bool:
    root = context.find_root().ensure_object(Manner)
    root.json = root.json or value
    return root.json


def _answering(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Have a verb end with an object that says that it was done, if that was asked for."""

    @functools.wraps(callback)
    def answer(*args: Any, **kwargs: Any) -> Any:
        code = callback(*args, **kwargs)
        context = click.get_current_context()
        if manner().json and _OWN_JSON not in context.params:
            done = {'ok': not code, 'verb': context.info_name}
            click.echo(json.dumps(done | _given(context) | manner().facts))
        return code

    return answer


def _given(context: click.Context) -> dict[str, Any]:
    """Return what was asked for, under the words that people know."""
    words = {'name': 'volume'}
    return {words.get(k, k): value for k, value in context.params.items() if value not in (None, False, ())}
