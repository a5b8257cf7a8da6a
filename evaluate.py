"""Attack a model: `python evaluate.py --attack stadv`. The door to `robustbench-gpm evaluate`."""

import sys

from robustbench_gpm.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
