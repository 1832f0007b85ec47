"""How results are shown: a table, what is wanted of them, a chart."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import ORDER, PEERS, US
from results import Results
from targets import Verdict


def text(machine: Mapping[str, str], notes: str, results: Results, verdicts: Sequence[Verdict]) -> str:
    """Return all that is known, for people."""
    lines = [f'{key}: {value}' for key, value in machine.items()]
    lines += ['', notes, '', 'Medians, more is better: operations a second, on ext4 as README says.']
    lines += [f'{name} takes no part: {why}' for name, why in results.absent.items()]
    for job in results.jobs:
        lines += ['', job, *_rows(results, job)]
    return '\n'.join([*lines, '', *_judged(verdicts), ''])


def _rows(results: Results, job: str) -> list[str]:
    """Return a line a taker: median, lowest and highest, how busy the disk was, times the default peer."""
    lines = []
    for taker in results.takers(job):
        rates = results.rates[job][taker]
        ratio = results.ratio(job, taker, PEERS[0])
        lines.append(
            f'  {taker:<24}{statistics.median(rates):>11.1f}  {f"({min(rates):.1f}-{max(rates):.1f})":<24}'
            f'disk {results.busiest(job, taker):4.0%} busy'
            + (f'{ratio:8.2f} x {PEERS[0]}' if ratio is not None else '')
        )
    for taker, reasons in results.failed.get(job, {}).items():
        lines.append(f'  {taker:<24}     FAILED  {len(reasons)} times: {" ".join(reasons[0].split())[-300:]}')
    return lines


def _judged(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the table of targets."""
    wide = max(len(verdict.what) for verdict in verdicts)
    lines = [
        f'What is wanted.  "got" is against {PEERS[0]} where a peer is meant; "better" against the better of',
        'the two quorums, job by job.',
        '',
        f'{"":<{wide}}  wanted     got            better',
    ]
    for verdict in verdicts:
        got, better = _cell(verdict.got, verdict.word), _cell(verdict.better, verdict.better_word)
        line = f'{verdict.what:<{wide}}  {verdict.wanted:6.2f}  {got}  '
        lines.append((line + (better if verdict.better else '')).rstrip())
    met = sum(verdict.word == 'met' for verdict in verdicts)
    return [*lines, '', f'{met} of {len(verdicts)} met']


def _cell(got: float | None, word: str) -> str:
    return f'{"-" if got is None else format(got, ".2f"):>6} {word:<7}'


def raw(
    machine: Mapping[str, str], notes: str, results: Results, verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Return all that is known, for programs."""
    judged = [
        {**dataclasses.asdict(v), 'word': v.word, 'better_word': v.better_word if v.better else ''}
        for v in verdicts
    ]
    return {'machine': dict(machine), 'notes': notes, **dataclasses.asdict(results), 'verdicts': judged}


def chart(machine: Mapping[str, str], results: Results, path: Path) -> bool:
    """Draw all jobs that the default peer did, in times its rate; return whether that could be done."""
    try:
        import matplotlib
    except ImportError:
        print('no chart: matplotlib is not there and could not be installed')
        return False
    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker

    drawn = [job for job in results.jobs if results.median(job, PEERS[0])]
    if not drawn:
        print(f'no chart: {PEERS[0]} did nothing that others could be drawn against')
        return False
    takers = [taker for taker in ORDER if any(taker in results.takers(job) for job in drawn)]
    figure, axes = pyplot.subplots(figsize=(10, 2 + 0.27 * len(drawn)))
    for number, taker in enumerate(takers):
        points = [(results.ratio(job, taker, PEERS[0]), at) for at, job in enumerate(drawn)]
        known = [point for point in points if point[0]]
        size, marker = (90, 'D') if taker == US else (30, 'osv^<>pX'[number % 8])
        places, heights = zip(*known, strict=True)
        axes.scatter(places, heights, s=size, marker=marker, label=taker, zorder=3 + (taker == US))
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks(range(len(drawn)), drawn, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis='y', linewidth=0.4)
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel(f'rate, in times that of {PEERS[0]}')
    axes.set_title(f'{machine["processor"]}, {machine["kernel"]}; {machine["mirrorfs"]}', fontsize=8)
    axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1.01, 1))
    figure.savefig(path, dpi=120, bbox_inches='tight')
    pyplot.close(figure)
    return True
