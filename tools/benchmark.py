"""Measures what averaging costs: ``benchmark.py sample|step|growth``."""
import sys

from mmpsw.commands.benchmark import main

if __name__ == '__main__':
    sys.exit(main())
