"""Trains a detector with and without PSW: ``python tools/quickstart.py``."""
import sys

from mmpsw.commands.quickstart import main

if __name__ == '__main__':
    sys.exit(main())
