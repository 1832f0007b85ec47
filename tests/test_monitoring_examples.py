"""examples/monitoring: rules and dashboard name metrics that there are; the script brings them along."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mounts import MIB, PROJECT, MountedPool, Volume, run, wait_for
from prometheus_client.parser import text_string_to_metric_families

EXAMPLES = PROJECT / 'examples' / 'monitoring'
SCRIPT = EXAMPLES / 'mirrorfs-textfile.sh'
RULES = EXAMPLES / 'mirrorfs.rules.yml'
pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]


@pytest.fixture(scope='module')
def pool() -> Iterator[MountedPool]:
    with MountedPool() as made:
        yield made.start()


@pytest.fixture(scope='module')
def volume(pool: MountedPool) -> Volume:
    made = pool.volume('disk', 8 * MIB)
    for at in range(8):
        made.put(at * MIB, b'x' * MIB)
    return made


def known(text: str) -> dict[str, set[str]]:
    """Return the names of samples in a text of metrics, each with the names of its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope='module')
def names(pool: MountedPool, volume: Volume) -> dict[str, set[str]]:
    """The metrics of a mount that recovers, which has them all."""
    volume.write('sync_speed_max', '500')
    volume.write('fail', '1')
    volume.put(0, b'y' * 8 * MIB)
    volume.write('re-add', '1')

    def recovers() -> dict[str, set[str]] | None:
        found = known((pool.control / 'metrics').read_text())
        return found if 'mirrorfs_volume_sync_done_bytes' in found else None

    found: dict[str, set[str]] = wait_for(recovers, 'recovery')
    volume.write('sync_speed_max', 'system')
    volume.settled()
    return found


def check(expression: str, names: dict[str, set[str]]) -> None:
    """Every metric of ours that an expression names is there, with the labels that it is chosen by."""
    found = re.findall(r'(mirrorfs_\w+)(?:\{([^}]*)\})?', expression)
    for name, chosen in found:
        assert name in names, f'no metric {name}, in {expression}'
        wanted = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', chosen))
        assert wanted <= names[name] | {'le'}, f'{name} has no such label: {wanted - names[name]}'
    for labels in re.findall(r'\bby \(([^)]*)\)', expression):
        of_all = set().union(*(names[name] for name, _ in found)) | {'le', 'instance'}
        assert set(re.split(r',\s*', labels)) <= of_all, expression


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())['groups'] for rule in group['rules']]


def test_rules_name_metrics_that_there_are(names: dict[str, set[str]]) -> None:
    found = rules()
    assert len({rule['alert'] for rule in found}) == len(found) > 10
    for rule in found:
        assert rule['labels']['severity'] in ('warning', 'critical') and rule['annotations']['summary']
        assert 'mirrorfs' in rule['expr'], 'says nothing of us'
        check(
            rule['expr'].replace('node_textfile_mtime_seconds{file=~".*mirrorfs.*"}', '1'),
            names | {'1': set()},
        )
        assert rule['expr'].count('(') == rule['expr'].count(')')


def test_the_dashboard_names_metrics_that_there_are(names: dict[str, set[str]]) -> None:
    dashboard = json.loads((EXAMPLES / 'mirrorfs-dashboard.json').read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard['panels']:
        for target in panel['targets']:
            assert 'mirrorfs_' in target['expr']
            check(target['expr'], names)
        grid = panel['gridPos']
        mine = {
            (x, y)
            for x in range(grid['x'], grid['x'] + grid['w'])
            for y in range(grid['y'], grid['y'] + grid['h'])
        }
        assert not mine & places and grid['x'] + grid['w'] <= 24, f'{panel["title"]} lies over another'
        places |= mine
    for variable in dashboard['templating']['list']:
        if variable['type'] == 'query':
            check(variable['query']['query'], names)


@pytest.mark.skipif(not shutil.which('promtool'), reason='promtool is not installed')
def test_promtool_takes_rules_and_metrics(pool: MountedPool, volume: Volume) -> None:
    done = run('promtool', 'check', 'rules', RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(pool.control / 'metrics') as metrics:
        done = run('promtool', 'check', 'metrics', stdin=metrics)
    assert done.returncode != 1, done.stdout + done.stderr  # 3: opinions about names


def collected(folder: Path) -> str:
    (file,) = folder.glob('*.prom')
    return file.read_text()


def test_the_script_brings_metrics_or_says_that_there_are_none(
    pool: MountedPool, volume: Volume, tmp_path: Path
) -> None:
    done = run(SCRIPT, tmp_path, pool.mountpoint)
    assert (done.returncode, done.stderr) == (0, '')
    there = collected(tmp_path)
    assert known(there).keys() >= {'mirrorfs_up', 'mirrorfs_volume_size_bytes'}
    pool.signal(signal.SIGSTOP)
    try:
        script = tmp_path / 'impatient'
        script.write_text(SCRIPT.read_text().replace('patience=100', 'patience=3'))
        for _ in range(2):  # the second one finds that the first still hangs
            done = run('sh', script, tmp_path, pool.mountpoint)
            assert (done.returncode, done.stderr) == (0, '')
            down = collected(tmp_path)
            assert known(down) == {'mirrorfs_up': {'mountpoint'}}
            assert f'mirrorfs_up{{mountpoint="{pool.mountpoint}"}} 0\n' in down
    finally:
        pool.signal(signal.SIGCONT)
    head = [line for line in there.splitlines() if line.startswith('#') and ' mirrorfs_up ' in line]
    assert [line for line in down.splitlines() if line.startswith('#')] == head, 'a collector wants one HELP'
    wait_for(
        lambda: run(SCRIPT, tmp_path, pool.mountpoint) and collected(tmp_path) != down, 'it answers again'
    )
    assert len(list(tmp_path.glob('*.prom'))) == 1 and not list(tmp_path.glob('.mirrorfs.*/'))


def test_the_script_refuses_what_it_cannot_do(pool: MountedPool, tmp_path: Path) -> None:
    done = run(SCRIPT, tmp_path)
    assert done.returncode == 2 and 'mirrorfs-textfile.sh DIRECTORY MOUNTPOINT' in done.stderr
    assert run(SCRIPT, tmp_path / 'nowhere', pool.mountpoint).returncode == 1
