"""Train a model: `python main.py --fgr_lamb 300`. The door to `robustbench-gpm train`."""

import sys

from robustbench_gpm.cli import train

if __name__ == "__main__":
    sys.exit(train())
