"""`python -m epd_runtime.router`."""

from epd_runtime.router.serve import main

raise SystemExit(main())
