"""Which checkpoint counts, and when a stage ends for want of a better."""

import pytest

from twostream_jax.selection import Selection


def records(metric, values):
  return [
    {"step": step, "split": "validation", metric: value}
    for step, value in enumerate(values, start=1)
  ]


@pytest.mark.parametrize(
  "metric, values, over_after",
  [
    ("accuracy", [0.1, 0.3, 0.2, 0.3], 4),
    ("accuracy", [0.1, 0.2, 0.1, 0.3, 0.4], None),
    ("loss", [3.0, 2.0, 2.5, 2.1], 4),
    ("map", [0.5, 0.4, 0.6, 0.5, 0.6], 5),
  ],
)
def test_two_validations_without_a_better_one_end_it(
  metric, values, over_after
):
  selection, best = Selection(metric, 2), None
  for record in records(metric, values):
    assert not selection.is_over()
    score = selection.add(record["step"], record)
    # Of equals the first is the best.
    value = (-1 if metric == "loss" else 1) * record[metric]
    if best is None or value > best:
      assert score == (best := value)
    else:
      assert score is None
    if record["step"] == over_after:
      break
  assert selection.is_over() == (over_after is not None)


def test_it_goes_on_from_the_records_of_a_run_up_to_a_step():
  found = records("accuracy", [0.3, 0.2, 0.1, 0.9])
  found.append({"step": 2, "split": "train", "accuracy": 1.0})
  assert not Selection("accuracy", 2, found, last_step=2).is_over()
  assert Selection("accuracy", 2, found, last_step=3).is_over()
  assert not Selection("accuracy", 2, found, last_step=4).is_over()


def test_what_is_not_a_number_is_never_the_best():
  selection = Selection("loss", 2)
  scores = [
    selection.add(record["step"], record)
    for record in records("loss", [float("nan"), 3.0, float("nan"), 2.0])
  ]
  assert scores == [None, -3.0, None, -2.0]


def test_nothing_is_followed_without_a_metric():
  selection = Selection("", 0)
  assert selection.add(1, {"accuracy": 0.5}) is None
  assert not selection.is_over()


def test_a_metric_that_is_not_validated_is_named():
  with pytest.raises(ValueError, match="metric='map'.*'accuracy', 'loss'"):
    Selection("map", 0).add(3, {"accuracy": 0.1, "loss": 1.0})


@pytest.mark.parametrize(
  "metric, patience, match",
  [
    ("top1", 0, "metric='top1'"),
    ("loss", -1, "patience=-1"),
    ("", 3, "patience=3 needs"),
  ],
)
def test_settings_that_can_not_work_are_named(metric, patience, match):
  with pytest.raises(ValueError, match=match):
    Selection(metric, patience)
