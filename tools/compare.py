"""Compares arms: ``python tools/compare.py run CONFIG`` and ``... report``."""
import sys

from mmpsw.commands.compare import main

if __name__ == '__main__':
    sys.exit(main())
