"""PKU-MMD's label rows -> samples: what of a recording becomes a clip, and what is odd about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from skelpipe.manifest import Part, PkuDataset

from .archive import Member
from .listing import Action, Clip, Row, Unit
from .pku import span

_VIEWS = "LMR"  # of cameras 1, 2, 3
_FRAME = 300  # bytes of a body in a frame, as stored
_ENTRY = 2 << 10  # and of a sample beside its positions


@dataclass(frozen=True)
class Cutting:
    """How recordings become samples.

    A sample is what one label row says: frames from start to before end, counted from 0, as MAMP,
    CMD and PCM3 have it, of which the first ``dataset.longest`` are kept. Frames that the recording
    lacks are left away, at either end. A sample in which nobody is seen is none ("empty clip", as
    the pipelines reject it): MAMP drops these too, CMD and PCM3 keep one.

    Attributes:
        dataset: The phase.
        whole: A recording is one sample, with all its actions, for detection.
        swapped: A row that starts after its end takes the frames between all the same; otherwise
            none, as published, which makes it an empty clip.
    """

    dataset: PkuDataset
    whole: bool
    swapped: bool

    def unit(
        self, name: str, member: Member, rows: Sequence[Action], parts: Mapping[str, Part]
    ) -> tuple[Unit | None, list[Row]]:
        """A recording with its samples, None where it has none, and what is rejected of it.

        Counted as odd are rows that start after their end, before the first frame, or before a row
        that starts no later has ended, and clips cut to the longest; of whole recordings also
        actions that there are not, which are left out.
        """
        last = len(self.dataset.classes)
        known = {number: row for number, row in enumerate(rows) if 1 <= row[0] <= last}
        odd = self._odd(list(known.values()))
        rejected: list[Row] = []
        if self.whole:
            odd["action out of range"] = len(rows) - len(known)
            clips = [self._clip(name, name, -1, actions=tuple(known.values()))]
        else:
            for number, (action, *_) in enumerate(rows):
                if number not in known:
                    reason = f"action out of range: found {action}, expected 1-{last}"
                    rejected.append((f"{name}-{number:03}", member.source, reason))
            if not rows:
                rejected.append((name, member.source, "no label rows"))
            clips = [
                self._clip(name, f"{name}-{number:03}", row[0] - 1, frames=self._frames(row))
                for number, row in known.items()
            ]
        if not clips:
            return None, rejected
        unit = Unit(
            member=member,
            parts=parts,
            clips=tuple(clips),
            size=member.size,
            stored=member.size // 2 if self.whole else sum(map(self._stored, clips)),
            odd=tuple(sorted((+odd).items())),
        )
        return unit, rejected

    def _clip(
        self,
        name: str,
        key: str,
        label: int,
        *,
        frames: tuple[int, int] | None = None,
        actions: tuple[Action, ...] | None = None,
    ) -> Clip:
        match = re.fullmatch(self.dataset.names, name, re.ASCII)
        assert match is not None
        told = match.groupdict()
        return Clip(
            key=key,
            label=label,
            subject=int(told.get("subject", 0)),
            camera=_VIEWS.index(told["view"]) + 1,
            setup=int(told["setup"]),
            frames=frames,
            actions=actions,
        )

    def _frames(self, row: Action) -> tuple[int, int]:
        start, end = span(row, self.swapped)
        start = max(start, 0)
        return start, min(max(end, 0), start + self.dataset.longest)

    def _stored(self, clip: Clip) -> int:
        assert clip.frames is not None
        start, end = clip.frames
        bodies = 1 + (clip.label + 1 in self.dataset.mutual)
        return max(end - start, 0) * bodies * _FRAME + _ENTRY

    def _odd(self, rows: Sequence[Action]) -> Counter[str]:
        spans = sorted(span(row, self.swapped) for row in rows)
        upright = [(start, end) for start, end in spans if start < end]
        reached = accumulate((end for _, end in upright), max)
        odd = Counter(
            {
                f"start after end{', swapped' if self.swapped else ''}": sum(
                    start > end for _, start, end, _ in rows
                ),
                "label before the start": sum(start < 0 for start, _ in spans),
                "label rows overlap": sum(
                    start < before for (start, _), before in zip(upright[1:], reached, strict=False)
                ),
            }
        )
        if not self.whole:
            longest = self.dataset.longest
            odd[f"cut to {longest} frames"] = sum(
                end - max(start, 0) > longest for start, end in upright
            )
        return odd
