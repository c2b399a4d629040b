"""Measures whether a CPU runs layers with many zeros faster as sparse ones.

    sparse_layers.py --out configs/lp_sgd/sparse_cpu

For layer shapes of ResNet-18 and ResNet-50, with zeros at random: torch's
dense convolution beside a product of the weight in CSR (torch.sparse, by MKL)
with the unfolded image. Both must give the same numbers. Times are medians of
rounds in which both run; a ratio above 1 says that the sparse one is slower.
"""
import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from mmpsw.commands import options

# name: input channels, output channels, kernel, height and width
LAYERS = {
    'ResNet-18 layer1, 3x3': (64, 64, 3, 56),
    'ResNet-18 layer2, 3x3': (128, 128, 3, 28),
    'ResNet-18 layer3, 3x3': (256, 256, 3, 14),
    'ResNet-18 layer4, 3x3': (512, 512, 3, 7),
    'ResNet-50 layer1, 1x1': (256, 64, 1, 56),
    'ResNet-50 layer3, 1x1': (1024, 256, 1, 14),
    'ResNet-50 layer4, 1x1': (512, 2048, 1, 7),
}
ZEROS = (0.5, 0.8, 0.9, 0.95, 0.99)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns the exit status."""
    args = parse_args(argv)
    return options.report_errors(lambda: run(args))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line (``sys.argv`` by default)."""
    parser = argparse.ArgumentParser(
        prog='sparse_layers.py', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=options.at_least(1), default=20,
                        help='rounds (default: 20)')
    options.add_out(parser, 'work_dirs/sparse_layers')
    return parser.parse_args(argv)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Measures all layers, on one image."""
    out = options.out_folder(args.out or 'work_dirs/sparse_layers',
                             ['sparse_layers.csv'], args.overwrite)
    table = pd.DataFrame([
        {'layer': name, 'zeros': zeros, **compare(*shape, zeros, args.repeats)}
        for name, shape in LAYERS.items() for zeros in ZEROS])
    table.to_csv(out / 'sparse_layers.csv', index=False, float_format='%.4g')
    print(table.pivot(index='layer', columns='zeros', values='ratio')
          .to_markdown(floatfmt='.2f'))


def compare(channels: int, filters: int, kernel: int, size: int,
            zeros: float, repeats: int) -> dict[str, float]:
    """Milliseconds of both, and their ratio (the median over rounds)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, size, size, generator=generator)
    weight = torch.randn(filters, channels, kernel, kernel,
                         generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < zeros] = 0
    csr = weight.flatten(1).to_sparse_csr()
    pad = kernel // 2

    def dense() -> Tensor:
        return conv2d(image, weight, padding=pad)

    def sparse() -> Tensor:
        columns = image[0].flatten(1) if kernel == 1 else unfold(
            image, kernel, padding=pad)[0]
        return (csr @ columns).view(1, filters, size, size)

    torch.testing.assert_close(dense(), sparse(), rtol=1e-3, atol=1e-3)
    rounds = [(milliseconds(dense), milliseconds(sparse))
              for _ in range(repeats)]
    return dict(dense_ms=median(one for one, _ in rounds),
                sparse_ms=median(other for _, other in rounds),
                ratio=median(other / one for one, other in rounds))


def milliseconds(call: Callable) -> float:
    """The time of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


if __name__ == '__main__':
    sys.exit(main())
