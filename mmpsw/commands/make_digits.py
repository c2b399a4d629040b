"""``tools/make_digits.py``: write the digits data set to ``data/digits``."""
import argparse
import sys
from collections.abc import Sequence

from mmpsw.datasets import generate


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='tools/make_digits.py',
        description='Compose scenes of handwritten digits for detection, '
        'segmentation and classification. Nothing is downloaded.')
    parser.add_argument(
        '--root', default='data/digits', help='folder to make')
    parser.add_argument(
        '--train', type=int, default=640, help='training scenes')
    parser.add_argument(
        '--val', type=int, default=128, help='validation scenes')
    parser.add_argument(
        '--size', type=int, default=128, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parse_args(argv)
    try:
        root = generate(**vars(args))
    except (OSError, ValueError) as error:
        print(f'make_digits: {error}', file=sys.stderr)
        return 2
    print(f'The digits data set is in {root}.')
    return 0
