"""Write golden values anew, on purpose; see the package's docstring."""

import sys

from tests.golden.groups import GROUPS

if __name__ == "__main__":
    for name in sys.argv[1:] or GROUPS:
        GROUPS[name].write()
        print(f"{GROUPS[name].path}: {len(GROUPS[name].functions)} values")
