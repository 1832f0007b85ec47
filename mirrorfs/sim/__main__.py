"""``python -m mirrorfs.sim``: search for lost writes, or replay one run and say what happened."""

import logging
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from mirrorfs.sim import search
from mirrorfs.sim.crashleg import Call
from mirrorfs.sim.explore import Explorer, Failed, Watch, replay
from mirrorfs.sim.history import Composer, Run, Session
from mirrorfs.sim.shrink import shrink
from mirrorfs.sim.world import World


@click.command(context_settings={'help_option_names': ['-h', '--help']})
@click.option('--seed', type=int, help='Explore the run of this seed; shorten and show what fails.')
@click.option('--case', help='Replay a run that was printed before; a text, or @FILE.')
@click.option('--runs', type=int, help='Explore so many random runs, from --seed on.')
@click.option('--exhaustive', is_flag=True, help='Explore all short workloads in every way.')
@click.option('--legs', default=2, show_default=True, help='Legs of the exhaustive mode.')
@click.option(
    '--minutes', type=float, help='Explore random runs for so long; --seed is a fresh one if not said.'
)
@click.option('--jobs', default=2, show_default=True, help='Processes.')
@click.option('--shrink-seconds', default=60.0, show_default=True, help='Time for shortening a failing run.')
@click.option('--trace/--no-trace', default=True, show_default=True, help='Show every step of a replay.')
def main(
    seed: int | None,
    case: str | None,
    runs: int | None,
    exhaustive: bool,
    legs: int,
    minutes: float | None,
    jobs: int,
    shrink_seconds: float,
    trace: bool,
) -> None:
    """Simulate mirrorfs on disks that crash.  Exits with 1 where a promise was broken."""
    logging.disable(logging.CRITICAL)
    if case is not None:
        run = Run.parse(Path(case[1:]).read_text() if case.startswith('@') else case)
        sys.exit(show(run, trace))
    if exhaustive:
        sys.exit(look(search.exhaustive_jobs(legs), jobs))
    if minutes is not None or runs is not None:
        first = secrets.randbelow(1 << 40) if seed is None else seed
        print(f'random runs from seed {first} on', flush=True)
        sys.exit(look(search.random_jobs(first, runs), jobs, minutes))
    if seed is not None:
        sys.exit(explore_seed(seed, shrink_seconds, trace))
    raise click.UsageError('say --seed N, --case TEXT, --exhaustive, --runs N or --minutes N')


def look(todo: Iterable[search.Job], processes: int, minutes: float | None = None) -> int:
    """Search in several processes, showing progress; return 1 if anything was found."""
    watch = Watch()
    terminal = sys.stdout.isatty()
    told = 0

    def say(found: search.Found, seconds: float) -> None:
        nonlocal told
        for what, case, how in found.failures[told:]:
            print(f'{chr(10) if terminal else ""}VIOLATION {what}\n  {how}\n  {case}', flush=True)
        told = len(found.failures)
        left = f' of {minutes:g} min' if minutes is not None else ''
        line = f'{seconds / 60:6.1f} min{left}  {found.tally.states:,} states recovered, '
        line += f'{found.tally.judged:,} judged, {len(found.failures)} violations'
        print(f'\r{line}' if terminal else line, end='' if terminal else '\n', flush=True)

    limit = minutes * 60 if minutes is not None else float('inf')
    found = search.search(todo, processes, limit, say, 1.0 if terminal else 30.0)
    print('\n' * terminal + search.summary(found, watch.seconds, processes))
    return int(bool(found.failures))


def explore_seed(seed: int, shrink_seconds: float, trace: bool) -> int:
    """Explore one seed's run; print the shortest failing case and its replay.  Return the exit code."""
    explorer, watch = Explorer(), Watch()
    try:
        explorer.explore(Composer(seed).run())
    except Failed as failed:
        print(f'seed {seed}: {failed}')
        print(f'case: {failed.run.text}')
        print('shortening it …', flush=True)
        shorter = shrink(failed.run, failed.violation.checker, shrink_seconds)
        return show(shorter, trace)
    print(f'seed {seed}: {explorer.tally.states} states in {watch.seconds:.1f} s, all well')
    return 0


def show(run: Run, trace: bool = True) -> int:
    """Replay a run with its trace; return 1 if it fails."""
    try:
        replay(run, say if trace else lambda world, session: None)
    except Failed as failed:
        print(f'\nVIOLATION of {failed}\ncase: {run.text}')
        print('replay: python -m mirrorfs.sim --case CASE')
        return 1
    print(f'all well\ncase: {run.text}')
    return 0


def say(world: World, session: Session) -> None:
    """Print what happened in one session."""
    print(f'--- session: {len(session.operations)} operations, seed {world.seed}')
    step = 0
    for item in world.trace:
        if isinstance(item, str):
            print(f'      {item}')
            continue
        step += 1
        print(f'{step:5} {describe(item, world)}')
        if step + 1 == session.crash_at:
            break
    if world.refused:
        print(f'      refused: {world.refused}')
    print(f'--- end: {session.end}' + (f' at step {session.crash_at}' if session.crash_at else ''))


def describe(call: Call, world: World) -> str:
    """Return a call in words: where on the disk, and how."""
    base = world.layout.data_offset
    where = ''
    if call.length and call.disk != 'pool':
        log = world.layout.log
        if call.offset >= base:
            blocks = call.length / 4096
            where = f'data block {(call.offset - base) // 4096}, {blocks:g} of them'
        elif log.offset <= call.offset < log.end:
            where = f'log copy {(call.offset - log.offset) // log.length}'
        else:
            where = f'page {call.offset // 4096}'
    marks = ' durable' * call.durable + ' zeros' * call.zeros
    return f'{call.disk:5} {call.kind:8} {where}{marks}'


if __name__ == '__main__':
    main()
