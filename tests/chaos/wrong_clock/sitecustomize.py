"""A process that finds this on its path has a wall clock that is wrong by ``WRONG_BY`` seconds; others go right."""

from __future__ import annotations

import os
import time

_WRONG_BY = float(os.environ.get("WRONG_BY", "0"))
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _WRONG_BY
time.time_ns = lambda: _time_ns() + int(_WRONG_BY * 1e9)
