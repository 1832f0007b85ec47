"""The pyfuse3 side of the mount: names, attributes, control files, and images of legs that are split off.

The bytes of volumes never come here.

Who may use an image is decided by the kernel, from its mode and owner.  Control files are written by root and
who mounted the pool alone, whatever the kernel was told: whoever opens one to write is asked for here, too.

Every handler goes through `guarded`: an exception that pyfuse3 does not expect would end the whole mount.
"""

import errno
import functools
import logging
import os
import select
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyfuse3

from mirrorfs import limits
from mirrorfs.errors import Refused
from mirrorfs.events import EventLog
from mirrorfs.fs.control import parse
from mirrorfs.fs.pagecache import ImageCache, PageCaches
from mirrorfs.fs.tree import ROOT, Kind, Node, Tree
from mirrorfs.intent.states import UNWRITTEN
from mirrorfs.pool import Entry, Pool

log = logging.getLogger(__name__)
F = TypeVar('F', bound=Callable[..., Awaitable[Any]])
_REASON_MAX = 1000
"""Characters of a refusal in an event: it may quote what was written."""


def guarded(*kinds: type | None) -> Callable[[F], F]:
    """Make a handler raise nothing but FUSEError, and return nothing but one of `kinds` (None: nothing)."""

    def decorate(handler: F) -> F:
        @functools.wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                args[0].fault(handler.__name__)
                result = await handler(*args, **kwargs)
            except pyfuse3.FUSEError:
                raise
            except Refused as refusal:
                raise pyfuse3.FUSEError(refusal.errno) from None
            except OSError as failure:
                raise pyfuse3.FUSEError(failure.errno or errno.EIO) from None
            except Exception:
                log.critical('unexpected error in %s', handler.__name__, exc_info=True)
                raise pyfuse3.FUSEError(errno.EIO) from None
            if not any(result is None if kind is None else isinstance(result, kind) for kind in kinds):
                log.critical('%s returned %r', handler.__name__, type(result))
                raise pyfuse3.FUSEError(errno.EIO)
            return result

        return wrapper  # type: ignore[return-value]

    return decorate


@dataclass(slots=True)
class Handle:
    """An open file or directory.  `text`: a control file as it was when opened."""

    node: Node
    names: tuple[tuple[int, str], ...] = ()
    text: bytes = b''
    position: int = 0
    """Absolute, of an events stream: what has been read so far."""
    base: int = 0
    poll: Any = None
    cache: ImageCache | None = None
    """Of an image that is read through the page cache."""


class Names(pyfuse3.Operations):
    """Handlers; all state is in the pool and the tree."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, pool: Pool, tree: Tree, events: EventLog, caches: PageCaches | None = None) -> None:
        super().__init__()
        self._caches = caches
        self._pool = pool
        self._tree = tree
        self._events = events
        self._uid, self._gid = os.getuid(), os.getgid()
        self._handles: dict[int, Handle] = {}
        self._next = 1
        self._times: dict[int, tuple[int, int]] = {}
        self._began = time.time_ns()
        self.fault: Callable[[str], None] = lambda handler: None
        """Test hook: called with the name of each handler before it runs."""
        events.on_new = self._wake

    # Finding

    def _node(self, number: int) -> Node:
        path = self._tree.path(number)
        node = None if path is None else self._tree.node(path)
        if node is None:
            raise Refused(errno.ENOENT, 'gone')
        return node

    def _attributes(self, number: int, node: Node) -> pyfuse3.EntryAttributes:
        """Return attributes that the kernel may not cache: they change behind its back."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(number)
        attributes.attr_timeout = attributes.entry_timeout = 0
        attributes.st_uid, attributes.st_gid = self._uid, self._gid
        attributes.st_nlink = 1
        attributes.st_blksize = limits.PAGE
        accessed, modified = self._times.get(number, (self._began, self._began))
        attributes.st_atime_ns, attributes.st_mtime_ns = accessed, modified
        attributes.st_ctime_ns = self._began
        if node.kind is Kind.DIRECTORY:
            attributes.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
            attributes.st_nlink = 2
        elif node.entry:
            _image_attributes(attributes, node.entry)
            if node.split_off:
                attributes.st_mode &= ~0o222
                attributes.st_size = node.split_off.size
                attributes.st_blocks = node.split_off.written_bytes // limits.SECTOR
        elif node.file:
            attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | node.file.mode)
        return attributes

    def _require_owner(self, ctx: Any) -> None:
        """Raise Refused(EACCES) for who may not write control files."""
        if ctx.uid not in (0, self._uid):
            raise Refused(errno.EACCES, 'only root and who mounted the pool may write control files')

    @guarded(pyfuse3.EntryAttributes)
    async def lookup(self, parent_inode: Any, name: bytes, ctx: Any) -> Any:
        path = self._tree.path(parent_inode)
        if path is None:
            raise Refused(errno.ENOENT, 'gone')
        try:
            child = (*path, name.decode())
        except UnicodeDecodeError:
            raise Refused(errno.ENOENT, 'no such name') from None
        node = self._tree.node(child)
        if node is None:
            raise Refused(errno.ENOENT, 'no such name')
        return self._attributes(self._tree.number(child), node)

    @guarded(pyfuse3.EntryAttributes)
    async def getattr(self, inode: Any, ctx: Any) -> Any:
        return self._attributes(inode, self._node(inode))

    @guarded(pyfuse3.EntryAttributes)
    async def setattr(self, inode: Any, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:
        node = self._node(inode)
        if node.split_off:
            raise Refused(errno.EROFS, 'a point in time')
        if node.entry:
            await self._change_image(node.entry, attr, fields)
        elif fields.update_mode or fields.update_uid or fields.update_gid:
            raise Refused(errno.EPERM, 'modes and owners of control files are fixed')
        elif inode != ROOT:
            self._require_owner(ctx)
        if fields.update_atime or fields.update_mtime:
            accessed, modified = self._times.get(inode, (self._began, self._began))
            accessed = attr.st_atime_ns if fields.update_atime else accessed
            modified = attr.st_mtime_ns if fields.update_mtime else modified
            self._times[inode] = (accessed, modified)
        return self._attributes(inode, node)

    async def _change_image(self, entry: Entry, attr: Any, fields: Any) -> None:
        started, _ = entry.require()
        keeper = started.volume.keeper
        if fields.update_size:
            try:
                await started.volume.grow(attr.st_size)
            except Refused as refusal:
                self._events.emit('Refused', entry.name, '', f'size: {refusal}')
                raise
        if fields.update_mode or fields.update_uid or fields.update_gid:
            record = keeper.record
            keeper.record = record.but(
                mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else record.mode,
                uid=attr.st_uid if fields.update_uid else record.uid,
                gid=attr.st_gid if fields.update_gid else record.gid,
            )
            await keeper.commit()

    # Directories

    @guarded(int)
    async def opendir(self, inode: Any, ctx: Any) -> Any:
        node = self._node(inode)
        path = self._tree.path(inode)
        assert path is not None
        names = tuple((self._tree.number((*path, name)), name) for name in node.children)
        return self._open(Handle(node, names))

    @guarded(None)
    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        for at, (number, name) in enumerate(self._handles[fh].names[start_id:], start_id + 1):
            path = self._tree.path(number)
            node = self._tree.node(path) if path else None
            if node is None:
                continue
            if not pyfuse3.readdir_reply(token, os.fsencode(name), self._attributes(number, node), at):
                return

    @guarded(None)
    async def releasedir(self, fh: Any) -> None:
        self._handles.pop(fh, None)

    # Files

    def _open(self, handle: Handle) -> pyfuse3.FileHandleT:
        number = pyfuse3.FileHandleT(self._next)
        self._next += 1
        self._handles[number] = handle
        return number

    @guarded(pyfuse3.FileInfo)
    async def open(self, inode: Any, flags: int, ctx: Any) -> Any:
        """O_TRUNC means nothing here: control files have no content, images are like block devices."""
        node = self._node(inode)
        handle = Handle(node)
        if node.split_off:
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise Refused(errno.EROFS, 'a point in time')
            node.split_off.opened += 1
        elif node.entry:
            node.entry.require()
            node.entry.opened += 1
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            self._require_owner(ctx)
        if node.kind is Kind.EVENTS:
            handle.base = handle.position = self._events.start
        elif node.file and node.place and flags & os.O_ACCMODE != os.O_WRONLY:
            handle.text = await node.file.text(node.place)
        if self._caches and flags & (os.O_ACCMODE | os.O_DIRECT) == os.O_RDONLY:
            handle.cache = self._caches.of(inode)  # of images alone
        cached = handle.cache is not None
        number = self._open(handle)
        if handle.cache:
            await handle.cache.open()
        return pyfuse3.FileInfo(fh=number, direct_io=not cached, keep_cache=cached)

    @guarded(bytes)
    async def read(self, fh: Any, off: int, size: int) -> Any:
        handle = self._handles[fh]
        if handle.node.split_off:
            return await handle.node.split_off.read(off, size)
        size = min(size, limits.CONTROL_READ_MAX)
        if handle.node.kind is Kind.EVENTS:
            # Who was too slow goes on with the oldest line that is kept, and goes on from there.
            handle.base = max(handle.base, self._events.start - off)
            text = self._events.read(handle.base + off, size)
            handle.position = handle.base + off + len(text)
            return text
        return handle.text[off : off + size]

    @guarded(int)
    async def write(self, fh: Any, off: int, buf: bytes) -> Any:
        node = self._handles[fh].node
        if node.file is None or node.file.act is None or node.place is None:
            raise Refused(errno.EACCES, 'this file cannot be written')
        try:
            await node.file.act(node.place, parse(bytes(buf)))
        except (Refused, OSError) as error:
            volume = node.place.entry.name if node.place.entry else ''
            command = bytes(buf[:200]).decode(errors='replace').strip()
            self._events.emit('Refused', volume, '', f'{command!r}: {error}'[:_REASON_MAX])
            raise
        if node.place.entry and node.place.entry.started:
            # Who says that a leg is bad does not want to see its bytes again.
            await node.place.entry.started.volume.cache.settled()
        return len(buf)

    @guarded(None)
    async def release(self, fh: Any) -> None:
        handle = self._handles.pop(fh, None)
        image = handle and (handle.node.split_off or handle.node.entry)
        if image:
            image.opened -= 1
        if handle and handle.cache:
            handle.cache.close()

    @guarded(None)
    async def fsync(self, fh: Any, datasync: bool) -> None:
        return None

    @guarded(int)
    async def poll(self, inode: Any, fh: Any, poll_handle: Any, ctx: Any) -> Any:
        handle = self._handles.get(fh)
        if handle is None or handle.node.kind is not Kind.EVENTS:
            return select.POLLIN | select.POLLOUT
        handle.poll = poll_handle or handle.poll
        return select.POLLIN | select.POLLPRI if self._events.end > handle.position else 0

    def _wake(self) -> None:
        """Something happened: wake who polls the events."""
        for handle in self._handles.values():
            if handle.poll is not None:
                poll, handle.poll = handle.poll, None
                try:
                    poll.notify()
                except OSError as error:
                    log.warning('cannot wake a poller: %s', error)

    @guarded(pyfuse3.StatvfsData)
    async def statfs(self, ctx: Any) -> Any:
        """All volumes' sizes, none of it free.  (Without an answer loop devices turn discard off.)"""
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = limits.PAGE
        answer.f_blocks = sum(e.record.size for e in self._pool.entries.values() if e.record) // limits.PAGE
        answer.f_files = len(self._pool.entries)
        answer.f_namemax = limits.NAME_MAX
        return answer

    # What cannot be done: volumes come and go by control files

    async def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise pyfuse3.FUSEError(errno.EPERM)

    create = mknod = mkdir = symlink = link = rename = unlink = rmdir = _refuse


def _image_attributes(attributes: pyfuse3.EntryAttributes, entry: Entry) -> None:
    record = entry.record
    if record is None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG)
        return
    attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | record.mode)
    attributes.st_size = record.size
    if record.uid >= 0:
        attributes.st_uid = record.uid
    if record.gid >= 0:
        attributes.st_gid = record.gid
    if entry.started:
        log_ = entry.started.volume.log
        written = len(log_) - log_.count(UNWRITTEN)
        attributes.st_blocks = min(written * record.chunk_size, record.size) // limits.SECTOR
