"""What benchmarks/ makes of figures, and that a signal leaves nothing half done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / 'benchmarks'
sys.path.append(str(BENCHMARKS))

import report  # noqa: E402
import targets  # noqa: E402
import workloads  # noqa: E402
from contenders import NO_LOG, PEERS, RAW, US  # noqa: E402
from results import Results  # noqa: E402

UNTAR = 'ext4: untar, sync'


def figures(job: str, busy: float = 0.1, **rates: float) -> Results:
    """One round of one job: `us`, `raw`, `threads`, `io_uring`."""
    names = {'us': US, 'raw': RAW, 'threads': PEERS[0], 'io_uring': PEERS[1]}
    results = Results()
    results.begin(job)
    for word, rate in rates.items():
        results.add(job, names[word], rate, busy)
    return results


def verdict(results: Results, what: str) -> targets.Verdict:
    return next(found for found in targets.verdicts(results) if found.what.startswith(what))


def test_peer_is_the_default_and_the_better_one_stands_beside() -> None:
    cell = workloads.CELLS[0].name
    found = verdict(figures(cell, us=200, threads=100, io_uring=400), cell)
    assert (found.got, found.word) == (2.0, 'met')
    assert (found.better, found.better_word) == (0.5, 'MISSED')


@pytest.mark.parametrize(('busy', 'wanted', 'of_raw'), [(0.9, 1.5, 0.6), (0.91, 1.0, 0.45)])
def test_less_is_wanted_where_the_disk_is_the_limit(busy: float, wanted: float, of_raw: float) -> None:
    results = figures(UNTAR, busy, us=120, raw=240, threads=100)
    assert verdict(results, f'{UNTAR} (').wanted == wanted
    assert verdict(results, f'{UNTAR}, of raw').wanted == of_raw


def test_mean_is_unknown_unless_all_cells_are_known() -> None:
    cells = [cell.name for cell in (*workloads.CELLS, workloads.SYNCED)]
    results = Results()
    for number, cell in enumerate(cells):
        mean = verdict(results, 'geometric mean')
        assert (mean.got, mean.word) == (None, 'unknown'), number
        results.begin(cell)
        results.add(cell, US, 300, 0)
        results.add(cell, PEERS[0], 100, 0)
    assert verdict(results, 'geometric mean').got == pytest.approx(3)


def test_median_not_mean() -> None:
    results = Results()
    for rate in (1, 100, 90):
        results.add('job', US, rate, 0)
    assert results.median('job', US) == 90


def test_failures_are_shown_beside_what_did_not_fail() -> None:
    cell = workloads.CELLS[0].name
    results = figures(cell, us=200)
    results.fail(cell, PEERS[0], 'fio: Input/output\nerror')
    results.absent[NO_LOG] = 'could not be made'
    found = targets.verdicts(results)
    text = report.text({}, '', results, found)
    assert 'FAILED  1 times: fio: Input/output error' in text
    assert f'{NO_LOG} takes no part: could not be made' in text
    assert verdict(results, cell).word == 'unknown'
    assert f'0 of {len(found)} met' in text
    assert report.raw({}, '', results, found)['failed'] == {cell: {PEERS[0]: ['fio: Input/output\nerror']}}


SLEEPER = """
import subprocess, sys
sys.path.append(sys.argv[1])
import host

def main():
    with host.workspace(sys.argv[2], 'test') as folder:
        print(folder, flush=True)
        host.run('sh', '-c', f'sleep 0.7; touch {sys.argv[2]}/done')
        host.run('sleep', '60', patient=False)
    return 0

sys.exit(host.finish(main))
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('after', [0.2, 1.2])
def test_a_signal_waits_for_what_is_half_done_and_leaves_nothing(
    tmp_path: Path, number: int, after: float
) -> None:
    command = [sys.executable, '-c', SLEEPER, str(BENCHMARKS), str(tmp_path)]
    # A group of its own, signalled as a whole: so Ctrl-C does it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        began = time.monotonic()
        time.sleep(after)
        os.killpg(process.pid, number)
        assert process.wait(30) == 128 + number
        assert time.monotonic() - began < 20
    assert (tmp_path / 'done').exists()
    assert not folder.exists()
