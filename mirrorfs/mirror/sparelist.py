"""The list of spares that a pool's volumes share, and what becomes of a claim that was cut short: pure."""

import enum
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mirrorfs.errors import BadMetadata
from mirrorfs.model import NO_UUID, VolumeRecord

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """A volume is to have a spare.  `leg` is who the spare will be as its leg, new for every claim."""

    volume: uuid.UUID
    name: str
    leg: uuid.UUID


@dataclass(frozen=True, slots=True)
class ListedSpare:
    """A spare as it is durably listed.  `size` in bytes, as it was when it was given to the pool."""

    uuid: uuid.UUID
    path: str
    size: int
    claim: Claim | None = None

    def claimed(self, claim: Claim | None) -> 'ListedSpare':
        return replace(self, claim=claim)


@dataclass(frozen=True, slots=True)
class SpareList:
    """The list.  `pool` tells pools apart, wherever they lie; NO_UUID: there was none yet."""

    pool: uuid.UUID = NO_UUID
    spares: tuple[ListedSpare, ...] = ()

    def put(self, spare: ListedSpare) -> 'SpareList':
        """Return the list with a spare in the place of the one of its UUID, or added."""
        if all(other.uuid != spare.uuid for other in self.spares):
            return replace(self, spares=(*self.spares, spare))
        return replace(self, spares=tuple(spare if s.uuid == spare.uuid else s for s in self.spares))

    def without(self, spare: uuid.UUID) -> 'SpareList':
        return replace(self, spares=tuple(other for other in self.spares if other.uuid != spare))


class Fate(enum.Enum):
    """What becomes of a claim that was cut short."""

    JOINED = 'the volume has it'
    UNDONE = 'it is free again'
    UNKNOWN = 'nobody can tell'


def fate(claim: Claim, records: Iterable[VolumeRecord], *, all_known: bool) -> Fate:
    """Return what becomes of a claim.  `all_known`: whether `records` are all definitions that there are."""
    for record in records:
        if record.uuid == claim.volume:
            return Fate.UNDONE if record.slot_of(claim.leg) is None else Fate.JOINED
    return Fate.UNDONE if all_known else Fate.UNKNOWN


def encode(spares: SpareList) -> str:
    """Return a list as the JSON text of its file."""
    return json.dumps(
        {'format': FORMAT, 'pool': str(spares.pool), 'spares': [_facts(spare) for spare in spares.spares]},
        indent=1,
    )


def _facts(spare: ListedSpare) -> dict[str, Any]:
    claim = spare.claim
    return {
        'uuid': str(spare.uuid),
        'path': spare.path,
        'size': spare.size,
        'claimed': claim and {'volume': str(claim.volume), 'name': claim.name, 'leg': str(claim.leg)},
    }


def decode(text: str) -> SpareList:
    """Return the list that a file's text holds, an empty one for no text.  Raises BadMetadata."""
    if not text:
        return SpareList()
    try:
        raw = json.loads(text)
        if raw['format'] != FORMAT:
            raise BadMetadata(f'format {raw["format"]} of a list of spares is not known')
        spares = tuple(_spare(one) for one in raw['spares'])
        if len({spare.uuid for spare in spares}) < len(spares):
            raise BadMetadata('a spare is listed twice')
        return SpareList(uuid.UUID(raw['pool']), spares)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadMetadata(f'damaged list of spares: {type(error).__name__} {error}') from None


def _spare(raw: dict[str, Any]) -> ListedSpare:
    claimed, claim = raw['claimed'], None
    if claimed is not None:
        claim = Claim(uuid.UUID(claimed['volume']), str(claimed['name']), uuid.UUID(claimed['leg']))
    return ListedSpare(uuid.UUID(raw['uuid']), str(raw['path']), int(raw['size']), claim)
