"""What metrics are called, in sets of one label a clip and of any number."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Wording:
  """The words of one kind of label.

  Attributes:
    metrics: headings of the metrics in `results.json`, by key. The first is
      the one by which models are compared.
    verdict: what a model does; its first metric goes into the braces.
    changes: what fusion does to clips; their number goes into the braces.
    by_class: the figure of a class.
    curves: titles of what is drawn of `metrics.jsonl`, by key.
  """

  metrics: Mapping[str, str]
  verdict: str
  changes: str
  by_class: str
  curves: Mapping[str, str]

  @property
  def first(self) -> str:
    """Key of the metric by which models are compared."""
    return next(iter(self.metrics))


_SINGLE_LABEL = Wording(
  metrics={
    "top1": "Top-1",
    "top5": "Top-5",
    "mean_class_accuracy": "Mean class accuracy",
  },
  verdict="is right on {} of the test clips",
  changes="Fusion corrects {} clips",
  by_class="accuracy",
  curves={"loss": "Loss", "accuracy": "Accuracy"},
)
_MULTI_LABEL = Wording(
  metrics={
    "map": "Mean average precision",
    "precision_at_1": "Precision at 1",
  },
  verdict="reaches a mean average precision of {}",
  changes="Judged by the top class alone, fusion corrects {} clips",
  by_class="average precision",
  curves={
    "loss": "Loss",
    "accuracy": "Precision at 1",
    "map": "Mean average precision",
  },
)


def wording(multi_label: bool) -> Wording:
  """The words for one label a clip, or for any number of them."""
  return _MULTI_LABEL if multi_label else _SINGLE_LABEL
