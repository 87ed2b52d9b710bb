"""In the place of a child's program."""

import threading

threading.Event().wait()
