"""``python -m emucsd_agent``: see ``agent``."""

import sys

from emucsd_agent.agent import main

sys.exit(main(sys.argv[1:]))
