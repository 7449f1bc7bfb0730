"""python -m rbg_operator.controller"""

import sys

from rbg_operator.controller.main import main

sys.exit(main())
