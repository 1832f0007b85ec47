"""FUSE messages as the kernel lays them out: include/uapi/linux/fuse.h, version 7.31 and later.

Only what the data lane reads or writes is here.  All little-endian fields are in host order on the wire;
mirrorfs runs on little-endian machines.  Offsets are bytes from the start of a message.
"""

import struct

FUSE_SETATTR = 4
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
FUSE_FSYNC = 20
FUSE_INIT = 26
FUSE_INTERRUPT = 36
FUSE_FALLOCATE = 43
FUSE_LSEEK = 46

IN_HEADER = struct.Struct('<IIQQIIIHH')
"""fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding"""
REQUEST = struct.Struct('<4xIQQ16x8xQI12xI')
"""What the lane looks at in a READ or WRITE, header included: opcode unique nodeid offset size flags."""
READ_IN = struct.Struct('<QQIIQII')
"""fuse_read_in: fh offset size read_flags lock_owner flags padding"""
WRITE_IN = struct.Struct('<QQIIQII')
"""fuse_write_in: fh offset size write_flags lock_owner flags padding; then the data"""
FSYNC_IN = struct.Struct('<QII')
"""fuse_fsync_in: fh fsync_flags padding"""
FALLOCATE_IN = struct.Struct('<QQQII')
"""fuse_fallocate_in: fh offset length mode padding"""
LSEEK_IN = struct.Struct('<QQII')
"""fuse_lseek_in: fh offset whence padding"""
OUT_HEADER = struct.Struct('<IiQ')
"""fuse_out_header: len error unique (error: minus an errno)"""
WRITE_REPLY = struct.Struct('<IiQII')
"""fuse_out_header, then fuse_write_out: size padding"""
LSEEK_OUT = struct.Struct('<Q')
"""fuse_lseek_out: offset"""
OPEN_OUT = struct.Struct('<QII')
"""fuse_open_out: fh open_flags padding"""
NOTIFY_INVAL_INODE = 2
"""In the place of the error, with unique 0: not a reply but a notification."""
INVAL_INODE_OUT = struct.Struct('<Qqq')
"""fuse_notify_inval_inode_out: nodeid offset length"""

BODY = IN_HEADER.size
"""Where the part after the header begins in a request (40)."""
WRITE_DATA = BODY + WRITE_IN.size
"""Where the data of a WRITE begins (80)."""
FOPEN_DIRECT_IO = 1 << 0
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
_LENGTH = struct.Struct('<I')
_WRITE_SIZE_AT = BODY + 16
_OPEN_FLAGS = struct.Struct('<I')
_OPEN_FLAGS_AT = OUT_HEADER.size + 8
FUSE_AUTO_INVAL_DATA = 1 << 12
_INIT_FLAGS = struct.Struct('<I')
_INIT_FLAGS_AT = OUT_HEADER.size + 12
_INIT_BACKGROUND = struct.Struct('<HH')
_INIT_BACKGROUND_AT = OUT_HEADER.size + 16
"""fuse_init_out: major minor max_readahead flags max_background(H) congestion_threshold(H) …"""


def shorten_write(message: memoryview, size: int) -> memoryview:
    """Return a WRITE request cut down, in place, to its first `size` bytes of data."""
    message = message[: WRITE_DATA + size]
    _LENGTH.pack_into(message, 0, len(message))
    _LENGTH.pack_into(message, _WRITE_SIZE_AT, size)
    return message


def tune_init(reply: bytearray | memoryview, max_background: int, *, cached: bool = False) -> None:
    """Set max_background and congestion_threshold (three quarters of it) in a reply to INIT.

    `cached`: images may be read through the page cache.  Then the kernel is not to ask for attributes before
    each read, to see from the times whether its pages are good: it is told what changes.
    """
    if cached:
        (flags,) = _INIT_FLAGS.unpack_from(reply, _INIT_FLAGS_AT)
        _INIT_FLAGS.pack_into(reply, _INIT_FLAGS_AT, flags & ~FUSE_AUTO_INVAL_DATA)
    _INIT_BACKGROUND.pack_into(reply, _INIT_BACKGROUND_AT, max_background, max_background * 3 // 4)


def tune_open(reply: bytearray | memoryview) -> None:
    """Let direct writes to one image run in parallel: the lane gives them one order on all legs."""
    (flags,) = _OPEN_FLAGS.unpack_from(reply, _OPEN_FLAGS_AT)
    if flags & FOPEN_DIRECT_IO:
        _OPEN_FLAGS.pack_into(reply, _OPEN_FLAGS_AT, flags | FOPEN_PARALLEL_DIRECT_WRITES)
