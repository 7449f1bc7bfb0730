"""Settings that must be made before any test of the runtime imports anything."""

from __future__ import annotations

import os

if not os.path.exists("/dev/nvidiactl"):  # Triton decides for its interpreter when it is imported first
    os.environ["TRITON_INTERPRET"] = "1"
