"""Averages checkpoints: ``average_checkpoints.py WORK_DIR --out FILE``."""
import sys

from mmpsw.commands.average_checkpoints import main

if __name__ == '__main__':
    sys.exit(main())
