"""Breaks the averaging on purpose, and looks whether the tests notice.

    python tests/mutations.py

Each mutation is made in a copy of the checkout. Where its tests still pass,
they would not find that mistake: the exit status is 1. First the same tests
must pass in a copy without any.
"""
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESAMPLER = 'mmpsw/methods/averaging/resampler.py'
PROPERTIES = 'tests/methods/averaging/test_properties.py'


@dataclass(frozen=True)
class Mutation:
    """A mistake that somebody might make.

    Attributes:
        name: What it is.
        file: Where it is made.
        edits: Each text, which occurs there once, and what takes its place.
        tests: What must fail.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


ENGINE = 'mmpsw/engine/averaging'
CLOCK = 'tests/engine/averaging/test_one_clock.py'
PROCESSES = 'tests/engine/averaging/test_distributed.py'
RESAMPLINGS = 'tests/methods/averaging/test_resampler.py'
MUTATIONS = (
    Mutation('a counter is not saved', RESAMPLER,
             (('samples=self.samples,', 'samples=0,'), ),
             (PROPERTIES, )),
    Mutation('the generator is not restored', RESAMPLER,
             (("self.generator.set_state(state['generator'].cpu())", 'pass'),
              ), (PROPERTIES, )),
    Mutation('the mean is an alias of the live weights',
             'mmpsw/methods/averaging/mean.py',
             (('self.mean = self.spare(live)', 'self.mean = list(live)'), ),
             (PROPERTIES, )),
    Mutation('an iteration is a sample, whether it updates or not',
             f'{ENGINE}/follower.py',
             (('self.resampler.step(iteration, updated)',
               'self.resampler.step(iteration, True)'), ),
             ('tests/engine/averaging/test_mixed_precision.py', )),
    Mutation('the mean is written back after the validation', RESAMPLER,
             (('            copy_(tensors, m)\n',
               '            self._late = m\n'),
              ('        place = self.schedule.locate(self.iteration)\n'
               '        if place is None:\n',
               "        if getattr(self, '_late', None) is not None:\n"
               '            copy_(self.tensors, self._late)\n'
               '            self._late = None\n'
               '        place = self.schedule.locate(self.iteration)\n'
               '        if place is None:\n')),
             (PROPERTIES, )),
    Mutation('what is forgotten still counts', RESAMPLER,
             (('        self._previous = None\n        self.resamplings = 0\n'
               '\n    def _end', '        self._previous = None\n\n'
               '    def _end'), ), (RESAMPLINGS, )),
    Mutation("an average's recalibrated statistics are not kept", RESAMPLER,
             (('            copy_(self._statistics(self._previous), '
               'self.statistics)', '            pass'), ), (CLOCK, )),
    Mutation('all processes recalibrate on the same batches',
             f'{ENGINE}/hook.py',
             (('seed = seed * get_world_size() + get_rank()',
               'seed = seed * get_world_size()'), ), (PROCESSES, )),
    Mutation('recalibration without mixed precision', f'{ENGINE}/hook.py',
             (('    return runner.optim_wrapper.optim_context(model)',
               '    return nullcontext()'), ), (CLOCK, )),
    Mutation('an epoch ignores the number of processes',
             'mmpsw/runtime/epochs.py',
             (('(size * get_world_size())', 'size'), ), (CLOCK, )),
    Mutation('what rides along draws numbers of the run',
             'mmpsw/engine/ride_along.py',
             (('        set_random_state(before)\n', ''), ),
             ('tests/engine/test_ride_along.py', )),
    Mutation('the live weights are not restored', f'{ENGINE}/hook.py',
             (('        restore_live_weights(runner.model, '
               'self.loaded.get(LIVE, {}))\n', ''), ),
             ('tests/engine/averaging/test_optim_wrapper.py', )),
    Mutation('each process decides alone about its shards',
             'mmpsw/methods/averaging/weights.py',
             (('            dist.all_reduce(values, '
               'getattr(dist.ReduceOp, op),\n'
               '                            group=mesh.get_group(dim))\n',
               ''), ), (PROCESSES, )),
)


def main() -> int:
    """Tries all mutations; returns the exit status."""
    tests = sorted({test for mutation in MUTATIONS for test in mutation.tests})
    failed = first_failure(Mutation('none', RESAMPLER, (), tuple(tests)))
    if failed:
        print(f'{failed} fails without any mutation: mend that first')
        return 1
    survivors = 0
    for mutation in MUTATIONS:
        failed = first_failure(mutation)
        survivors += not failed
        print(f'{"noticed" if failed else "NOT NOTICED"}: {mutation.name}'
              f'{f" ({failed})" if failed else ""}', flush=True)
    return 1 if survivors else 0


def first_failure(mutation: Mutation) -> str:
    """The first test that fails, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_checkout(copy)
        path = copy / mutation.file
        text = path.read_text()
        for old, new in mutation.edits:
            if text.count(old) != 1:
                raise ValueError(
                    f'{mutation.file} has {text.count(old)} times {old!r}, '
                    'because the code has changed: mend this mutation')
            text = text.replace(old, new)
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-x', '-q', '--no-header', '-rf',
             *mutation.tests], cwd=copy, capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': str(copy)}, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f'the tests did not run:\n{done.stdout}')
    lines = [line for line in done.stdout.splitlines()
             if line.startswith('FAILED ')]
    return lines[0].split()[1] if lines else ''


def copy_checkout(target: Path) -> None:
    """Copies what git tracks."""
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout
    for name in filter(None, names.split('\0')):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())


if __name__ == '__main__':
    sys.exit(main())
