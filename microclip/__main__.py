"""`python -m microclip` is the command line."""

import sys

from microclip.cli import main

sys.exit(main())
