"""`python -m server` as it is for a model that takes pictures and clips, since none is opened yet.

wan-tiny is said to take them; all else is the real server. With the scripted engine.
"""

import sys

from wan_tpu import family

MODULE = "tests.server.picture_server"

if __name__ == "__main__":  # a test that takes the name from here stays as it is
    object.__setattr__(family.TEXT_TO_VIDEO, "inputs", family.TEXT_IMAGE_TO_VIDEO.inputs)

    from server.__main__ import main

    sys.exit(main())
