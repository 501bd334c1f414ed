"""``python run_module.py MODULE ARGUMENTS``: ``python -m MODULE ARGUMENTS`` without the working directory on the path.

It imports nothing of this package, so that it can be run as a file.
"""

import runpy
import sys


def main() -> None:
    """Run the module that the first argument names."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this file's folder
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
