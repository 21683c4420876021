"""`python -m server` as it is for a model that takes pictures and clips, since none is opened yet.

wan-tiny is said to take them; all else is the real server. With the scripted engine.
"""

import sys

from wan_tpu.media import ROLES
from wan_tpu.pipeline import check

MODULE = "tests.server.picture_server"

if __name__ == "__main__":  # a test that takes the name from here stays as it is
    check.media_roles = lambda description: ROLES  # before the server looks at it

    from server.__main__ import main

    sys.exit(main())
