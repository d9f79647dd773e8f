"""What the commands run.

JAX is imported here, before all else: it refuses wrong variables of the environment when it is.
"""

import logging
import os
import sys

try:
    import jax  # noqa: F401
except ValueError as error:
    sys.exit(f"error: JAX does not start with a variable of this environment: {error}")

# Pictures are drawn without a backend; a wrong one would be refused when Matplotlib is imported.
os.environ.pop("MPLBACKEND", None)
# It tells, when it is imported, where it keeps its fonts for a user without a home folder.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
