"""``python -m fm.agent``: the agent that a verb starts when it sees unfinished runs and no living agent."""

import sys

from fm.heap import importing, keep

with importing():
    from fm.agent.daemon import main
    from fm.errors import Conflict, FMError
    from fm.settings import Settings
keep()

try:
    main(Settings.read(), forever=False)
except Conflict:
    # Two verbs started one at the same time; the other agent does the work.
    sys.exit(0)
except FMError as error:
    sys.exit(str(error))
