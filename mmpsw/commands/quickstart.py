"""Trains a small detector with and without PSW, and shows the difference.

It is ``tools/compare.py run`` on a data set that needs no
download, with one seed and three arms: the baseline, what we recommend, and
PSWA, which trains on from its average.
"""
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mmpsw import configs
from mmpsw.commands import compare, options
from mmpsw.compare import grid as grids
from mmpsw.compare.grid import shipped

_DATA = Path('data/digits')
_CONFIG = 'configs/study/retinanet_r18_digits_constant.py'
_SHORT_EPOCHS = 2
_SCORE_THR = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``tools/quickstart.py``; returns the exit status."""
    args = parse_args(argv)
    return compare.report_outcome(lambda: quickstart(args))


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = ArgumentParser(
        prog='quickstart.py',
        description='Train a RetinaNet on handwritten digits with and '
        'without PSW, and show the difference. Nothing is downloaded.')
    parser.add_argument(
        '--work-dir', type=Path,
        help='folder of the results (default: work_dirs/quickstart, or '
        'quickstart_short). Finished runs in it are used, and '
        'interrupted ones are continued')
    parser.add_argument(
        '--with', dest='method', default='psw', metavar='NAME',
        help='what is compared: psw (the default), pwalks, pswm, another '
        'file in configs/_base_/methods, or the path of one')
    parser.add_argument('--seed', type=options.seed, default=0,
                        help='the random seed')
    parser.add_argument(
        '--short', action='store_true',
        help=f'{_SHORT_EPOCHS} epochs and no third arm: shows that '
        'everything works, and nothing else')
    return parser.parse_args(argv)


def quickstart(args: Namespace) -> None:
    """Does what the command line says.

    Raises:
        ValueError: An option is wrong.
        TrainingError: A run ended with an error.
    """
    compare.check_report()
    grid = make_grid(args)
    from mmpsw.datasets.digits import generate
    generate(_DATA)
    grid = compare.train_grid(grid)
    print('\nDrawing the detections and the curves ...', flush=True)
    picture = draw_picture(grid)
    compare.report_on(grid)
    print()
    print('psw evaluates the mean of each epoch\'s weights, beside the '
          'baseline\'s run; pswa\nalso continues training from it.')
    if args.short:
        print('Two epochs show that everything works, and nothing about the '
              'arms.')
    print('One seed on a toy is an illustration and no evidence: judge by '
          'several seeds\non your own task.\n\n'
          f'picture with boxes: {picture}\n\n'
          'What to do next (README.md says more):\n'
          f'  {sys.executable} {shipped("tools/train.py")} CONFIG --with '
          f'{args.method}   trains any config of mmdet, mmseg, mmpretrain\n'
          f'  {sys.executable} {shipped("tools/compare.py")} run CONFIG '
          '--seeds 0 1 2   compares the techniques on it\n'
          '  two lines in a config of yours do the same: see '
          'configs/det/*_psw.py')


def make_grid(args: Namespace) -> grids.Grid:
    """Turns the command line into the runs that it asks for.

    Raises:
        ValueError: There is no such method, or its name is taken.
    """
    other = 'psw' if args.method == 'pswa' else 'pswa'
    arms = compare.named_arms(['baseline', args.method]
                              + [other] * (not args.short))
    return grids.Grid(
        passengers=compare.passengers(arms),
        config=shipped(_CONFIG), arms=arms, seeds=(args.seed, ),
        work_dir=args.work_dir or Path(
            f'work_dirs/quickstart{"_short" * args.short}'),
        options=(f'train_cfg.max_epochs={_SHORT_EPOCHS}', )
        if args.short else ())


def draw_picture(grid: grids.Grid) -> Path:
    """Draws what each arm's detector finds in the same scenes."""
    from mmpsw.checkpoints import allow_resume
    from mmpsw.compare import detections
    allow_resume()
    checkpoints = {
        cell.arm: grid.run_dir(cell) / f'epoch_{grid.max_steps()}.pth'
        for cell in grid.cells
    }
    return detections.plot_detections(
        configs.load_config(grid.config), checkpoints,
        grid.work_dir / 'detections.png', score_thr=_SCORE_THR,
        title='RetinaNet on handwritten digits: the first validation scenes, '
        f'score at least {_SCORE_THR}')
