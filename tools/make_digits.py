"""Write the digits data set; see ``--help``."""
import sys

from mmpsw.commands.make_digits import main

if __name__ == '__main__':
    sys.exit(main())
