"""Tests a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``."""
import sys

from mmpsw.commands.test import main

if __name__ == '__main__':
    sys.exit(main())
