"""Draws the sampled weights: ``weight_distribution.py CONFIG CHECKPOINT``."""
import sys

from mmpsw.commands.weight_distribution import main

if __name__ == '__main__':
    sys.exit(main())
