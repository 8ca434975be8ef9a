"""`python -m rbee.engine`, as the server starts it."""

import sys

from rbee.engine.process import main

sys.exit(main())
