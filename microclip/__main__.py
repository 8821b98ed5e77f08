"""Run the command line with `python -m microclip`."""

import sys

from microclip.cli.main import main

sys.exit(main())
