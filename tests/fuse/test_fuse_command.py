"""The fuse command: score files of this project and of others."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from twostream_jax import fuse, metrics, scores
from twostream_jax.fuse import command, files
from twostream_jax.fuse.__main__ import define_flags
from twostream_jax.metrics import intervals
from twostream_jax.scores import Scores, ScoresError


def make(seed, ids, strength=2.0, n=3):
  """Scores that tend to be right."""
  rng = np.random.default_rng(seed)
  labels = np.array([sum(map(ord, i)) % n for i in ids], np.int32)
  logits = rng.normal(size=(len(ids), n)) + strength * np.eye(n)[labels]
  return Scores(tuple(ids), labels, logits.astype(np.float32), "1x1")


TEST = [f"test{i}" for i in range(40)]
VALIDATION = [f"validation{i}" for i in range(60)]


@pytest.fixture
def folder(tmp_path):
  for name, seed in (("spatial", 0), ("temporal", 1)):
    scores.save_scores(tmp_path / f"{name}-test.npz", make(seed, TEST))
    scores.save_scores(
      tmp_path / f"{name}-validation.npz", make(seed + 2, VALIDATION)
    )
  return tmp_path


def run(folder, *arguments):
  values = flags.FlagValues()
  define_flags(values)
  rest = values(["fuse", *arguments])
  return command.run(values, [str(folder / name) for name in rest[1:]])


TWO = ("spatial-test.npz", "temporal-test.npz")


@pytest.mark.parametrize(
  "rule, extra",
  [
    ("average", []),
    ("average_logits", []),
    ("weighted", ["--weights=1", "--weights=3"]),
    ("fitted_weights", None),
    ("svm", None),
    ("logistic", None),
  ],
)
def test_every_rule_writes_what_it_reaches(folder, capsys, rule, extra):
  if extra is None:
    extra = [
      f"--fit={folder / f'{s}-validation.npz'}" for s in ("spatial", "temporal")
    ]
  out, fused = folder / "results.json", folder / "fused.npz"
  assert (
    run(
      folder,
      *TWO,
      f"--rule={rule}",
      f"--out={out}",
      f"--scores={fused}",
      *extra,
    )
    == 0
  )
  results = json.loads(out.read_text())
  found = scores.load_scores(fused)
  expected = metrics.classification_metrics(found.logits, found.labels)
  assert results["fusion"] == {rule: pytest.approx(expected)}
  assert list(results["streams"]) == ["spatial-test", "temporal-test"]
  assert results["videos"] == 40 and results["left_out"] == {}
  low, high = results["confidence"][rule]["top1"]
  assert low <= expected["top1"] <= high
  said = capsys.readouterr().out
  assert f"{expected['top1']:.3f}" in said and "40 videos" in said


def test_a_rule_is_not_fitted_on_what_it_is_tested_on(folder, capsys):
  flags_of = [f"--fit={folder / name}" for name in TWO]
  assert run(folder, *TWO, "--rule=svm", *flags_of) == 1
  assert "40 videos are fitted on and scored" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--rule=svm"], "needs --fit"),
    (["--weights=1", "--weights=2"], "belong together"),
    (["--rule=weighted", "--weights=1"], "1 weights for the stages"),
    (["--fit=x.npz"], "1 times --fit for 2 files"),
    (["--rule=weighted"], "belong together"),
    (["--fit_ids=x"], "no use without --fit"),
    (["--ids=list.txt"], "--ids=list.txt has no use: all files name"),
  ],
)
def test_what_is_missing_is_said(folder, capsys, monkeypatch, arguments, words):
  monkeypatch.chdir(folder)
  (folder / "list.txt").write_text("a 0\n")
  assert run(folder, *TWO, *arguments) == 1
  said = capsys.readouterr().err
  assert words in said and "Traceback" not in said


def test_videos_that_do_not_match_are_refused_or_listed(folder, capsys):
  other = make(5, [*TEST[1:], "extra"])
  scores.save_scores(folder / "other.npz", other)
  assert run(folder, TWO[0], "other.npz") == 1
  assert "extra" in capsys.readouterr().err
  out = folder / "results.json"
  assert run(folder, TWO[0], "other.npz", "--common", f"--out={out}") == 0
  results = json.loads(out.read_text())
  assert results["videos"] == 39
  assert results["left_out"] == {"spatial-test": ["test0"], "other": ["extra"]}
  said = capsys.readouterr().out
  assert "Only in other, left out: extra" in said


def test_files_to_fit_on_are_aligned_by_class_names_and_named(folder, capsys):
  def named(name, order):
    own = scores.load_scores(folder / f"{name}.npz")
    turned = dataclasses.replace(
      own,
      labels=np.argsort(order).astype(np.int32)[own.labels],
      logits=own.logits[:, order],
      class_names=tuple("xyz"[i] for i in order),
    )
    scores.save_scores(folder / f"{name}-{order[0]}.npz", turned)
    return f"{name}-{order[0]}.npz"

  straight, turned = [0, 1, 2], [2, 0, 1]
  test = [named(name.removesuffix(".npz"), straight) for name in TWO]
  found = []
  for order in (straight, turned):
    fit = [named(f"{s}-validation", order) for s in ("spatial", "temporal")]
    out = folder / "out.json"
    flags_of = [f"--fit={folder / name}" for name in fit]
    assert run(folder, *test, "--rule=svm", f"--out={out}", *flags_of) == 0
    found.append(json.loads(out.read_text())["fusion"])
  assert found[0] == found[1]
  other = dataclasses.replace(make(5, VALIDATION[1:]), class_names=tuple("xyz"))
  scores.save_scores(folder / "fewer.npz", other)
  flags_of = [f"--fit={folder / name}" for name in (fit[0], "fewer.npz")]
  assert run(folder, *test, "--rule=svm", *flags_of) == 1
  said = capsys.readouterr().err
  assert "'spatial-validation-2' and 'fewer' do not score the same" in said


def test_files_of_other_weights_or_videos_are_fused_with_a_warning(folder):
  def state(name, **digests):
    path = folder / f"{name}.npz"
    found = dataclasses.replace(scores.load_scores(path), **digests)
    scores.save_scores(path, found)

  fused = folder / "fused.npz"
  both = ("spatial", "temporal")
  fit = [f"--fit={folder / f'{name}-validation.npz'}" for name in both]
  arguments = (*TWO, "--rule=logistic", f"--scores={fused}", *fit)
  for name in both:
    state(f"{name}-test", weights=name, videos="test")
    state(f"{name}-validation", weights=name, videos="validation")
  assert run(folder, *arguments) == 0  # Without a warning.
  found = scores.load_scores(fused)
  assert found.videos == "test"
  assert found.weights not in ("", *both)

  state("temporal-validation", weights="temporal, trained again")
  with pytest.warns(UserWarning, match="temporal-test .*different weights"):
    assert run(folder, *arguments) == 0
  state("temporal-validation", weights="")  # It does not say.
  assert run(folder, *arguments) == 0

  state("temporal-test", videos="test, built again")
  with pytest.warns(UserWarning, match="spatial-test and temporal-test are"):
    assert run(folder, *arguments) == 0
  assert scores.load_scores(fused).videos == ""
  state("temporal-test", videos="test")
  state("temporal-validation", videos="built again")
  with pytest.warns(UserWarning, match="files of --fit for spatial-test and"):
    assert run(folder, *arguments) == 0


def test_a_part_of_the_videos_has_no_digest():
  one = dataclasses.replace(make(0, TEST), weights="a", videos="all")
  other = dataclasses.replace(make(1, TEST[1:]), videos="others")
  kept, _ = files.common_videos({"a": one, "b": other})
  assert (kept["a"].videos, kept["a"].weights) == ("", "a")
  assert kept["b"].videos == "others"
  assert scores.digests(kept) == {"weights": "", "videos": ""}


def test_files_without_ids_take_them_from_a_list(folder, capsys):
  own = scores.load_scores(folder / TWO[1])
  np.save(folder / "theirs.npy", scores.softmax(own.logits))
  lines = [f"{i} {k}\n" for i, k in zip(own.ids, own.labels, strict=True)]
  (folder / "list.txt").write_text("".join(lines))
  assert run(folder, TWO[0], "theirs.npy") == 1
  assert "theirs.npy: it does not name its videos" in capsys.readouterr().err
  assert run(folder, *TWO) == 0
  expected = capsys.readouterr().out.replace("temporal-test", "theirs")
  arguments = [TWO[0], "theirs.npy", f"--ids={folder / 'list.txt'}"]
  assert run(folder, *arguments) == 0
  assert capsys.readouterr().out.split() == expected.split()


def test_ids_do_not_reach_the_terminal_as_codes(folder, capsys):
  scores.save_scores(folder / "other.npz", make(5, [*TEST, "a\x1b[2J"]))
  assert run(folder, TWO[0], "other.npz", "--common") == 0
  said = capsys.readouterr().out
  assert r"left out: a\x1b[2J" in said and "\x1b" not in said


def test_metrics_that_can_not_be_had_name_the_file(tmp_path, capsys):
  for name in ("a", "b"):
    none = np.zeros((2, 3), bool)
    scores.save_scores(
      tmp_path / f"{name}.npz", Scores(("x", "y"), none, np.eye(2, 3), "")
    )
  assert run(tmp_path, "a.npz", "b.npz") == 1
  assert "fuse: a: no class has a positive video" in capsys.readouterr().err


def test_probabilities_of_others_are_fused_like_our_own(folder):
  ours = scores.load_scores(folder / TWO[1])
  order = np.random.default_rng(0).permutation(len(TEST))
  np.savez(
    folder / "theirs.npz",
    ids=np.array(ours.ids)[order].astype(bytes),
    labels=ours.labels[order].astype(np.int64),
    probabilities=scores.softmax(ours.logits)[order],
  )
  found = files.read_file(folder / "theirs.npz")
  assert found.protocol == "not stated"
  ours_fused, theirs_fused = (
    fuse.average({"a": scores.load_scores(folder / TWO[0]), "b": b})
    for b in (ours, found)
  )
  np.testing.assert_allclose(
    scores.softmax(ours_fused.logits),
    scores.softmax(theirs_fused.logits),
    atol=1e-6,
  )


def test_multi_label_probabilities_are_read(tmp_path):
  probabilities = np.array([[0.0, 0.25], [1.0, 0.5]])
  np.savez(
    tmp_path / "a.npz",
    ids=["x", "y"],
    labels=[[0, 1], [1, 1]],
    probabilities=probabilities,
  )
  found = files.read_file(tmp_path / "a.npz")
  assert found.multi_label
  np.testing.assert_allclose(
    scores.probabilities(found), probabilities, atol=1e-6
  )


@pytest.mark.parametrize(
  "arrays, match",
  [
    ({"labels": [0, 1]}, "needs 'ids'"),
    ({"probabilities": [[0.5, 0.2], [0.5, 0.5]]}, "add up to 1 but for 0.3"),
    ({"probabilities": [[1.5, -0.5], [0.5, 0.5]]}, "must be in 0..1"),
    ({"logits": [[1.0, 2.0]]}, "do not belong together"),
  ],
)
def test_files_that_can_not_be_read_say_why(tmp_path, arrays, match):
  whole = {"ids": ["a", "b"], "labels": [0, 1]} if len(arrays) == 1 else {}
  if "labels" in arrays:
    whole = {}
  np.savez(tmp_path / "a.npz", **whole, **arrays)
  with pytest.raises(ScoresError, match=match):
    files.read_file(tmp_path / "a.npz")


def test_a_pickle_is_not_opened(tmp_path):
  np.save(tmp_path / "a.npy", np.array([{"ids": 1}], dtype=object))
  (tmp_path / "a.npy").rename(tmp_path / "a.npz")
  with pytest.raises(ScoresError, match="holds Python objects"):
    files.read_file(tmp_path / "a.npz")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
  paths = [str(tmp_path / run / "spatial-test.npz") for run in ("a", "b")]
  names = list(files.named_files(paths))
  assert [
    name.endswith(f"{r}/spatial-test")
    for name, r in zip(names, "ab", strict=True)
  ] == [True] * 2
  with pytest.raises(ScoresError, match="twice"):
    files.named_files([paths[0], paths[0]])


def test_resamples_without_a_positive_are_drawn_again():
  logits = np.eye(2)[np.arange(50) % 2]
  several = np.zeros((50, 2), bool)
  several[0, 0] = True
  found = intervals.metric_intervals(logits, several, resamples=50)
  assert found["map"][0] <= found["map"][1] <= 1
