"""Draws the loss: ``loss_surface.py line|plane CONFIG CHECKPOINT...``."""
import sys

from mmpsw.commands.loss_surface import main

if __name__ == '__main__':
    sys.exit(main())
