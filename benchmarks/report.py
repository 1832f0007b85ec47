"""How results are shown: a table, the ratios that matter, a chart."""

import statistics
from collections.abc import Mapping
from pathlib import Path

Rates = Mapping[str, Mapping[str, list[float]]]
Medians = Mapping[str, Mapping[str, float]]
PEER = 'quorum'
US, NO_LOG, RAW = 'mirrorfs', 'mirrorfs, no log', 'raw file'


def peer(by_name: Mapping[str, float]) -> float:
    """Return the rate of the better quorum; 0 where none has one."""
    return max((rate for name, rate in by_name.items() if name.startswith(PEER)), default=0.0)


def table(
    machine: Mapping[str, str], rates: Rates, failed: Mapping[str, Mapping[str, str]], busy: Rates
) -> str:
    """Return every number: medians, the lowest and highest, how busy the disk was."""
    lines = [f'{key}: {value}' for key, value in machine.items()]
    for job in {**rates, **failed}:
        lines += ['', job]
        by_name = rates.get(job, {})
        best = peer({name: statistics.median(values) for name, values in by_name.items()})
        for name, values in by_name.items():
            middle = statistics.median(values)
            ratio = f'{middle / best:6.2f} x the better quorum' if best else ''
            disk = f'disk {statistics.median(busy[job][name]):4.0%} busy'
            span = f'({min(values):.1f}-{max(values):.1f})'
            lines.append(f'  {name:<20}{middle:>11.1f}  {span}  {disk}  {ratio}')
        for name, why in failed.get(job, {}).items():
            lines.append(f'  {name:<20}     failed  {why}')
    return '\n'.join(lines) + '\n'


def ratios(medians: Medians) -> str:
    """Return what is promised of the figures, and what they are."""
    lines = ['', 'mirrorfs against the better quorum (and the raw file):']
    found = []
    for job, by_name in medians.items():
        if US not in by_name:
            continue
        best, alone = peer(by_name), by_name.get(RAW, 0.0)
        against = f'{by_name[US] / best:6.2f}' if best else '     -'
        beside = f'{by_name[US] / alone:6.2f}' if alone else '     -'
        lines.append(f'  {against}  ({beside} of raw)  {job}')
        if best and not job.startswith('ext4'):
            found.append(by_name[US] / best)
    if found:
        lines.append(f'  {statistics.geometric_mean(found):6.2f}  geometric mean of the fio cells')
    lines += ['', 'log on against log none:']
    for job, by_name in medians.items():
        if {US, NO_LOG} <= by_name.keys():
            lines.append(f'  {by_name[US] / by_name[NO_LOG]:6.2f}  {job}')
    return '\n'.join(lines) + '\n'


def chart(medians: Medians, path: Path) -> None:
    """Draw all jobs, each as times the better quorum; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print('no chart: pip install matplotlib')
        return
    matplotlib.use('Agg')
    from matplotlib import pyplot

    jobs = [job for job, by_name in medians.items() if peer(by_name)]
    names = sorted({name for job in jobs for name in medians[job]})
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.38 * max(1, len(jobs))))
    for number, name in enumerate(names):
        heights = [medians[job].get(name, 0) / peer(medians[job]) for job in jobs]
        places = [at + (number - len(names) / 2) * 0.8 / len(names) for at in range(len(jobs))]
        axes.barh(places, heights, 0.8 / len(names), label=name)
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks(range(len(jobs)), jobs, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale('log')
    axes.set_xlabel('rate, in times the better of the two quorums')
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
