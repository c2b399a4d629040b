"""Writes the digits data set: scenes for detection, segmentation and
classification, of handwritten digits that scikit-learn ships."""
import argparse
import sys
from collections.abc import Sequence

from mmpsw.commands import options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='make_digits.py', description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, meaning in (
            ('root', 'data/digits', 'folder to make'),
            ('train', 640, 'training scenes'),
            ('val', 128, 'validation scenes'),
            ('size', 128, 'side of a scene in pixels'),
            ('seed', 0, 'of the scenes')):
        parser.add_argument(f'--{name}', type=type(default), default=default,
                            help=meaning)
    args = parser.parse_args(argv)

    def write() -> None:
        from mmpsw.datasets import generate
        print(f'The digits data set is in {generate(**vars(args))}.')

    return options.report_errors(write)


if __name__ == '__main__':
    sys.exit(main())
