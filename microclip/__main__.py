"""`python -m microclip` is the command line."""

import sys

from microclip.cli.main import main

sys.exit(main())
