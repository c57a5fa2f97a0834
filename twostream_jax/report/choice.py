"""Which clips a report shows, and what one tells about fusion."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from twostream_jax.scores import Scores, join

# In the order in which examples are taken.
KINDS = ("rescued", "broken", "agreed", "wrong")


def right(scores: Scores) -> np.ndarray:
  """Whether the class with the largest logit is true of the clip, bool [b]."""
  top = scores.logits.argmax(axis=1)
  if scores.multi_label:
    return scores.labels[np.arange(len(top)), top].astype(bool)
  return top == scores.labels


def label_of(scores: Scores, row: int) -> int | tuple[int, ...]:
  """What `Example.label` is of a clip."""
  if scores.multi_label:
    return tuple(np.flatnonzero(scores.labels[row]).tolist())
  return int(scores.labels[row])


def classes_of(label: int | tuple[int, ...]) -> tuple[int, ...]:
  """Returns the classes of a label, of one class or of several."""
  return label if isinstance(label, tuple) else (label,)


def outcome(streams_right: Sequence[bool], fused_right: bool) -> str:
  """What a clip shows.

  Returns:
    "agreed" (all are right), "rescued" (fusion is right though a stream alone
    is wrong), "broken" (fusion is wrong though a stream alone is right) or
    "wrong" (all are).
  """
  if fused_right:
    return "agreed" if all(streams_right) else "rescued"
  return "broken" if any(streams_right) else "wrong"


def choose_examples(
  scores: dict[str, Scores], *, fused: str, streams: Sequence[str], count: int
) -> list[str]:
  """Picks clips that show what fusion does, good and bad.

  The four kinds of `outcome` take turns; one that runs out leaves its places
  to the others. Within a kind the clips are spread over who was wrong, then
  over classes, then taken in the order of the split: pretty ones are not
  picked. A clip of several classes is listed by the first of them; one without
  any is left out, as nothing said of it can be right.

  Args:
    scores: by name, of the same videos.
    fused: the name of the fused scores; of the only stream, if there is one.
    streams: names of the streams.
    count: how many ids to return, fewer if there are fewer videos.

  Returns:
    Distinct video ids, the same for the same arguments.

  Raises:
    ScoresError: the scores are not of the same videos.
    KeyError: a name is not in `scores`.
  """
  joined = join({name: scores[name] for name in (fused, *streams)})
  first = joined[fused]
  fused_right = right(first)
  patterns = list(
    zip(*(right(joined[name]).tolist() for name in streams), strict=True)
  )
  classes = [classes_of(label_of(first, i))[:1] for i in range(len(first.ids))]
  waiting: dict[str, list[int]] = {kind: [] for kind in KINDS}
  for i, pattern in enumerate(patterns):
    if classes[i]:
      waiting[outcome(pattern, fused_right[i])].append(i)
  chosen, seen, shown = [], Counter(), Counter()
  turn = 0
  while len(chosen) < count and any(waiting.values()):
    kind = KINDS[turn % len(KINDS)]
    turn += 1
    if not waiting[kind]:
      continue
    best = min(
      waiting[kind],
      key=lambda i: (seen[kind, patterns[i]], shown[classes[i]], i),
    )
    waiting[kind].remove(best)
    seen[outcome(patterns[best], fused_right[best]), patterns[best]] += 1
    shown[classes[best]] += 1
    chosen.append(first.ids[best])
  return chosen
