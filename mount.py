#!/usr/bin/env python3
"""Mount a pool: ``python mount.py POOL MOUNTPOINT [-f] [-o opt,opt=value]``."""

import sys

from mirrorfs.fs.daemon import main

if __name__ == '__main__':
    sys.exit(main())
