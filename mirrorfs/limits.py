"""Every bound in one place: a queue, a buffer, a wait or a name that has no limit here is a defect.

Sizes are in bytes and times in seconds unless the name says otherwise.
"""

SECTOR = 512
PAGE = 4096

CHUNK_MIN = 64 << 10
CHUNK_MAX = 64 << 20
CHUNK_DEFAULT = 1 << 20
CHUNKS_MAX = 1 << 26
CHUNKS_DEFAULT_MAX = 1 << 20
"""The default chunk size grows with the volume so that it has no more chunks than this."""
GROWTH_RESERVED = 16
"""New legs reserve room in the log for a volume this many times as large."""

VOLUME_MIN = 64 << 10
LEGS_MAX = 8
SLOTS = 16
"""Slot numbers are kept for life, so there are more of them than legs at a time."""
GENERATIONS_MAX = 40
NAME_MAX = 128
VOLUMES_MAX = 1024
UMASK = 0o077
"""The daemon's: what it makes, its log too, is for its user alone."""
EXTENTS_LOOKED_AT, BYTES_LOOKED_AT = 64, 1 << 20
"""Whether a file that is to be a leg holds anything is told from the start of its first extents."""

LEG_TIMEOUT = 30.0
LEG_TIMEOUT_MIN = 0.5
CLOCK_TICK = 0.02
"""Seconds after which a file that is changed gets another time: kernels' clocks tick every 10 ms at least."""
FLUSH_RATE_MIN = 4 << 20
"""A flush may take LEG_TIMEOUT and, on top, the time that its unflushed bytes need at this many bytes/s."""
UNFLUSHED_MAX = 256 << 20
"""Bytes acknowledged but not flushed after which a flush is started in the background."""
START_FLUSH_PATIENCE = 60.0
"""What a leg may take at a start, beyond the leg timeout, to write back what a killed daemon left."""
QUARANTINE_PATIENCE = 5.0
"""How long a re-add waits for calls of before the failure to return."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at whether legs are still there, or are there again, and spares wanted."""
PROBES = 4
"""Paths of legs that are away, looked at at once."""
LEG_CALLS = 8
"""Calls in flight on one leg."""
DIRECT_BUFFERS = 16
"""Buffers of REQUEST_MAX bytes that are kept for direct I/O, for all legs together."""

TIME_BASE = 5.0
TIME_BASE_MIN, TIME_BASE_MAX = 0.01, 3600.0
LOOKAHEAD_MAX_CHUNKS = 64
WINDOW = 1 << 20
"""Bytes that recovery and resync aim to copy in one go (at least one chunk)."""
WINDOWS_IN_FLIGHT = 4
STRIDE = 8
"""Windows that lie side by side and are copied in one step, where nobody else uses the volume."""
COPY_MAX = 8 << 20
"""Bytes that are read from one leg and written to others in one go."""
MARK_INTERVAL = 2.0
"""Recovery flushes the target and moves its durable mark at least this often."""

SPARE_DELAY = 30.0
SPARE_DELAY_MAX = 86400.0
SHARED_SPARES_MAX = 64
"""Spares that a pool's volumes share."""
BACKLOG_MAX = 16383
"""Writes that a write-mostly leg may be behind; md's bound."""
BACKLOG_BYTES_MAX = 64 << 20
FAILFAST_TIMEOUT = 1.0
MAX_READ_ERRORS = 20
"""md's default."""
MAX_READ_ERRORS_MAX = (1 << 31) - 1
BAD_BLOCKS_MAX = 500
"""Entries of a leg's bad-block list."""
NARROWED_BLOCKS_MAX = 1024
"""A write of more blocks that fails is not tried again block by block: the leg is failed."""
NARROWED_BAD_MAX = 64
"""Blocks of one write that a leg may refuse; with more, it is the leg that is bad."""
MENDS_WAITING_MAX = 64
"""Read errors that wait to be mended; others are met again by the next read."""
SPEED_MIN, SPEED_MAX = 1000, 200_000
"""Floor and ceiling of recovery and scrubs, KiB/s; md's defaults."""

SPEED_SET_MAX = (1 << 31) - 1
"""What either may be set to."""
BACKOFF_MIN, BACKOFF_MAX = 1.0, 16.0
"""How long background copying rests beside foreground I/O, in times that its last step took."""
MISMATCHES_MAX = 1000
"""Places where legs differ that a volume remembers."""
SCAN_DEPTH = 8
SCAN_MAX = 100_000
"""Folders below one another, and files in all, that a search for legs looks at."""

EVENTS_KEPT = 1000
CONTROL_WRITE_MAX = 64 << 10
CONTROL_READ_MAX = 64 << 10
"""One reply to a read of a control file (an ordinary user's socket takes no more at once)."""
DISCARD_MAX = 1 << 30
"""Bytes of one discard on a leg: devices may take their time, and a leg that is late is failed."""
REQUEST_MAX = 1 << 20
"""Largest WRITE or READ that the kernel sends us."""
REQUEST_BUFFERS = 16
"""Buffers of requests that are kept for the next ones."""
MAX_BACKGROUND = 256
"""Asynchronous requests the kernel may have in flight on the mount: bounds buffers to this many MiB, and is
so large that one volume's stuck requests leave room for the others'."""
HOLES_DELAY = 0.05
"""Seconds from a discard to the flush after which its holes count: one flush serves many."""
HOLES_MAX = 1024
"""Runs of chunks that wait for that; others keep UNZEROED."""
LANE_POLL = 40e-6
SWITCH_INTERVAL = 0.0005
"""How long a thread may keep the interpreter while another one wants it; Python's default is 0.005."""
LANE_WIDE = 256 << 10
"""Writes of so many bytes go to the legs in parallel; for less, waking a thread costs more than a copy."""
LANE_PIECE = 32 << 10
"""The lane writes to a leg in pieces: ext4 keeps what one call writes in one folio of the page cache, and a
later 4 KiB write walks all blocks of that (measured: 3 us in one of 32 KiB, 5 to 10 in one of 1 MiB)."""
SYNC_THREADS = 16
"""Threads that sync legs for the lane; a leg that hangs keeps one of them."""
EAGER_SECONDS = 10.0
EAGER_BYTES = 8 << 20
"""For so long after an FSYNC what large writes leave behind is written back each time it is so much."""
FETCH_THREADS = 16
"""Threads that read what is not in the page cache; one leg has LEG_CALLS of them at most."""
FETCH_PATIENCE = 1.0
"""A read that takes longer than that (and LANE_STUCK) is done anew by trio, which decides about the leg."""
STREAM_READ = 64 << 10
STREAM_SLACK = 1 << 20
"""Reads of so many bytes make a stream if each begins where the last one ended, or so far from there."""
STREAM_CACHED = 4 << 20
STREAM_PAST_CACHE = 16 << 20
"""After so many bytes of a stream that were not in the page cache so many are read past it."""
LANE_STUCK = 0.25
"""A lane that is this long in one leg call is replaced."""
LOG_WAITING_MAX = 1000
"""Pieces of the log that wait for who takes it."""
LOG_LINE_MAX = 64 << 10
STATUS_LINE_MAX = 512
"""Characters of the line that the service manager is told."""
ANSWER_PATIENCE = 60.0
"""How long a mount may take until it answers for the first time."""
STOP_PATIENCE = 60.0
"""How long a stopping daemon waits for requests in flight before it gives up."""
