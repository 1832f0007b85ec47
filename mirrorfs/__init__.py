"""mirrorfs: a FUSE filesystem that presents mirrored volume images.

Start at ``docs/architecture.md``.  Imports point downwards only, in this order::

    cli -> fs -> pool -> volume -> mirror -> intent -> metadata -> leg -> model
"""

__version__ = '0.1.0'
