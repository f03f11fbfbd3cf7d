"""`python -m morphnas`: the command line."""

import sys

from morphnas.cli import main

sys.exit(main())
