"""Trains a config: ``python tools/train.py CONFIG [--with pwalks]``."""
import sys

from mmpsw.commands.train import main

if __name__ == '__main__':
    sys.exit(main())
